//! Broken memory behind a plain slot.

use super::*;
use gmem::kvm::vcpu::ExitInfo;
use sim_kernel::Pgoff;

#[test]
fn broken_memory_behind_a_mapping_ends_the_run_with_a_signal() {
    let setup = |cx: &Cx<'_>| {
        let m = Machine::new(cx, 0);
        let (_, vcpu) = m.vcpu(cx, 0);
        let fd = m.gmem(cx, PAGE_SIZE, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
        let mapped = Mapped::File { fd, offset: 0 };
        let hva = m.process.mmap(cx, PAGE_SIZE, Prot::READ | Prot::WRITE, Sharing::Shared, mapped, 4096).unwrap();
        m.slot(cx, 0, 0, 0x5000, PAGE_SIZE, hva).unwrap();
        m.process.write_u32(cx, hva, 7).unwrap();
        let inode = ioctl::peek_gmem(cx, &m.process, fd).unwrap();
        assert_eq!(inode.memory_failure(cx, Pgoff(0)), Err(Errno::EBUSY));
        cx.spawn("vcpu", move |cx| {
            vcpu.set_program(cx, &[read(0x5000)]);
            assert_eq!(vcpu.run(cx), (Err(Errno::EINTR), ExitInfo::Intr));
        });
    };
    race(1, setup, |_, ()| ());
}
