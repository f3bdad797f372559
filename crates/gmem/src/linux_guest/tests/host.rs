//! A host: the machine, memory by guest frame, the GHCB protocol, and a VMM that converts what it is asked to; it may cheat.

use crate::kvm::sev::protocol::ap::{ApCreation, ApRules};
use crate::kvm::sev::protocol::ghcb::{Event, Response, Snapshot, ValidBitmap, offset};
use crate::kvm::sev::protocol::msr::{HV_FEATURES, MsrRequest, MsrResponse, PageOp};
use crate::kvm::sev::protocol::psc::{Psc, PscBuffer, PscHeader, PscRules, PscStep, exit_info_2};
use crate::linux_guest::{Cpu, Ends, Insn, Kernel, Place, Program, Trap, Vc};
use sim_coco::AccessKind;
use sim_coco::snp::{
    Asid, GuestCpu, GuestFault, NpfError, PageOperand, PageState, RmpFail, RmpLayout, RmpSize, RmpUpdate, Snp,
    SnpAccess, SnpConfig, VC_PAGE_NOT_VALIDATED,
};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, PAGE_SIZE, PAGES_PER_PMD, Pfn};
use sim_mmu::{Gfn, Gpa, Level};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) const ASID: Asid = Asid(1);
pub(super) const FEATURES: u64 = 1;
const RAM: u64 = 256 << 20;

/// How the host cheats, at the end of each page-state change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cheat {
    ReservedBits,
    EndGrows,
    CurBackwards,
    /// It says that it failed.
    Error,
    /// It comes back after each batch.
    Pauses,
    /// It converts nothing, and says that it did.
    Lies,
    /// The response says malformed.
    Malformed,
}

/// What left the guest and was not resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Exit {
    /// KVM_EXIT_MEMORY_FAULT: the guest's idea of a page is not the host's.
    MemoryFault { gpa: Gpa, private: bool },
    /// The same fault again and again.
    Npf(NpfError),
    /// The guest ended itself: the MSR.
    Terminated(u64),
}

struct Vcpu {
    program: Program,
    result: Result<u64, Trap>,
    msr: u64,
    registered: Option<Gpa>,
    spins: Option<(Gpa, u64)>,
    insn: Option<Insn>,
}

pub(super) struct Host<'a> {
    pub(super) cx: &'a Cx<'a>,
    pub(super) snp: Snp,
    phys: Arc<PhysMem>,
    private: BTreeMap<Gfn, Pfn>,
    shared: BTreeMap<Gfn, Pfn>,
    /// Private by attribute.
    attributes: BTreeSet<Gfn>,
    pub(super) gives_2m: bool,
    pub(super) cheat: Option<Cheat>,
    vcpus: Vec<Vcpu>,
    /// Instructions that completed, but loads and stores.
    pub(super) log: Vec<(usize, Insn)>,
    /// What user space was asked to convert.
    pub(super) exits: Vec<(Gpa, u64, PageOp)>,
    /// Loads.
    pub(super) reads: Vec<Place>,
}

