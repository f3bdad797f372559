//! `KVM_RUN`: serve requests, enter the guest, run an instruction, handle the exit (`vcpu_run`, `vcpu_enter_guest`).
//!
//! What the guest does is in `guest.rs`, what is done in its place in `emulate.rs`.

use super::guest::Visit;
use super::mutants::{CLEAR_AFTER_ACT, ROOTLOAD_NO_FLUSH, SEV_RMP_FAULT_ANY};
use super::sev::MpState;
use super::sev::RmpFault;
use super::uapi::*;
use super::vcpu::{CpuMode, DescriptorTable, ExitInfo, GuestContext, GuestInsn, Request, Vcpu, VcpuState};
use crate::invariants::api_results::inv_602;
use sim_kernel::sync::SrcuReadGuard;
use sim_kernel::{Cx, Errno, PAGE_SIZE};
use sim_mmu::guest_paging::{Efer, Encryption, GpteMasks, GuestFormat, PagingMode};
use sim_mmu::walker::ExitInfo1;
use sim_mmu::{Gpa, Gva, RetPf, Stage2Fault};
use std::sync::atomic::Ordering;

/// What is left to do after an exit was handled.
pub(crate) enum Next {
    /// Enter again.
    Enter,
    /// Back to user space.
    Exit,
}

impl Vcpu {
    /// Gives the vCPU a program; it starts at its first instruction, and an exit that was pending is forgotten.
    pub fn set_program(&self, cx: &Cx<'_>, program: &[GuestInsn]) {
        load_program(&mut self.mutex.lock(cx), program);
    }

    /// The blocks of bytes that a program of an SNP guest or a TD copies to memory.
    pub fn set_blocks(&self, cx: &Cx<'_>, blocks: Vec<Box<[u8]>>) {
        self.mutex.lock(cx).blocks = blocks;
    }

    /// Where the program's instructions are fetched from, and how wide the registers are.
    pub fn set_mode(&self, cx: &Cx<'_>, mode: CpuMode, code: Option<Gva>) {
        let mut state = self.mutex.lock(cx);
        state.mode = mode;
        state.code = code;
    }

    /// `KVM_SET_SREGS`, as far as an exception looks: the table of its handlers.
    pub fn set_idt(&self, cx: &Cx<'_>, idt: DescriptorTable) {
        self.mutex.lock(cx).sregs.idt = idt;
    }

    /// `KVM_SET_REGS`, `KVM_SET_SREGS` and a program. Other control registers flush what the guest's tables led to.
    ///
    /// # Errors
    /// `EINVAL` for a CR3 beyond MAXPHYADDR (`kvm_is_valid_sregs`), and for paging outside long mode, which is not modelled; also if the vCPU's registers are in
    /// a VMSA that was launched, or in a TD without DEBUG, as all are (`guest_state_protected`). Then nothing has changed.
    pub fn start(&self, cx: &Cx<'_>, context: &GuestContext, program: &[GuestInsn]) -> Result<(), Errno> {
        let mut state = self.mutex.lock(cx);
        if state.sev.as_deref().is_some_and(|es| es.guest_state_protected) || state.tdx.is_some() {
            return Err(Errno::EINVAL);
        }
        let (old, new) = (state.sregs.paging, context.sregs.paging);
        let mode = new.mode().map_err(|_| Errno::EINVAL)?;
        let encryption = if state.sev.is_some() { Encryption::CBit(51) } else { Encryption::None };
        let format = GuestFormat { encryption, ..self.vm.host.config.guest_format() };
        let masks = GpteMasks::new(&format, new.efer.contains(Efer::NXE));
        if mode != PagingMode::Off && masks.is_bad_cr3(new.cr3.0) {
            return Err(Errno::EINVAL);
        }
        load_program(&mut state, program);
        (state.mode, state.code, state.sregs, state.regs.rsp) =
            (context.mode, context.code, context.sregs, context.rsp);
        if (old.cr0, old.cr3, old.cr4, old.efer) != (new.cr0, new.cr3, new.cr4, new.efer) {
            self.make_request(cx, Request::TlbFlushGuest);
        }
        Ok(())
    }

