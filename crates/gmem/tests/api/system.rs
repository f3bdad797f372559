//! `/dev/kvm`.

use super::on_machine;
use gmem::uapi::*;
use gmem::{Cap, Errno, Kvm, Machine, MachineConfig};

#[test]
fn the_device_answers_for_the_host() {
    on_machine(|cx, process| {
        let kvm = Kvm::new(cx, process).unwrap();
        assert_eq!(kvm.get_api_version(), 12);
        assert!(kvm.check_extension(cx, Cap::UserMemory2));
        assert_eq!(kvm.check_extension_int(cx, Cap::VmTypes), 0b11);
        assert_eq!(kvm.check_extension_raw(cx, Cap::GuestMemfdFlags as u64), 0b11);
        assert_eq!(kvm.check_extension_raw(cx, 0xffff), 0, "an unknown capability is not there");
        assert_eq!(kvm.get_nr_memslots(cx), KVM_USER_MEM_SLOTS as usize);
        assert_eq!(kvm.get_max_vcpus(cx), KVM_MAX_VCPUS as usize);
        assert!(std::sync::Arc::ptr_eq(kvm.process(), process));
        assert_eq!(kvm.as_raw_fd(), 3);
    });
}

#[test]
fn vm_types_are_those_that_are_supported() {
    on_machine(|cx, process| {
        let kvm = Kvm::new(cx, process).unwrap();
        let default = kvm.create_vm(cx).unwrap();
        let protected = kvm.create_vm_with_type(cx, KVM_X86_SW_PROTECTED_VM).unwrap();
        assert!(!default.check_extension(cx, Cap::MemoryAttributes));
        assert!(protected.check_extension(cx, Cap::MemoryAttributes));
        assert_eq!(kvm.create_vm_with_type(cx, 77).unwrap_err(), Errno::EINVAL);
    });
}

#[test]
fn a_full_descriptor_table_is_emfile() {
    // Numbers 0 to 2 are taken; one is left.
    let config = MachineConfig { files_max: 4, ..MachineConfig::default() };
    Machine::new(config).run(|cx, process| {
        let kvm = Kvm::new(cx, process).unwrap();
        assert_eq!(Kvm::new(cx, process).unwrap_err(), Errno::EMFILE);
        assert_eq!(kvm.create_vm(cx).unwrap_err(), Errno::EMFILE);
    });
}
