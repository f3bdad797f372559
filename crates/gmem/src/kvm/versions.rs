//! Linux releases: which are modelled, how a release's full name leads to one, and what they differ in.
//!
//! A release between two modelled ones answers like the older of them. Simplified: of the stable updates, which carry fixes back, only one is told
//! apart, because it was compared with.

use sim_kernel::Errno;
use std::fmt;
use std::str::FromStr;

/// The Linux release whose rules apply.
///
/// ```
/// use gmem::KernelVersion;
/// assert_eq!("6.18.3".parse(), Ok(KernelVersion::V6_18));
/// assert_eq!("6.18.50".parse(), Ok(KernelVersion::V6_18_44));
/// assert_eq!("7.1-rc2".parse(), Ok(KernelVersion::V6_18_44));
/// assert!(KernelVersion::V6_12 < KernelVersion::V7_3);
/// assert!("6.1.170".parse::<KernelVersion>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[non_exhaustive]
pub enum KernelVersion {
    /// Linux 6.8, the first release with guest_memfd.
    V6_8,
    /// Linux 6.12, with long-term support.
    V6_12,
    /// Linux 6.18, with long-term support; the first whose guest_memfd the host can map.
    V6_18,
    /// Linux 6.18.44, a stable update of it: the kernel that was compared with live.
    V6_18_44,
    /// Linux 7.3, the release of the recordings.
    #[default]
    V7_3,
}

impl KernelVersion {
    /// Every release that is modelled, with its name, from the oldest.
    pub const ALL: [(&'static str, KernelVersion); 5] = [
        ("6.8", KernelVersion::V6_8),
        ("6.12", KernelVersion::V6_12),
        ("6.18", KernelVersion::V6_18),
        ("6.18.44", KernelVersion::V6_18_44),
        ("7.3", KernelVersion::V7_3),
    ];

    /// Major and minor number, and that of the stable update.
    const fn numbers(self) -> (u32, u32, u32) {
        match self {
            KernelVersion::V6_8 => (6, 8, 0),
            KernelVersion::V6_12 => (6, 12, 0),
            KernelVersion::V6_18 => (6, 18, 0),
            KernelVersion::V6_18_44 => (6, 18, 44),
            KernelVersion::V7_3 => (7, 3, 0),
        }
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, update) = self.numbers();
        write!(f, "{major}.{minor}")?;
        if update == 0 { Ok(()) } else { write!(f, ".{update}") }
    }
}

/// A name of a release for which there is no model.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KernelVersionError {
    /// It does not begin with two numbers.
    #[error("`{0}` is no Linux release; expected one such as 6.18 or 7.3.4")]
    NoRelease(String),
    /// It is older than guest_memfd.
    #[error("Linux {0} is older than 6.8, the first release with guest_memfd")]
    TooOld(String),
}

impl FromStr for KernelVersion {
    type Err = KernelVersionError;

    /// The newest modelled release that is not newer than the one with this name, which may be as long as `7.3.4-rt2+`.
    fn from_str(name: &str) -> Result<KernelVersion, KernelVersionError> {
        let shown = || name.chars().take(40).collect::<String>();
        let no_release = || KernelVersionError::NoRelease(shown());
        let (major, rest) = name.split_once('.').ok_or_else(no_release)?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (minor, rest) = rest.split_at(digits);
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
        let (major, minor) = number(major).zip(number(minor)).ok_or_else(no_release)?;
        // What follows is a stable update, or something that does not tell releases apart.
        let update = rest.strip_prefix('.').and_then(|rest| {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            rest[..digits].parse().ok()
        });
        let numbers = (major, minor, update.unwrap_or(0));
        if !(rest.is_empty() || rest.starts_with(['.', '-', '+', '_', '~'])) {
            return Err(no_release());
        }
        let known = KernelVersion::ALL.iter().rev().map(|(_, version)| *version);
        let mut not_newer = known.filter(|version| version.numbers() <= numbers);
        not_newer.next().ok_or_else(|| KernelVersionError::TooOld(shown()))
    }
}

/// What becomes of the bindings of a slot that is deleted while its guest_memfd is being closed, after the last reference is gone and
/// before the release has run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum UnbindOfDyingFile {
    /// Nothing: they go on naming the slot, which is freed.
    Skipped,
    /// They are erased without `invalidate_lock`.
    Unlocked,
    /// They are erased under `invalidate_lock`, as those of any file.
    Locked,
}

/// What releases differ in, each as one question. `Vn` is the row of the table in `docs/fidelity.md`, which says how sure each is.
///
/// 6.8 and 6.18 stand for the releases themselves; 6.12 stands for its later stable updates, which carry fixes that 6.18 lacked.
impl KernelVersion {
    /// V1, V2, V3. Since 6.18 a guest_memfd has creation flags, can be mapped by the host and be in slots of every VM; before, it has no
    /// flag and is for VMs with private memory.
    pub(crate) fn has_guest_memfd_flags(self) -> bool {
        self >= KernelVersion::V6_18
    }

    /// V4. What binding pages that are bound already answers: its own errno only since 7.2.
    pub(crate) fn binding_overlap(self) -> Errno {
        if self >= KernelVersion::V7_3 { Errno::EEXIST } else { Errno::EINVAL }
    }