    /// How the vCPU would begin a program now, for [`Vcpu::start`] to bring back.
    pub fn context(&self, cx: &Cx<'_>) -> GuestContext {
        let state = self.mutex.lock(cx);
        GuestContext { mode: state.mode, code: state.code, sregs: state.sregs, rsp: state.regs.rsp }
    }

    /// `KVM_GET_SREGS`: CR2.
    pub fn cr2(&self, cx: &Cx<'_>) -> Gva {
        self.mutex.lock(cx).cr2
    }

    /// `KVM_RUN`. What happened is in the returned exit information, also with an error.
    ///
    /// # Errors
    /// `EINTR` for a signal or an immediate exit; `EFAULT`, `EHWPOISON`, `ENOMEM` from the fault path,
    /// some of them with a memory-fault exit.
    pub fn run(&self, cx: &Cx<'_>) -> (Result<(), Errno>, ExitInfo) {
        self.run_answered(cx, None)
    }

    /// [`Vcpu::run`] after user space wrote this answer to the pending exit into `kvm_run`: the data of an MMIO read, or the result
    /// of a hypercall. That page is ordinary memory to user space, so writing it is no step of its own.
    ///
    /// # Errors
    /// As [`Vcpu::run`].
    pub fn run_answered(&self, cx: &Cx<'_>, answer: Option<u64>) -> (Result<(), Errno>, ExitInfo) {
        cx.note("call", "KVM_RUN");
        let mut state = self.mutex.lock(cx);
        self.tdx_vcpu_load(cx);
        if let Some(answer) = answer {
            answer_pending(&mut state, answer);
        }
        let run = self.vm.run_begins();
        let result = self.vcpu_run(cx, &mut state);
        self.vm.run_ends(run);
        let exit = state.exit;
        drop(state);
        cx.note("exit", exit.name());
        cx.task_work_run();
        if let Err(message) = inv_602(result, exit) {
            panic!("INV-602: {message}");
        }
        (result, exit)
    }

