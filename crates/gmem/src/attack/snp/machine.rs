//! The machine on which an attack runs: memory, two guests with keys, and nested tables that the attacker writes.

use super::Action;
use crate::attack::machine::Switch;
use crate::attack::pages::Pages;
use crate::attack::step::Who;
use crate::attack::step::{Answer, PageName};
use sim_coco::AccessKind;
use sim_coco::snp::firmware::{GuestPolicy, LaunchStart, PageMove};
use sim_coco::snp::{
    Asid, GuestCpu, GuestFault, HostSnpAccess, KeyPath, PageOperand, RmpFail, RmpLayout, RmpSize, RmpUpdate, Snp,
    SnpAccess, SnpConfig, Spa, Vmpl,
};
use sim_kernel::mm::PhysMem;
use sim_kernel::{Cx, PAGE_SIZE, PAGES_PER_PMD, Pfn};
use sim_mmu::{Gfn, Gpa, Level};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The machine's memory.
const RAM: u64 = 64 << 20;

/// Performs the steps one after the other.
pub(in crate::attack) fn perform_all<'s>(
    cx: &Cx<'_>,
    switches: &[Switch],
    actions: impl Iterator<Item = &'s Action>,
) -> Vec<Answer> {
    let mut machine = Machine::new(cx, switches.contains(&Switch::ForbidsMoves));
    actions.map(|action| machine.perform(action)).collect()
}

#[derive(Default)]
struct Guest {
    asid: Asid,
    gctx: Spa,
    nested: BTreeMap<Gfn, (Pfn, Level)>,
}

struct Machine<'a> {
    cx: &'a Cx<'a>,
    snp: Snp,
    phys: Arc<PhysMem>,
    pages: Pages,
    /// What was read of memory, by name.
    notes: BTreeMap<String, [u8; 16]>,
    guests: [Guest; 2],
    /// Every value that anybody wrote: whatever else is read means nothing.
    written: BTreeSet<u64>,
}

fn fault(fault: GuestFault) -> Answer {
    match fault {
        GuestFault::Npf { .. } => Answer::Npf,
        GuestFault::NotValidated { .. } => Answer::Vc,
        GuestFault::Gp0 | GuestFault::Ud => Answer::Fail(0),
    }
}

fn done(result: Result<(), RmpFail>) -> Answer {
    result.map_or_else(|fail| Answer::Fail(fail.code().unwrap_or(0)), |()| Answer::Ok)
}

