//! Running the checks: once, or after every step.

use super::{Check, Invariant, Snapshot, Violation, all, progress};
use crate::kvm::host::Host;
use sim_kernel::Cx;
use sim_kernel::sched::LockOrder;
use std::sync::Arc;

/// Runs every check over a picture of a host.
///
/// # Errors
/// The first invariant that does not hold.
///
/// ```
/// use gmem::invariants::{Snapshot, check};
/// use gmem::{Machine, MachineConfig};
///
/// Machine::new(MachineConfig::default()).run(|_cx, process| {
///     let snapshot = Snapshot::of(process.host(), true, Vec::new());
///     assert_eq!(check(&snapshot), Ok(()));
/// });
/// ```
pub fn check(shot: &Snapshot) -> Result<(), Violation> {
    let state = |inv: &Invariant| match inv.check {
        Check::State(check) => check(shot).err().map(|message| Violation { id: inv.id, message }),
        _ => None,
    };
    all().find_map(state).map_or(Ok(()), Err)
}

/// Judges the order in which locks were taken.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check_locks(order: &LockOrder) -> Result<(), Violation> {
    let locks = |inv: &Invariant| match inv.check {
        Check::Locks(check) => check(order).err().map(|message| Violation { id: inv.id, message }),
        _ => None,
    };
    all().find_map(locks).map_or(Ok(()), Err)
}

/// Runs every check after every step of every task of this execution, with the windows of the moment. Slow: a picture of the whole host
/// each time.
///
/// An invariant that does not hold ends the execution like an assertion of the task whose step it was.
///
/// # Panics
/// If this is not the boot task.
pub fn watch(cx: &Cx<'_>, host: &Arc<Host>) {
    let host = Arc::clone(host);
    cx.observe(move |moment| {
        if let Some(op) = moment.next() {
            let name = moment.object_name(op.object);
            let class = name.split('#').next().unwrap_or_default();
            if let Err(message) = progress::inv_504_rcu(moment.is_in_rcu(moment.task()), op.access, class) {
                panic!("INV-504: {message}");
            }
        }
        if let Err(violation) = check(&Snapshot::of(&host, false, moment.held())) {
            panic!("{violation}");
        }
    });
}
