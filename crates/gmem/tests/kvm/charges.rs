//! Kernel memory of slots comes back.

use super::*;

#[test]
fn the_memory_of_a_slot_returns_when_it_goes() {
    Sim::sequential().solo(|cx| {
        let m = Machine::with(cx, 0, MachineConfig { memory: 64 << 20, ..MachineConfig::default() });
        let create = |gpa, size| m.slot(cx, 0, KVM_MEM_LOG_DIRTY_PAGES, gpa, size, Hva(0));
        for round in 0..2000 {
            assert_eq!(create(0, 1 << 30), Ok(()), "round {round}");
            assert_eq!(create(0, 0), Ok(()));
            // The bitmap was made before the address turned out to be impossible.
            assert_eq!(create(1 << 40, 1 << 30), Err(Errno::EINVAL), "round {round}");
        }
    });
}
