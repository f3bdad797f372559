//! VM descriptors.

use super::*;
use gmem::{Cap, Errno, VcpuExit};

#[test]
fn capabilities_follow_the_vm() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        assert!(vm.check_extension(cx, Cap::GuestMemfd));
        assert_eq!(vm.check_extension_int(cx, Cap::MemoryAttributes), 8);
        assert_eq!(vm.check_extension_int(cx, Cap::MultiAddressSpace), 1);
        assert_eq!(vm.check_extension_raw(cx, Cap::GuestMemfdFlags as u64), 1);
        assert_eq!(vm.check_extension_raw(cx, 0xffff), 0);
    });
}

#[test]
fn enable_cap_accepts_known_bits_only() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        let cap = |cap, arg| kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
        let hypercall = Cap::ExitHypercall as u32;
        assert_eq!(vm.enable_cap(cx, &cap(hypercall, 1 << KVM_HC_MAP_GPA_RANGE)), Ok(()));
        assert_eq!(vm.enable_cap(cx, &cap(hypercall, 1)), Err(Errno::EINVAL));
        assert_eq!(vm.enable_cap(cx, &cap(Cap::GuestMemfd as u32, 0)), Err(Errno::EINVAL));
        let flagged = kvm_enable_cap { flags: 1, ..cap(hypercall, 0) };
        assert_eq!(vm.enable_cap(cx, &flagged), Err(Errno::EINVAL));
    });
}

#[test]
fn vcpu_ids_are_unique_and_bounded() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        vm.create_vcpu(cx, 0).unwrap();
        assert_eq!(vm.create_vcpu(cx, 0).unwrap_err(), Errno::EEXIST);
        let ids = KVM_MAX_VCPUS * KVM_VCPU_ID_RATIO;
        assert_eq!(vm.create_vcpu(cx, ids).unwrap_err(), Errno::EINVAL);
        vm.create_vcpu(cx, ids - 1).unwrap();
        assert_eq!(vm.vm().vcpu_count(), 2);
    });
}

#[test]
fn slots_of_the_first_version() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        let shared = anonymous(cx, process, SIZE);
        assert_eq!(vm.set_user_memory_region(cx, region(&shared)), Ok(()));
        let other = kvm_userspace_memory_region { slot: 1, ..region(&shared) };
        assert_eq!(vm.set_user_memory_region(cx, other), Err(Errno::EEXIST), "slots do not overlap");
        let unaligned = kvm_userspace_memory_region { slot: 1, guest_phys_addr: 1, ..region(&shared) };
        assert_eq!(vm.set_user_memory_region(cx, unaligned), Err(Errno::EINVAL));
        let gmem = kvm_userspace_memory_region { slot: 1, flags: KVM_MEM_GUEST_MEMFD, ..region(&shared) };
        assert_eq!(vm.set_user_memory_region(cx, gmem), Err(Errno::EINVAL), "the first version knows no guest_memfd");
        let delete = kvm_userspace_memory_region { memory_size: 0, ..region(&shared) };
        assert_eq!(vm.set_user_memory_region(cx, delete), Ok(()));
    });
}

#[test]
fn slots_of_the_second_version() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        let memory = vm.create_guest_memfd(cx, gmem_args(SIZE)).unwrap();
        let shared = anonymous(cx, process, SIZE);
        let good = region2(&memory, &shared);
        let bad_fd = kvm_userspace_memory_region2 { guest_memfd: 99, ..good };
        assert_eq!(vm.set_user_memory_region2(cx, bad_fd), Err(Errno::EBADF));
        let no_gmem = kvm_userspace_memory_region2 { guest_memfd: vm.as_raw_fd() as u32, ..good };
        assert_eq!(vm.set_user_memory_region2(cx, no_gmem), Err(Errno::EINVAL));
        let beyond = kvm_userspace_memory_region2 { guest_memfd_offset: 0x1000, ..good };
        assert_eq!(vm.set_user_memory_region2(cx, beyond), Err(Errno::EINVAL));
        assert_eq!(vm.set_user_memory_region2(cx, good), Ok(()));
        let twice = kvm_userspace_memory_region2 { slot: 1, guest_phys_addr: 1 << 30, ..good };
        assert_eq!(vm.set_user_memory_region2(cx, twice), Err(Errno::EEXIST), "the range of the file is taken");
        vm.vm().check_invariants();
    });
}

#[test]
fn guest_memfds_have_whole_pages_and_known_flags() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        assert_eq!(vm.create_guest_memfd(cx, gmem_args(0x3000)).unwrap().size(), 0x3000);
        for size in [0, 1, 0x1001, 1 << 63] {
            assert_eq!(vm.create_guest_memfd(cx, gmem_args(size)).unwrap_err(), Errno::EINVAL, "{size:#x}");
        }
        let shared = kvm_create_guest_memfd { flags: GUEST_MEMFD_FLAG_INIT_SHARED, ..gmem_args(0x1000) };
        assert_eq!(vm.create_guest_memfd(cx, shared).unwrap_err(), Errno::EINVAL, "this VM has attributes for that");
    });
}

#[test]
fn memory_attributes_take_whole_pages_and_known_bits() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        let good = attributes(KVM_MEMORY_ATTRIBUTE_PRIVATE);
        assert_eq!(vm.set_memory_attributes(cx, good), Ok(()));
        for bad in [
            kvm_memory_attributes { flags: 1, ..good },
            kvm_memory_attributes { attributes: 1, ..good },
            kvm_memory_attributes { size: 0, ..good },
            kvm_memory_attributes { address: 1, ..good },
        ] {
            assert_eq!(vm.set_memory_attributes(cx, bad), Err(Errno::EINVAL), "{bad:?}");
        }
    });
}

#[test]
fn the_dirty_log_has_a_bit_for_each_written_page() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        let shared = anonymous(cx, process, SIZE);
        let logged = kvm_userspace_memory_region { flags: KVM_MEM_LOG_DIRTY_PAGES, ..region(&shared) };
        vm.set_user_memory_region(cx, logged).unwrap();
        let mut vcpu = vm.create_vcpu(cx, 0).unwrap();
        vcpu.load_program(cx, &[write(0x1000, 1), read(0x2000), write(0x3000, 1)]);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Hlt)));
        assert_eq!(vm.get_dirty_log(cx, 0, SIZE as usize), Ok(vec![0b1010]));
        assert_eq!(vm.get_dirty_log(cx, 0, SIZE as usize), Ok(vec![0]), "reading starts over");
        assert_eq!(vm.get_dirty_log(cx, 0, 65 * 4096), Ok(vec![0, 0]), "as many words as the caller asks for");
        assert_eq!(vm.get_dirty_log(cx, 1, SIZE as usize), Err(Errno::ENOENT));
        assert_eq!(vm.get_dirty_log(cx, KVM_USER_MEM_SLOTS, SIZE as usize), Err(Errno::EINVAL));
    });
}

#[test]
fn a_process_that_was_passed_the_descriptor_is_refused() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        let stranger = process.host().process(cx);
        let file = process.fds().get(cx, vm.as_raw_fd()).unwrap();
        let passed = stranger.fds().install(cx, file).unwrap();
        let answer = gmem::kvm::ioctl::check_extension_on(cx, &stranger, passed, Cap::UserMemory as u64);
        assert_eq!(answer, Err(Errno::EIO), "a VM belongs to one address space");
        stranger.exit(cx);
        assert!(vm.check_extension(cx, Cap::UserMemory));
        assert!(Arc::ptr_eq(vm.process(), process));
    });
}
