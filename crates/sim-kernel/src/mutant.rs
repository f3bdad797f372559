//! Mutants: rules that can be switched off, one mechanism at one line each.
//!
//! A [`Mutant`] is the name of a rule together with a number; the crate that contains the line owns the constant, and whoever
//! configures a simulation collects those that are on in a [`MutantSet`] and gives it to [`Cx::set_mutants`](crate::Cx::set_mutants).
//! The line asks [`Cx::has_mutant`](crate::Cx::has_mutant). What each mutant takes away, and what then goes wrong, is told by the
//! registry in `gmem::mutants`, which also sees to it that no number is used twice.
//!
//! Nothing of the kernel is modelled here; native runs have no mutants.

/// A rule that can be switched off.
///
/// ```
/// use sim_kernel::{Mutant, MutantSet, sched::Sim};
/// const NO_LOCK: Mutant = Mutant::new(63, "XX-01");
/// let seen = Sim::sequential().solo(|cx| {
///     let before = cx.has_mutant(NO_LOCK);
///     cx.set_mutants(MutantSet::EMPTY.with(NO_LOCK));
///     (before, cx.has_mutant(NO_LOCK))
/// });
/// assert_eq!(seen, (false, true));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mutant {
    bit: u16,
    id: &'static str,
}

impl Mutant {
    /// One more than the largest number of a mutant. By convention 0 to 63 are in `sim-kernel`, 64 to 159 in `sim-mmu`, 160 to 319 and from 464
    /// on in `gmem`, and the rest in `sim-coco`.
    pub const MAX: u16 = 512;

    /// The mutant with this number and id (`RC-01`, `BUG-25`).
    ///
    /// # Panics
    /// If the number is not below [`Mutant::MAX`]; in a constant that is a compile error.
    pub const fn new(bit: u16, id: &'static str) -> Mutant {
        assert!(bit < Mutant::MAX, "the number of a mutant is too large");
        Mutant { bit, id }
    }

    /// The id, as specifications and command lines have it.
    pub const fn id(self) -> &'static str {
        self.id
    }

    /// The number, unique among all mutants.
    pub const fn number(self) -> u16 {
        self.bit
    }
}

/// Which rules are off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct MutantSet([u64; Mutant::MAX as usize / 64]);

impl MutantSet {
    /// Every rule holds.
    pub const EMPTY: MutantSet = MutantSet([0; Mutant::MAX as usize / 64]);

    /// The set with one more rule off.
    #[must_use]
    pub const fn with(mut self, mutant: Mutant) -> MutantSet {
        self.0[mutant.bit as usize / 64] |= 1 << (mutant.bit % 64);
        self
    }

    /// Whether this rule is off.
    #[inline]
    pub const fn contains(&self, mutant: Mutant) -> bool {
        self.0[mutant.bit as usize / 64] & (1 << (mutant.bit % 64)) != 0
    }

    /// Whether every rule holds.
    pub fn is_empty(&self) -> bool {
        *self == MutantSet::EMPTY
    }
}

impl FromIterator<Mutant> for MutantSet {
    fn from_iter<I: IntoIterator<Item = Mutant>>(mutants: I) -> MutantSet {
        mutants.into_iter().fold(MutantSet::EMPTY, MutantSet::with)
    }
}
