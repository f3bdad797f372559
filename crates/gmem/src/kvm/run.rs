//! `KVM_RUN`: serve requests, enter the guest, run an instruction, handle the exit (`vcpu_run`, `vcpu_enter_guest`).

use super::uapi::*;
use super::vcpu::{CpuMode, ExitInfo, GuestInsn, Request, Vcpu, VcpuState};
use sim_coco::{AccessKind, ConfidentialMachine, GuestAccess};
use sim_kernel::sync::SrcuReadGuard;
use sim_kernel::{Cx, Errno, PAGE_SIZE, Pfn};
use sim_mmu::{Access, Gpa, RetPf, Stage2Fault};

/// What the guest did in one visit.
enum Visit {
    /// The instruction is complete.
    Done,
    /// The program ended.
    Halted,
    /// The machine could not translate an access of this kind.
    Fault(Stage2Fault, Access),
    /// The guest asked for something.
    Hypercall { nr: u64, args: [u64; 4] },
}

/// What is left to do after an exit was handled.
enum Next {
    /// Enter again.
    Enter,
    /// Back to user space.
    Exit,
}

impl Vcpu {
    /// Gives the vCPU a program; it starts at its first instruction, and an exit that was pending is forgotten.
    pub fn set_program(&self, cx: &Cx<'_>, program: &[GuestInsn]) {
        let mut state = self.mutex.lock(cx);
        state.program.clear();
        state.program.extend_from_slice(program);
        state.regs = Default::default();
        state.pending_exit = None;
    }

    /// Where the program's instructions are fetched from, and how wide the registers are.
    pub fn set_mode(&self, cx: &Cx<'_>, mode: CpuMode, code: Option<Gpa>) {
        let mut state = self.mutex.lock(cx);
        state.mode = mode;
        state.code = code;
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
        let mut state = self.mutex.lock(cx);
        if let Some(answer) = answer {
            answer_pending(&mut state, answer);
        }
        let result = self.vcpu_run(cx, &mut state);
        let exit = state.exit;
        drop(state);
        cx.task_work_run();
        (result, exit)
    }

