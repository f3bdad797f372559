//! How far a pre-fault got is what it mapped, not what is left of it a moment later.

use super::*;
use sim_kernel::Pgoff;

#[test]
fn a_prefault_reports_only_pages_that_it_populated() {
    const PAGES: u64 = 4;
    let setup = |cx: &Cx<'_>| {
        let m = Machine::new(cx, 0);
        let (fd, _) = m.vcpu(cx, 0);
        let flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
        let gmem = m.gmem(cx, PAGES * PAGE_SIZE, flags);
        m.gmem_slot(cx, 0, 0, PAGES * PAGE_SIZE, gmem);
        let inode = ioctl::peek_gmem(cx, &m.process, gmem).unwrap();
        let prefaulter = m.clone();
        cx.spawn("prefault", move |cx| {
            let mut range = kvm_pre_fault_memory { gpa: 0, size: PAGES * PAGE_SIZE, ..Default::default() };
            let result = ioctl::pre_fault_memory(cx, &prefaulter.process, fd, &mut range);
            assert_eq!(result, Ok(()));
            for page in 0..range.gpa / PAGE_SIZE {
                let cached = inode.mapping().peek(Pgoff(page));
                assert!(cached.is_some(), "page {page} was reported as populated");
            }
        });
        let deleter = m.clone();
        let other = m.anonymous(cx, PAGE_SIZE);
        m.slot(cx, 1, 0, 1 << 30, PAGE_SIZE, other).unwrap();
        cx.spawn("delete", move |cx| deleter.slot(cx, 1, 0, 1 << 30, 0, other).unwrap());
        m
    };
    race(3000, setup, |_, m| m.vm.check_invariants());
}
