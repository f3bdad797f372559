//! A small machine, brought up, and TDs in the states that the tests need.

use sim_coco::tdx::{
    Entry, Hkid, Hpa, InTd, Lp, OpState, SeamFail, Seamcall, SeptInfo, SeptState, StatusName, TdParams, Tdmr, Tdx,
    TdxConfig,
};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gpa, Level};
use std::sync::Arc;

/// KeyIDs of the tests.
pub(crate) const K: Hkid = Hkid(33);
pub(crate) const L: Hkid = Hkid(34);
/// Where a page is in its TD: the first of a 2 MiB page, in a 1 GiB page of which it is not the first.
pub(crate) const GPA: Gpa = Gpa(0x4020_0000);
pub(crate) const LP: Lp = Lp(0);

const RAM: u64 = 64 << 20;
/// Of a machine that has a page of 1 GiB, and the usual beside it.
const LARGE_RAM: u64 = 3 << 30;

pub(crate) struct Machine {
    pub(crate) tdx: Tdx,
    pub(crate) phys: Arc<PhysMem>,
}

pub(crate) fn config() -> TdxConfig {
    TdxConfig { lps_per_package: 4, ..TdxConfig::new(Tdmr::below(RAM >> 12)) }
}

/// What a leaf said instead of success, without details.
pub(crate) fn told<T: std::fmt::Debug>(answer: Seamcall<T>) -> String {
    match answer {
        Ok(_) => "SUCCESS".into(),
        Err(fail) => format!("{:?}", fail.status),
    }
}

pub(crate) fn name<T: std::fmt::Debug>(answer: Seamcall<T>) -> StatusName {
    answer.map_or_else(|fail: SeamFail| fail.name(), |_| StatusName::Success)
}

impl Machine {
    pub(crate) fn new(cx: &Cx<'_>, config: TdxConfig) -> Machine {
        Machine::with_memory(cx, config, RAM)
    }

    /// A machine that has a page of 1 GiB.
    pub(crate) fn large(cx: &Cx<'_>, config: TdxConfig) -> Machine {
        Machine::with_memory(cx, TdxConfig { tdmrs: vec![Tdmr::below(LARGE_RAM >> 12)], ..config }, LARGE_RAM)
    }

    fn with_memory(cx: &Cx<'_>, config: TdxConfig, bytes: u64) -> Machine {
        let phys = Arc::new(PhysMem::new(cx, bytes));
        let tdx = Tdx::new(cx, Arc::clone(&phys), config);
        tdx.bring_up(cx);
        Machine { tdx, phys }
    }

    /// A page of the host, zeroed.
    pub(crate) fn page(&self) -> Hpa {
        Hpa::of(self.phys.alloc_zeroed().unwrap())
    }

    /// 512 of them.
    pub(crate) fn huge(&self) -> Hpa {
        Hpa::of(self.phys.alloc_huge_zeroed().unwrap())
    }

    /// Frames of the host in a row, as many as a page of this level has, and aligned as one.
    pub(crate) fn frames_of(&self, level: Level) -> Hpa {
        if level < Level::L1G {
            return self.of_level(level);
        }
        let is_first = |page: &Hpa| page.0.is_multiple_of(1 << 30);
        let first = std::iter::repeat_with(|| self.huge()).find(is_first).expect("an endless search");
        for i in 1..512 {
            assert_eq!(self.huge(), Hpa(first.0 + (i << 21)), "frames come in a row");
        }
        first
    }

    pub(crate) fn of_level(&self, level: Level) -> Hpa {
        if level == Level::L2M { self.huge() } else { self.page() }
    }

    /// A TD whose keys are configured, with so many pages of TDCS.
    pub(crate) fn created(&self, cx: &Cx<'_>, hkid: Hkid, tdcx: usize) -> Hpa {
        let tdr = self.page();
        let seam = self.tdx.on(LP);
        seam.mng_create(cx, tdr, hkid).unwrap();
        let config = self.tdx.config();
        for package in 0..config.packages {
            let answer = self.tdx.on(Lp(package * config.lps_per_package)).mng_key_config(cx, tdr);
            answer.unwrap();
        }
        for _ in 0..tdcx {
            seam.mng_addcx(cx, self.page(), tdr).unwrap();
        }
        tdr
    }