    fn vcpu_run(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Result<(), Errno> {
        let mut srcu = self.vm.srcu.read(cx);
        if let Some(pending) = state.pending_exit.take() {
            match self.complete_userspace_io(state, pending) {
                Next::Enter => {}
                Next::Exit => return Ok(()),
            }
        }
        if state.immediate_exit {
            return Err(Errno::EINTR);
        }
        state.exit = ExitInfo::Unknown;
        loop {
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

    fn serve_requests(&self, cx: &Cx<'_>, state: &mut VcpuState) {
        if self.peek_requests() == 0 {
            return;
        }
        if self.check_request(cx, Request::FreeObsoleteRoots)
            && state.root.as_ref().is_some_and(|root| root.is_invalid_lockless(cx))
        {
            let root = state.root.take().expect("just seen");
            self.vm.mmu.put_root(cx, root);
        }
        // The flush itself has nothing to drop while there is no TLB: leaving the guest was what mattered.
        self.check_request(cx, Request::TlbFlush);
    }

    fn vcpu_enter_guest(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        srcu: &mut SrcuReadGuard<'_>,
    ) -> Result<Next, Errno> {
        self.serve_requests(cx, state);
        if state.root.is_none() {
            state.root = Some(self.vm.mmu.load_root(cx, 0)?);
        }
        self.enter_guest_mode(cx);
        let visit = srcu.outside(|| {
            // After the mode was stored: a request made before is seen here, one made later kicks.
            let visit = (!self.has_requests(cx) && !cx.signal_pending()).then(|| self.guest(cx, state));
            self.leave_guest_mode(cx);
            visit
        });
        match visit {
            None => Ok(Next::Enter),
            Some(visit) => self.handle_exit(cx, state, visit),
        }
    }

    /// The guest runs: one instruction, then out again.
    fn guest(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Visit {
        if let Some(code) = state.code
            && let Err(fault) = self.translate(cx, state, code, Access::Exec)
        {
            return Visit::Fault(fault, Access::Exec);
        }
        let Some(&insn) = state.program.get(state.regs.rip) else { return Visit::Halted };
        let accessed = match insn {
            GuestInsn::Hypercall { nr, args } => return Visit::Hypercall { nr, args },
            GuestInsn::Read { gpa } => self.access(cx, state, gpa, Access::Read, |_| None),
            GuestInsn::Write { gpa, value } => self.access(cx, state, gpa, Access::Write, |_| Some(value)),
            GuestInsn::Rmw { gpa, value } => {
                self.access(cx, state, gpa, Access::Write, |old| Some(old.wrapping_add(value)))
            }
        };
        match accessed {
            Ok(old) => {
                if let GuestInsn::Read { .. } = insn {
                    state.regs.rbx = u64::from(old);
                }
                state.regs.rip += 1;
                Visit::Done
            }
            Err((fault, kind)) => Visit::Fault(fault, kind),
        }
    }

    fn translate(&self, cx: &Cx<'_>, state: &VcpuState, gpa: Gpa, kind: Access) -> Result<Pfn, Stage2Fault> {
        let root = state.root.as_ref().expect("a root is loaded before entry");
        let translation = self.vm.mmu.translate(cx, root, gpa, kind)?;
        let access = GuestAccess {
            gpa,
            pfn: translation.pfn,
            level: translation.level,
            kind: match kind {
                Access::Read => AccessKind::Read,
                Access::Write => AccessKind::Write,
                Access::Exec => AccessKind::Fetch,
            },
            private: false,
        };
        let checked = self.vm.machine.check_guest(cx, &access);
        checked.expect("a machine without protection lets every access through");
        Ok(translation.pfn)
    }

    /// One access of four bytes. `change` gives the new value, or `None` for a read; returns the old one.
    fn access(
        &self,
        cx: &Cx<'_>,
        state: &VcpuState,
        gpa: Gpa,
        kind: Access,
        change: impl Fn(u32) -> Option<u32>,
    ) -> Result<u32, (Stage2Fault, Access)> {
        let phys = &self.vm.host.phys;
        let offset = gpa.0 % PAGE_SIZE;
        let pfn = self.translate(cx, state, gpa, kind).map_err(|fault| (fault, kind))?;
        if offset.is_multiple_of(4) {
            return Ok(match kind {
                Access::Write => phys.change_u32(cx, pfn, offset, |old| change(old).unwrap_or(old)),
                _ => phys.read_u32(cx, pfn, offset),
            });
        }
        // Not aligned: byte by byte, in one or two pages, both translated before either is touched.
        let second = if offset + 4 > PAGE_SIZE {
            let next = Gpa((gpa.0 | (PAGE_SIZE - 1)).wrapping_add(1));
            self.translate(cx, state, next, kind).map_err(|fault| (fault, kind))?
        } else {
            pfn
        };
        let place = |i: u64| if offset + i < PAGE_SIZE { (pfn, offset + i) } else { (second, offset + i - PAGE_SIZE) };
        let mut old = 0;
        for i in 0..4 {
            let (pfn, at) = place(i);
            old |= u32::from(phys.read_u8(cx, pfn, at)) << (8 * i);
        }
        if let Some(new) = change(old) {
            for i in 0..4 {
                let (pfn, at) = place(i);
                phys.write_u8(cx, pfn, at, (new >> (8 * i)) as u8);
            }
        }
        Ok(old)
    }

    fn handle_exit(&self, cx: &Cx<'_>, state: &mut VcpuState, visit: Visit) -> Result<Next, Errno> {
        match visit {
            Visit::Done => Ok(Next::Enter),
            Visit::Halted => {
                state.exit = ExitInfo::Hlt;
                Ok(Next::Exit)
            }
            Visit::Hypercall { nr, args } => Ok(self.emulate_hypercall(state, nr, args)),
            Visit::Fault(fault, kind) => match self.page_fault(cx, state, &fault, kind)? {
                RetPf::Emulate => Ok(self.emulate(cx, state, kind)),
                RetPf::Retry | RetPf::Fixed | RetPf::Spurious => Ok(Next::Enter),
                other => unreachable!("MMU-INV-055: {other:?} leaves the fault handler"),
            },
        }
    }

    /// Emulates the current instruction: the access goes through the VMM's mapping where a slot has one, and to user space where
    /// not.
    fn emulate(&self, cx: &Cx<'_>, state: &mut VcpuState, kind: Access) -> Next {
        if kind == Access::Exec {
            // The emulator cannot fetch from where no memory is.
            state.exit = ExitInfo::InternalError { suberror: KVM_INTERNAL_ERROR_EMULATION };
            return Next::Exit;
        }
        let insn = state.program[state.regs.rip];
        let (gpa, value) = match insn {
            GuestInsn::Read { gpa } => (gpa, None),
            GuestInsn::Write { gpa, value } => {
                return self.emulate_write(cx, state, gpa, value);
            }
            GuestInsn::Rmw { gpa, value } => (gpa, Some(value)),
            GuestInsn::Hypercall { .. } => unreachable!("a hypercall accesses no memory"),
        };
        match (self.emulated_read(cx, state, gpa), value) {
            (Some(read), None) => {
                state.regs.rbx = u64::from(read);
                state.regs.rip += 1;
                Next::Enter
            }
            (Some(read), Some(value)) => self.emulate_write(cx, state, gpa, read.wrapping_add(value)),
            (None, _) => {
                state.exit = ExitInfo::Mmio { gpa, len: 4, data: 0, is_write: false };
                state.pending_exit = Some(state.exit);
                Next::Exit
            }
        }
    }

    /// `kvm_vcpu_read_guest`: through the VMM's mapping, whatever attributes and guest_memfd say.
    fn emulated_read(&self, cx: &Cx<'_>, state: &mut VcpuState, gpa: Gpa) -> Option<u32> {
        let slot = self.gfn_to_memslot(cx, state, gpa.gfn()).1.filter(|slot| !slot.is_invalid())?;
        let hva = slot.hva(gpa.gfn()) + gpa.0 % PAGE_SIZE;
        self.vm.mm.read_u32(cx, hva).ok()
    }

    fn emulate_write(&self, cx: &Cx<'_>, state: &mut VcpuState, gpa: Gpa, value: u32) -> Next {
        let slot = self.gfn_to_memslot(cx, state, gpa.gfn()).1;
        if let Some(slot) = slot.filter(|slot| !slot.is_invalid() && !slot.is_readonly()) {
            let hva = slot.hva(gpa.gfn()) + gpa.0 % PAGE_SIZE;
            if self.vm.mm.write_u32(cx, hva, value).is_ok() {
                if let Some(bitmap) = &slot.dirty_bitmap {
                    bitmap.set(cx, gpa.gfn() - slot.base_gfn);
                }
                state.regs.rip += 1;
                return Next::Enter;
            }
        }
        state.exit = ExitInfo::Mmio { gpa, len: 4, data: u64::from(value), is_write: true };
        state.pending_exit = Some(state.exit);
        Next::Exit
    }

    /// `complete_userspace_io`: user space has handled the exit; the instruction goes on.
    fn complete_userspace_io(&self, state: &mut VcpuState, pending: ExitInfo) -> Next {
        let insn = state.program[state.regs.rip];
        // In the run page a memory fault's address lies where MMIO has its data.
        let read = |data: u64| match state.exit {
            ExitInfo::MemoryFault { gpa, .. } => gpa.0 as u32,
            _ => data as u32,
        };
        match (pending, insn) {
            (ExitInfo::Mmio { is_write: false, data, .. }, GuestInsn::Read { .. }) => {
                state.regs.rbx = u64::from(read(data));
            }
            (ExitInfo::Mmio { is_write: false, data, gpa, .. }, GuestInsn::Rmw { value, .. }) => {
                let data = u64::from(read(data).wrapping_add(value));
                state.exit = ExitInfo::Mmio { gpa, len: 4, data, is_write: true };
                state.pending_exit = Some(state.exit);
                return Next::Exit;
            }
            (ExitInfo::Mmio { is_write: true, .. }, _) => {}
            (ExitInfo::Hypercall { ret, .. }, _) => state.regs.rax = truncate(state.mode, ret),
            other => unreachable!("no exit of this kind waits for user space: {other:?}"),
        }
        state.regs.rip += 1;
        Next::Enter
    }

    /// `kvm_emulate_hypercall`.
    fn emulate_hypercall(&self, state: &mut VcpuState, nr: u64, args: [u64; 4]) -> Next {
        /// `KVM_ENOSYS`.
        const ENOSYS: i64 = 1000;
        let nr = truncate(state.mode, nr);
        let args = args.map(|arg| truncate(state.mode, arg));
        let answer = if nr != KVM_HC_MAP_GPA_RANGE
            || self.vm.hypercall_exits.load(std::sync::atomic::Ordering::SeqCst) & (1 << KVM_HC_MAP_GPA_RANGE) == 0
        {
            -ENOSYS
        } else {
            let (gpa, npages) = (args[0], args[1]);
            let gfn = gpa / PAGE_SIZE;
            if !gpa.is_multiple_of(PAGE_SIZE) || npages == 0 || gfn.wrapping_add(npages) <= gfn {
                -i64::from(Errno::EINVAL.number())
            } else {
                state.exit = ExitInfo::Hypercall { nr, args: [args[0], args[1], args[2], 0], ret: 0, mode: state.mode };
                state.pending_exit = Some(state.exit);
                return Next::Exit;
            }
        };
        state.regs.rax = truncate(state.mode, answer as u64);
        state.regs.rip += 1;
        Next::Enter
    }

    /// Registers after the last run.
    pub fn regs(&self, cx: &Cx<'_>) -> super::vcpu::GuestRegs {
        self.mutex.lock(cx).regs
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

/// Puts user space's answer into the exit that waits for one; without one, nobody will look at it.
fn answer_pending(state: &mut VcpuState, value: u64) {
    if let Some(mut pending) = state.pending_exit {
        pending.set_answer(value);
        state.pending_exit = Some(pending);
        state.exit = pending;
    }
}

/// A register's value in this mode.
fn truncate(mode: CpuMode, value: u64) -> u64 {
    match mode {
        CpuMode::Protected32 => value & 0xffff_ffff,
        CpuMode::Long64 => value,
    }
}
