//! A guest's kernel on a vCPU: a program that makes its instructions as it goes ([`linux_guest`](crate::linux_guest)), and spinning processors. Not KVM.
//!
//! A processor that spins leaves the guest (with pause-loop exiting it would, too) and waits until another one of its VM has executed a release: nothing is polled.

use super::info::SevInfo;
use super::insn::SnpInsn;
use crate::kvm::guest::GuestInsn;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use crate::linux_guest::{Ends, Insn, Place, Program, Vc};
use sim_coco::snp::RmpSize;
use sim_kernel::Cx;
use sim_kernel::sync::WaitQueue;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a vCPU runs.
#[derive(Debug)]
pub(crate) struct KernelOnVcpu {
    program: Program,
    /// `#VC` instead of the result of the last instruction.
    vc: Option<Vc>,
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

    pub(super) fn seen(&self) -> u64 {
        self.releases.load(Ordering::SeqCst)
    }

    pub(super) fn release(&self, cx: &Cx<'_>) {
        self.releases.fetch_add(1, Ordering::SeqCst);
        self.waiting.wake_unscheduled(cx);
    }
}

impl SevInfo {
    /// A vCPU was asked to do something: one that spins looks at it.
    pub(crate) fn wake_spinning_guest(&self, cx: &Cx<'_>) {
        self.spinners.waiting.wake_unscheduled(cx);
    }
}

impl Vcpu {
    /// Gives a vCPU of an SNP VM a kernel to run, from its beginning. The simulator's own.
    ///
    /// # Panics
    /// If the VM is of another type.
    pub fn set_kernel(&self, cx: &Cx<'_>, program: Program) {
        self.set_program(cx, &[]);
        let mut state = self.mutex.lock(cx);
        let es = state.sev.as_deref_mut().expect("kernels are of SNP guests");
        es.kernel = Some(Box::new(KernelOnVcpu { program, vc: None }));
    }

    /// How the kernel has ended, if it has.
    pub fn kernel_outcome(&self, cx: &Cx<'_>) -> Option<Ends<()>> {
        let state = self.mutex.lock(cx);
        state.sev.as_deref().and_then(|es| es.kernel.as_ref()).and_then(|kernel| kernel.program.outcome())
    }

    /// The exit of a processor that spins: it waits for a release, unless there was one since it looked.
    pub(crate) fn sev_spin(&self, cx: &Cx<'_>, seen: u64) {
        let sev = self.vm.sev().expect("only kernels of SNP guests spin");
        let other = || self.peek_requests() != 0 || cx.signal_pending();
        sev.spinners.waiting.wait_event(cx, || sev.spinners.seen() != seen || other());
    }
}

impl VcpuState {
    /// Whether there is more to come than the program has.
    pub(crate) fn has_kernel(&self) -> bool {
        self.sev.as_deref().is_some_and(|es| es.kernel.is_some())
    }

    /// The program is at its end: the kernel's next instruction, if there is one.
    pub(crate) fn fetch_from_kernel(&mut self) {
        let Some(es) = self.sev.as_deref_mut() else { return };
        let Some(kernel) = es.kernel.as_deref_mut() else { return };
        loop {
            let result = kernel.vc.take().map_or(Ok(self.regs.rbx), Err);
            let Some(insn) = kernel.program.step(result) else { return };
            self.program.clear();
            self.regs.rip = 0;
            translate(insn, &mut self.program, &mut es.blocks);
            if !self.program.is_empty() {
                return;
            }
        }
    }

    /// A `#VC` goes to the kernel, if there is one, in place of the instruction's result.
    pub(crate) fn vc_to_kernel(&mut self, error: u64, cr2: u64) -> bool {
        let Some(kernel) = self.sev.as_deref_mut().and_then(|es| es.kernel.as_deref_mut()) else { return false };
        kernel.vc = Some(Vc { error, cr2 });
        self.program.clear();
        self.regs.rip = 0;
        true
    }
}

/// The processor's instructions for one of the kernel's; none for a change of mappings, which there are not without paging.
fn translate(insn: Insn, program: &mut Vec<GuestInsn>, blocks: &mut Vec<Box<[u8]>>) {
    let mut through = |place: Place, insn: GuestInsn| {
        program.extend([GuestInsn::Snp(SnpInsn::SetShared { shared: place.shared }), insn]);
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
        Insn::Read(place) => through(place, GuestInsn::Read64 { gpa: place.gpa }),
        Insn::Write(place, value) => through(place, GuestInsn::Write64 { gpa: place.gpa, value }),
        Insn::Copy(place, words) => {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            *blocks = vec![bytes.into_boxed_slice()];
            through(place, GuestInsn::Snp(SnpInsn::WriteBlock { gpa: place.gpa, block: 0 }));
        }
        Insn::CompareExchange { gpa, old, new } => {
            through(Place::private(gpa), GuestInsn::Snp(SnpInsn::CompareExchange { gpa, old, new }));
        }
        Insn::SpinWhile { gpa, value } => {
            through(Place::private(gpa), GuestInsn::Snp(SnpInsn::SpinWhile { gpa, value }));
        }
        Insn::Release(gpa, value) => {
            through(Place::private(gpa), GuestInsn::Snp(SnpInsn::Release { gpa, value }));
        }
        Insn::SetEncrypted(..) => {}
        Insn::Out { port, value } => {
            program.extend([GuestInsn::Load { value: u64::from(value) }, GuestInsn::Out { port }]);
        }
    }
}
