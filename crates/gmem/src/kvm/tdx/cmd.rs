//! `KVM_MEMORY_ENCRYPT_OP` on a TD and on its vCPUs: which command, in which state, and under which locks (`tdx_vm_ioctl`,
//! `tdx_vcpu_unlocked_ioctl`, `tdx_vcpu_ioctl`).
//!
//! Commands that change the TD's state hold `kvm->lock`, the mutex of every vCPU and `slots_lock`: they wait until no vCPU runs, and nothing that needs one of
//! these is in between.

use super::init_vm::{TdxCapabilities, TdxCpuidEntry, TdxInitVm};
use super::populate::TdxInitMemRegion;
use super::vm::{KvmTdx, TdState};
use crate::kvm::set_memory_region::SlotsState;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use crate::kvm::vm::Vm;
use sim_kernel::sync::MutexGuard;
use sim_kernel::{Cx, Errno};
use sim_mmu::Stage2Kind;
use std::sync::Arc;

/// A command, with its data, which it may change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TdxOp {
    /// `KVM_TDX_CAPABILITIES` (0), of a VM: gives what TDs may have. The entries of CPUID in it are the room for them.
    Capabilities(TdxCapabilities),
    /// `KVM_TDX_INIT_VM` (1), of a VM.
    InitVm(Box<TdxInitVm>),
    /// `KVM_TDX_INIT_VCPU` (2), of a vCPU: what the guest finds in RCX.
    InitVcpu {
        /// `kvm_tdx_cmd.data`.
        rcx: u64,
    },
    /// `KVM_TDX_INIT_MEM_REGION` (3), of a vCPU; changed to what is left.
    InitMemRegion(TdxInitMemRegion),
    /// `KVM_TDX_FINALIZE_VM` (4), of a VM.
    FinalizeVm,
    /// `KVM_TDX_GET_CPUID` (5), of a vCPU: gives what the TD sees.
    GetCpuid(Vec<TdxCpuidEntry>),
    /// `KVM_TDX_TERMINATE_VM` (6), of a VM, where KVM has it: the VM is dead, and its KeyID free. Its memory then leaves it without BLOCK, TRACK, and kicks.
    TerminateVm,
    /// A command of another number.
    Other(u32),
}

impl TdxOp {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            TdxOp::Capabilities(_) => "KVM_TDX_CAPABILITIES",
            TdxOp::InitVm(_) => "KVM_TDX_INIT_VM",
            TdxOp::InitVcpu { .. } => "KVM_TDX_INIT_VCPU",
            TdxOp::InitMemRegion(_) => "KVM_TDX_INIT_MEM_REGION",
            TdxOp::FinalizeVm => "KVM_TDX_FINALIZE_VM",
            TdxOp::GetCpuid(_) => "KVM_TDX_GET_CPUID",
            TdxOp::TerminateVm => "KVM_TDX_TERMINATE_VM",
            TdxOp::Other(_) => "KVM_MEMORY_ENCRYPT_OP",
        }
    }

    /// The number.
    pub fn id(&self) -> u32 {
        match self {
            TdxOp::Capabilities(_) => 0,
            TdxOp::InitVm(_) => 1,
            TdxOp::InitVcpu { .. } => 2,
            TdxOp::InitMemRegion(_) => 3,
            TdxOp::FinalizeVm => 4,
            TdxOp::GetCpuid(_) => 5,
            TdxOp::TerminateVm => 6,
            TdxOp::Other(id) => *id,
        }
    }
}

/// `struct kvm_tdx_cmd`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TdxCmd {
    /// The command and what its `data` points to.
    pub op: TdxOp,
    /// Flags of the command.
    pub flags: u32,
    /// What the module answered; 0 when it is asked.
    pub hw_error: u64,
}

impl TdxCmd {
    /// A command without flags.
    pub fn new(op: TdxOp) -> TdxCmd {
        TdxCmd { op, flags: 0, hw_error: 0 }
    }

    /// `tdx_get_cmd`.
    fn check(&self) -> Result<(), Errno> {
        if self.hw_error == 0 { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

/// What `tdx_acquire_vm_state_locks` holds. Given back in the other order.
pub(super) struct StateLocks<'a> {
    slots: Option<MutexGuard<'a, SlotsState>>,
    /// Of each vCPU, in the order in which they were made.
    pub(super) vcpus: Vec<MutexGuard<'a, VcpuState>>,
    kvm: Option<MutexGuard<'a, ()>>,
}

impl Drop for StateLocks<'_> {
    fn drop(&mut self) {
        drop(self.slots.take());
        self.vcpus.clear();
        drop(self.kvm.take());
    }
}

/// `tdx_acquire_vm_state_locks`, from the second on: `kvm` is `kvm->lock`, under which `vcpus` are all that there are. Simplified: a signal does not end the wait.
fn acquire_state_locks<'a>(
    cx: &'a Cx<'_>,
    vm: &'a Vm,
    kvm: MutexGuard<'a, ()>,
    vcpus: &'a [Arc<Vcpu>],
) -> StateLocks<'a> {
    let vcpus = vcpus.iter().map(|vcpu| vcpu.mutex.lock(cx)).collect();
    StateLocks { slots: Some(vm.slots_lock.lock(cx)), vcpus, kvm: Some(kvm) }
}

