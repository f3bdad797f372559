//! guest_memfd descriptors.

use super::*;
use gmem::{Errno, Signal};
use sim_kernel::Pgoff;

#[test]
fn fallocate_makes_and_frees_pages() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        let memory = vm.create_guest_memfd(cx, gmem_args(SIZE)).unwrap();
        let inode = memory.inode(cx).unwrap();
        memory.allocate(cx, 0, 0x3000).unwrap();
        memory.punch_hole(cx, 0x1000, 0x1000).unwrap();
        let pages: Vec<bool> = (0..4).map(|page| inode.mapping().peek(Pgoff(page)).is_some()).collect();
        assert_eq!(pages, [true, false, true, false]);
        assert_eq!(memory.punch_hole(cx, SIZE, 0x1000), Ok(()), "a hole beyond the end is none");
    });
}

#[test]
fn fallocate_refuses_what_guest_memfd_does_not_know() {
    on_machine(|cx, process| {
        let memory = protected(cx, process).create_guest_memfd(cx, gmem_args(SIZE)).unwrap();
        assert_eq!(memory.allocate(cx, SIZE, 0x1000), Err(Errno::EINVAL));
        assert_eq!(memory.allocate(cx, 1, 0x1000), Err(Errno::EINVAL));
        assert_eq!(memory.punch_hole(cx, 0, 0x1001), Err(Errno::EINVAL));
        assert_eq!(memory.punch_hole(cx, 1 << 63, 0x1000), Err(Errno::EINVAL), "an off_t is signed");
        assert_eq!(memory.fallocate(cx, FALLOC_FL_KEEP_SIZE, -4096, 4096), Err(Errno::EINVAL));
        assert_eq!(memory.fallocate(cx, FALLOC_FL_KEEP_SIZE, 0, 0), Err(Errno::EINVAL));
        assert_eq!(memory.fallocate(cx, FALLOC_FL_KEEP_SIZE, i64::MAX, 1), Err(Errno::EFBIG));
        assert_eq!(memory.fallocate(cx, 0, 0, 4096), Err(Errno::EOPNOTSUPP), "the size is kept");
    });
}

#[test]
fn the_host_maps_what_is_made_for_it() {
    on_machine(|cx, process| {
        let vm = Kvm::new(cx, process).unwrap().create_vm(cx).unwrap();
        let rw = Prot::READ | Prot::WRITE;
        let create = |flags| vm.create_guest_memfd(cx, kvm_create_guest_memfd { flags, ..gmem_args(SIZE) }).unwrap();

        let closed = create(0);
        assert_eq!(closed.mmap(cx, SIZE, rw, Sharing::Shared, 0).unwrap_err(), Errno::ENODEV);

        let private = create(GUEST_MEMFD_FLAG_MMAP);
        let view = private.mmap(cx, SIZE, rw, Sharing::Shared, 0).unwrap();
        assert_eq!(view.read_u32(cx, 0), Err(Signal::Sigbus), "the memory is the guest's");

        let shared = create(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
        let view = shared.mmap(cx, SIZE, rw, Sharing::Shared, 0x1000).unwrap();
        view.write_u32(cx, 4, 5).unwrap();
        assert_eq!(view.read_u32(cx, 4), Ok(5));
        assert_eq!(view.read_u32(cx, SIZE - 0x1000), Err(Signal::Sigbus), "the file ends before the mapping");
        assert_eq!(shared.mmap(cx, SIZE, rw, Sharing::Private, 0).unwrap_err(), Errno::EINVAL);
        assert_eq!(shared.mmap(cx, SIZE, rw, Sharing::Shared, 1).unwrap_err(), Errno::EINVAL);
        assert_eq!(shared.mmap(cx, 0, rw, Sharing::Shared, 0).unwrap_err(), Errno::EINVAL);
        assert_eq!(shared.mmap(cx, SIZE, rw | Prot::EXEC, Sharing::Shared, 0).unwrap_err(), Errno::EPERM);
    });
}
