//! INV-501 to INV-506: locks, waits, and that every operation ends.

use super::snapshot::Snapshot;
use super::{Check, Holds, Invariant, Section, When, holds};
use sim_kernel::sched::{Access, LockEdge, LockOrder};

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "INV-501",
        section: Section::Progress,
        text: "Nobody waits in a circle: through locks, page locks, SRCU grace periods and the wait for open notifiers.",
        window: "",
        when: &[When::Step, When::Locks],
        check: Check::Locks(inv_501),
        note: "A deadlock that is met ends the execution. One that was not met is a circle in the order of locks; memory failure inside a folio lock, which Linux has, is left out of it.",
    },
    Invariant {
        id: "INV-502",
        section: Section::Progress,
        text: "An operation ends with every lock released that it took, and outside every read section that it entered.",
        window: "",
        when: &[When::Operation, When::Quiescence],
        check: Check::State(inv_502),
        note: "Also when a task ends.",
    },
    Invariant {
        id: "INV-503",
        section: Section::Progress,
        text: "Locks are taken in the order of docs/locks.md.",
        window: "",
        when: &[When::Locks],
        check: Check::Locks(inv_503),
        note: "But for memory failure inside a folio lock, which Linux has.",
    },
    Invariant {
        id: "INV-504",
        section: Section::Progress,
        text: "Nobody sleeps with mmu_lock, a spinlock or an RCU read section held.",
        window: "",
        when: &[When::Locks, When::Point],
        check: Check::Locks(inv_504),
        note: "RCU read sections by the watch.",
    },
    Invariant {
        id: "INV-505",
        section: Section::Progress,
        text: "The last put of a file runs its release with no lock of KVM held and outside SRCU.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "When a guest_memfd is released: nothing is held but vcpu->mutex.",
    },
    Invariant {
        id: "INV-506",
        section: Section::Progress,
        text: "A fault beside which nothing is invalidated ends, after one retry at most because its root was stale.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "A vCPU counts retries in a row that nothing explains: no invalidation, no change of slots, no stale root; of a TD, no change of the Secure EPT and no SEAMCALL of another task. 16 are allowed, which other faults may win. An execution that never ends is judged by `sched::fair_tail`.",
    },
];

/// What is known of a class of locks.
struct LockClass {
    name: &'static str,
    /// Place in the order of docs/locks.md: a larger one is taken inside a smaller one.
    rank: u32,
    /// Whether its holder may sleep: take a lock that sleeps, wait, synchronise.
    sleeps: bool,
}

/// The order of docs/locks.md. Classes that are not here are ordered by nobody.
static ORDER: &[LockClass] = &[
    LockClass { name: "vmm->vcpu", rank: 0, sleeps: true },
    LockClass { name: "kvm->lock", rank: 1, sleeps: true },
    LockClass { name: "vcpu->mutex", rank: 2, sleeps: true },
    LockClass { name: "guest_req_mutex", rank: 3, sleeps: true },
    LockClass { name: "snp_vmsa_mutex", rank: 4, sleeps: true },
    LockClass { name: "slots_lock", rank: 5, sleeps: true },
    LockClass { name: "slots_arch_lock", rank: 6, sleeps: true },
    LockClass { name: "config_lock", rank: 7, sleeps: true },
    LockClass { name: "sev_bitmap_lock", rank: 8, sleeps: true },
    LockClass { name: "sev_deactivate_lock", rank: 9, sleeps: true },
    LockClass { name: "tdx_lock", rank: 10, sleeps: true },
    LockClass { name: "tdx_guest_keyid_pool", rank: 11, sleeps: true },
    LockClass { name: "mmap_lock", rank: 12, sleeps: true },
    LockClass { name: "i_rwsem", rank: 13, sleeps: true },
    LockClass { name: "invalidate_lock", rank: 14, sleeps: true },
    LockClass { name: "folio_lock", rank: 15, sleeps: true },
    LockClass { name: "psp", rank: 16, sleeps: true },
    LockClass { name: "i_mmap_rwsem", rank: 17, sleeps: true },
    LockClass { name: "mn_invalidate_lock", rank: 18, sleeps: false },
    LockClass { name: "mmu_lock", rank: 19, sleeps: false },
    LockClass { name: "tdp_mmu_pages_lock", rank: 20, sleeps: false },
    LockClass { name: "page_table_lock", rank: 21, sleeps: false },
    LockClass { name: "i_pages", rank: 22, sleeps: false },
    LockClass { name: "pamt_lock", rank: 23, sleeps: false },
    LockClass { name: "vm_table_lock", rank: 24, sleeps: false },
    LockClass { name: "host_mmu.lock", rank: 25, sleeps: false },
    LockClass { name: "pkvm_pgd_lock", rank: 26, sleeps: false },
    LockClass { name: "vm->lock", rank: 27, sleeps: false },
];

