//! `madvise` advice and memory protection, as the recordings spell them.
//!
//! Simplified: advice that no recording and no guest_memfd rule needs (`MADV_DONTFORK` and the like) has no name.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The advice of an `madvise` call: the kernel's `MADV_` names in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each variant is the kernel's constant of that name")]
pub enum Advice {
    Dontneed,
    Hugepage,
    Nohugepage,
    Hwpoison,
    Remove,
    PopulateRead,
    PopulateWrite,
    Pageout,
    Collapse,
    Cold,
    SoftOffline,
    Willneed,
    Normal,
    Sequential,
    Random,
    Free,
}

impl Advice {
    /// Every advice with the word that traces and scenarios use for it.
    pub const ALL: [(&'static str, Advice); 16] = [
        ("dontneed", Advice::Dontneed),
        ("hugepage", Advice::Hugepage),
        ("nohugepage", Advice::Nohugepage),
        ("hwpoison", Advice::Hwpoison),
        ("remove", Advice::Remove),
        ("populate_read", Advice::PopulateRead),
        ("populate_write", Advice::PopulateWrite),
        ("pageout", Advice::Pageout),
        ("collapse", Advice::Collapse),
        ("cold", Advice::Cold),
        ("soft_offline", Advice::SoftOffline),
        ("willneed", Advice::Willneed),
        ("normal", Advice::Normal),
        ("sequential", Advice::Sequential),
        ("random", Advice::Random),
        ("free", Advice::Free),
    ];

    /// The word that traces and scenarios use for it.
    pub fn name(self) -> &'static str {
        Advice::ALL.iter().find(|(_, advice)| *advice == self).expect("the list is complete").0
    }
}

bitflags::bitflags! {
    /// The protection of a mapping. In traces and scenarios: the letters of `rwx`, or none.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Prot: u8 {
        /// `PROT_READ`
        const READ = 1;
        /// `PROT_WRITE`
        const WRITE = 2;
        /// `PROT_EXEC`
        const EXEC = 4;
    }
}

impl Prot {
    /// The protection that these letters mean, if each is one of `rwx` and none comes twice.
    ///
    /// ```
    /// use gmem::ops::Prot;
    /// assert_eq!(Prot::from_letters("rw"), Some(Prot::READ | Prot::WRITE));
    /// assert_eq!(Prot::from_letters("rq"), None);
    /// ```
    pub fn from_letters(letters: &str) -> Option<Prot> {
        letters.chars().try_fold(Prot::empty(), |prot, letter| {
            let bit = match letter {
                'r' => Prot::READ,
                'w' => Prot::WRITE,
                'x' => Prot::EXEC,
                _ => return None,
            };
            (!prot.contains(bit)).then_some(prot | bit)
        })
    }

    /// The letters, in the order `rwx`.
    pub fn letters(self) -> String {
        [(Prot::READ, 'r'), (Prot::WRITE, 'w'), (Prot::EXEC, 'x')]
            .into_iter()
            .filter_map(|(bit, letter)| self.contains(bit).then_some(letter))
            .collect()
    }
}

impl Serialize for Prot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.letters())
    }
}

impl<'de> Deserialize<'de> for Prot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let letters = String::deserialize(deserializer)?;
        Prot::from_letters(&letters).ok_or_else(|| serde::de::Error::custom("expected letters of `rwx`"))
    }
}