impl<'a> Machine<'a> {
    fn new(cx: &'a Cx<'a>, forbids_moves: bool) -> Machine<'a> {
        let phys = Arc::new(PhysMem::new(cx, RAM));
        let snp = Snp::new(cx, Arc::clone(&phys), SnpConfig::new(RmpLayout::above(RAM / PAGE_SIZE)));
        snp.bring_up(cx).expect("a machine that was just reset comes up");
        let mut machine = Machine {
            cx,
            snp,
            pages: Pages::new(&phys),
            phys,
            notes: BTreeMap::new(),
            guests: Default::default(),
            // Memory is zero at first.
            written: BTreeSet::from([0]),
        };
        for (i, asid) in [Asid(1), Asid(2)].into_iter().enumerate() {
            let mut policy = GuestPolicy::USUAL;
            policy.set(GuestPolicy::PAGE_SWAP_DISABLE, forbids_moves);
            machine.guests[i] = Guest { asid, gctx: machine.launch(asid, policy), nested: BTreeMap::new() };
        }
        machine
    }

    /// A guest that is active, with a key.
    fn launch(&self, asid: Asid, policy: GuestPolicy) -> Spa {
        let page = self.phys.alloc_zeroed().expect("the machine has memory for its guests");
        let gctx = Spa::of(page);
        self.snp.rmpupdate(self.cx, page, RmpUpdate::FIRMWARE).expect("a new page");
        self.snp.snp_gctx_create(self.cx, gctx).expect("a page of the firmware");
        let start = LaunchStart { gctx, policy: policy.bits(), gosvw: [0; 16], imi_en: false };
        self.snp.snp_launch_start(self.cx, &start).expect("a usual guest");
        self.snp.snp_activate(self.cx, gctx, asid).expect("a free ASID");
        gctx
    }

    fn page(&mut self, page: &PageName) -> Pfn {
        self.pages.frame(page)
    }

    fn guest(&mut self, who: Who) -> &mut Guest {
        &mut self.guests[who as usize]
    }

    /// Where the nested tables lead.
    fn nested(&mut self, who: Who, gpa: u64) -> Option<(Pfn, Level)> {
        let gfn = Gpa(gpa).gfn();
        let head = Gfn(gfn.0 & !(PAGES_PER_PMD - 1));
        let nested = &self.guest(who).nested;
        match (nested.get(&gfn), nested.get(&head)) {
            (Some(found), _) => Some(*found),
            (None, Some((pfn, Level::L2M))) => Some((*pfn + (gfn.0 - head.0), Level::L2M)),
            _ => None,
        }
    }

    fn map(&mut self, who: Who, gpa: u64, pfn: Pfn, huge: bool) {
        let level = if huge { Level::L2M } else { Level::L4K };
        self.guest(who).nested.insert(Gpa(gpa).gfn(), (pfn, level));
    }

    fn value(&self, value: u64) -> Answer {
        if self.written.contains(&value) { Answer::Value(value) } else { Answer::Garbage }
    }

    fn raw(&self, pfn: Pfn) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.snp.host_read(self.cx, pfn, 0, &mut bytes);
        bytes
    }

    fn perform(&mut self, action: &Action) -> Answer {
        let cx = self.cx;
        match action {
            Action::Give { page, who, gpa, huge } => {
                let (pfn, asid) = (self.page(page), self.guest(*who).asid);
                let size = if *huge { RmpSize::Size2M } else { RmpSize::Size4K };
                let given = self.snp.rmpupdate(cx, pfn, RmpUpdate::guest(asid, Gpa(*gpa)).sized(size));
                if given.is_ok() {
                    self.map(*who, *gpa, pfn, *huge);
                }
                done(given)
            }
            Action::Map { who, gpa, page, huge } => {
                let pfn = self.page(page);
                self.map(*who, *gpa, pfn, *huge);
                Answer::Ok
            }
            Action::Take { page } => {
                let pfn = self.page(page);
                done(self.snp.rmpupdate(cx, pfn, RmpUpdate::HYPERVISOR))
            }
            Action::Smash { page } => {
                let pfn = self.page(page);
                done(self.snp.psmash(cx, pfn))
            }
            Action::Close { page } => {
                let pfn = self.page(page);
                done(self.close(pfn))
            }
            Action::HostWrite { page, value } => {
                let pfn = self.page(page);
                self.written.insert(*value);
                let access = HostSnpAccess::kernel(AccessKind::Write, pfn);
                let written = self.snp.host_write(cx, &access, 0, &value.to_le_bytes());
                written.map_or(Answer::Pf, |()| Answer::Ok)
            }
            Action::DeviceWrite { page, value } => {
                let pfn = self.page(page);
                self.written.insert(*value);
                let passes = self.snp.dma_write(cx, pfn, 0, &value.to_le_bytes());
                if passes { Answer::Ok } else { Answer::Dropped }
            }
            Action::Note { page, note } => {
                let pfn = self.page(page);
                self.notes.insert(note.clone(), self.raw(pfn));
                Answer::Ok
            }
            Action::Compare { page, note } => {
                let pfn = self.page(page);
                match self.notes.get(note) {
                    Some(bytes) if *bytes == self.raw(pfn) => Answer::Same,
                    _ => Answer::Different,
                }
            }
            Action::BusWrite { page, note } => {
                let pfn = self.page(page);
                let bytes = self.notes.get(note).copied().unwrap_or_default();
                self.snp.memory().write(KeyPath::Raw, pfn, 0, &bytes);
                Answer::Ok
            }
            Action::Move { from, to } => self.move_page(from, to),
            Action::Accept { who, gpa, huge } => self.pvalidate(*who, *gpa, *huge, 1),
            Action::Rescind { who, gpa } => self.pvalidate(*who, *gpa, false, 0),
            Action::Read { who, gpa, vmpl } => self.read(*who, *gpa, *vmpl, false),
            Action::ReadShared { who, gpa } => self.read(*who, *gpa, 0, true),
            Action::Write { who, gpa, value } => self.write(*who, *gpa, *value, false),
            Action::WriteShared { who, gpa, value } => self.write(*who, *gpa, *value, true),
        }
    }

    fn access(&mut self, who: Who, kind: AccessKind, gpa: u64, shared: bool) -> Option<SnpAccess> {
        let (pfn, level) = self.nested(who, gpa)?;
        let access = SnpAccess::private(kind, Gpa(gpa), pfn).at_level(level);
        Some(if shared { access.shared() } else { access })
    }

    fn read(&mut self, who: Who, gpa: u64, vmpl: u8, shared: bool) -> Answer {
        let Some(access) = self.access(who, AccessKind::Read, gpa, shared) else { return Answer::Npf };
        let cpu = GuestCpu::snp(0, self.guest(who).asid).at_vmpl(Vmpl::new(vmpl).expect("0 or 1"));
        let mut bytes = [0; 8];
        match self.snp.guest_read(self.cx, &cpu, &access, &mut bytes) {
            Ok(()) => self.value(u64::from_le_bytes(bytes)),
            Err(refused) => fault(refused),
        }
    }

    fn write(&mut self, who: Who, gpa: u64, value: u64, shared: bool) -> Answer {
        let Some(access) = self.access(who, AccessKind::Write, gpa, shared) else { return Answer::Npf };
        self.written.insert(value);
        let cpu = GuestCpu::snp(0, self.guest(who).asid);
        self.snp.guest_write(self.cx, &cpu, &access, &value.to_le_bytes()).map_or_else(fault, |()| Answer::Ok)
    }

    fn pvalidate(&mut self, who: Who, gpa: u64, huge: bool, edx: u32) -> Answer {
        let Some((pfn, _)) = self.nested(who, gpa) else { return Answer::Npf };
        let operand = PageOperand { size: u64::from(huge), ..PageOperand::page(Gpa(gpa), pfn) };
        let cpu = GuestCpu::snp(0, self.guest(who).asid);
        match self.snp.pvalidate(self.cx, &cpu, &operand, edx) {
            Ok(pvalidated) if pvalidated.unchanged => Answer::Cf,
            Ok(pvalidated) => done(pvalidated.result),
            Err(refused) => fault(refused),
        }
    }

    /// The same owner and address, immutable.
    fn close(&self, pfn: Pfn) -> Result<(), RmpFail> {
        let entry = self.snp.rmp().entry(pfn);
        self.snp.rmpupdate(self.cx, pfn, RmpUpdate::guest(entry.asid, entry.gpa).immutable())
    }

    /// The page of guest `g` gets another frame.
    fn move_page(&mut self, from: &PageName, to: &PageName) -> Answer {
        let (src, dst) = (self.page(from), self.page(to));
        let entry = self.snp.rmp().entry(src);
        let new = RmpUpdate::guest(entry.asid, entry.gpa).immutable();
        let closed = self.close(src).and_then(|()| self.snp.rmpupdate(self.cx, dst, new));
        if let Err(fail) = closed {
            return done(Err(fail));
        }
        let gctx = self.guest(Who::G).gctx;
        let page_move = PageMove { gctx, page_size: RmpSize::Size4K, src: Spa::of(src), dst: Spa::of(dst) };
        if self.snp.snp_page_move(self.cx, &page_move).is_err() {
            return Answer::Refused;
        }
        self.map(Who::G, entry.gpa.0, dst, false);
        Answer::Ok
    }
}
