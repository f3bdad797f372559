//! The machine: two TDs with keys, three vCPUs, four processors, and the host's tables for shared memory.
//!
//! A vCPU goes into its TD when it is to do something, and stays there until it is kicked or leaves for a reason of its own: what the host does meanwhile it does from a
//! processor of its own.

use super::{Action, LPS, Vcpu};
use crate::attack::machine::Switch;
use crate::attack::pages::Pages;
use crate::attack::step::Who;
use crate::attack::step::{Answer, PageName};
use sim_coco::AccessKind;
use sim_coco::tdx::{
    Entry, Gpaw, GuestStop, Hkid, Hpa, InTd, Lp, Seam, Seamcall, SeptInfo, SharedEpt, SharedWalk, StatusName,
    TdAttributes, TdExit, TdParams, Tdmr, Tdx, TdxConfig, exit,
};
use sim_kernel::mm::PhysMem;
use sim_kernel::{Cx, PAGE_SIZE, Pfn};
use sim_mmu::{Gfn, Gpa, Level};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The machine's memory.
const RAM: u64 = 128 << 20;
/// Bytes of a line.
const LINE: usize = 64;
/// The processor from which the host calls the module.
const HOST_LP: Lp = Lp(LPS - 1);
const WIDTH: Gpaw = Gpaw::Bits48;

/// Performs the steps one after the other.
pub(in crate::attack) fn perform_all<'s>(
    cx: &Cx<'_>,
    switches: &[Switch],
    actions: impl Iterator<Item = &'s Action>,
) -> Vec<Answer> {
    let phys = Arc::new(PhysMem::new(cx, RAM));
    let config = TdxConfig {
        lps_per_package: LPS,
        caches: switches.contains(&Switch::Caches),
        partial_write_erratum: switches.contains(&Switch::PartialWriteErratum),
        ..TdxConfig::new(Tdmr::below(RAM / PAGE_SIZE))
    };
    let tdx = Tdx::new(cx, Arc::clone(&phys), config);
    tdx.bring_up(cx);
    let mut machine = Machine::new(cx, &tdx, &phys, switches);
    let answers = actions.map(|action| machine.perform(action)).collect();
    for vcpu in [Vcpu::G, Vcpu::G2, Vcpu::H] {
        machine.kick(vcpu);
    }
    answers
}

/// The host's tables for the shared memory of a TD.
#[derive(Debug, Default)]
struct SharedTables(parking_lot::Mutex<BTreeMap<Gfn, Pfn>>);

impl SharedEpt for SharedTables {
    fn walk(&self, _: &Cx<'_>, gpa: Gpa, _: AccessKind) -> SharedWalk {
        let gfn = Gpa(gpa.0 & !(1 << WIDTH.shared_bit())).gfn();
        match self.0.lock().get(&gfn) {
            Some(pfn) => SharedWalk::Mapped { pfn: *pfn, level: Level::L4K, writable: true },
            None => SharedWalk::Violation,
        }
    }
}

struct TdOf {
    tdr: Hpa,
    hkid: Hkid,
    shared: Arc<SharedTables>,
}

struct VcpuOf<'a> {
    tdvpr: Hpa,
    lp: Lp,
    inside: Option<InTd<'a>>,
}

struct Machine<'a> {
    cx: &'a Cx<'a>,
    tdx: &'a Tdx,
    phys: Arc<PhysMem>,
    pages: Pages,
    notes: BTreeMap<String, [u64; LINE / 8]>,
    attributes: TdAttributes,
    tds: BTreeMap<Who, TdOf>,
    vcpus: BTreeMap<Vcpu, VcpuOf<'a>>,
    /// Every value that anybody wrote: whatever else is read means nothing.
    written: BTreeSet<u64>,
}

fn told<T>(answer: Seamcall<T>) -> Answer {
    answer.map_or_else(|fail| Answer::Status(fail.name()), |_| Answer::Ok)
}

fn exited(exit: &TdExit) -> Answer {
    match exit.status.name {
        StatusName::NonRecoverableTdNonAccessible => Answer::Poison,
        StatusName::Success if exit.eeq_type() == sim_coco::tdx::EeqType::Pending as u8 => Answer::Pending,
        StatusName::Success => Answer::Violation,
        name => Answer::Status(name),
    }
}

fn info(gpa: u64, huge: bool) -> SeptInfo {
    let level = if huge { Level::L2M } else { Level::L4K };
    SeptInfo::new(Gpa(gpa).gfn().round_down(level).gpa(), level)
}

