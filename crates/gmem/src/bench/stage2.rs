//! KVM's stage 2 alone: a gigabyte split into 4 KiB entries (P6), and leaves zapped in bulk (P7).

use super::{Case, Meter, Size};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::run_native;
use sim_kernel::sync::synchronize_rcu;
use sim_kernel::{Cx, Pfn};
use sim_mmu::{
    Gfn, GfnRange, Gpa, Level, MayYield, MmuLock, RemoteFlush, RetPf, Root, RootFilter, SlotView, Stage2Kind,
    TdpConfig, TdpFault, TdpMmu,
};
use std::sync::Arc;

/// Guest frames of 1 GiB.
const GIBIBYTE: u64 = 262_144;

/// One slot over huge frames: whatever the level that is asked for, the host has it.
struct Slot {
    range: GfnRange,
    level: Level,
}

impl SlotView for Slot {
    fn range(&self) -> GfnRange {
        self.range
    }
    fn is_dirty_logged(&self) -> bool {
        false
    }
    fn mark_page_dirty(&self, _cx: &Cx<'_>, _gfn: Gfn) {}
    fn lpage_disallowed(&self, _gfn: Gfn, level: Level) -> bool {
        level > self.level
    }
    fn host_level(&self, _cx: &Cx<'_>, _gfn: Gfn, _fault: Option<&TdpFault>) -> Level {
        self.level
    }
}

/// Nobody runs the guest, so there is nothing to flush.
struct NoVcpus;

impl RemoteFlush for NoVcpus {
    fn flush_remote_tlbs(&self, _cx: &Cx<'_>) {}
}

struct Stage2 {
    mmu: TdpMmu,
    root: Option<Arc<Root>>,
    slot: Slot,
    /// The first host frame.
    pfn: Pfn,
}

/// So many frames in a row, aligned to as many, all in use.
fn contiguous(phys: &PhysMem, pages: u64) -> Pfn {
    let mut blocks: Vec<Pfn> = Vec::new();
    loop {
        blocks.push(phys.alloc_huge_zeroed().expect("4 GiB are enough"));
        let count = (pages / 512) as usize;
        if let Some(run) = blocks.len().checked_sub(count).map(|first| &blocks[first..])
            && run[0].0.is_multiple_of(pages)
            && run[count - 1].0 == run[0].0 + pages - 512
        {
            return run[0];
        }
    }
}

impl Stage2 {
    fn new(cx: &Cx<'_>, size: &Size) -> Stage2 {
        let config = TdpConfig::new(Stage2Kind::Ept, 4, Gfn(1 << 34));
        let phys = Arc::new(PhysMem::new(cx, 4 << 30));
        let (pages, level) = size.of((GIBIBYTE, Level::L1G), (512, Level::L2M));
        let pfn = contiguous(&phys, pages);
        let mmu = TdpMmu::new(cx, phys, config);
        let root = Some(mmu.load_root(cx, 0).expect("4 GiB are enough"));
        Stage2 { mmu, root, slot: Slot { range: GfnRange::with_len(Gfn(GIBIBYTE), pages), level }, pfn }
    }

    fn pages(&self) -> u64 {
        self.slot.range.len()
    }

    /// Maps the slot by one leaf, whatever is there now.
    fn map(&self, cx: &Cx<'_>) {
        // What was there before is given back first, or the host runs out of tables.
        synchronize_rcu(cx);
        let mut fault = TdpFault {
            write: true,
            pfn: Some(self.pfn),
            map_writable: true,
            max_level: self.slot.level,
            ..TdpFault::at(Gpa(self.slot.range.start.0 << 12), false)
        };
        let root = self.root.as_ref().expect("until the end");
        let lock = self.mmu.mmu_lock.read(cx);
        let mapped = self.mmu.map(cx, &lock, root, &mut fault, Some(&self.slot), &NoVcpus);
        assert_eq!(mapped, Ok(RetPf::Fixed));
    }

    fn split(&self, cx: &Cx<'_>) {
        let mut lock = self.mmu.mmu_lock.read(cx);
        self.mmu.split_huge_pages(cx, MmuLock::Read(&mut lock), 0, self.slot.range, Level::L4K);
    }

    fn zap(&self, cx: &Cx<'_>) {
        let mut lock = self.mmu.mmu_lock.write(cx);
        let range = self.slot.range;
        let flush = self.mmu.zap_leafs(cx, &mut lock, None, RootFilter::All, range, MayYield::Yes, &NoVcpus);
        flush.discharge(cx, &NoVcpus);
    }

    fn end(mut self, cx: &Cx<'_>) {
        self.mmu.put_root(cx, self.root.take().expect("until the end"));
        self.mmu.uninit(cx);
    }
}

/// P6.
pub(super) fn p6(meter: &mut dyn Meter, size: &Size) {
    run_native(|cx| {
        let stage2 = Stage2::new(cx, size);
        let pages = stage2.pages();
        meter.measure(Case::new("P6", "eager split", pages, "entry", pages).at_most(10.0), &mut |timer| {
            stage2.map(cx);
            timer.time(|| stage2.split(cx));
        });
        stage2.end(cx);
    });
}

/// P7.
pub(super) fn p7(meter: &mut dyn Meter, size: &Size) {
    run_native(|cx| {
        let stage2 = Stage2::new(cx, size);
        let pages = stage2.pages();
        meter.measure(Case::new("P7", "leaves", pages, "entry", pages).at_most(10.0), &mut |timer| {
            stage2.map(cx);
            stage2.split(cx);
            timer.time(|| stage2.zap(cx));
        });
        // The tables are there still, and empty.
        meter.measure(Case::new("P7", "empty entries", pages, "entry", pages).at_most(1.0), &mut |timer| {
            timer.time(|| stage2.zap(cx));
        });
        stage2.end(cx);
    });
}
