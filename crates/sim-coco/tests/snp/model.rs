//! The RMP against a naive one: a list of pages instead of a table of entries, after random operations.

use crate::machine::{G, GPA, H, Machine, config};
use proptest::prelude::*;
use sim_coco::AccessKind;
use sim_coco::snp::{
    Asid, GuestCpu, HostSnpAccess, KeyPath, PageOperand, RmpFail, RmpReadout, RmpSize, RmpUpdate, SnpAccess, Spa,
};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gpa, Level};
use std::collections::BTreeMap;

/// Regions of 2 MiB that the operations are about.
const REGIONS: u64 = 2;
/// 4 KiB pages of a region that they name: enough for heads, tails and neighbours.
const NAMED: [u64; 4] = [0, 1, 2, 511];

/// A page as the model has it: one record, whatever its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    size: RmpSize,
    asid: Asid,
    gpa: Gpa,
    immutable: bool,
    validated: bool,
}

/// Assigned pages by their first frame; what is in none is the hypervisor's.
#[derive(Default)]
struct Model {
    pages: BTreeMap<u64, Page>,
}

impl Model {
    /// The page that contains the frame, and where it starts.
    fn page(&self, pfn: u64) -> Option<(u64, Page)> {
        let (start, page) = self.pages.range(..=pfn).next_back()?;
        (pfn < start + page.size.pages()).then_some((*start, *page))
    }

    fn overlapping(&self, pfn: u64, size: RmpSize) -> Vec<u64> {
        (pfn..pfn + size.pages()).filter_map(|pfn| self.page(pfn).map(|(start, _)| start)).collect()
    }

    fn rmpupdate(&mut self, pfn: u64, new: RmpUpdate) -> Result<(), RmpFail> {
        if !pfn.is_multiple_of(new.page_size.pages()) || (!new.assigned && (new.immutable || new.asid != Asid::HOST)) {
            return Err(RmpFail::Input);
        }
        let old = self.pages.get(&pfn).copied();
        if old.is_some_and(|old| old.immutable) {
            return Err(RmpFail::Permission);
        }
        let exact = old.is_some_and(|old| old.size == new.page_size);
        if !exact && !self.overlapping(pfn, new.page_size).is_empty() {
            return Err(RmpFail::Overlap);
        }
        self.pages.remove(&pfn);
        if new.assigned {
            let same = old.is_some_and(|old| exact && old.asid == new.asid && old.gpa == new.gpa);
            let validated = same && old.is_some_and(|old| old.validated);
            let page = Page { size: new.page_size, asid: new.asid, gpa: new.gpa, immutable: new.immutable, validated };
            self.pages.insert(pfn, page);
        }
        Ok(())
    }

    fn psmash(&mut self, pfn: u64) -> Result<(), RmpFail> {
        if !pfn.is_multiple_of(512) {
            return Err(RmpFail::Input);
        }
        match self.pages.get(&pfn).copied() {
            Some(page) if page.immutable => Err(RmpFail::Permission),
            Some(page) if page.size == RmpSize::Size2M => {
                for i in 0..512 {
                    let gpa = Gpa(page.gpa.0 + (i << 12));
                    self.pages.insert(pfn + i, Page { size: RmpSize::Size4K, gpa, ..page });
                }
                Ok(())
            }
            _ => Err(RmpFail::BadAddr),
        }
    }

    /// `None`: an NPF. Else EAX, and CF.
    fn pvalidate(
        &mut self,
        asid: Asid,
        pfn: u64,
        gpa: Gpa,
        size: RmpSize,
        on: bool,
    ) -> Option<(Option<RmpFail>, bool)> {
        let (start, page) = self.page(pfn)?;
        let at = Gpa(page.gpa.0 + ((pfn - start) << 12));
        if page.asid != asid || at != gpa || page.immutable || (size, page.size) == (RmpSize::Size4K, RmpSize::Size2M) {
            return None;
        }
        if size != page.size {
            return Some((Some(RmpFail::SizeMismatch), false));
        }
        self.pages.get_mut(&start)?.validated = on;
        Some((None, page.validated == on))
    }