    /// TD_PARAMS in memory of the host.
    pub(crate) fn params(&self, cx: &Cx<'_>, params: &TdParams) -> Hpa {
        let page = self.page();
        self.tdx.on(LP).host_write(cx, pfn(page), 0, &params.to_bytes()).unwrap();
        page
    }

    /// A TD that can be built.
    pub(crate) fn initialized(&self, cx: &Cx<'_>, hkid: Hkid, params: &TdParams) -> Hpa {
        let tdr = self.created(cx, hkid, 6);
        self.tdx.on(LP).mng_init(cx, tdr, self.params(cx, params)).unwrap();
        tdr
    }

    /// A TD that can be built, with the usual parameters and tables down to 2 MiB at [`GPA`].
    pub(crate) fn building(&self, cx: &Cx<'_>) -> Hpa {
        self.building_with(cx, K, &params())
    }

    pub(crate) fn building_with(&self, cx: &Cx<'_>, hkid: Hkid, params: &TdParams) -> Hpa {
        let tdr = self.initialized(cx, hkid, params);
        for level in [Level::L512G, Level::L1G] {
            self.table(cx, tdr, GPA, level);
        }
        tdr
    }

    /// A table behind an entry of this level.
    pub(crate) fn table(&self, cx: &Cx<'_>, tdr: Hpa, gpa: Gpa, level: Level) -> Hpa {
        let page = self.page();
        self.tdx.on(LP).mem_sept_add(cx, info(gpa, level), tdr, page).unwrap();
        page
    }

    /// A vCPU that can run, on this processor.
    pub(crate) fn vcpu(&self, cx: &Cx<'_>, tdr: Hpa, lp: Lp) -> Hpa {
        let seam = self.tdx.on(lp);
        let tdvpr = self.page();
        seam.vp_create(cx, tdvpr, tdr).unwrap();
        for _ in 0..self.tdx.config().tdvps_tdcx {
            seam.vp_addcx(cx, self.page(), tdvpr).unwrap();
        }
        seam.vp_init(cx, tdvpr, 0, None).unwrap();
        tdvpr
    }

    /// A page that the guest has yet to accept.
    pub(crate) fn aug(&self, cx: &Cx<'_>, tdr: Hpa, gpa: Gpa, level: Level) -> Hpa {
        let page = self.of_level(level);
        self.tdx.on(LP).mem_page_aug(cx, info(gpa, level), tdr, page).unwrap();
        page
    }

    /// Pages that the guest has yet to accept behind every entry of a table, which an entry of `level` for the address leads to; they lie in a row.
    pub(crate) fn fill_table(&self, cx: &Cx<'_>, tdr: Hpa, gpa: Gpa, level: Level) -> Hpa {
        let (first, below) = (self.frames_of(level), level.down().unwrap());
        for i in 0..512 {
            let offset = (i * below.span()) << 12;
            let page = Hpa(first.0 + offset);
            self.tdx.on(LP).mem_page_aug(cx, info(Gpa(gpa.0 + offset), below), tdr, page).unwrap();
        }
        first
    }

    /// A page of 1 GiB that the guest has yet to accept: no leaf adds one, so it is promoted.
    pub(crate) fn giant(&self, cx: &Cx<'_>, tdr: Hpa, gpa: Gpa) -> Hpa {
        self.table(cx, tdr, gpa, Level::L1G);
        let first = self.fill_table(cx, tdr, gpa, Level::L1G);
        self.tdx.on(LP).mem_page_promote(cx, info(gpa, Level::L1G), tdr).unwrap();
        first
    }

    /// A page with zeroes, while the TD is built.
    pub(crate) fn add(&self, cx: &Cx<'_>, tdr: Hpa, gpa: Gpa) -> Hpa {
        let page = self.page();
        self.tdx.on(LP).mem_page_add(cx, SeptInfo::page(gpa), tdr, page, self.page()).unwrap();
        page
    }

    /// A TD that runs, with tables down to 4 KiB at [`GPA`], and its vCPU on processor 0.
    pub(crate) fn running(&self, cx: &Cx<'_>) -> (Hpa, Hpa) {
        self.running_with(cx, K, &params())
    }

