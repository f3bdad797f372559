//! A fault that found no slot meets a leaf that another vCPU made through the slot that was just created.

use super::*;

#[test]
fn a_fault_without_slot_accepts_the_leaf_of_a_new_slot() {
    let setup = |cx: &Cx<'_>| {
        let m = Machine::new(cx, 0);
        let hva = m.anonymous(cx, PAGE_SIZE);
        for id in 0..2 {
            let (_, vcpu) = m.vcpu(cx, id);
            cx.spawn("vcpu", move |cx| {
                for _ in 0..2 {
                    vcpu.set_program(cx, &[read(0x5000)]);
                    assert_eq!(vcpu.run(cx).0, Ok(()));
                }
            });
        }
        let creator = m.clone();
        cx.spawn("create", move |cx| creator.slot(cx, 0, 0, 0x5000, PAGE_SIZE, hva).unwrap());
        m
    };
    race(6000, setup, |_, m| m.vm.check_invariants());
}
