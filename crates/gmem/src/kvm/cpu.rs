//! The logical processor that runs a vCPU: registers, TLB and walker of [`sim_mmu::Processor`], and KVM's reading of what it reports when
//! stage 2 refuses an access (`npf_interception`, `handle_ept_violation`, `handle_ept_misconfig`).
//!
//! Simplified: each vCPU has a processor of its own, so that nothing is left behind when it moves, and one VPID or ASID.

use super::config::MachineConfig;
use super::exception::Exception;
use sim_kernel::Cx;
use sim_mmu::guest_paging::{AccessMode, Encryption, GuestFormat, Gva, PagingRegisters, UnsupportedPaging};
use sim_mmu::processor::{GuestState, InveptType, InvvpidType, TlbControl, Translated};
use sim_mmu::tlb::{CachedTranslation, TlbTag};
use sim_mmu::walker::{
    EptExit, EptViolation, ExitInfo1, ExitQualification, MmuFault, NestedPageFault, NoObserver, Pml, Stage2,
    Stage2Root, WalkMemory,
};
use sim_mmu::{Access, Ept, Gpa, Level, Npt, Processor, Stage2Fault, Stage2Kind};

/// The VPID or ASID of the one vCPU of a processor. 0 is the host's.
const TAG: TlbTag = TlbTag(1);

/// An access that failed, in the guest or by an exit.
pub(crate) type AccessFault = MmuFault<CpuExit>;

/// Why the processor left the guest in the middle of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CpuExit {
    /// Stage 2 refuses.
    Fault {
        /// What KVM makes of it.
        fault: Stage2Fault,
        /// EXITINFO1, on AMD.
        info1: ExitInfo1,
    },
    /// No exit: the machine raises an exception in the guest.
    Exception(Exception),
    /// The page-modification log is full.
    LogFull,
}

/// A processor with the machine's stage 2.
#[derive(Debug)]
pub(crate) enum Cpu {
    /// AMD's.
    Npt(Box<Processor<Npt>>),
    /// Intel's.
    Ept(Box<Processor<Ept>>),
}

/// Does the same with whichever it is.
macro_rules! each {
    ($cpu:expr, $processor:ident => $body:expr) => {
        match $cpu {
            Cpu::Npt($processor) => $body,
            Cpu::Ept($processor) => $body,
        }
    };
}

impl Cpu {
    /// A processor of a machine, with nothing cached and paging off. It runs nothing before [`Cpu::enter`].
    pub(crate) fn new(cx: &Cx<'_>, config: &MachineConfig, encryption: Encryption) -> Cpu {
        let maxphyaddr = config.maxphyaddr as u8;
        let nowhere = Stage2Root { table: sim_kernel::Pfn(0), level: Level::L512G };
        let state = GuestState { registers: PagingRegisters::default(), tag: TAG, stage2: Stage2::new(nowhere) };
        let guest = GuestFormat { encryption, ..config.guest_format() };
        match config.stage2 {
            Stage2Kind::Npt => {
                let made = Processor::new(cx, Npt::new(maxphyaddr, true), guest, config.tlb, state);
                Cpu::Npt(Box::new(made.expect("paging is off")))
            }
            Stage2Kind::Ept => {
                let mut ept = Ept::new(maxphyaddr, true);
                ept.accessed_dirty = config.ept_ad_bits;
                let made = Processor::new(cx, ept, guest, config.tlb, state);
                Cpu::Ept(Box::new(made.expect("paging is off")))
            }
        }
    }

    /// A VM entry: the guest's registers and its tree are loaded. Nothing is flushed.
    pub(super) fn enter(&mut self, registers: PagingRegisters, stage2: Stage2) -> Result<(), UnsupportedPaging> {
        let state = GuestState { registers, tag: TAG, stage2 };
        each!(self, processor => processor.enter(state))
    }

    /// Another privilege, between two instructions.
    pub(super) fn set_privilege(&mut self, cpl: u8, ac: bool) {
        each!(self, processor => processor.set_privilege(cpl, ac));
    }

    /// Translates an access, at the current privilege or on the processor's own behalf (`mode`).
    pub(super) fn translate<M: WalkMemory>(
        &mut self,
        cx: &Cx<'_>,
        memory: &M,
        gva: Gva,
        mode: Option<AccessMode>,
        access: Access,
    ) -> Result<Translated, AccessFault> {
        match self {
            Cpu::Npt(processor) => {
                let found = match mode {
                    None => processor.translate(cx, memory, gva, access),
                    Some(mode) => processor.translate_observed(cx, memory, gva, mode, access, &mut NoObserver),
                };
                found.map_err(|fault| decoded(fault, nested_page_fault))
            }
            Cpu::Ept(processor) => {
                let found = match mode {
                    None => processor.translate(cx, memory, gva, access),
                    Some(mode) => processor.translate_observed(cx, memory, gva, mode, access, &mut NoObserver),
                };
                found.map_err(|fault| decoded(fault, ept_exit))
            }
        }
    }

