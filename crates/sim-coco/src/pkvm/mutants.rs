//! Rules of the hypervisor that can be switched off: checks, and what makes a race harmless (`K..` of the specification).
//!
//! They are looked up once, when the hypervisor is made ([`Pkvm::new`](super::Pkvm::new)): whoever wants one without a rule says so with
//! [`Cx::set_mutants`](sim_kernel::Cx::set_mutants) before. Numbers 416 to 449 of those that `sim-coco` has (320 to 511) are pKVM's.

use sim_kernel::{Cx, Mutant, MutantSet};

/// A descriptor that was valid is taken away without TLB maintenance for it (INV-009).
pub const NO_TLBI: Mutant = Mutant::new(416, "PKVM-NO-TLBI");
/// One valid descriptor replaces another at once.
pub const NO_BBM: Mutant = Mutant::new(417, "PKVM-NO-BBM");
/// Forced reclaim clears the page before it takes it from the guest.
pub const K05: Mutant = Mutant::new(418, "PKVM-K05");
/// Forced reclaim does not clear the page.
pub const NO_ZERO: Mutant = Mutant::new(419, "PKVM-NO-ZERO");
/// Pages of a dying VM are not cleared.
pub const DYING_NO_ZERO: Mutant = Mutant::new(420, "PKVM-DYING-NO-ZERO");
/// Forced reclaim leaves no mark.
pub const NO_POISON: Mutant = Mutant::new(421, "PKVM-NO-POISON");
/// Nobody looks whether the memcache has enough tables before the first change.
pub const K10: Mutant = Mutant::new(422, "PKVM-K10");
/// A page is its owner's alone as soon as one VM gives it back.
pub const K07: Mutant = Mutant::new(423, "PKVM-K07");
/// The host takes a page back from the hypervisor that it uses.
pub const K08: Mutant = Mutant::new(424, "PKVM-K08");
/// Pages of the host's memcache become tables as they are.
pub const K09: Mutant = Mutant::new(425, "PKVM-K09");
/// The translations of a VM that ends are never invalidated.
pub const K13: Mutant = Mutant::new(426, "PKVM-K13");
/// A vCPU of a dying VM can be loaded.
pub const K14: Mutant = Mutant::new(427, "PKVM-K14");
/// Teardown does not look who uses the VM.
pub const K12: Mutant = Mutant::new(428, "PKVM-K12");
/// The host's stage 2 is filled with blocks over pages that are not the host's.
pub const K16: Mutant = Mutant::new(429, "PKVM-K16");
/// Donation looks at the page before it has the host's lock.
pub const K06: Mutant = Mutant::new(430, "PKVM-K06");
/// Forced reclaim takes any page of a guest, whatever it did with it.
pub const K04: Mutant = Mutant::new(431, "PKVM-K04");
/// Anything can be donated to a guest, memory or not.
pub const DONATES_MMIO: Mutant = Mutant::new(432, "PKVM-DONATES-MMIO");
/// A block is shared page by page, until one cannot be.
pub const PARTIAL_SHARE: Mutant = Mutant::new(433, "PKVM-PARTIAL-SHARE");
/// A page that is shared with somebody else than VMs is shared with a VM.
pub const SHARES_SHARED: Mutant = Mutant::new(434, "PKVM-SHARES-SHARED");
/// A guest takes back a page of which the host keeps its mapping.
pub const UNSHARE_KEEPS_HOST: Mutant = Mutant::new(435, "PKVM-UNSHARE-KEEPS-HOST");
/// Whether a page is poisoned is told after any abort.
pub const ORACLE: Mutant = Mutant::new(436, "PKVM-ORACLE");
/// The table of VMs is not locked while a page is taken by force.
pub const K03: Mutant = Mutant::new(437, "PKVM-K03");

/// All of them.
pub const ALL: [Mutant; 22] = [
    NO_TLBI,
    NO_BBM,
    K05,
    NO_ZERO,
    DYING_NO_ZERO,
    NO_POISON,
    K10,
    K07,
    K08,
    K09,
    K13,
    K14,
    K12,
    K16,
    K06,
    K04,
    DONATES_MMIO,
    PARTIAL_SHARE,
    SHARES_SHARED,
    UNSHARE_KEEPS_HOST,
    ORACLE,
    K03,
];

/// Those that are on in this simulation.
pub(super) fn chosen(cx: &Cx<'_>) -> MutantSet {
    ALL.into_iter().filter(|mutant| cx.has_mutant(*mutant)).collect()
}