impl<'a> Machine<'a> {
    fn new(cx: &'a Cx<'a>, tdx: &'a Tdx, phys: &Arc<PhysMem>, switches: &[Switch]) -> Machine<'a> {
        let mut attributes = TdAttributes::empty();
        attributes.set(TdAttributes::SEPT_VE_DISABLE, switches.contains(&Switch::SeptVeDisable));
        let mut machine = Machine {
            cx,
            tdx,
            phys: Arc::clone(phys),
            pages: Pages::new(phys),
            notes: BTreeMap::new(),
            attributes,
            tds: BTreeMap::new(),
            vcpus: BTreeMap::new(),
            // Memory is zero at first.
            written: BTreeSet::from([0]),
        };
        machine.launch(Who::G, Hkid(33)).expect("a machine that has just come up takes a TD");
        machine.launch(Who::H, Hkid(34)).expect("and another one");
        machine.finalize(Who::G).expect("it has vCPUs");
        if !switches.contains(&Switch::Building) {
            machine.finalize(Who::H).expect("it has a vCPU");
        }
        machine
    }

    fn seam(&self) -> Seam<'a> {
        self.tdx.on(HOST_LP)
    }

    /// A page of the host for the module.
    fn new_page(&self) -> Hpa {
        Hpa::of(self.phys.alloc_zeroed().expect("no attack needs more pages than the machine has"))
    }

    /// A TD with its vCPUs; no processor has them.
    fn launch(&mut self, td: Who, hkid: Hkid) -> Seamcall<()> {
        let (cx, seam, tdr) = (self.cx, self.seam(), self.new_page());
        seam.mng_create(cx, tdr, hkid)?;
        seam.mng_key_config(cx, tdr)?;
        for _ in 0..self.tdx.config().tdcs_pages.0 {
            seam.mng_addcx(cx, self.new_page(), tdr)?;
        }
        let params = TdParams { attributes: self.attributes.bits(), max_vcpus: 2, ..TdParams::default() };
        let page = self.new_page();
        let written = seam.host_write_direct(cx, Pfn(page.0 / PAGE_SIZE), 0, &params.to_bytes());
        written.expect("a page of the host has no poison");
        seam.mng_init(cx, tdr, page)?;
        let shared = Arc::new(SharedTables::default());
        for (vcpu, lp) in [(Vcpu::G, Lp(0)), (Vcpu::G2, Lp(0)), (Vcpu::H, Lp(1))] {
            if vcpu.td() == td {
                let tdvpr = self.new_page();
                seam.vp_create(cx, tdvpr, tdr)?;
                for _ in 0..self.tdx.config().tdvps_tdcx {
                    seam.vp_addcx(cx, self.new_page(), tdvpr)?;
                }
                seam.vp_init(cx, tdvpr, 0, None)?;
                seam.vp_wr_shared_eptp(cx, tdvpr, Arc::clone(&shared) as Arc<dyn SharedEpt>)?;
                seam.vp_flush(cx, tdvpr)?;
                self.vcpus.insert(vcpu, VcpuOf { tdvpr, lp, inside: None });
            }
        }
        self.tds.insert(td, TdOf { tdr, hkid, shared });
        Ok(())
    }

    fn finalize(&self, td: Who) -> Seamcall<()> {
        self.seam().mr_finalize(self.cx, self.tdr(td))
    }

    fn tdr(&self, td: Who) -> Hpa {
        self.tds[&td].tdr
    }

    fn with_keyid(&self, page: Pfn, td: Who) -> Hpa {
        Hpa::of(page).with_keyid(self.tds[&td].hkid, self.tdx.config().keyid_shift)
    }

    fn page(&mut self, page: &PageName) -> Pfn {
        self.pages.frame(page)
    }