    /// As [`Cpu::translate`], with the guest-physical address and the level of the nested leaf.
    pub(super) fn translate_physical<M: WalkMemory>(
        &mut self,
        cx: &Cx<'_>,
        memory: &M,
        gva: Gva,
        mode: Option<AccessMode>,
        access: Access,
    ) -> Result<(Translated, Gpa, Level), AccessFault> {
        match self {
            Cpu::Npt(processor) => processor
                .translate_physical(cx, memory, gva, mode, access)
                .map_err(|fault| decoded(fault, nested_page_fault)),
            Cpu::Ept(processor) => {
                processor.translate_physical(cx, memory, gva, mode, access).map_err(|fault| decoded(fault, ept_exit))
            }
        }
    }

    /// An access was refused after its translation: what is cached of it goes.
    pub(super) fn refused_after(&mut self, gpa: Gpa, gva: Gva) {
        each!(self, processor => processor.refused_after(gpa, gva));
    }

    /// `kvm_vcpu_flush_tlb_all`, and `_current`, which is the same while a vCPU has one tree: INVEPT, or TLB_CONTROL of the next VMRUN.
    pub(super) fn flush_all(&mut self, cx: &Cx<'_>) {
        match self {
            Cpu::Npt(processor) => processor.tlb_control(cx, TlbControl::FlushAsid),
            Cpu::Ept(processor) => processor.invept(cx, InveptType::All),
        }
    }

    /// `vmx_update_cpu_dirty_logging`: whether writes are logged from now on.
    pub(super) fn set_logging(&mut self, on: bool) {
        if let Cpu::Ept(processor) = self {
            let mut ept = *processor.format();
            ept.pml = on;
            processor.set_format(ept);
        }
    }

    /// The page-modification log, if it has one.
    pub(super) fn log(&mut self) -> Option<&mut Pml> {
        match self {
            Cpu::Npt(_) => None,
            Cpu::Ept(processor) => Some(processor.log()),
        }
    }

    /// What the TLB has for the loaded tree: for reports.
    pub(super) fn translations(&self) -> Vec<CachedTranslation> {
        each!(self, processor => processor.tlb().translations())
    }

    /// `kvm_vcpu_flush_tlb_guest`: what the guest's own tables lead to.
    pub(super) fn flush_guest(&mut self, cx: &Cx<'_>) {
        match self {
            Cpu::Npt(processor) => processor.tlb_control(cx, TlbControl::FlushAsid),
            Cpu::Ept(processor) => processor.invvpid(cx, InvvpidType::Single(TAG)).expect("the VPID is not 0"),
        }
    }
}

fn decoded<X>(fault: MmuFault<X>, decode: impl Fn(X) -> CpuExit) -> AccessFault {
    match fault {
        MmuFault::Guest(fault) => MmuFault::Guest(fault),
        MmuFault::Stage2(exit) => MmuFault::Stage2(decode(exit)),
    }
}

/// EXITINFO1 as KVM's error code.
fn nested_page_fault(exit: NestedPageFault) -> CpuExit {
    let access = if exit.info1.contains(ExitInfo1::FETCH) {
        Access::Exec
    } else if exit.info1.contains(ExitInfo1::WRITE) {
        Access::Write
    } else {
        Access::Read
    };
    let present = exit.info1.contains(ExitInfo1::PRESENT);
    let reserved = exit.info1.contains(ExitInfo1::RESERVED);
    CpuExit::Fault { fault: Stage2Fault { gpa: exit.gpa, access, present, reserved }, info1: exit.info1 }
}

/// A violation's qualification as KVM's error code; a misconfiguration says of the access nothing at all.
fn ept_exit(exit: EptExit) -> CpuExit {
    use ExitQualification as Q;
    match exit {
        EptExit::Violation(EptViolation { gpa, qualification, .. }) => {
            let access = if qualification.contains(Q::FETCH) {
                Access::Exec
            } else if qualification.contains(Q::WRITE) {
                Access::Write
            } else {
                Access::Read
            };
            let present = qualification.intersects(Q::READABLE | Q::WRITABLE | Q::EXECUTABLE);
            let fault = Stage2Fault { gpa, access, present, reserved: false };
            CpuExit::Fault { fault, info1: ExitInfo1::empty() }
        }
        EptExit::Misconfiguration { gpa } => {
            let fault = Stage2Fault { gpa, access: Access::Read, present: false, reserved: true };
            CpuExit::Fault { fault, info1: ExitInfo1::empty() }
        }
        EptExit::PmlFull => CpuExit::LogFull,
        EptExit::VirtualizationException(_) => unreachable!("KVM has not switched #VE on"),
    }
}