    fn vcpu_run(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Result<(), Errno> {
        if let Some(pkvm) = self.vm.pkvm() {
            return self.pkvm_run(cx, state, pkvm);
        }
        let mut srcu = self.vm.srcu.read(cx);
        if let Some(pending) = state.pending_exit.take() {
            match self.complete_userspace_io(cx, state, pending)? {
                Next::Enter => {}
                Next::Exit => return Ok(()),
            }
        }
        if state.immediate_exit {
            return Err(Errno::EINTR);
        }
        self.sev_vcpu_pre_run()?;
        if self.tdx_needs_initialization() {
            return Err(Errno::EINVAL);
        }
        state.exit = ExitInfo::Unknown;
        loop {
            if let Some(es) = &state.sev
                && es.mp_state == MpState::Halted
                && self.peek_requests() == 0
            {
                srcu.outside(|| self.sev_block(cx));
            }
            match self.vcpu_enter_guest(cx, state, &mut srcu)? {
                Next::Enter => {}
                Next::Exit => return Ok(()),
            }
            if cx.signal_pending() {
                state.exit = ExitInfo::Intr;
                return Err(Errno::EINTR);
            }
            if cx.has_task_work() {
                // Final puts of files run here: outside SRCU and every lock but `vcpu->mutex`.
                srcu.outside(|| cx.task_work_run());
            }
        }
    }

    /// # Errors
    /// `EIO` if the VM is bugged.
    fn serve_requests(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Result<(), Errno> {
        if self.peek_requests() == 0 {
            return Ok(());
        }
        // `kvm_test_request`: who is dead stays dead, for the next who asks too.
        if self.peek_requests() & Request::VmDead as u64 != 0 {
            return Err(Errno::EIO);
        }
        self.serve(cx, Request::FreeObsoleteRoots, || {
            if state.root.as_ref().is_some_and(|root| root.is_invalid_lockless(cx)) {
                let root = state.root.take().expect("just seen");
                self.vm.mmu.put_root(cx, root);
            }
        });
        self.serve(cx, Request::UpdateCpuDirtyLogging, || state.cpu.set_logging(self.vm.logs_dirty_pages()));
        self.serve(cx, Request::TlbFlush, || {
            // What a flush of everything makes superfluous.
            self.check_request(cx, Request::TlbFlushCurrent);
            self.flush_tlb_all(cx, state);
            self.show_processor(state);
        });
        self.serve(cx, Request::TlbFlushCurrent, || self.flush_tlb_all(cx, state));
        self.serve(cx, Request::TlbFlushGuest, || {
            state.tlb_flush += 1;
            state.cpu.flush_guest(cx);
        });
        if self.vm.sev().is_some() {
            self.serve(cx, Request::UpdateProtectedGuestState, || self.sev_snp_init_protected_guest_state(cx, state));
            self.serve(cx, Request::VmsaPageReload, || self.sev_snp_reload_vmsa(cx, state));
        }
        Ok(())
    }

    /// Does what a request asks for, if it is there. Taken first, a request that comes meanwhile is one more.
    fn serve(&self, cx: &Cx<'_>, request: Request, act: impl FnOnce()) {
        let late = cx.has_mutant(CLEAR_AFTER_ACT);
        if if late { self.peek_requests() & request as u64 != 0 } else { self.check_request(cx, request) } {
            act();
            if late {
                self.check_request(cx, request);
            }
        }
    }

    /// `kvm_vcpu_flush_tlb_all`, `kvm_vcpu_flush_tlb_current`. Of a TD that is all that the task's processor has (`tdx_flush_tlb_all`).
    pub(super) fn flush_tlb_all(&self, cx: &Cx<'_>, state: &mut VcpuState) {
        match self.vm.tdx() {
            Some(tdx) => {
                state.tlb_flush += 1;
                tdx.host().ept_sync_global(cx);
            }
            None => state.flush_all(cx),
        }
    }

    /// `kvm_mmu_load`: a root for who has none. What the processor cached of another tree goes: the tags need not tell trees apart.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn load_mmu(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Result<(), Errno> {
        if self.tdx.is_some() {
            return self.tdx_load_mmu(cx, state);
        }
        if state.root.is_none() {
            state.root = Some(self.vm.load_root(cx)?);
            if !cx.has_mutant(ROOTLOAD_NO_FLUSH) {
                state.flush_all(cx);
            }
        }
        Ok(())
    }

    fn vcpu_enter_guest(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        srcu: &mut SrcuReadGuard<'_>,
    ) -> Result<Next, Errno> {
        self.serve_requests(cx, state)?;
        if state.sev.as_ref().is_some_and(|es| es.mp_state == MpState::Halted) {
            return Ok(Next::Enter);
        }
        if self.tdx.is_some() {
            return self.tdx_enter_guest(cx, state, srcu);
        }
        self.load_mmu(cx, state)?;
        self.sev_es_unmap_ghcb(cx, state);
        self.show_processor(state);
        let stage2 = state.root.as_ref().expect("just loaded").stage2();
        state.cpu.enter(state.sregs.paging, stage2).expect("only registers that it can run are set");
        self.show_guest_mode(cx);
        let visit = srcu.outside(|| {
            let may_run = self.enter_guest_mode(cx);
            let visit = may_run.then(|| {
                self.check_at_entry(state);
                if state.sev.is_some() { self.sev_guest(cx, state) } else { self.guest(cx, state) }
            });
            self.leave_guest_mode(cx, may_run);
            if may_run && self.is_watched {
                // Until this step nobody may have freed anything.
                self.check_reached(state, "MMU-INV-026: in the guest");
            }
            visit
        });
        match visit {
            None => Ok(Next::Enter),
            Some(visit) => self.handle_exit(cx, state, srcu, visit),
        }
    }

    /// Between two tries of a fault: where the kernel spins through the guest and back until whoever keeps the fault away is done, the
    /// task waits for that. Outside SRCU, as between the tries.
    pub(super) fn wait_before_retry(&self, cx: &Cx<'_>, state: &VcpuState, srcu: &mut SrcuReadGuard<'_>, gpa: Gpa) {
        let (vm, gfn) = (&self.vm, gpa.gfn());
        let as_id = state.root.as_ref().map_or(0, |root| u32::from(root.as_id()));
        if cx.signal_pending() || !(vm.mmu.invalidate.keeps_away(gfn) || vm.memslots.is_invalid(as_id, gfn)) {
            return;
        }
        srcu.outside(|| {
            vm.mmu.invalidate.wait_while_kept_away(cx, gfn);
            vm.memslots.wait_while_invalid(cx, as_id, gfn);
        });
    }

    fn handle_exit(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        srcu: &mut SrcuReadGuard<'_>,
        visit: Visit,
    ) -> Result<Next, Errno> {
        // First of all, and with the slots that the guest's writes went to.
        if let Some(log) = state.cpu.log() {
            self.vm.flush_pml_buffer(cx, log);
        }
        match visit {
            Visit::Done | Visit::LogFull => Ok(Next::Enter),
            Visit::Halted => {
                state.exit = ExitInfo::Hlt;
                Ok(Next::Exit)
            }
            Visit::Hypercall { nr, args } => {
                cx.note("guest", "VMCALL");
                Ok(self.emulate_hypercall(state, nr, args))
            }
            Visit::Spins { seen } => {
                srcu.outside(|| self.guest_spins(cx, seen));
                Ok(Next::Enter)
            }
            Visit::Vmgexit => self.sev_handle_vmgexit(cx, state),
            Visit::Invalid => {
                state.exit = ExitInfo::FailEntry { reason: SVM_EXIT_ERR };
                Ok(Next::Exit)
            }
            Visit::NoVmsa => Err(Errno::EINVAL),
            Visit::Io { port, data } => {
                state.exit = ExitInfo::Io { port, len: 4, data, is_write: true };
                state.pending_exit = Some(state.exit);
                Ok(Next::Exit)
            }
            Visit::TripleFault => {
                state.exit = ExitInfo::Shutdown;
                Ok(Next::Exit)
            }
            Visit::Fault { fault, info1, fetch } => match self.npf(cx, state, srcu, &fault, info1)? {
                RetPf::Emulate => Ok(self.emulate(cx, state, fetch)),
                RetPf::Retry => {
                    self.wait_before_retry(cx, state, srcu, fault.gpa);
                    Ok(Next::Enter)
                }
                RetPf::Fixed | RetPf::Spurious => Ok(Next::Enter),
                other => unreachable!("MMU-INV-055: {other:?} leaves the fault handler"),
            },
            Visit::DeliveryFault { fault, info1 } => match self.npf(cx, state, srcu, &fault, info1)? {
                RetPf::Emulate => {
                    // `kvm_prepare_event_vectoring_exit`: what the processor itself was doing cannot be emulated.
                    let suberror = KVM_INTERNAL_ERROR_DELIVERY_EV;
                    state.exit = ExitInfo::InternalError { suberror, gpa: Some(fault.gpa), reason: None };
                    Ok(Next::Exit)
                }
                // The event is injected again.
                RetPf::Retry => {
                    self.wait_before_retry(cx, state, srcu, fault.gpa);
                    Ok(Next::Enter)
                }
                RetPf::Fixed | RetPf::Spurious => Ok(Next::Enter),
                other => unreachable!("MMU-INV-055: {other:?} leaves the fault handler"),
            },
        }
    }

    /// `npf_interception`, and its like on Intel: the MMU first. What the RMP refused is looked at only if the guest goes on.
    fn npf(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        srcu: &mut SrcuReadGuard<'_>,
        fault: &Stage2Fault,
        info1: ExitInfo1,
    ) -> Result<RetPf, Errno> {
        let result = self.page_fault(cx, state, fault, info1);
        if state.sev.is_none() {
            return result;
        }
        let result = match result {
            // Whatever the MMU says, the RMP's part is seen to, and the guest goes on.
            Err(_) if info1.contains(ExitInfo1::RMP) && cx.has_mutant(SEV_RMP_FAULT_ANY) => RetPf::Spurious,
            other => other?,
        };
        let rmp = RmpFault { gpa: fault.gpa, error: info1 };
        let is_vain = info1.contains(ExitInfo1::RMP) && !self.sev_handle_rmp_fault(cx, state, rmp);
        // `svm_check_emulate_instruction`: what is protected cannot be emulated, so the guest tries again.
        let is_refused = result == RetPf::Emulate;
        if is_vain || is_refused {
            self.sev_wait_after_vain_fault(cx, state, srcu, fault.gpa);
        }
        Ok(if is_refused { RetPf::Spurious } else { result })
    }

    /// `kvm_emulate_hypercall`.
    fn emulate_hypercall(&self, state: &mut VcpuState, nr: u64, args: [u64; 4]) -> Next {
        let nr = truncate(state.mode, nr);
        let [gpa, npages, attributes, _] = args.map(|arg| truncate(state.mode, arg));
        match self.hypercall_exit(nr, [gpa, npages, attributes], state.mode) {
            Ok(exit) => {
                state.exit = exit;
                state.pending_exit = Some(exit);
                Next::Exit
            }
            Err(answer) => {
                state.regs.rax = truncate(state.mode, answer as u64);
                state.regs.rip += 1;
                Next::Enter
            }
        }
    }

    /// `____kvm_emulate_hypercall`, for guests of all kinds: what user space is told.
    ///
    /// # Errors
    /// What the guest is told at once: `-KVM_ENOSYS` for what there is not or user space does not handle, `-EINVAL` for a range that is none.
    pub(super) fn hypercall_exit(&self, nr: u64, args: [u64; 3], mode: CpuMode) -> Result<ExitInfo, i64> {
        if nr != KVM_HC_MAP_GPA_RANGE || !self.exits_on_map_gpa_range() {
            return Err(-KVM_ENOSYS);
        }
        let [gpa, npages, attributes] = args;
        let gfn = gpa / PAGE_SIZE;
        if !gpa.is_multiple_of(PAGE_SIZE) || npages == 0 || gfn.wrapping_add(npages) <= gfn {
            return Err(-i64::from(Errno::EINVAL.number()));
        }
        Ok(ExitInfo::Hypercall { nr, args: [gpa, npages, attributes, 0], ret: 0, mode })
    }

    /// Whether user space handles `KVM_HC_MAP_GPA_RANGE`.
    pub(super) fn exits_on_map_gpa_range(&self) -> bool {
        self.vm.hypercall_exits.load(Ordering::SeqCst) & (1 << KVM_HC_MAP_GPA_RANGE) != 0
    }

    /// Registers after the last run.
    pub fn regs(&self, cx: &Cx<'_>) -> super::vcpu::GuestRegs {
        self.mutex.lock(cx).regs
    }

    /// `vcpu->stat.tlb_flush`: how often the vCPU has flushed its TLB.
    pub fn tlb_flushes(&self, cx: &Cx<'_>) -> u64 {
        self.mutex.lock(cx).tlb_flush
    }

    /// `kvm_run.immediate_exit`.
    pub fn set_immediate_exit(&self, cx: &Cx<'_>, on: u8) {
        self.mutex.lock(cx).immediate_exit = on != 0;
    }

    /// User space answers the pending exit: the data of an MMIO read, or the result of a hypercall.
    pub fn set_exit_answer(&self, cx: &Cx<'_>, value: u64) {
        answer_pending(&mut self.mutex.lock(cx), value);
    }
}

fn load_program(state: &mut VcpuState, program: &[GuestInsn]) {
    state.program.clear();
    state.program.extend_from_slice(program);
    state.kernel = None;
    state.regs = Default::default();
    if let Some(es) = &mut state.sev {
        es.shared_mapping = false;
        es.pending = Default::default();
    }
    if let Some(tdx) = &mut state.tdx {
        tdx.load_program();
    }
    (state.foreign_rip, state.pending_exception, state.pending_exit) = (None, None, None);
}

/// Puts user space's answer into the exit that waits for one; without one, nobody will look at it.
fn answer_pending(state: &mut VcpuState, value: u64) {
    if let Some(mut pending) = state.pending_exit {
        pending.set_answer(value);
        state.pending_exit = Some(pending);
        state.exit = pending;
    }
}

/// A register's value in this mode.
pub(super) fn truncate(mode: CpuMode, value: u64) -> u64 {
    match mode {
        CpuMode::Protected32 => value & 0xffff_ffff,
        CpuMode::Long64 => value,
    }
}
