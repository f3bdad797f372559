//! Operations of a vCPU: each is a short program that the vCPU runs from its code page until it halts or exits.
//!
//! As the recording program has it: the first vCPU of a VM adds memory slot 31 with one page of code, or with what paging needs
//! ([`paged`](super::paged)); the vCPU runs in 32-bit protected mode with paging off.

use sim_kernel::mm::Prot;
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE};
use sim_mmu::{Gpa, Gva};

use super::paged;
use super::world::{World, errno_of, failed};
use crate::kvm::ioctl;
use crate::kvm::process::{Mapped, Sharing};
use crate::kvm::uapi::exit::{KVM_EXIT_IO, KVM_EXIT_SNP_REQ_CERTS};
use crate::kvm::uapi::kvm_userspace_memory_region;
use crate::kvm::vcpu::{CpuMode, ExitInfo, GuestInsn};
use crate::linux_guest::Program;
use crate::ops::{Answer, Exit, Name, Op};
use std::sync::{Arc, OnceLock};

/// Where the code page lies in the guest.
pub(super) const CODE_GPA: u64 = 0xf000_0000;
/// The slot that holds it.
const CODE_SLOT: u32 = 31;
/// What the first word of a code page holds: `hlt`, four times.
const CODE_WORD: u32 = 0xf4f4_f4f4;

/// A program of a protected guest.
#[derive(Default)]
pub(super) struct Run {
    /// Instructions, and then `hlt`.
    pub(super) program: Vec<GuestInsn>,
    /// Code of an SNP guest's kernel, which is instead of them on a vCPU of such a guest.
    pub(super) kernel: Option<Program>,
    /// What the VMM answers; 0: it does what it is asked for.
    pub(super) reply: u64,
    /// Whether `rbx` is worth telling at the end.
    pub(super) reads: bool,
    /// Whether the answer of a hypercall is: `rax`.
    pub(super) answers: bool,
    /// What the kernel finds out, which is told instead of `rbx`.
    pub(super) told: Arc<OnceLock<u64>>,
}

impl World {
    /// Runs a program of a protected guest, whose requests to convert memory the VMM serves.
    pub(super) fn run_guest(&self, cx: &Cx<'_>, vcpu: &Name, run: Run) -> Answer {
        let fd = self.fd(vcpu);
        let Some(handle) = ioctl::peek_vcpu(cx, &self.process, fd) else {
            return failed(ioctl::run(cx, &self.process, fd).err().unwrap_or(Errno::ENOTTY));
        };
        let _operator = handle.operator.lock(cx);
        match run.kernel {
            Some(kernel) if handle.vm().sev().is_some() => handle.set_kernel(cx, kernel),
            _ => handle.set_program(cx, &run.program),
        }
        let mut answer = None;
        loop {
            let (result, exit) = match ioctl::run_answered(cx, &self.process, fd, answer) {
                Ok(run) => run,
                Err(errno) => return failed(errno),
            };
            match exit {
                ExitInfo::Hypercall { args, .. } if result.is_ok() => {
                    answer = Some(if run.reply == 0 { self.map_gpa_range(cx, &handle, args) } else { run.reply });
                }
                ExitInfo::SnpReqCerts { .. } if result.is_ok() => answer = Some(run.reply),
                _ => {
                    let told = run.answers.then(|| handle.regs(cx).rax);
                    let value = told
                        .or_else(|| run.reads.then(|| run.told.get().copied().unwrap_or_else(|| handle.regs(cx).rbx)));
                    return answer_of(result, exit, value);
                }
            }
        }
    }

    pub(super) fn create_vcpu(&self, cx: &Cx<'_>, vm: &Name, vcpu: &Name, index: u64, paging: bool) -> Answer {
        let vm_fd = self.fd(vm);
        let result = ioctl::create_vcpu(cx, &self.process, vm_fd, index);
        if result.is_ok()
            && let Some(vm) = ioctl::peek_vm(cx, &self.process, vm_fd)
            && vm.vcpu_count() == 1
            && !vm.is_protected()
            && vm.pkvm().is_none()
        {
            // A VM whose slots already use this place keeps them: the recording program does not look either.
            let _ = self.add_code_slot(cx, vm_fd, paging);
        }
        if let Some(vcpu) = result.ok().and_then(|fd| ioctl::peek_vcpu(cx, &self.process, fd)) {
            // What a protected guest executes is its private memory: fetches of it are not modelled. Nor are those of other guests of pKVM.
            let is_own = vcpu.vm().is_protected() || vcpu.vm().pkvm().is_some();
            let mode = if is_own { CpuMode::Long64 } else { CpuMode::Protected32 };
            vcpu.set_mode(cx, mode, (!is_own).then_some(Gva(CODE_GPA)));
        }
        self.name_fd(vcpu, result)
    }