    /// V6. Since 7.1 a slot is bound just before it is installed, after every other check; before, first of all, and unbound if another
    /// check fails.
    pub(crate) fn binds_last(self) -> bool {
        self >= KernelVersion::V7_3
    }

    /// V7. Whether offset and size of a binding are added without a sign. With one, a huge offset wraps, passes the comparison with the
    /// file's size and binds pages after its end. Fixed in 7.2, and in stable updates of 6.12.
    pub(crate) fn adds_binding_offset_unsigned(self) -> bool {
        matches!(self, KernelVersion::V6_12) || self >= KernelVersion::V7_3
    }

    /// V8. Whether a binding that cannot be stored for want of memory fails the request; otherwise the slot is installed without. Fixed
    /// in 7.2, and in stable updates of 6.12.
    pub(crate) fn handles_failed_binding(self) -> bool {
        matches!(self, KernelVersion::V6_12) || self >= KernelVersion::V7_3
    }

    /// V9. Fixed in 6.18 and in stable updates of 6.12; under the lock since 7.1.
    pub(crate) fn unbind_of_dying_file(self) -> UnbindOfDyingFile {
        match self {
            KernelVersion::V6_8 => UnbindOfDyingFile::Skipped,
            KernelVersion::V6_12 | KernelVersion::V6_18 | KernelVersion::V6_18_44 => UnbindOfDyingFile::Unlocked,
            KernelVersion::V7_3 => UnbindOfDyingFile::Locked,
        }
    }

    /// V10. Whether taking the file from a slot is followed by an RCU grace period.
    pub(crate) fn unbinding_synchronizes_rcu(self) -> bool {
        self == KernelVersion::V6_8
    }

    /// V11. Whether a page is cleared when it is allocated, also by `fallocate`, and not when it is first exposed.
    pub(crate) fn clears_at_allocation(self) -> bool {
        self == KernelVersion::V6_8
    }

    /// V14. Whether a look-up that finds a broken page forgets its reference to it. Fixed in 6.10.
    pub(crate) fn leaks_broken_pages(self) -> bool {
        self == KernelVersion::V6_8
    }

    /// V17. Whether a conversion keeps huge mappings away from the blocks that it converts in part. Fixed in 6.16, and in stable
    /// updates of 6.12.
    pub(crate) fn widens_conversions(self) -> bool {
        self >= KernelVersion::V6_12
    }

    /// V18. Whether a conversion to shared reserves entries too, which may fail for want of memory.
    pub(crate) fn reserves_to_clear_attributes(self) -> bool {
        self < KernelVersion::V7_3
    }

    /// V19b. Whether a slot may lose its guest_memfd in a request that leaves the flag out: the old slot is freed while it is bound.
    /// Fixed in 6.19, and in stable updates of 6.12 and 6.18. V28: later releases also unbind such a slot, should one appear.
    pub(crate) fn slot_may_lose_guest_memfd(self) -> bool {
        matches!(self, KernelVersion::V6_8 | KernelVersion::V6_18)
    }

    /// Whether there are SNP VMs. They came with 6.11, whose rules are those of 6.12.
    pub(crate) fn has_snp(self) -> bool {
        self >= KernelVersion::V6_12
    }

    /// Whether there are TDs. They came with 6.16; how they behave is 7.3's.
    pub(crate) fn has_tdx(self) -> bool {
        self >= KernelVersion::V6_18
    }

    /// V21. Whether there is `KVM_PRE_FAULT_MEMORY`, which came in 6.11.
    pub(crate) fn has_pre_fault_memory(self) -> bool {
        self >= KernelVersion::V6_12
    }

    /// V21. Whether pre-faulting a slot that is being deleted spins, inside the SRCU section that the deletion waits for. Since 6.18 it
    /// answers `EAGAIN`.
    pub(crate) fn pre_fault_spins_on_invalid_slot(self) -> bool {
        self == KernelVersion::V6_12
    }

    /// V22. Whether a fault is private if its frame is, whatever raised it; since 6.10 one on an MMIO entry is shared.
    pub(crate) fn mmio_fault_may_be_private(self) -> bool {
        self == KernelVersion::V6_8
    }

    /// V23. Whether executable mappings of a guest_memfd are refused as such: since 6.16, and stable updates of 6.12, those of any
    /// anonymous inode are, since 6.19 those of guest_memfd's own file system.
    pub(crate) fn guest_memfd_is_noexec(self) -> bool {
        self >= KernelVersion::V6_12
    }

    /// V23, V24. Whether `mbind` of a guest_memfd's mapping is kept with the file: since 6.19.
    pub(crate) fn guest_memfd_has_policy(self) -> bool {
        self >= KernelVersion::V7_3
    }

    /// Whether `MADV_COLLAPSE` of a range without a whole block fails. Seen on a live 6.18.44, not so in the source of 7.3; in between is
    /// a guess.
    pub(crate) fn collapse_needs_block(self) -> bool {
        self < KernelVersion::V7_3
    }

    /// V25. Whether deleting a slot zaps the whole VM, whatever its type, and no quirk can be disabled against it.
    pub(crate) fn always_zaps_all(self) -> bool {
        self == KernelVersion::V6_8
    }
}
