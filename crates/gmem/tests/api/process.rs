//! System calls of a process that have no handle of their own.

use super::*;
use gmem::{Errno, KernelVersion};
use sim_kernel::mm::{Mempolicy, MempolicyMode};

#[test]
fn reads_and_writes_move_the_position() {
    on_machine(|cx, process| {
        let fd = process.memfd_create(cx, 0x1000, 0).unwrap();
        assert_eq!(process.write(cx, fd, b"abcdef"), Ok(6));
        assert_eq!(process.lseek(cx, fd, 1, 0), Ok(1));
        assert_eq!(process.read(cx, fd, 2), Ok(b"bc".to_vec()));
        assert_eq!(process.read(cx, fd, 3), Ok(b"def".to_vec()));
        assert_eq!(process.lseek(cx, fd, 0, 1), Ok(6));
    });
}

#[test]
fn guest_memfds_and_devices_are_not_read() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        let memory = vm.create_guest_memfd(cx, gmem_args(SIZE)).unwrap();
        for fd in [memory.as_raw_fd(), vm.as_raw_fd()] {
            assert_eq!(process.read(cx, fd, 1), Err(Errno::EINVAL));
            assert_eq!(process.write(cx, fd, &[1]), Err(Errno::EINVAL));
        }
        assert_eq!(process.read(cx, 99, 1), Err(Errno::EBADF));
    });
}

#[test]
fn a_file_lives_in_two_processes() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        let memory = vm.create_guest_memfd(cx, gmem_args(SIZE)).unwrap();
        let inspected = vm.vm();
        let other = process.host().process(cx);
        let fd = process.send_fd(cx, memory.as_raw_fd(), &other).unwrap();
        assert_eq!(process.send_fd(cx, 99, &other), Err(Errno::EBADF));
        vm.close(cx).unwrap();
        memory.close(cx).unwrap();
        assert!(!inspected.is_destroyed(), "the other process keeps the file, and the file the VM");
        assert_eq!(other.fstat(cx, fd).unwrap().size, SIZE);
        other.exit(cx);
        assert!(inspected.is_destroyed());
    });
}

#[test]
fn a_guest_memfd_keeps_a_policy() {
    for kernel in [KernelVersion::V6_18, KernelVersion::V7_3] {
        let config = MachineConfig { nodes: 2, kernel, ..MachineConfig::default() };
        Machine::new(config).run(|cx, process| {
            let vm = Kvm::new(cx, process).unwrap().create_vm(cx).unwrap();
            let flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
            let memory = vm.create_guest_memfd(cx, kvm_create_guest_memfd { flags, ..gmem_args(SIZE) }).unwrap();
            let view = || memory.mmap(cx, SIZE, Prot::READ | Prot::WRITE, Sharing::Shared, 0).unwrap();
            let first = view();
            let interleave = Mempolicy { mode: MempolicyMode::Interleave, nodes: 0b11 };
            process.mbind(cx, first.addr(), SIZE, interleave.mode as u32, interleave.nodes).unwrap();
            first.unmap(cx).unwrap();
            // The file keeps it, for every mapping and for the guest.
            let second = view();
            let keeps = kernel == KernelVersion::V7_3;
            let expected = if keeps { interleave } else { Mempolicy::default() };
            assert_eq!(process.get_mempolicy(cx, second.addr()), Ok(expected));
            let nodes: Vec<u32> = (0..SIZE)
                .step_by(0x1000)
                .map(|at| {
                    second.write_u32(cx, at, 1).unwrap();
                    process.page_node(cx, second.addr() + at).unwrap()
                })
                .collect();
            let in_turn = nodes.windows(2).all(|pair| pair[0] != pair[1]);
            assert_eq!((in_turn, nodes.contains(&1)), (keeps, keeps), "{nodes:?}");
        });
    }
}
