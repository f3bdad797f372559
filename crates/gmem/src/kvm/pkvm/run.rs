//! `KVM_RUN` on arm64 (`kvm_arch_vcpu_ioctl_run`): the hypervisor's VM and vCPU are made, the vCPU is loaded, and then the guest runs until something is user space's.

use super::guest::ArmExit;
use super::host::PKVM_GUEST_HVC;
use super::vm::KvmPkvm;
use crate::kvm::run::Next;
use crate::kvm::vcpu::{ExitInfo, Vcpu, VcpuState};
use sim_coco::pkvm::{CpuId, HvcResult, SMCCC_NOT_SUPPORTED, SMCCC_SUCCESS, func};
use sim_kernel::{Cx, Errno};

impl Vcpu {
    /// `kvm_arch_vcpu_ioctl_run`, after `kvm_arch_vcpu_run_pid_change`.
    ///
    /// # Errors
    /// Those of making the hypervisor's VM and vCPU; `EINTR` for a signal or an immediate exit; those of faults.
    pub(crate) fn pkvm_run(&self, cx: &Cx<'_>, state: &mut VcpuState, pkvm: &KvmPkvm) -> Result<(), Errno> {
        let vcpu = self.pkvm().expect("a vCPU of a VM with pKVM");
        if !vcpu.is_finalized() {
            self.vm.pkvm_create_hyp_vm(cx, pkvm)?;
            vcpu.create_hyp_vcpu(cx, pkvm)?;
        }
        if let Some(pending) = state.pending_exit.take() {
            self.pkvm_mmio_return(state, pending);
        }
        if state.immediate_exit {
            return Err(Errno::EINTR);
        }
        state.exit = ExitInfo::Unknown;
        let cpu = vcpu.load(cx, pkvm);
        let result = self.pkvm_run_loaded(cx, state, pkvm, cpu);
        vcpu.put(cx);
        result
    }

    fn pkvm_run_loaded(&self, cx: &Cx<'_>, state: &mut VcpuState, pkvm: &KvmPkvm, cpu: CpuId) -> Result<(), Errno> {
        loop {
            // What others ask of a vCPU on x86 the hypervisor does for itself here.
            self.take_requests(cx);
            self.show_guest_mode(cx);
            let may_run = self.enter_guest_mode(cx);
            let exit = may_run.then(|| self.arm_guest(cx, state, pkvm, cpu));
            self.leave_guest_mode(cx, may_run);
            let next = match exit {
                None => Next::Enter,
                Some(exit) => self.pkvm_handle_exit(cx, state, pkvm, cpu, exit)?,
            };
            if matches!(next, Next::Exit) {
                return Ok(());
            }
            if cx.signal_pending() {
                state.exit = ExitInfo::Intr;
                return Err(Errno::EINTR);
            }
            if cx.has_task_work() {
                cx.task_work_run();
            }
        }
    }

    fn pkvm_handle_exit(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        pkvm: &KvmPkvm,
        cpu: CpuId,
        exit: ArmExit,
    ) -> Result<Next, Errno> {
        match exit {
            ArmExit::Done => Ok(Next::Enter),
            // PSCI SYSTEM_OFF; as the end of a program on x86, so that files need not differ.
            ArmExit::Ended => {
                state.exit = ExitInfo::Hlt;
                Ok(Next::Exit)
            }
            ArmExit::Undefined => Ok(self.pkvm_guest_dies(state)),
            ArmExit::Abort(abort) => self.pkvm_guest_abort(cx, state, pkvm, abort),
            ArmExit::Hvc { function, args } => self.pkvm_hvc(cx, state, pkvm, cpu, function, args),
        }
    }

    /// The hypervisor handles the call of a protected guest (`kvm_handle_pvm_hvc64`), or KVM does (`kvm_smccc_call_handler`), which knows none of these.
    fn pkvm_hvc(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        pkvm: &KvmPkvm,
        cpu: CpuId,
        function: u32,
        args: [u64; 3],
    ) -> Result<Next, Errno> {
        cx.note("guest", "HVC");
        let converts = matches!(function, func::MEM_SHARE | func::MEM_UNSHARE);
        if converts && !self.pkvm_before_conversion(cx, state, pkvm, function, args)? {
            return Ok(Next::Exit);
        }
        let result = pkvm.host.pkvm().guest_hvc(cx, cpu, function, args).expect("the vCPU is loaded");
        let answer = match result {
            HvcResult::Replay(abort) => return self.pkvm_guest_abort(cx, state, pkvm, abort),
            HvcResult::ToHost => SMCCC_NOT_SUPPORTED,
            HvcResult::Answered(answer) => answer,
        };
        cx.trace(&PKVM_GUEST_HVC, &[u64::from(function), args[0], answer as u64]);
        if converts && answer == SMCCC_SUCCESS {
            self.pkvm_after_conversion(cx, pkvm, function, args);
        }
        state.regs.rax = answer as u64;
        state.regs.rip += 1;
        Ok(Next::Enter)
    }
}
