//! The generation in MMIO entries has 18 bits: when it repeats, old entries must be gone before it can match.

use super::*;
use crate::mmio_cache::run_until_slot;

#[test]
fn mmio_entries_are_zapped_before_their_generation_returns() {
    let setup = |cx: &Cx<'_>| {
        let m = Machine::new(cx, 0);
        let (_, vcpu) = m.vcpu(cx, 0);
        // Emulation would go to address 0, where nothing is, not to the file.
        let gmem = m.gmem(cx, PAGE_SIZE, GUEST_MEMFD_FLAG_MMAP);
        vcpu.set_program(cx, &[write(0x5000)]);
        // An MMIO entry of generation 0; the next change of slots arrives at 2^18.
        assert_eq!(vcpu.run(cx).0, Ok(()));
        m.vm.memslots().set_generation(cx, 0, (1 << 18) - 2);
        let (creator, runner) = (m.clone(), m.clone());
        cx.spawn("create", move |cx| creator.gmem_slot(cx, 0, 0x5000, PAGE_SIZE, gmem));
        cx.spawn("vcpu", move |cx| run_until_slot(cx, &runner, &vcpu, 0x5000));
        m
    };
    race(3000, setup, |_, m| m.vm.check_invariants());
}
