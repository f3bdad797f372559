//! A VM in miniature: one memslot over huge frames, a counting TLB flush, folded events.

use sim_kernel::mm::PhysMem;
use sim_kernel::{Cx, Pfn};
use sim_mmu::{
    Gfn, GfnRange, Gpa, KVM_TDP_MMU_SPTE_CHANGED, Level, RemoteFlush, RetPf, Root, SlotView, SpteState, Stage2Kind,
    TdpConfig, TdpFault, TdpMmu,
};
use std::any::Any;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

/// The slot's first frame: aligned to 2 MiB, not to 1 GiB.
pub(crate) const BASE: Gfn = Gfn(512);

pub(crate) struct Slot {
    pub(crate) range: GfnRange,
    pub(crate) logged: AtomicBool,
    pub(crate) dirty: parking_lot::Mutex<BTreeSet<u64>>,
    pub(crate) host_level: AtomicU8,
}

impl Slot {
    pub(crate) fn new(range: GfnRange) -> Slot {
        let host_level = AtomicU8::new(1);
        Slot { range, logged: AtomicBool::new(false), dirty: Default::default(), host_level }
    }

    pub(crate) fn set_host(&self, level: Level) {
        self.host_level.store(level.number(), SeqCst);
    }
}

impl SlotView for Slot {
    fn range(&self) -> GfnRange {
        self.range
    }
    fn is_dirty_logged(&self) -> bool {
        self.logged.load(SeqCst)
    }
    fn mark_page_dirty(&self, cx: &Cx<'_>, gfn: Gfn) {
        cx.cond_resched();
        self.dirty.lock().insert(gfn.0);
    }
    fn lpage_disallowed(&self, gfn: Gfn, level: Level) -> bool {
        !self.range.covers(&gfn.block(level))
    }
    fn host_level(&self, _cx: &Cx<'_>, _gfn: Gfn, _fault: Option<&TdpFault>) -> Level {
        Level::from_number(self.host_level.load(SeqCst)).unwrap()
    }
}

#[derive(Default)]
pub(crate) struct Flushes(AtomicU64);

impl Flushes {
    pub(crate) fn take(&self) -> u64 {
        self.0.swap(0, SeqCst)
    }
}

impl RemoteFlush for Flushes {
    fn flush_remote_tlbs(&self, cx: &Cx<'_>) {
        cx.cond_resched();
        self.0.fetch_add(1, SeqCst);
    }
}

pub(crate) struct Vm {
    pub(crate) phys: Arc<PhysMem>,
    pub(crate) mmu: TdpMmu,
    pub(crate) slot: Slot,
    pub(crate) flush: Flushes,
    /// First frame of each 2 MiB block of the slot.
    pub(crate) blocks: Vec<Pfn>,
    /// The root that mirrors external tables, of a VM that has them.
    pub(crate) mirror: OnceLock<Arc<Root>>,
    /// What is behind the hooks of such a VM.
    pub(crate) external: OnceLock<Arc<dyn Any + Send + Sync>>,
}

pub(crate) fn config(kind: Stage2Kind) -> TdpConfig {
    TdpConfig::new(kind, 4, Gfn(1 << 34))
}

impl Vm {
    pub(crate) fn new(cx: &Cx<'_>, blocks: usize) -> Vm {
        Vm::with(cx, blocks, config(Stage2Kind::Ept))
    }

    pub(crate) fn with(cx: &Cx<'_>, blocks: usize, config: TdpConfig) -> Vm {
        let phys = Arc::new(PhysMem::new(cx, 64 << 20));
        let mmu = TdpMmu::new(cx, Arc::clone(&phys), config);
        let blocks: Vec<_> = (0..blocks).map(|_| phys.alloc_huge_zeroed().unwrap()).collect();
        let slot = Slot::new(GfnRange::with_len(BASE, blocks.len() as u64 * 512));
        Vm { phys, mmu, slot, flush: Flushes::default(), blocks, mirror: OnceLock::new(), external: OnceLock::new() }
    }

    pub(crate) fn pfn(&self, gfn: Gfn) -> Pfn {
        self.blocks[((gfn - BASE) / 512) as usize] + (gfn - BASE) % 512
    }

    pub(crate) fn fault(&self, gfn: Gfn, write: bool) -> TdpFault {
        let in_slot = self.slot.range.contains(gfn);
        TdpFault {
            write,
            pfn: in_slot.then(|| self.pfn(gfn)),
            map_writable: true,
            mmio_generation: 0x155,
            ..TdpFault::at(Gpa(gfn.0 << 12 | 0x123), false)
        }
    }

    /// Serves a fault; the caller holds no lock.
    pub(crate) fn serve(&self, cx: &Cx<'_>, root: &Root, fault: &TdpFault) -> RetPf {
        let slot = fault.pfn.map(|_| &self.slot);
        let lock = self.mmu.mmu_lock.read(cx);
        if self.mmu.is_root_stale(&lock, root) {
            return RetPf::Retry;
        }
        self.mmu.map(cx, &lock, root, &mut fault.clone(), slot, &self.flush).unwrap()
    }

    pub(crate) fn touch(&self, cx: &Cx<'_>, root: &Root, gfn: u64, write: bool) -> RetPf {
        self.serve(cx, root, &self.fault(Gfn(gfn), write))
    }
}

/// One run of events: first gfn, entries, level, old and new state.
pub(crate) type Run = (u64, u64, u8, &'static str, &'static str);

/// The events since the last call, folded as in the recordings; a writable leaf is `leaf+w`.
pub(crate) fn runs(cx: &Cx<'_>, mmu: &TdpMmu) -> Vec<Run> {
    let name = |spte, level| match mmu.classify(spte, level) {
        SpteState::None => "none",
        SpteState::Leaf { writable: true } => "leaf+w",
        SpteState::Leaf { writable: false } => "leaf",
        SpteState::Table => "table",
        SpteState::Frozen => "frozen",
        SpteState::Mmio => "mmio",
    };
    let mut runs: Vec<Run> = Vec::new();
    for record in cx.take_trace() {
        if record.tracepoint != &KVM_TDP_MMU_SPTE_CHANGED {
            continue;
        }
        let (gfn, level) = (record.args[1], Level::from_number(record.args[2] as u8).unwrap());
        let (old, new) = (name(record.args[3], level), name(record.args[4], level));
        match runs.last_mut() {
            Some(run) if run.0 + run.1 * level.span() == gfn && (run.2, run.3, run.4) == (level.number(), old, new) => {
                run.1 += 1;
            }
            _ => runs.push((gfn, 1, level.number(), old, new)),
        }
    }
    runs
}
