//! A guest's kernel on a vCPU: a program that makes its instructions as it goes ([`linux_guest`](crate::linux_guest)), the instructions that only such programs need,
//! and spinning processors. Not KVM. SNP guests and TDs have them.
//!
//! A processor that spins leaves the guest (with pause-loop exiting it would, too) and waits until another one of its VM has executed a release: nothing is polled.

use super::guest::GuestInsn;
use super::sev::insn::SnpInsn;
use super::tdx::insn::TdInsn;
use super::vcpu::{Vcpu, VcpuState};
use super::vm::Vm;
use crate::linux_guest::{Ends, Insn, Place, Program, Trap};
use sim_coco::snp::RmpSize;
use sim_kernel::Cx;
use sim_kernel::sync::WaitQueue;
use sim_mmu::Gpa;
use std::sync::atomic::{AtomicU64, Ordering};

/// An ordinary instruction that kernels need, and programs of scenarios do not. Its access goes where those of others go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelInsn {
    /// `lock cmpxchg` of eight bytes; `rbx` receives what was there.
    CompareExchange {
        /// Where.
        gpa: Gpa,
        /// What is expected.
        old: u64,
        /// What comes there then.
        new: u64,
    },
    /// `pause` and a look, until the eight bytes are something else: another vCPU's [`KernelInsn::Release`].
    SpinWhile {
        /// Where.
        gpa: Gpa,
        /// What it waits to see gone.
        value: u64,
    },
    /// A store of eight bytes for which others spin.
    Release {
        /// Where.
        gpa: Gpa,
        /// What.
        value: u64,
    },
    /// A copy of one of the program's blocks of bytes to memory, in one step if it is in one page.
    WriteBlock {
        /// Where.
        gpa: Gpa,
        /// Which.
        block: usize,
    },
}

/// What a vCPU runs.
#[derive(Debug)]
pub(crate) struct KernelOnVcpu {
    program: Program,
    /// An exception instead of the result of the last instruction.
    trap: Option<Trap>,
}

/// Processors of a guest that spin.
#[derive(Debug)]
pub(crate) struct Spinners {
    releases: AtomicU64,
    waiting: WaitQueue,
}

impl Spinners {
    pub(super) fn new(cx: &Cx<'_>) -> Spinners {
        Spinners { releases: AtomicU64::new(0), waiting: WaitQueue::new(cx, "processor of a guest that spins") }
    }

    /// Releases so far.
    pub(super) fn seen(&self) -> u64 {
        self.releases.load(Ordering::SeqCst)
    }

    /// A processor has executed a release.
    pub(super) fn release(&self, cx: &Cx<'_>) {
        self.releases.fetch_add(1, Ordering::SeqCst);
        self.waiting.wake_unscheduled(cx);
    }
}

impl Vm {
    /// What spinning processors of its guest wait at, if it can have a kernel.
    pub(super) fn guest_spinners(&self) -> Option<&Spinners> {
        let of_td = || self.tdx().map(|tdx| &tdx.spinners);
        self.sev().map(|sev| &sev.spinners).or_else(of_td)
    }

    /// A vCPU was asked to do something: one that spins looks at it.
    pub(super) fn wake_spinning_guest(&self, cx: &Cx<'_>) {
        if let Some(spinners) = self.guest_spinners() {
            spinners.waiting.wake_unscheduled(cx);
        }
    }
}

impl Vcpu {
    /// Gives a vCPU of an SNP VM or a TD a kernel to run, from its beginning. The simulator's own.
    ///
    /// # Panics
    /// If the VM is of another type.
    pub fn set_kernel(&self, cx: &Cx<'_>, program: Program) {
        assert!(self.vm.guest_spinners().is_some(), "kernels are of SNP guests and TDs");
        self.set_program(cx, &[]);
        self.mutex.lock(cx).kernel = Some(Box::new(KernelOnVcpu { program, trap: None }));
    }

    /// How the kernel has ended, if it has.
    pub fn kernel_outcome(&self, cx: &Cx<'_>) -> Option<Ends<()>> {
        self.mutex.lock(cx).kernel.as_ref().and_then(|kernel| kernel.program.outcome())
    }

    /// The exit of a processor that spins: it waits for a release, unless there was one since it looked.
    pub(super) fn guest_spins(&self, cx: &Cx<'_>, seen: u64) {
        let spinners = self.vm.guest_spinners().expect("only kernels spin");
        let other = || self.peek_requests() != 0 || cx.signal_pending();
        spinners.waiting.wait_event(cx, || spinners.seen() != seen || other());
    }
}