    fn add_code_slot(&self, cx: &Cx<'_>, vm: i32, paging: bool) -> Result<(), Errno> {
        let size = if paging { paged::PAGES * PAGE_SIZE } else { PAGE_SIZE };
        let hva: Hva =
            self.process.mmap(cx, size, Prot::READ | Prot::WRITE, Sharing::Private, Mapped::Anonymous, PAGE_SIZE)?;
        self.process.write_u32(cx, hva, CODE_WORD).map_err(|_| Errno::EFAULT)?;
        if paging {
            self.write_paged_slot(cx, hva).map_err(|_| Errno::EFAULT)?;
        }
        let region = kvm_userspace_memory_region {
            slot: CODE_SLOT,
            flags: 0,
            guest_phys_addr: CODE_GPA,
            memory_size: size,
            userspace_addr: hva.0,
        };
        ioctl::set_user_memory_region(cx, &self.process, vm, &region)
    }

    /// Runs one guest operation.
    pub(super) fn guest(&self, cx: &Cx<'_>, op: &Op) -> Answer {
        let (vcpu, insn) = match op {
            Op::GuestRead { vcpu, gpa } => (vcpu, GuestInsn::Read { gpa: Gpa(*gpa) }),
            Op::GuestWrite { vcpu, gpa, value } => (vcpu, GuestInsn::Write { gpa: Gpa(*gpa), value: *value as u32 }),
            Op::GuestRmw { vcpu, gpa, value } => (vcpu, GuestInsn::Rmw { gpa: Gpa(*gpa), value: *value as u32 }),
            Op::GuestHypercall { vcpu, nr, args, .. } => {
                let arg = |i: usize| args.get(i).copied().unwrap_or(0);
                (vcpu, GuestInsn::Hypercall { nr: *nr, args: [arg(0), arg(1), arg(2), arg(3)] })
            }
            other => unreachable!("{} is no operation of a vCPU", other.name()),
        };
        let fd = self.fd(vcpu);
        let Some(handle) = ioctl::peek_vcpu(cx, &self.process, fd) else {
            // Not a vCPU: let the system call say so.
            return failed(ioctl::run(cx, &self.process, fd).err().unwrap_or(Errno::ENOTTY));
        };
        // Another thread may operate the same vCPU; each lets it run a program to its end.
        let _operator = handle.operator.lock(cx);
        handle.set_program(cx, &[insn]);
        let (result, exit) = match ioctl::run(cx, &self.process, fd) {
            Ok(run) => run,
            Err(errno) => return failed(errno),
        };
        if let (ExitInfo::Hypercall { nr, args, .. }, Op::GuestHypercall { reply, args: asked, .. }) = (exit, op) {
            handle.set_exit_answer(cx, *reply);
            let (result, _) = match ioctl::run(cx, &self.process, fd) {
                Ok(run) => run,
                Err(errno) => return failed(errno),
            };
            let exit =
                Exit::Hypercall { nr, args: args[..asked.len().clamp(3, 4)].to_vec(), rax: Some(handle.regs(cx).rax) };
            return Answer::Exit { errno: result.err().map(errno_of), exit };
        }
        let regs = handle.regs(cx);
        let halted = match op {
            Op::GuestRead { .. } => Some(regs.rbx),
            // Not an exit of its own: KVM answered the guest itself, and that is what the guest then has.
            Op::GuestHypercall { .. } => Some(regs.rax),
            _ => None,
        };
        answer_of(result, exit, halted)
    }
}

/// What `KVM_RUN` came back with; `halted` is what the guest has read if it has come to its end.
pub(super) fn answer_of(result: Result<(), Errno>, exit: ExitInfo, halted: Option<u64>) -> Answer {
    let exit = match exit {
        ExitInfo::Unknown => Exit::Reason(0),
        ExitInfo::Hlt => Exit::Hlt { value: halted },
        ExitInfo::Mmio { gpa, len, is_write, .. } => Exit::Mmio { gpa: gpa.0, len: u64::from(len), write: is_write },
        // The descriptor may have been closed and given to another vCPU meanwhile, whose program this is.
        ExitInfo::Hypercall { nr, args, .. } => Exit::Hypercall { nr, args: args[..3].to_vec(), rax: None },
        ExitInfo::Intr => Exit::Intr,
        // As with a hypercall: another vCPU's program, under a descriptor that was given anew.
        ExitInfo::Io { .. } => Exit::Reason(u64::from(KVM_EXIT_IO)),
        ExitInfo::Shutdown => Exit::Shutdown,
        ExitInfo::SystemEvent { kind, data } => Exit::SystemEvent { kind: u64::from(kind), data },
        ExitInfo::FailEntry { reason } => Exit::FailEntry { reason },
        ExitInfo::SnpReqCerts { .. } => Exit::Reason(u64::from(KVM_EXIT_SNP_REQ_CERTS)),
        ExitInfo::InternalError { suberror, reason, .. } => {
            Exit::InternalError { suberror: Some(u64::from(suberror)), data: reason }
        }
        ExitInfo::MemoryFault { flags, gpa, size } => Exit::MemoryFault { flags, gpa: gpa.0, size },
    };
    Answer::Exit { errno: result.err().map(errno_of), exit }
}