/// The classes with their ranks, as docs/locks.md has them.
pub fn ranks() -> impl Iterator<Item = (&'static str, u32)> {
    ORDER.iter().map(|class| (class.name, class.rank))
}

fn class(name: &str) -> Option<&'static LockClass> {
    ORDER.iter().find(|class| class.name == name)
}

/// The one exception that is the reference's own: memory failure takes `invalidate_lock` inside a folio lock
/// (`kvm_gmem_error_folio`), a deadlock that Linux has.
fn is_known(edge: &LockEdge) -> bool {
    (&*edge.from, &*edge.to) == ("folio_lock", "invalidate_lock")
}

/// The shortest circle in the order of locks that Linux does not have.
pub fn circle(order: &LockOrder) -> Option<Vec<LockEdge>> {
    order.circle(|edge| !is_known(edge))
}

/// No circle in the order of locks, whether or not anybody met it.
pub fn inv_501(order: &LockOrder) -> Holds {
    let Some(circle) = circle(order) else { return Ok(()) };
    let lines: Vec<String> = circle.iter().map(|edge| format!("\n  {edge}")).collect();
    Err(format!("a possible deadlock through {} classes of locks:{}", circle.len(), lines.concat()))
}

/// Nothing is held while nothing happens.
pub fn inv_502(shot: &Snapshot) -> Holds {
    let held = shot.held.first().filter(|_| shot.quiescent);
    held.map_or(Ok(()), |lock| Err(format!("{lock} is held while nothing happens")))
}

/// Every edge goes down the order.
pub fn inv_503(order: &LockOrder) -> Holds {
    for edge in order.edges().iter().filter(|edge| !is_known(edge)) {
        let (Some(from), Some(to)) = (class(&edge.from), class(&edge.to)) else { continue };
        holds!(from.rank < to.rank, "against the order of docs/locks.md: {edge}");
    }
    Ok(())
}

/// Nobody sleeps in a spinning lock.
pub fn inv_504(order: &LockOrder) -> Holds {
    for edge in order.edges().iter().filter(|edge| class(&edge.from).is_some_and(|class| !class.sleeps)) {
        // Kicking vCPUs out of the guest is waiting for other processors, not sleeping; so is what RCU readers are waited for in there.
        let sleeps = match edge.to_access {
            Access::Wait => edge.to != "vcpu_kick_wait",
            Access::Synchronize => true,
            _ => class(&edge.to).is_some_and(|class| class.sleeps),
        };
        holds!(!sleeps, "{edge}; it sleeps there");
    }
    Ok(())
}

/// A task that is in an RCU read section, as `(what it holds, what it wants)`, does not sleep; see [`super::watch`].
pub fn inv_504_rcu(is_in_rcu: bool, access: Access, wanted: &str) -> Holds {
    let sleeps = match access {
        Access::Wait => wanted != "vcpu_kick_wait",
        Access::Synchronize => true,
        access => access.is_acquire() && class(wanted).is_some_and(|class| class.sleeps),
    };
    holds!(!(is_in_rcu && sleeps), "{wanted} is waited for inside an RCU read section");
    Ok(())
}