/// Runs `body` on a host of which the first pages, up to `private`, are private by attribute, the first 16 of them launched.
pub(super) fn on_host(private: Gpa, body: impl Fn(&mut Host<'_>) + Send + Sync + 'static) {
    Sim::sequential().solo(move |cx| {
        let phys = Arc::new(PhysMem::new(cx, RAM));
        let snp = Snp::new(cx, Arc::clone(&phys), SnpConfig::new(RmpLayout::above(RAM >> 12)));
        snp.bring_up(cx).unwrap();
        let mut host = Host {
            cx,
            snp,
            phys,
            private: BTreeMap::new(),
            shared: BTreeMap::new(),
            attributes: (0..private.gfn().0).map(Gfn).collect(),
            gives_2m: false,
            cheat: None,
            vcpus: Vec::new(),
            log: Vec::new(),
            exits: Vec::new(),
            reads: Vec::new(),
        };
        for gfn in (0..16).map(Gfn) {
            let (pfn, _) = host.backing(gfn);
            host.snp.pvalidate(cx, &CPU, &PageOperand::page(gfn.gpa(), pfn), 1).unwrap();
        }
        body(&mut host);
        sim_coco::snp::invariants::snp_inv_001(&host.snp).unwrap();
    });
}

const CPU: GuestCpu = GuestCpu::snp(0, ASID);

impl Host<'_> {
    /// Another vCPU, which runs this code of the kernel.
    pub(super) fn vcpu<F>(&mut self, code: impl FnOnce(Kernel) -> F) -> usize
    where
        F: Future<Output = Ends<()>> + Send + 'static,
    {
        let program = Program::new(|cpu: Cpu| code(Kernel::new(cpu)));
        let vcpu = Vcpu { program, result: Ok(0), msr: 0, registered: None, spins: None, insn: None };
        self.vcpus.push(vcpu);
        self.vcpus.len() - 1
    }

    pub(super) fn outcome(&self, vcpu: usize) -> Option<Ends<()>> {
        self.vcpus[vcpu].program.outcome()
    }

    /// Runs a vCPU to its end, or to an exit that nobody resolves.
    pub(super) fn run(&mut self, vcpu: usize) -> Result<(), Exit> {
        for _ in 0..1_000_000 {
            if !self.step(vcpu)? {
                return Ok(());
            }
        }
        panic!("vCPU {vcpu} does not come to an end");
    }

    /// One instruction of a vCPU; `false` at its end.
    pub(super) fn step(&mut self, vcpu: usize) -> Result<bool, Exit> {
        if let Some((gpa, value)) = self.vcpus[vcpu].spins {
            if self.peek(gpa) == value {
                return Ok(true);
            }
            self.vcpus[vcpu].spins = None;
        }
        let insn = match self.vcpus[vcpu].insn.take() {
            Some(insn) => insn,
            None => {
                let state = &mut self.vcpus[vcpu];
                let Some(insn) = state.program.step(state.result) else { return Ok(false) };
                insn
            }
        };
        let result = self.execute(vcpu, &insn)?;
        if !matches!(insn, Insn::Read(_) | Insn::Write(..) | Insn::Copy(..)) {
            self.log.push((vcpu, insn));
        }
        self.vcpus[vcpu].result = result;
        Ok(true)
    }

    /// What the guest would read there.
    pub(super) fn peek(&self, gpa: Gpa) -> u64 {
        let pfn = self.private[&gpa.gfn()];
        self.snp.guest_read_u64(self.cx, &CPU, gpa, pfn).unwrap()
    }

    pub(super) fn state(&self, gpa: Gpa) -> Option<PageState> {
        self.private.get(&gpa.gfn()).and_then(|pfn| self.snp.rmp().state(*pfn))
    }

    pub(super) fn entry(&self, gpa: Gpa) -> sim_coco::snp::RmpEntry {
        self.snp.rmp().entry(self.private[&gpa.gfn()])
    }

    pub(super) fn is_private(&self, gpa: Gpa) -> bool {
        self.attributes.contains(&gpa.gfn())
    }

    fn execute(&mut self, vcpu: usize, insn: &Insn) -> Result<Result<u64, Trap>, Exit> {
        let done = match insn {
            Insn::WriteGhcbMsr(value) => {
                self.vcpus[vcpu].msr = *value;
                0
            }
            Insn::ReadGhcbMsr => self.vcpus[vcpu].msr,
            Insn::Vmgexit => {
                self.vmgexit(vcpu)?;
                0
            }
            Insn::SetEncrypted(..) | Insn::Out { .. } => 0,
            Insn::TdAccept { .. }
            | Insn::TdVmCall { .. }
            | Insn::TdVpInfo
            | Insn::TdSetPendingVeDisable
            | Insn::ReadRax => unreachable!("the kernel of an SNP guest does nothing of TDX"),
            Insn::SpinWhile { gpa, value } => {
                self.vcpus[vcpu].spins = Some((*gpa, *value));
                0
            }
            Insn::Pvalidate { gpa, size, validate } => {
                return self.retried(*gpa, |host, pfn| {
                    let operand =
                        PageOperand { size: u64::from(*size == RmpSize::Size2M), ..PageOperand::page(*gpa, pfn) };
                    let done = host.snp.pvalidate(host.cx, &CPU, &operand, u32::from(*validate))?;
                    Ok(if done.unchanged { 255 } else { code(done.result) })
                });
            }
            Insn::Rmpadjust { gpa, rdx } => {
                return self.retried(*gpa, |host, pfn| {
                    host.snp.rmpadjust(host.cx, &CPU, &PageOperand::page(*gpa, pfn), *rdx).map(code)
                });
            }
            Insn::Read(place) => {
                self.reads.push(*place);
                let mut bytes = [0; 8];
                let read = self.access(*place, AccessKind::Read, |host, access| {
                    host.snp.guest_read(host.cx, &CPU, access, &mut bytes)
                })?;
                return Ok(read.map(|()| u64::from_le_bytes(bytes)));
            }
            Insn::Write(place, value) => return self.store(*place, &value.to_le_bytes()),
            Insn::Release(gpa, value) => return self.store(Place::private(*gpa), &value.to_le_bytes()),
            Insn::Copy(place, words) => {
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                return self.store(*place, &bytes);
            }
            Insn::CompareExchange { gpa, old, new } => {
                let found = self.peek(*gpa);
                if found == *old {
                    self.store(Place::private(*gpa), &new.to_le_bytes())?.unwrap();
                }
                found
            }
        };
        Ok(Ok(done))
    }

    fn store(&mut self, place: Place, bytes: &[u8]) -> Result<Result<u64, Trap>, Exit> {
        let written =
            self.access(place, AccessKind::Write, |host, access| host.snp.guest_write(host.cx, &CPU, access, bytes))?;
        Ok(written.map(|()| 0))
    }

    fn access<T>(
        &mut self,
        place: Place,
        kind: AccessKind,
        mut access: impl FnMut(&mut Self, &SnpAccess) -> Result<T, GuestFault>,
    ) -> Result<Result<T, Trap>, Exit> {
        let (gpa, private) = (place.gpa, !place.shared);
        if private != self.is_private(gpa) {
            return Err(Exit::MemoryFault { gpa: Gpa(gpa.0 & !(PAGE_SIZE - 1)), private });
        }
        if private {
            return self.retried(gpa, |host, pfn| {
                let level =
                    if host.snp.rmp().lookup(pfn) == Some((true, Level::L2M)) { Level::L2M } else { Level::L4K };
                access(host, &SnpAccess::private(kind, gpa, pfn).at_level(level))
            });
        }
        let pfn = *self.shared.entry(gpa.gfn()).or_insert_with(|| self.phys.alloc_zeroed().unwrap());
        match access(self, &SnpAccess::private(kind, gpa, pfn).shared()) {
            Ok(done) => Ok(Ok(done)),
            Err(fault) => panic!("a shared access: {fault}"),
        }
    }

    /// Something private, with the faults that a host resolves.
    fn retried<T>(
        &mut self,
        gpa: Gpa,
        mut attempt: impl FnMut(&mut Self, Pfn) -> Result<T, GuestFault>,
    ) -> Result<Result<T, Trap>, Exit> {
        if !self.is_private(gpa) {
            return Err(Exit::MemoryFault { gpa, private: true });
        }
        for _ in 0..2 {
            let (pfn, head) = self.backing(gpa.gfn());
            match attempt(self, pfn) {
                Ok(done) => return Ok(Ok(done)),
                Err(GuestFault::NotValidated { cr2 }) => {
                    return Ok(Err(Trap::Vc(Vc { error: VC_PAGE_NOT_VALIDATED, cr2: cr2.0 })));
                }
                Err(GuestFault::Npf { error, .. }) if error.contains(NpfError::SIZEM) => {
                    self.snp.psmash(self.cx, head).unwrap();
                }
                Err(GuestFault::Npf { error, .. }) => return Err(Exit::Npf(error)),
                Err(other) => panic!("{other}"),
            }
        }
        panic!("{gpa:?} does not become usable");
    }

    /// The page of a private frame, given to the guest when it is first needed; and the head of its 2 MiB.
    fn backing(&mut self, gfn: Gfn) -> (Pfn, Pfn) {
        if let Some(pfn) = self.private.get(&gfn) {
            return (*pfn, Pfn(pfn.0 & !(PAGES_PER_PMD - 1)));
        }
        let head = Gfn(gfn.0 & !(PAGES_PER_PMD - 1));
        let whole = (head.0..head.0 + PAGES_PER_PMD).map(Gfn);
        if self.gives_2m && whole.clone().all(|gfn| self.attributes.contains(&gfn) && !self.private.contains_key(&gfn))
        {
            let first = self.phys.alloc_huge_zeroed().unwrap();
            let new = RmpUpdate::guest(ASID, head.gpa()).sized(RmpSize::Size2M);
            self.snp.rmpupdate(self.cx, first, new).unwrap();
            self.private.extend(whole.map(|gfn| (gfn, first + (gfn.0 - head.0))));
        } else {
            let pfn = self.phys.alloc_zeroed().unwrap();
            self.snp.rmpupdate(self.cx, pfn, RmpUpdate::guest(ASID, gfn.gpa())).unwrap();
            self.private.insert(gfn, pfn);
        }
        self.backing(gfn)
    }

    /// The VMM: attributes, and what becomes shared loses its private pages.
    pub(super) fn convert(&mut self, gpa: Gpa, npages: u64, op: PageOp) {
        self.exits.push((gpa, npages, op));
        if self.cheat == Some(Cheat::Lies) {
            return;
        }
        for gfn in (gpa.gfn().0..gpa.gfn().0 + npages).map(Gfn) {
            if op == PageOp::Private {
                self.attributes.insert(gfn);
                continue;
            }
            self.attributes.remove(&gfn);
            let Some(pfn) = self.private.remove(&gfn) else { continue };
            if self.snp.rmp().lookup(pfn) == Some((true, Level::L2M)) {
                self.snp.psmash(self.cx, Pfn(pfn.0 & !(PAGES_PER_PMD - 1))).unwrap();
            }
            self.snp.rmpupdate(self.cx, pfn, RmpUpdate::HYPERVISOR).unwrap();
        }
    }

    fn vmgexit(&mut self, vcpu: usize) -> Result<(), Exit> {
        let msr = self.vcpus[vcpu].msr;
        if msr & 0xfff == 0 {
            self.handle_ghcb(vcpu, Gpa(msr));
            return Ok(());
        }
        let response = match MsrRequest::decode(msr) {
            Some(MsrRequest::SevInfo) => MsrResponse::SevInfo { max: 2, min: 1, c_bit: 51 },
            Some(MsrRequest::HvFeatures) => MsrResponse::HvFeatures(HV_FEATURES),
            Some(MsrRequest::PreferredGpa) => MsrResponse::NoPreferredGpa,
            Some(MsrRequest::Register(gpa)) => {
                self.vcpus[vcpu].registered = Some(gpa);
                MsrResponse::Registered(gpa)
            }
            Some(MsrRequest::Psc { gpa, op }) => {
                self.convert(gpa, 1, PageOp::of(op).unwrap());
                MsrResponse::Psc { failed: self.cheat == Some(Cheat::Error) }
            }
            Some(MsrRequest::Terminate { .. }) => return Err(Exit::Terminated(msr)),
            None => return Ok(()),
        };
        self.vcpus[vcpu].msr = response.encode();
        Ok(())
    }

    fn handle_ghcb(&mut self, vcpu: usize, gpa: Gpa) {
        let pfn = self.shared[&gpa.gfn()];
        let mut page = Words { host: self, pfn, first: 0 };
        let mut at = |offset: u64| page.read((offset / 8) as u16);
        let ghcb = Snapshot {
            gpa,
            valid: ValidBitmap([at(offset::VALID_BITMAP), at(offset::VALID_BITMAP + 8)]),
            exit_code: at(offset::SW_EXITCODE),
            exit_info_1: at(offset::SW_EXITINFO1),
            exit_info_2: at(offset::SW_EXITINFO2),
            scratch: at(offset::SW_SCRATCH),
            rax: at(offset::RAX),
            rbx: at(offset::RBX),
            usage: (at(PAGE_SIZE - 8) >> 32) as u32,
        };
        let (response, answer) = match ghcb.check(self.vcpus[vcpu].registered, true) {
            Err(reason) => (Response::Malformed(reason), reason as u64),
            Ok(Event::HvFeatures) => (Response::NoAction, HV_FEATURES),
            Ok(Event::Psc) => (Response::NoAction, self.page_state_change(&ghcb, pfn)),
            Ok(Event::ApCreation) => {
                let rules = ApRules { vmsa_features: FEATURES, end: Gpa(RAM), refuses_2m_aligned: true };
                match ApCreation::check(&ghcb, &rules, |_| true) {
                    Ok(_) => (Response::NoAction, 0),
                    Err(reason) => (Response::Malformed(reason), reason as u64),
                }
            }
            Ok(other) => panic!("{other:?}"),
        };
        let info_1 = if self.cheat == Some(Cheat::Malformed) { 2 } else { response.to_fields().0 };
        let mut page = Words { host: self, pfn, first: 0 };
        page.write((offset::SW_EXITINFO1 / 8) as u16, info_1);
        page.write((offset::SW_EXITINFO2 / 8) as u16, answer);
    }

    fn page_state_change(&mut self, ghcb: &Snapshot, pfn: Pfn) -> u64 {
        let scratch = ghcb.scratch_area(8).unwrap();
        let (bytes, first) = (scratch.end.0 - scratch.start.0, (scratch.start.offset() / 8) as u16);
        let (mut psc, mut step) = Psc::begin(&mut Words { host: self, pfn, first }, bytes, PscRules::ALL);
        let mut answer = None;
        while let (PscStep::Exit(exit), None) = (step, answer) {
            self.convert(exit.gfn.gpa(), exit.npages, exit.op);
            let converted = self.cheat != Some(Cheat::Error);
            step = psc.complete(&mut Words { host: self, pfn, first }, converted, PscRules::ALL);
            answer = (self.cheat == Some(Cheat::Pauses)).then_some(0);
        }
        let mut buffer = Words { host: self, pfn, first };
        let header = PscHeader::from_word(buffer.read(0));
        let header = match buffer.host.cheat {
            Some(Cheat::ReservedBits) => PscHeader { reserved: 1, ..header },
            Some(Cheat::EndGrows) => PscHeader { end_entry: header.end_entry + 1, ..header },
            // Not back before the first: so the guest's list must begin later.
            Some(Cheat::CurBackwards) => PscHeader { cur_entry: 0, ..header },
            _ => header,
        };
        buffer.write(0, header.to_word());
        match (answer, step) {
            (Some(answer), _) => answer,
            (None, PscStep::Done(result)) => exit_info_2(result),
            (None, PscStep::Exit(_)) => unreachable!("the walk goes on"),
        }
    }
}

fn code(result: Result<(), RmpFail>) -> u64 {
    result.err().and_then(RmpFail::code).map_or(0, u64::from)
}

/// A shared page as quadwords, as the host sees it.
struct Words<'h, 'a> {
    host: &'h mut Host<'a>,
    pfn: Pfn,
    first: u16,
}

impl PscBuffer for Words<'_, '_> {
    fn read(&mut self, word: u16) -> u64 {
        self.host.phys.read_u64(self.host.cx, self.pfn, u64::from(self.first + word) * 8)
    }

    fn write(&mut self, word: u16, value: u64) {
        self.host.phys.write_u64(self.host.cx, self.pfn, u64::from(self.first + word) * 8, value);
    }
}
