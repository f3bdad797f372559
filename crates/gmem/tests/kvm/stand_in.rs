//! The stand-in of a slot that is being deleted goes with the slot.

use super::*;
use sim_mmu::Gfn;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn a_stand_in_is_freed_with_its_slot() {
    let setup = |cx: &Cx<'_>| {
        let m = Machine::new(cx, KVM_X86_SW_PROTECTED_VM);
        m.slot(cx, 0, 0, 0x5000, PAGE_SIZE, Hva(0)).unwrap();
        let seen = Arc::new(parking_lot::Mutex::new(None));
        let (deleter, watcher, found) = (m.clone(), m.clone(), Arc::clone(&seen));
        cx.spawn("delete", move |cx| deleter.slot(cx, 0, 0, 0x5000, 0, Hva(0)).unwrap());
        cx.spawn("watch", move |cx| {
            for _ in 0..10 {
                let slot = watcher.vm.memslots().gfn_to_memslot(cx, 0, Gfn(5));
                if let Some(slot) = slot.filter(|slot| slot.is_invalid()) {
                    *found.lock() = Some(slot);
                }
            }
        });
        seen
    };
    let caught = std::cell::Cell::new(0);
    race(300, setup, |_, seen| {
        if let Some(slot) = seen.lock().take() {
            let live = catch_unwind(AssertUnwindSafe(|| slot.assert_live()));
            assert!(live.is_err(), "INV-401: nobody would notice a use of the stand-in");
            caught.set(caught.get() + 1);
        }
    });
    assert!(caught.get() > 0, "no schedule showed the stand-in");
}
