//! A page breaks while the guest is about to map it.

use super::*;
use sim_kernel::Pgoff;

#[test]
fn a_page_that_breaks_may_be_mapped_until_it_was_handled() {
    let setup = |cx: &Cx<'_>| {
        let m = Machine::new(cx, 0);
        let (_, vcpu) = m.vcpu(cx, 0);
        let fd = m.gmem(cx, PAGE_SIZE, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
        m.gmem_slot(cx, 0, 0x5000, PAGE_SIZE, fd);
        m.process.fallocate(cx, fd, FALLOC_FL_KEEP_SIZE, 0, PAGE_SIZE as i64).unwrap();
        let inode = ioctl::peek_gmem(cx, &m.process, fd).unwrap();
        cx.spawn("failure", move |cx| assert_eq!(inode.memory_failure(cx, Pgoff(0)), Err(Errno::EBUSY)));
        cx.spawn("vcpu", move |cx| {
            vcpu.set_program(cx, &[read(0x5000)]);
            let result = vcpu.run(cx).0;
            assert!(result.is_ok() || result == Err(Errno::EHWPOISON), "{result:?}");
        });
        m
    };
    race(2000, setup, |_, m| {
        let mut leafs = 0;
        m.vm.mmu().for_each_leaf(|_| leafs += 1);
        assert_eq!(leafs, 0, "INV-211: a broken page is still mapped");
    });
}
