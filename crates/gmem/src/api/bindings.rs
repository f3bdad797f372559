//! Conversions to and from the structures of the real `kvm-bindings` crate, field by field (feature `kvm-bindings`).
//!
//! The layouts are the same too, which the tests of this file compare.

use crate::kvm::uapi;

/// Conversions both ways between structures of one name and the same fields.
macro_rules! convert {
    ($($name:ident { $($field:ident),* })*) => {
        $(
            impl From<kvm_bindings::$name> for uapi::$name {
                fn from(real: kvm_bindings::$name) -> uapi::$name {
                    uapi::$name { $($field: real.$field),* }
                }
            }

            impl From<uapi::$name> for kvm_bindings::$name {
                fn from(ours: uapi::$name) -> kvm_bindings::$name {
                    kvm_bindings::$name { $($field: ours.$field),* }
                }
            }
        )*

        #[cfg(test)]
        mod tests {
            use super::uapi;
            use std::mem::{align_of, offset_of, size_of};

            #[test]
            fn the_layouts_are_equal() {
                $(
                    assert_eq!(size_of::<uapi::$name>(), size_of::<kvm_bindings::$name>(), stringify!($name));
                    assert_eq!(align_of::<uapi::$name>(), align_of::<kvm_bindings::$name>(), stringify!($name));
                    $(assert_eq!(
                        offset_of!(uapi::$name, $field),
                        offset_of!(kvm_bindings::$name, $field),
                        concat!(stringify!($name), "::", stringify!($field)),
                    );)*
                )*
            }

            #[test]
            fn conversion_there_and_back_keeps_every_bit() {
                $({
                    let bytes: Vec<u8> = (1..=size_of::<uapi::$name>()).map(|n| n as u8).collect();
                    let ours: uapi::$name = bytemuck::pod_read_unaligned(&bytes);
                    let real = kvm_bindings::$name::from(ours);
                    $(assert_eq!(real.$field, ours.$field, concat!(stringify!($name), "::", stringify!($field)));)*
                    assert_eq!(uapi::$name::from(real), ours);
                })*
            }
        }
    };
}

convert! {
    kvm_userspace_memory_region { slot, flags, guest_phys_addr, memory_size, userspace_addr }
    kvm_userspace_memory_region2 {
        slot, flags, guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset, guest_memfd, pad1, pad2
    }
    kvm_memory_attributes { address, size, attributes, flags }
    kvm_create_guest_memfd { size, flags, reserved }
    kvm_pre_fault_memory { gpa, size, flags, padding }
    kvm_enable_cap { cap, flags, args, pad }
}