impl VcpuState {
    /// Whether there is more to come than the program has.
    pub(super) fn has_kernel(&self) -> bool {
        self.kernel.is_some()
    }

    /// The program is at its end: the kernel's next instruction, if there is one.
    pub(super) fn fetch_from_kernel(&mut self) {
        let Some(kernel) = self.kernel.as_deref_mut() else { return };
        let is_td = self.tdx.is_some();
        let mut result = self.regs.rbx;
        loop {
            let Some(insn) = kernel.program.step(kernel.trap.take().map_or(Ok(result), Err)) else { return };
            self.program.clear();
            self.regs.rip = 0;
            if insn == Insn::ReadRax {
                result = self.regs.rax;
                continue;
            }
            translate(insn, is_td, &mut self.program, &mut self.blocks);
            if !self.program.is_empty() {
                return;
            }
        }
    }

    /// An exception goes to the kernel, if there is one, in place of the instruction's result.
    pub(super) fn trap_to_kernel(&mut self, trap: Trap) -> bool {
        let Some(kernel) = self.kernel.as_deref_mut() else { return false };
        kernel.trap = Some(trap);
        self.program.clear();
        self.regs.rip = 0;
        true
    }
}

/// The processor's instructions for one of the kernel's; none for a change of mappings, which there are not without paging.
fn translate(insn: Insn, is_td: bool, program: &mut Vec<GuestInsn>, blocks: &mut Vec<Box<[u8]>>) {
    let mut through = |place: Place, insn: GuestInsn| {
        let shared = place.shared;
        let mapping = if is_td {
            GuestInsn::Td(TdInsn::SetShared { shared })
        } else {
            GuestInsn::Snp(SnpInsn::SetShared { shared })
        };
        program.extend([mapping, insn]);
    };
    match insn {
        Insn::Pvalidate { gpa, size, validate } => {
            let size = u64::from(size == RmpSize::Size2M);
            program.push(GuestInsn::Snp(SnpInsn::Pvalidate { gpa, size, validate: u32::from(validate) }));
        }
        Insn::Rmpadjust { gpa, rdx } => program.push(GuestInsn::Snp(SnpInsn::Rmpadjust { gpa, size: 0, rdx: rdx.0 })),
        Insn::WriteGhcbMsr(value) => program.push(GuestInsn::Snp(SnpInsn::WriteGhcbMsr { value })),
        Insn::ReadGhcbMsr => program.push(GuestInsn::Snp(SnpInsn::ReadGhcbMsr)),
        Insn::Vmgexit => program.push(GuestInsn::Snp(SnpInsn::Vmgexit)),
        Insn::TdAccept { gpa, level } => {
            let size = u64::from(sim_coco::tdx::level_number(level));
            program.push(GuestInsn::Td(TdInsn::Accept { gpa, size }));
        }
        Insn::TdVmCall { leaf, operands } => program.push(GuestInsn::Td(TdInsn::VmCall { leaf, operands })),
        Insn::TdVpInfo => program.push(GuestInsn::Td(TdInsn::VpInfo)),
        Insn::TdSetPendingVeDisable => program.push(GuestInsn::Td(TdInsn::SetPendingVeDisable { on: true })),
        Insn::ReadRax => unreachable!("a look at a register is no instruction"),
        Insn::Read(place) => through(place, GuestInsn::Read64 { gpa: place.gpa }),
        Insn::Write(place, value) => through(place, GuestInsn::Write64 { gpa: place.gpa, value }),
        Insn::Copy(place, words) => {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            *blocks = vec![bytes.into_boxed_slice()];
            through(place, GuestInsn::Kernel(KernelInsn::WriteBlock { gpa: place.gpa, block: 0 }));
        }
        Insn::CompareExchange { gpa, old, new } => {
            through(Place::private(gpa), GuestInsn::Kernel(KernelInsn::CompareExchange { gpa, old, new }));
        }
        Insn::SpinWhile { gpa, value } => {
            through(Place::private(gpa), GuestInsn::Kernel(KernelInsn::SpinWhile { gpa, value }));
        }
        Insn::Release(gpa, value) => {
            through(Place::private(gpa), GuestInsn::Kernel(KernelInsn::Release { gpa, value }));
        }
        Insn::SetEncrypted(..) => {}
        Insn::Out { port, value } => {
            program.extend([GuestInsn::Load { value: u64::from(value) }, GuestInsn::Out { port }]);
        }
    }
}