    fn vcpu(&mut self, vcpu: Vcpu) -> &mut VcpuOf<'a> {
        self.vcpus.get_mut(&vcpu).expect("each TD was launched with its vCPUs")
    }

    fn kick(&mut self, vcpu: Vcpu) {
        let cx = self.cx;
        if let Some(mut inside) = self.vcpu(vcpu).inside.take() {
            // An interrupt tells nothing.
            let _exit = inside.exit(cx, exit::EXTERNAL_INTERRUPT);
        }
    }

    /// VP.ENTER; another vCPU leaves the processor first.
    fn enter(&mut self, vcpu: Vcpu, lp: Lp) -> Answer {
        self.kick(vcpu);
        for other in [Vcpu::G, Vcpu::G2, Vcpu::H] {
            if self.vcpu(other).lp == lp {
                self.kick(other);
            }
        }
        let (cx, tdx) = (self.cx, self.tdx);
        let of = self.vcpu(vcpu);
        match tdx.on(lp).vp_enter(cx, of.tdvpr) {
            Ok(Entry::Inside(inside)) => {
                (of.lp, of.inside) = (lp, Some(inside));
                Answer::Ok
            }
            Ok(Entry::Exit(exit)) => exited(&exit),
            Err(fail) => Answer::Status(fail.name()),
        }
    }

    /// Has a vCPU do something in its TD.
    fn guest<T>(
        &mut self,
        vcpu: Vcpu,
        does: impl FnOnce(&mut InTd<'_>, &Cx<'_>) -> Result<T, GuestStop>,
    ) -> Result<T, Answer> {
        let (cx, lp) = (self.cx, self.vcpu(vcpu).lp);
        if self.vcpu(vcpu).inside.is_none() {
            let entered = self.enter(vcpu, lp);
            if entered != Answer::Ok {
                return Err(entered);
            }
        }
        let inside = self.vcpu(vcpu).inside.as_mut().expect("it was just entered");
        let done = does(inside, cx);
        let stop = match done {
            Ok(value) => return Ok(value),
            Err(stop) => stop,
        };
        match stop {
            GuestStop::Exit(exit) => {
                self.vcpu(vcpu).inside = None;
                Err(exited(&exit))
            }
            GuestStop::Ve(_) | GuestStop::DoubleFault => {
                // The handler asks what happened, so that the next one is no double fault.
                let _asked = inside.vp_veinfo_get(cx);
                Err(Answer::Ve)
            }
            GuestStop::PageFault => unreachable!("addresses of steps are below 1 TiB"),
        }
    }

    fn value(&self, value: u64) -> Answer {
        if self.written.contains(&value) { Answer::Value(value) } else { Answer::Garbage }
    }

    fn read(&mut self, vcpu: Vcpu, gpa: Gpa) -> Answer {
        match self.guest(vcpu, |inside, cx| inside.read_u64(cx, gpa)) {
            Ok(value) => self.value(value),
            Err(answer) => answer,
        }
    }

    fn write(&mut self, vcpu: Vcpu, gpa: Gpa, value: u64) -> Answer {
        self.written.insert(value);
        self.guest(vcpu, |inside, cx| inside.write_u64(cx, gpa, value)).map_or_else(|answer| answer, |()| Answer::Ok)
    }

    /// Tables above an entry: those that are there already are refused, and that is fine.
    fn add_tables(&self, td: Who, gpa: u64, huge: bool) {
        let levels = [Level::L512G, Level::L1G, Level::L2M];
        for level in levels.into_iter().filter(|level| !huge || *level > Level::L2M) {
            let at = SeptInfo::new(Gpa(gpa).gfn().round_down(level).gpa(), level);
            let page = self.new_page();
            if self.seam().mem_sept_add(self.cx, at, self.tdr(td), page).is_err() {
                self.phys.put(self.cx, Pfn(page.0 / PAGE_SIZE));
            }
        }
    }

    fn perform(&mut self, action: &Action) -> Answer {
        let (cx, seam) = (self.cx, self.seam());
        match action {
            Action::Aug { page, td, gpa, huge } => {
                self.add_tables(*td, *gpa, *huge);
                let page = Hpa::of(self.page(page));
                told(seam.mem_page_aug(cx, info(*gpa, *huge), self.tdr(*td), page))
            }
            Action::Add { page, td, gpa, source, through } => {
                self.add_tables(*td, *gpa, false);
                let (page, source) = (self.page(page), self.page(source));
                let source = through.map_or(Hpa::of(source), |through| self.with_keyid(source, through));
                told(seam.mem_page_add(cx, info(*gpa, false), self.tdr(*td), Hpa::of(page), source))
            }
            Action::Block { td, gpa, huge } => told(seam.mem_range_block(cx, info(*gpa, *huge), self.tdr(*td))),
            Action::Unblock { td, gpa, huge } => told(seam.mem_range_unblock(cx, info(*gpa, *huge), self.tdr(*td))),
            Action::Track { td } => told(seam.mem_track(cx, self.tdr(*td))),
            Action::Remove { td, gpa, huge } => told(seam.mem_page_remove(cx, info(*gpa, *huge), self.tdr(*td))),
            Action::RemoveTable { td, gpa } => told(seam.mem_sept_remove(cx, info(*gpa, true), self.tdr(*td))),
            Action::Promote { td, gpa } => told(seam.mem_page_promote(cx, info(*gpa, true), self.tdr(*td))),
            Action::Relocate { td, gpa, page } => {
                let page = Hpa::of(self.page(page));
                told(seam.mem_page_relocate(cx, info(*gpa, false), self.tdr(*td), page))
            }
            Action::Finalize { td } => told(self.finalize(*td)),
            Action::Kick { vcpu } => {
                self.kick(*vcpu);
                Answer::Ok
            }
            Action::Enter { vcpu, lp } => self.enter(*vcpu, Lp(*lp)),
            Action::Wbinvd { page, td } => {
                let page = self.page(page);
                told(seam.phymem_page_wbinvd(cx, self.with_keyid(page, *td)))
            }
            Action::Reset { page } => {
                seam.host_reset_page(cx, self.page(page));
                Answer::Ok
            }
            Action::Flush { page } => {
                seam.clflush(cx, self.page(page));
                Answer::Ok
            }
            Action::Evict { page } => {
                let page = self.page(page);
                for line in self.tdx.peek_dirty_lines().into_iter().filter(|(at, ..)| *at == page) {
                    self.tdx.evict(cx, line);
                }
                Answer::Ok
            }
            Action::Reclaim { page } => told(seam.phymem_page_reclaim(cx, Hpa::of(self.page(page)))),
            Action::VpFlush { vcpu } => {
                self.kick(*vcpu);
                let (lp, tdvpr) = (self.vcpu(*vcpu).lp, self.vcpu(*vcpu).tdvpr);
                told(self.tdx.on(lp).vp_flush(cx, tdvpr))
            }
            Action::VpFlushDone { td } => told(seam.mng_vpflushdone(cx, self.tdr(*td))),
            Action::CacheWb => told(seam.phymem_cache_wb(cx, false)),
            Action::FreeKey { td } => told(seam.mng_key_freeid(cx, self.tdr(*td))),
            Action::Launch { td, key_of } => {
                self.kick(Vcpu::H);
                self.kick(Vcpu::G);
                self.kick(Vcpu::G2);
                let hkid = self.tds[key_of].hkid;
                told(self.launch(*td, hkid).and_then(|()| self.finalize(*td)))
            }
            Action::Map { td, gpa, page } => {
                let page = self.page(page);
                self.tds[td].shared.0.lock().insert(Gpa(*gpa).gfn(), page);
                Answer::Ok
            }
            Action::HostRead { page } => {
                let (page, mut bytes) = (self.page(page), [0; 8]);
                match seam.host_read(cx, page, 0, &mut bytes) {
                    Ok(()) => self.value(u64::from_le_bytes(bytes)),
                    Err(_) => Answer::MachineCheck,
                }
            }
            Action::HostWrite { page, value } => {
                self.written.insert(*value);
                let page = self.page(page);
                let written = seam.host_write(cx, page, 0, &value.to_le_bytes());
                written.map_or(Answer::MachineCheck, |()| Answer::Ok)
            }
            Action::HostWriteLine { page, value } => self.write_direct(page, *value, LINE),
            Action::DeviceWrite { page, value } => self.write_direct(page, *value, 8),
            Action::BusNote { page, note } => {
                let page = self.page(page);
                let line = std::array::from_fn(|word| self.phys.peek_u64(page, word));
                self.notes.insert(note.clone(), line);
                Answer::Ok
            }
            Action::BusWrite { page, note } => {
                let page = self.page(page);
                let line = self.notes.get(note).copied().unwrap_or_default();
                for (word, value) in line.into_iter().enumerate() {
                    self.phys.poke_u64(page, word, value);
                }
                Answer::Ok
            }
            Action::CompareMrtd { td, with } => {
                let mrtd = |td: &Who| self.tdx.peek_td(Pfn(self.tdr(*td).0 / PAGE_SIZE)).map(|info| info.mrtd);
                if mrtd(td) == mrtd(with) { Answer::Same } else { Answer::Different }
            }
            Action::Accept { vcpu, gpa, huge } => {
                let info = info(*gpa, *huge);
                match self.guest(*vcpu, |inside, cx| inside.mem_page_accept(cx, info)) {
                    Ok(Ok(())) => Answer::Ok,
                    Ok(Err(status)) => Answer::Status(status.name),
                    Err(answer) => answer,
                }
            }
            Action::Read { vcpu, gpa } => self.read(*vcpu, Gpa(*gpa)),
            Action::Write { vcpu, gpa, value } => self.write(*vcpu, Gpa(*gpa), *value),
            Action::ReadShared { vcpu, gpa } => self.read(*vcpu, WIDTH.shared(Gpa(*gpa))),
            Action::WriteShared { vcpu, gpa, value } => self.write(*vcpu, WIDTH.shared(Gpa(*gpa)), *value),
        }
    }

    /// A store past the caches, of so many bytes of which the first eight are a value.
    fn write_direct(&mut self, page: &PageName, value: u64, bytes: usize) -> Answer {
        self.written.insert(value);
        let (page, mut line) = (self.page(page), [0; LINE]);
        line[..8].copy_from_slice(&value.to_le_bytes());
        let written = self.seam().host_write_direct(self.cx, page, 0, &line[..bytes]);
        written.map_or(Answer::MachineCheck, |()| Answer::Ok)
    }
}
