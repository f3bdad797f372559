//! Dirty logging of a slot that cannot be written.

use super::*;
use sim_mmu::Level;

#[test]
fn logging_a_readonly_slot_changes_nothing_that_is_mapped() {
    const SIZE: u64 = 2 << 20;
    Sim::sequential().solo(|cx| {
        let m = Machine::new(cx, 0);
        let (_, vcpu) = m.vcpu(cx, 0);
        let hva = m.anonymous(cx, SIZE);
        m.process.write_u32(cx, hva, 7).unwrap();
        m.slot(cx, 0, KVM_MEM_READONLY, SIZE, SIZE, hva).unwrap();
        vcpu.set_program(cx, &[read(SIZE)]);
        assert_eq!(vcpu.run(cx).0, Ok(()));
        m.slot(cx, 0, KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES, SIZE, SIZE, hva).unwrap();
        let mut levels = Vec::new();
        m.vm.mmu().for_each_leaf(|leaf| levels.push(leaf.level));
        assert_eq!(levels, [Level::L2M], "the huge leaf was split");
    });
}