    fn reclaim(&mut self, pfn: u64, size: RmpSize) -> bool {
        let Some((start, page)) = self.page(pfn) else { return false };
        let is_reclaimed = page.asid == Asid::HOST && !page.immutable;
        if start != pfn || page.size != size || (!page.immutable && !is_reclaimed) {
            return false;
        }
        self.pages.insert(pfn, Page { immutable: false, ..page });
        true
    }
}

#[derive(Clone, Debug)]
enum Op {
    Rmpupdate {
        pfn: u64,
        new: RmpUpdate,
    },
    Psmash {
        pfn: u64,
    },
    Pvalidate {
        asid: Asid,
        pfn: u64,
        gpa: Gpa,
        size: RmpSize,
        on: bool,
    },
    Reclaim {
        pfn: u64,
        size: RmpSize,
    },
    /// A smash of each region, so that small pages are as frequent as large ones.
    GuestWrite {
        asid: Asid,
        pfn: u64,
        gpa: Gpa,
        level: Level,
        value: u64,
    },
    HostWrite {
        pfn: u64,
        level: Level,
    },
}

fn frame() -> impl Strategy<Value = u64> {
    (0..REGIONS, prop::sample::select(&NAMED[..])).prop_map(|(region, i)| region * 512 + i)
}

/// Addresses that often fit the frame.
fn at(pfn: u64, shift: u64) -> Gpa {
    Gpa(GPA.0 + ((pfn + shift) << 12))
}

fn size() -> impl Strategy<Value = RmpSize> {
    prop_oneof![Just(RmpSize::Size4K), Just(RmpSize::Size2M)]
}

fn asid() -> impl Strategy<Value = Asid> {
    prop_oneof![4 => Just(G), 1 => Just(H)]
}

/// Mostly 0.
fn rarely() -> impl Strategy<Value = u64> {
    prop_oneof![5 => Just(0), 1 => Just(1)]
}

