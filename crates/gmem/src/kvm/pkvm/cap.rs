//! What arm64 has of KVM's capabilities, what it takes away from protected VMs (`kvm_pkvm_ext_allowed`), and its rules of slots (`kvm_arch_prepare_memory_region`).

use crate::kvm::config::MachineConfig;
use crate::kvm::mutants::PKVM_SLOTS_CHANGE;
use crate::kvm::uapi::*;
use crate::kvm::vm::Vm;
use sim_kernel::{Cx, Errno};
use sim_mmu::GfnRange;

/// `KVM_CHECK_EXTENSION` on a host with pKVM, of a VM or of `/dev/kvm`.
pub(crate) fn check_extension(config: &MachineConfig, cap: Cap, vm: Option<&Vm>) -> i32 {
    let is_protected = vm.is_some_and(Vm::is_pvm);
    match cap {
        // Those that are the same everywhere do not ask the architecture.
        Cap::UserMemory | Cap::UserMemory2 | Cap::EnableCapVm | Cap::SyncMmu => 1,
        Cap::NrMemslots => KVM_USER_MEM_SLOTS as i32,
        Cap::ManualDirtyLogProtect2 => 3,
        Cap::GuestMemfd => i32::from(config.kernel.has_guest_memfd_flags()),
        Cap::GuestMemfdFlags if config.kernel.has_guest_memfd_flags() => {
            (GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED) as i32
        }
        Cap::MaxVcpus => config.max_vcpus as i32,
        // Not among those that a protected VM is allowed (that the MMU follows the host it is told nevertheless).
        Cap::ReadonlyMem => i32::from(!is_protected),
        _ => 0,
    }
}

/// What happens to a slot (`enum kvm_mr_change`), as far as arm64 asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlotChange<'a> {
    /// A slot is deleted or moved.
    pub(crate) removes: bool,
    /// What the slot will be: its frames, its flags, and whether its guest_memfd can be mapped, if it has one.
    pub(crate) new: Option<(&'a GfnRange, u32, Option<bool>)>,
}

impl Vm {
    /// `kvm_arch_prepare_memory_region` of arm64, in its order. Simplified: MTE and mappings of devices do not exist.
    ///
    /// # Errors
    /// `EPERM` for what slots of protected VMs must not do: go, or move, after the first run; be logged or read-only. `EFAULT` for frames that the guest cannot address. `EINVAL` for a guest_memfd that cannot be
    /// mapped.
    pub(crate) fn pkvm_prepare_memory_region(&self, cx: &Cx<'_>, change: &SlotChange<'_>) -> Result<(), Errno> {
        let Some(pkvm) = self.pkvm() else { return Ok(()) };
        if pkvm.is_protected() {
            if pkvm.sees_created(cx) && change.removes && !cx.has_mutant(PKVM_SLOTS_CHANGE) {
                return Err(Errno::EPERM);
            }
            if change.new.is_some_and(|(_, flags, _)| flags & (KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY) != 0) {
                return Err(Errno::EPERM);
            }
        }
        let Some((range, _, gmem)) = change.new else { return Ok(()) };
        if range.end > self.host.config.stage2_end() {
            return Err(Errno::EFAULT);
        }
        if gmem == Some(false) { Err(Errno::EINVAL) } else { Ok(()) }
    }
}
