//! `vm_types_test`: a VM of a type can be made if and only if the host says so.

use super::cases::{on_host, vm_types};
use super::expect::{errno, ok};
use super::{Check, Outcome};
use sim_kernel::Errno;

pub(super) const CHECKS: &[Check] = &[Check::test(
    "GM-160",
    "vm_types_test",
    "KVM_CREATE_VM of types 0 to 63 succeeds for those of KVM_CAP_VM_TYPES and is EINVAL for all others",
    create_by_type,
)];

fn create_by_type() -> Outcome {
    let supported = vm_types()?;
    for vm_type in 0..64 {
        on_host(|cx, _, kvm| {
            let result = kvm.create_vm_with_type(cx, vm_type);
            if supported.contains(&vm_type) {
                ok(format_args!("type {vm_type}"), result).map(drop)
            } else {
                errno(format_args!("type {vm_type}"), result, Errno::EINVAL)
            }
        })?;
    }
    Ok(format!("supported: {supported:?}"))
}
