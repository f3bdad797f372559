//! Closing, dropping, and exit: who keeps what alive.

use super::*;
use gmem::{Errno, VcpuExit};

#[test]
fn a_dropped_handle_leaves_its_descriptor_open_until_exit() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        let inspected = vm.vm();
        let open = process.fds().len();
        drop(vm);
        assert_eq!(process.fds().len(), open);
        assert!(!inspected.is_destroyed());
        process.exit(cx);
        assert!(process.fds().is_empty());
        assert!(inspected.is_destroyed());
    });
}

#[test]
fn close_gives_the_number_back() {
    on_machine(|cx, process| {
        let kvm = Kvm::new(cx, process).unwrap();
        let vm = kvm.create_vm(cx).unwrap();
        let (number, inspected) = (vm.as_raw_fd(), vm.vm());
        vm.close(cx).unwrap();
        assert!(inspected.is_destroyed());
        assert_eq!(kvm.create_vm(cx).unwrap().as_raw_fd(), number);
        kvm.close(cx).unwrap();
    });
}

#[test]
fn a_vm_lives_as_long_as_its_vcpus_and_guest_memfds() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        let inspected = vm.vm();
        let mut vcpu = vm.create_vcpu(cx, 0).unwrap();
        let memory = vm.create_guest_memfd(cx, gmem_args(SIZE)).unwrap();
        vm.close(cx).unwrap();
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Hlt)));
        vcpu.close(cx).unwrap();
        assert!(!inspected.is_destroyed());
        memory.close(cx).unwrap();
        assert!(inspected.is_destroyed());
    });
}

#[test]
fn handles_of_a_process_that_exited_are_ebadf() {
    on_machine(|cx, process| {
        let kvm = Kvm::new(cx, process).unwrap();
        let (vm, memory, _shared) = booted(cx, process);
        let mut vcpu = vm.create_vcpu(cx, 0).unwrap();
        process.exit(cx);
        assert_eq!(kvm.check_extension_raw(cx, 3), -1);
        assert_eq!(vm.check_extension_raw(cx, 3), -1);
        assert_eq!(kvm.get_max_vcpus(cx), 0);
        assert_eq!(kvm.create_vm(cx).unwrap_err(), Errno::EBADF);
        assert_eq!(vm.create_vcpu(cx, 1).unwrap_err(), Errno::EBADF);
        assert_eq!(vcpu.run(cx).unwrap_err(), Errno::EBADF);
        assert_eq!(vcpu.get_regs(cx).unwrap_err(), Errno::EBADF);
        assert_eq!(memory.inode(cx).unwrap_err(), Errno::EBADF);
        assert_eq!(memory.punch_hole(cx, 0, 0x1000), Err(Errno::EBADF));
        assert_eq!(memory.close(cx), Err(Errno::EBADF));
        assert_eq!(vcpu.close(cx), Err(Errno::EBADF));
        assert_eq!(vm.close(cx), Err(Errno::EBADF));
        assert_eq!(kvm.close(cx), Err(Errno::EBADF));
    });
}

#[test]
fn a_number_that_means_something_else_now_is_einval() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        process.close(cx, vm.as_raw_fd()).unwrap();
        let other = Kvm::new(cx, process).unwrap();
        assert_eq!(other.as_raw_fd(), vm.as_raw_fd());
        // /dev/kvm says so to every ioctl that it does not know.
        assert_eq!(vm.create_vcpu(cx, 0).unwrap_err(), Errno::EINVAL);
    });
}

#[test]
fn nothing_is_left_after_exit() {
    on_machine(|cx, process| {
        let (vm, memory, shared) = booted(cx, process);
        let mut vcpu = vm.create_vcpu(cx, 0).unwrap();
        vcpu.load_program(cx, &[write(0x1000, 1)]);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Hlt)));
        shared.write_u32(cx, 0, 1).unwrap();
        memory.allocate(cx, 0, SIZE).unwrap();
        let phys = process.host().phys();
        assert!(phys.used_frames() > phys.reserved_frames());
        process.exit(cx);
        assert_eq!(phys.used_frames(), phys.reserved_frames());
    });
}