    pub(crate) fn running_with(&self, cx: &Cx<'_>, hkid: Hkid, params: &TdParams) -> (Hpa, Hpa) {
        let tdr = self.building_with(cx, hkid, params);
        self.table(cx, tdr, GPA, Level::L2M);
        let tdvpr = self.vcpu(cx, tdr, LP);
        self.tdx.on(LP).mr_finalize(cx, tdr).unwrap();
        assert_eq!(self.op_state(tdr), OpState::Runnable);
        (tdr, tdvpr)
    }

    pub(crate) fn op_state(&self, tdr: Hpa) -> OpState {
        self.tdx.peek_td(pfn(tdr)).unwrap().op_state
    }

    pub(crate) fn state(&self, tdr: Hpa, gpa: Gpa, level: Level) -> Option<SeptState> {
        self.tdx.peek_sept(pfn(tdr), gpa.gfn(), level)?.state()
    }

    /// Enters a vCPU that can be entered.
    pub(crate) fn enter(&self, cx: &Cx<'_>, tdvpr: Hpa, lp: Lp) -> InTd<'_> {
        match self.tdx.on(lp).vp_enter(cx, tdvpr).unwrap() {
            Entry::Inside(guest) => guest,
            Entry::Exit(exit) => panic!("not entered: {exit:?}"),
        }
    }

    /// The guest accepts a page.
    pub(crate) fn accept(&self, cx: &Cx<'_>, tdvpr: Hpa, gpa: Gpa, level: Level) {
        let mut guest = self.enter(cx, tdvpr, LP);
        assert_eq!(guest.mem_page_accept(cx, info(gpa, level)), Ok(Ok(())));
        leave(cx, guest);
    }

    /// BLOCK, TRACK, REMOVE, with nobody inside.
    pub(crate) fn take_away(&self, cx: &Cx<'_>, tdr: Hpa, gpa: Gpa, level: Level) -> Hpa {
        let seam = self.tdx.on(LP);
        seam.mem_range_block(cx, info(gpa, level), tdr).unwrap();
        seam.mem_track(cx, tdr).unwrap();
        seam.mem_page_remove(cx, info(gpa, level), tdr).unwrap()
    }

    /// Releases the key of a TD, whose vCPUs are these.
    pub(crate) fn free_key(&self, cx: &Cx<'_>, tdr: Hpa, vcpus: &[(Hpa, Lp)]) {
        for (tdvpr, lp) in vcpus {
            self.tdx.on(*lp).vp_flush(cx, *tdvpr).unwrap();
        }
        self.tdx.on(LP).mng_vpflushdone(cx, tdr).unwrap();
        for package in 0..self.tdx.config().packages {
            let lp = Lp(package * self.tdx.config().lps_per_package);
            self.tdx.on(lp).phymem_cache_wb(cx, false).unwrap();
        }
        self.tdx.on(LP).mng_key_freeid(cx, tdr).unwrap();
    }
}

/// An interrupt of the host takes the vCPU out of its TD.
pub(crate) fn leave(cx: &Cx<'_>, mut guest: InTd<'_>) {
    let _ = guest.exit(cx, sim_coco::tdx::exit::EXTERNAL_INTERRUPT);
}

/// Without SEPT_VE_DISABLE, so that both answers to a pending page can be had.
pub(crate) fn params() -> TdParams {
    TdParams { attributes: 0, max_vcpus: 4, ..TdParams::default() }
}

pub(crate) fn pfn(page: Hpa) -> Pfn {
    Pfn(page.0 >> 12)
}

/// The entry of this level for the address.
pub(crate) fn info(gpa: Gpa, level: Level) -> SeptInfo {
    SeptInfo::new(gpa.gfn().round_down(level).gpa(), level)
}

/// Runs a test on a machine that is up; afterwards all invariants must hold.
pub(crate) fn with(test: impl FnOnce(&Cx<'_>, &Machine)) {
    with_config(config(), test);
}

pub(crate) fn with_config(config: TdxConfig, test: impl FnOnce(&Cx<'_>, &Machine)) {
    Sim::sequential().solo(|cx| {
        let machine = Machine::new(cx, config);
        test(cx, &machine);
        machine.tdx.check_invariants().unwrap();
    });
}