fn update() -> impl Strategy<Value = Op> {
    (frame(), rarely(), prop::sample::select(vec![G, G, H, Asid::HOST]), size(), any::<bool>(), 0..4u8).prop_map(
        |(pfn, shift, asid, page_size, immutable, kind)| {
            let pfn = if page_size == RmpSize::Size2M && shift == 0 { pfn & !511 } else { pfn };
            let new = match kind {
                0 => RmpUpdate::HYPERVISOR.sized(page_size),
                1 => RmpUpdate { immutable, asid, ..RmpUpdate::HYPERVISOR.sized(page_size) },
                // The firmware's pages have no address, but may be given one.
                _ => RmpUpdate {
                    gpa: at(pfn, shift),
                    assigned: true,
                    page_size,
                    immutable: immutable && kind == 2,
                    asid,
                },
            };
            Op::Rmpupdate { pfn, new }
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let level = prop_oneof![Just(Level::L4K), Just(Level::L2M), Just(Level::L1G)];
    prop_oneof![
        6 => update(),
        1 => frame().prop_map(|pfn| Op::Psmash { pfn: pfn & !511 }),
        1 => frame().prop_map(|pfn| Op::Psmash { pfn }),
        4 => (asid(), frame(), rarely(), size(), any::<bool>())
            .prop_map(|(asid, pfn, shift, size, on)| Op::Pvalidate { asid, pfn, gpa: at(pfn, shift), size, on }),
        2 => (frame(), size()).prop_map(|(pfn, size)| Op::Reclaim { pfn, size }),
        4 => (asid(), frame(), rarely(), level.clone(), any::<u64>())
            .prop_map(|(asid, pfn, shift, level, value)| Op::GuestWrite { asid, pfn, gpa: at(pfn, shift), level, value }),
        1 => (frame(), level).prop_map(|(pfn, level)| Op::HostWrite { pfn, level }),
    ]
}

/// Does the operation on both and compares the answers.
fn step(cx: &Cx<'_>, machine: &Machine, base: Pfn, model: &mut Model, op: &Op) {
    let snp = &machine.snp;
    match *op {
        Op::Rmpupdate { pfn, new } => {
            assert_eq!(snp.rmpupdate(cx, base + pfn, new), model.rmpupdate(pfn, new), "{op:?}");
        }
        Op::Psmash { pfn } => assert_eq!(snp.psmash(cx, base + pfn), model.psmash(pfn), "{op:?}"),
        Op::Pvalidate { asid, pfn, gpa, size, on } => {
            let mut operand = PageOperand::page(gpa, base + pfn);
            operand.size = u64::from(size == RmpSize::Size2M);
            let answer = snp.pvalidate(cx, &GuestCpu::snp(0, asid), &operand, u32::from(on));
            let misaligned = size == RmpSize::Size2M && !gpa.0.is_multiple_of(2 << 20);
            let expected = if misaligned {
                Some((Some(RmpFail::Input), false))
            } else {
                model.pvalidate(asid, pfn, gpa, size, on)
            };
            assert_eq!(answer.ok().map(|done| (done.result.err(), done.unchanged)), expected, "{op:?}");
        }
        Op::Reclaim { pfn, size } => {
            let answer = snp.snp_page_reclaim(cx, Spa::of(base + pfn), size);
            assert_eq!(answer.is_ok(), model.reclaim(pfn, size), "{op:?}");
        }
        Op::GuestWrite { asid, pfn, gpa, level, value } => {
            let cpu = GuestCpu::snp(0, asid);
            let access = SnpAccess::private(AccessKind::Write, gpa, base + pfn).at_level(level);
            let passes = model.page(pfn).is_some_and(|(start, page)| {
                page.asid == asid
                    && !page.immutable
                    && page.validated
                    && page.gpa.0 + ((pfn - start) << 12) == gpa.0
                    && (page.size == RmpSize::Size2M) == (level > Level::L4K)
            });
            let answer = snp.guest_write(cx, &cpu, &access, &value.to_le_bytes());
            assert_eq!(answer.is_ok(), passes, "{op:?}");
            if passes {
                let mut bytes = [0; 8];
                snp.memory().read(KeyPath::Guest(asid), base + pfn, 0, &mut bytes);
                assert_eq!(u64::from_le_bytes(bytes), value, "SNP-INV-006");
            }
        }
        Op::HostWrite { pfn, level } => {
            let raw = machine.phys.peek_u64(base + pfn, 0);
            let access = HostSnpAccess { level, ..HostSnpAccess::kernel(AccessKind::Write, base + pfn) };
            let region = if level == Level::L4K { pfn..pfn + 1 } else { pfn & !511..(pfn | 511) + 1 };
            let passes = region.clone().all(|pfn| model.page(pfn).is_none());
            assert_eq!(snp.host_write(cx, &access, 0, &[1]).is_ok(), passes, "{op:?}");
            assert!(passes || machine.phys.peek_u64(base + pfn, 0) == raw, "SNP-INV-002");
        }
    }
}

/// What RMPREAD must show of a frame.
fn readout(model: &Model, pfn: u64) -> RmpReadout {
    let hidden = RmpReadout {
        gpa: Gpa(0),
        assigned: false,
        page_size: RmpSize::Size4K,
        hpage_region: false,
        immutable: false,
        asid: Asid::HOST,
    };
    match model.page(pfn) {
        None => hidden,
        Some((start, page)) => {
            let hpage_region = page.size == RmpSize::Size2M;
            let tail = RmpReadout { assigned: true, hpage_region, ..hidden };
            let Page { size, asid, gpa, immutable, .. } = page;
            if start == pfn { RmpReadout { gpa, page_size: size, immutable, asid, ..tail } } else { tail }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn the_rmp_is_a_list_of_pages(ops in prop::collection::vec(op(), 1..60)) {
        Sim::sequential().solo(|cx| {
            let machine = Machine::new(cx, config());
            let blocks: Vec<_> = (0..REGIONS).map(|_| machine.huge()).collect();
            assert!(blocks.windows(2).all(|pair| pair[1].0 == pair[0].0 + 512));
            let base = blocks[0];
            let mut model = Model::default();
            for op in &ops {
                step(cx, &machine, base, &mut model, op);
                machine.snp.check_invariants().unwrap();
            }
            for pfn in 0..REGIONS * 512 {
                let page = model.page(pfn).map(|(_, page)| (page.validated, page.size));
                let entry = machine.snp.rmp().page(base + pfn);
                prop_assert_eq!(entry.assigned.then_some((entry.validated, entry.page_size)), page);
                prop_assert_eq!(machine.snp.rmpread(cx, base + pfn).unwrap(), readout(&model, pfn));
            }
            Ok(())
        })?;
    }
}
