//! Checks of the order of locks.

use gmem::invariants::check_locks;
use gmem::invariants::progress::{inv_501, inv_503, inv_504, inv_504_rcu};
use sim_kernel::sched::{Access, LockOrder, Sim};
use sim_kernel::sync::{Mutex, Srcu, WaitQueue};

/// The order that comes of taking pairs of locks, the second inside the first.
fn order(pairs: &[(&'static str, &'static str)]) -> LockOrder {
    let mut sim = Sim::sequential();
    sim.solo(|cx| {
        for &(first, second) in pairs {
            let (first, second) = (Mutex::new(cx, first, ()), Mutex::new(cx, second, ()));
            drop((first.lock(cx), second.lock(cx)));
        }
    });
    sim.lock_order()
}

#[test]
fn the_order_of_the_page_is_no_violation() {
    let down =
        order(&[("slots_lock", "slots_arch_lock"), ("invalidate_lock", "folio_lock"), ("slots_lock", "mmu_lock")]);
    assert_eq!(check_locks(&down), Ok(()));
}

#[test]
fn a_circle_is_reported_with_both_places() {
    let circle = order(&[("slots_lock", "x"), ("x", "slots_lock")]);
    let text = inv_501(&circle).unwrap_err();
    assert!(text.starts_with("a possible deadlock through 2 classes of locks:\n  slots_lock (lock at "), "{text}");
    assert_eq!(text.matches("tests/invariants/locks.rs:").count(), 4, "{text}");
    assert_eq!(check_locks(&circle).unwrap_err().id, "INV-501");
    // The one that Linux has.
    assert_eq!(inv_501(&order(&[("folio_lock", "invalidate_lock"), ("invalidate_lock", "folio_lock")])), Ok(()));
    let through =
        order(&[("folio_lock", "invalidate_lock"), ("invalidate_lock", "slots_lock"), ("slots_lock", "folio_lock")]);
    assert_eq!(inv_501(&through), Ok(()));
}

#[test]
fn a_step_up_is_reported_before_anybody_steps_down() {
    let text = inv_503(&order(&[("mmu_lock", "invalidate_lock")])).unwrap_err();
    assert!(text.starts_with("against the order of docs/locks.md: mmu_lock (lock at "), "{text}");
    assert_eq!(inv_503(&order(&[("mmu_lock", "somebody's own")])), Ok(()));
}

#[test]
fn nobody_sleeps_in_a_lock_that_spins() {
    assert!(inv_504(&order(&[("mmu_lock", "folio_lock")])).unwrap_err().ends_with("; it sleeps there"));
    assert_eq!(inv_504(&order(&[("mmu_lock", "page_table_lock"), ("folio_lock", "mmu_lock")])), Ok(()));
    let within = |queue: &'static str| {
        let mut sim = Sim::sequential();
        sim.solo(|cx| {
            let (lock, queue) = (Mutex::new(cx, "mmu_lock", ()), WaitQueue::new(cx, queue));
            let _guard = lock.lock(cx);
            queue.wait_event(cx, || true);
        });
        inv_504(&sim.lock_order())
    };
    assert_eq!(within("vcpu_kick_wait"), Ok(()));
    assert!(within("mn_memslots_update_rcuwait").is_err());
    let mut sim = Sim::sequential();
    sim.solo(|cx| {
        let (lock, srcu) = (Mutex::new(cx, "mmu_lock", ()), Srcu::new(cx, "kvm->srcu"));
        let _guard = lock.lock(cx);
        srcu.synchronize(cx);
    });
    assert!(inv_504(&sim.lock_order()).is_err());
    assert_eq!(inv_504_rcu(true, Access::LockShared, "mmu_lock"), Ok(()));
    assert_eq!(inv_504_rcu(false, Access::LockShared, "mmap_lock"), Ok(()));
    assert!(inv_504_rcu(true, Access::LockShared, "mmap_lock").is_err());
    assert!(inv_504_rcu(true, Access::Synchronize, "kvm->srcu").is_err());
}
