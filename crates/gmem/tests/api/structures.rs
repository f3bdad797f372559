//! The structures: names, sizes and defaults of the kernel's header.

use gmem::uapi::*;
use std::mem::{align_of, size_of};

#[test]
fn sizes_are_those_of_the_header() {
    assert_eq!(size_of::<kvm_userspace_memory_region>(), 32);
    assert_eq!(size_of::<kvm_userspace_memory_region2>(), 160);
    assert_eq!(size_of::<kvm_memory_attributes>(), 32);
    assert_eq!(size_of::<kvm_create_guest_memfd>(), 64);
    assert_eq!(size_of::<kvm_pre_fault_memory>(), 64);
    assert_eq!(size_of::<kvm_enable_cap>(), 104);
    assert_eq!(align_of::<kvm_userspace_memory_region2>(), 8);
}

#[test]
fn defaults_are_zero() {
    assert!(bytemuck::bytes_of(&kvm_enable_cap::default()).iter().all(|&byte| byte == 0));
    assert!(bytemuck::bytes_of(&kvm_userspace_memory_region2::default()).iter().all(|&byte| byte == 0));
}

/// A VMM that holds the real structures passes them with `into()`.
#[cfg(all(feature = "kvm-bindings", target_arch = "x86_64", target_os = "linux"))]
#[test]
fn structures_of_the_real_crate_are_accepted() {
    super::on_machine(|cx, process| {
        let vm = super::protected(cx, process);
        let real = kvm_bindings::kvm_create_guest_memfd { size: 0x1000, flags: 0, reserved: [0; 6] };
        assert_eq!(vm.create_guest_memfd(cx, real.into()).unwrap().size(), 0x1000);
        let real = kvm_bindings::kvm_memory_attributes { address: 0, size: 0x1000, attributes: 8, flags: 0 };
        vm.set_memory_attributes(cx, real.into()).unwrap();
    });
}
