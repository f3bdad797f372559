//! MM-030: how many references a walk makes, for every size and with every paging-structure cache.

use crate::bits::{RWX, Vendor};
use crate::machine::{Machine, Setup};
use sim_kernel::sched::Sim;
use sim_mmu::processor::InvvpidType;
use sim_mmu::tlb::{TlbConfig, TlbTag};
use sim_mmu::walker::{Ept, Npt};
use sim_mmu::{Access, Gfn, Gva, Level};

const PAGE: Gva = Gva(0x40_0000_0000 + 0x4000_0000);
const FRAME: Gfn = Gfn(5 << 18);

/// A machine with nothing cached whose walk of `PAGE` reads `g` guest entries, over stage-2 walks of `n` entries.
fn machine<F: Vendor>(
    cx: &sim_kernel::Cx<'_>,
    guest_levels: u8,
    page: Level,
    stage2_levels: u8,
    stage2_page: Level,
    tlb: TlbConfig,
) -> Machine<F> {
    let setup = Setup { guest_levels, stage2_levels, stage2_page, tlb, ..Setup::default() };
    let mut machine = Machine::<F>::new(cx, setup);
    if guest_levels != 0 {
        machine.map_guest(PAGE, FRAME, page, RWX);
    }
    machine.back(FRAME);
    machine
}

fn counts<F: Vendor>() {
    Sim::sequential().solo(|cx| {
        let pages = [Level::L4K, Level::L2M, Level::L1G];
        for stage2_levels in [4, 5] {
            for stage2_page in pages {
                let n = u64::from(stage2_levels + 1 - stage2_page.number());
                for guest_levels in [0, 4, 5] {
                    for page in pages {
                        let g = if guest_levels == 0 { 0 } else { u64::from(guest_levels + 1 - page.number()) };
                        let mut machine =
                            machine::<F>(cx, guest_levels, page, stage2_levels, stage2_page, TlbConfig::NONE);
                        let gva = if g == 0 { Gva(FRAME.0 << 12) } else { PAGE };
                        let counted = machine.count(cx, gva, Access::Write);
                        assert_eq!(counted.references(), (g + 1) * (n + 1) - 1, "g {g}, n {n}");
                        assert_eq!(counted.guest, g);
                    }
                }
            }
        }
    });
}

#[test]
fn mm_030_references_without_caches() {
    counts::<Ept>();
    counts::<Npt>();
}

#[test]
fn mm_030_twenty_four_and_thirty_five() {
    Sim::sequential().solo(|cx| {
        for (levels, references) in [(4, 24), (5, 35)] {
            let mut machine = machine::<Npt>(cx, levels, Level::L4K, levels, Level::L4K, TlbConfig::NONE);
            assert_eq!(machine.count(cx, PAGE, Access::Read).references(), references);
        }
    });
}

/// What makes a stage-2 walk as short as it is.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Short {
    /// The number of levels and the page size.
    Pages(Level),
    /// Stage-2 PDEs are cached.
    Structures,
    /// The mappings are cached.
    Mappings,
}

/// References of a walk that has `k` guest entries to read, because the tables above are cached, or because there are only `k`
/// levels.
fn references(levels: u8, k: u8, short: Short) -> u64 {
    Sim::sequential().solo(|cx| {
        let mut tlb = TlbConfig { guest_structure_slots: 64, ..TlbConfig::NONE };
        let mut stage2_page = Level::L4K;
        match short {
            Short::Pages(page) => stage2_page = page,
            Short::Structures => tlb.stage2_structure_slots = 64,
            Short::Mappings => tlb.physical_sets = 256,
        }
        let mut machine = machine::<Ept>(cx, levels, Level::L4K, levels, stage2_page, tlb);
        // A neighbour that shares the tables above the first entry to be read, and whose walk caches them.
        let neighbour = Gva(PAGE.0 ^ 1 << (12 + 9 * (u32::from(k) - 1)));
        machine.map_guest(neighbour, FRAME, Level::L4K, RWX);
        // Stage 2 has everything that the page's walk needs after a walk of the page; the guest's tables go again.
        machine.count(cx, PAGE, Access::Write);
        machine.processor.invvpid(cx, InvvpidType::Single(TlbTag(1))).unwrap();
        if k < levels {
            machine.count(cx, neighbour, Access::Write);
        }
        let counted = machine.count(cx, PAGE, Access::Write);
        assert_eq!(counted.guest, u64::from(k));
        counted.references()
    })
}

#[test]
fn mm_030_references_with_paging_structure_caches() {
    // By what makes stage-2 walks short: from CR3, then with fewer and fewer guest entries to read.
    let pages = |level| Short::Pages(level);
    let four = [
        (pages(Level::L4K), [24, 15, 10, 5]),
        (pages(Level::L2M), [19, 12, 8, 4]),
        (pages(Level::L1G), [14, 9, 6, 3]),
        (Short::Structures, [9, 6, 4, 2]),
        (Short::Mappings, [4, 3, 2, 1]),
    ];
    for (short, expected) in four {
        assert_eq!([4, 3, 2, 1].map(|k| references(4, k, short)), expected, "{short:?}");
    }
    let five = [
        (pages(Level::L4K), [35, 24, 18, 12, 6]),
        (pages(Level::L2M), [29, 20, 15, 10, 5]),
        (pages(Level::L1G), [23, 16, 12, 8, 4]),
        (Short::Structures, [11, 8, 6, 4, 2]),
        (Short::Mappings, [5, 4, 3, 2, 1]),
    ];
    for (short, expected) in five {
        assert_eq!([5, 4, 3, 2, 1].map(|k| references(5, k, short)), expected, "{short:?}");
    }
}
