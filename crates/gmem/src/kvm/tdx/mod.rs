//! KVM's use of Intel TDX (`arch/x86/kvm/vmx/tdx.c`, with what of `arch/x86/virt/vmx/tdx` it stands on).
//!
//! The machine is [`sim_coco::tdx`]; here is what Linux does with it. [`TdxHost`] belongs to the host: the module, KeyIDs, pages that leaked.
//! [`KvmTdx`] belongs to a VM (`struct kvm_tdx`), [`VcpuTdx`] to a vCPU (`struct vcpu_tdx`). A VM that is not of type `KVM_X86_TDX_VM` has none
//! of them.
//!
//! | file | what |
//! |---|---|
//! | `host.rs` | the module, SEAMCALLs with their counts, KeyIDs, pages that are handed over and taken back |
//! | `cmd.rs` | `tdx_vm_ioctl`, `tdx_vcpu_unlocked_ioctl`, `tdx_vcpu_ioctl`: which command, and under which locks |
//! | `vm.rs`, `init_vm.rs` | `struct kvm_tdx`; `tdx_td_init`, `tdx_td_finalize` |
//! | `vcpu.rs` | `struct vcpu_tdx`, `tdx_vcpu_create`, `tdx_vcpu_init`, `tdx_vcpu_load`, `tdx_vcpu_free` |
//! | `pamt.rs` | metadata of pages that the module is given pages for: `tdx_pamt_get`, `tdx_pamt_put` |
//! | `populate.rs` | `tdx_vcpu_init_mem_region` |
//! | `sept.rs` | the hooks of the mirror: tables and pages are added, blocked, tracked, split, removed; `tdh_do_no_vcpus` |
//! | `shared_ept.rs` | the direct root as the processor walks it |
//! | `enter.rs`, `exit.rs`, `fault.rs` | `tdx_vcpu_run`, `tdx_handle_exit`, `tdx_handle_ept_violation` |
//! | `tdvmcall.rs`, `protocol.rs` | what guests ask for by TDG.VP.VMCALL |
//! | `teardown.rs` | `tdx_mmu_release_hkid`, `tdx_vm_destroy` |
//! | `guest.rs`, `insn.rs` | not KVM: what the processor does for a TD |
//! | `check.rs` | TDX-INV-015 to TDX-INV-022 |
//!
//! Simplified: no interrupts, so that an APIC is never asked for and `hlt` leaves to user space, as of all guests here; no CPUID or MSR emulation;
//! no quotes: what user space may be asked (KVM_EXIT_TDX) it answers as one that knows nothing of it. A TD's registers are KVM's to see, because they are the
//! program's. A vCPU is loaded on the task's processor, which is VP.FLUSH on the one before, by KVM_RUN, KVM_PRE_FAULT_MEMORY and the commands; in Linux by every
//! ioctl that gets its mutex. Nothing is charged to the misc cgroup for a KeyID.

mod check;
mod cmd;
mod enter;
mod exit;
mod fault;
mod guest;
mod host;
mod init_vm;
pub mod insn;
mod pamt;
mod populate;
pub mod protocol;
mod sept;
mod shared_ept;
mod tdvmcall;
mod teardown;
mod vcpu;
mod vm;

pub use cmd::{TdxCmd, TdxOp};
pub(crate) use host::TDX_SEAMCALL;
pub use host::TdxHost;
pub use init_vm::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, TdxCapabilities, TdxCpuidEntry, TdxInitVm};
pub use populate::{KVM_TDX_MEASURE_MEMORY_REGION, TdxInitMemRegion};
pub(crate) use sept::MirrorHooks;
pub(crate) use vcpu::TdxState;
pub use vcpu::VcpuTdx;
pub use vm::{KvmTdx, TdState};