impl Vm {
    /// `tdx_vm_ioctl`.
    ///
    /// # Errors
    /// `ENOTTY` if the VM is no TD; `EINVAL` for a command of a vCPU, for one that there is not, and for an error that user space supplies; otherwise the command's.
    pub(crate) fn tdx_vm_ioctl(self: &Arc<Vm>, cx: &Cx<'_>, cmd: &mut TdxCmd) -> Result<(), Errno> {
        let tdx = self.tdx().ok_or(Errno::ENOTTY)?;
        cmd.check()?;
        if let TdxOp::Capabilities(capabilities) = &mut cmd.op {
            if cmd.flags != 0 {
                return Err(Errno::EINVAL);
            }
            return capabilities.get(tdx.host.tdx().config());
        }
        let kvm = tdx.lock.lock(cx);
        let vcpus = self.all_vcpus();
        let _locks = acquire_state_locks(cx, self, kvm, &vcpus);
        match &cmd.op {
            TdxOp::InitVm(init) => self.tdx_td_init(cx, tdx, init, cmd.flags, &mut cmd.hw_error),
            TdxOp::FinalizeVm => self.tdx_td_finalize(cx, tdx, &mut cmd.hw_error),
            TdxOp::TerminateVm if self.host.config.tdx_terminate_vm => {
                self.tdx_terminate_vm(cx, tdx);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

impl Vcpu {
    /// `tdx_vcpu_unlocked_ioctl`, and `tdx_vcpu_ioctl` for what that does not know.
    ///
    /// # Errors
    /// Of a VM that is no TD `EINVAL` where the machine may have TDX, and `ENOTTY` elsewhere. `EINVAL` before `KVM_TDX_INIT_VM`, after `KVM_TDX_FINALIZE_VM`, for commands that are not a vCPU's, and for an error that user space
    /// supplies; otherwise the command's.
    pub(crate) fn tdx_vcpu_ioctl(self: &Arc<Vcpu>, cx: &Cx<'_>, cmd: &mut TdxCmd) -> Result<(), Errno> {
        let Some(tdx) = self.vm.tdx() else {
            // Intel's code has the hook whatever the VM; AMD's has none.
            let config = &self.vm.host.config;
            let is_known = !config.pkvm && config.stage2 == Stage2Kind::Ept && config.kernel.has_tdx();
            return Err(if is_known { Errno::EINVAL } else { Errno::ENOTTY });
        };
        cmd.check()?;
        {
            let kvm = tdx.lock.lock(cx);
            let vcpus = self.vm.all_vcpus();
            let mut locks = acquire_state_locks(cx, &self.vm, kvm, &vcpus);
            is_being_built(tdx)?;
            let mine = vcpus.iter().position(|vcpu| Arc::ptr_eq(vcpu, self)).expect("a vCPU is one of its VM's");
            let state = &mut *locks.vcpus[mine];
            self.tdx_vcpu_load(cx);
            match &mut cmd.op {
                TdxOp::InitVcpu { rcx } => return self.tdx_vcpu_init(cx, tdx, cmd.flags, *rcx),
                TdxOp::InitMemRegion(region) => {
                    return self.tdx_vcpu_init_mem_region(cx, tdx, state, cmd.flags, region);
                }
                _ => {}
            }
        }
        let _state = self.mutex.lock(cx);
        self.tdx_vcpu_load(cx);
        is_being_built(tdx)?;
        match &mut cmd.op {
            TdxOp::GetCpuid(entries) => get_cpuid(tdx, cmd.flags, entries),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// The TD has a KeyID and is not final.
fn is_being_built(tdx: &KvmTdx) -> Result<(), Errno> {
    if !tdx.is_hkid_assigned() || tdx.peek_state() == TdState::Runnable { Err(Errno::EINVAL) } else { Ok(()) }
}

/// `tdx_vcpu_get_cpuid`. Simplified: what `KVM_TDX_INIT_VM` was told, as the module takes it as it is. `entries` has the room that there is.
fn get_cpuid(tdx: &KvmTdx, flags: u32, entries: &mut Vec<TdxCpuidEntry>) -> Result<(), Errno> {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let known = tdx.cpuid.get().cloned().unwrap_or_default();
    let fits = known.len() <= entries.len();
    *entries = known;
    if fits { Ok(()) } else { Err(Errno::E2BIG) }
}
