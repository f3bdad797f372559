//! The module against a naive one: two TDs as flat maps of pages, after random leaves and entries. Ownership, states and answers are compared after each.

use crate::machine::{GPA, K, L, Machine, config, leave, name, params, pfn};
use proptest::prelude::*;
use sim_coco::tdx::{GuestStop, Hpa, InTd, Lp, PageType, SeptInfo, SeptState, StatusName, TdxConfig};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gpa, Level};
use std::collections::BTreeMap;

/// Pages of 2 MiB of a TD that the operations are about, and the 4 KiB ones in them.
const REGIONS: u64 = 2;
const NAMED: [u64; 3] = [0, 1, 511];
/// Large and small pages of the host.
const HUGE: u64 = 2;
const SMALL: usize = 6;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Leaf {
    page: Pfn,
    pending: bool,
    blocked: bool,
    bepoch: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Region {
    Free,
    Table { page: Pfn, blocked: bool, bepoch: u64 },
    Large(Leaf),
}

struct Td {
    epoch: u64,
    /// Epoch in which its vCPU entered.
    inside: Option<u64>,
    regions: Vec<Region>,
    small: BTreeMap<(u64, u64), Leaf>,
}

impl Td {
    fn is_tracked(&self, bepoch: u64) -> bool {
        let waits = self.inside.is_some_and(|epoch| epoch % 2 == bepoch % 2);
        if bepoch + 1 == self.epoch { !waits } else { bepoch + 1 < self.epoch }
    }

    fn state(leaf: &Leaf) -> SeptState {
        match (leaf.pending, leaf.blocked) {
            (false, false) => SeptState::Mapped,
            (false, true) => SeptState::Blocked,
            (true, false) => SeptState::Pending,
            (true, true) => SeptState::PendingBlocked,
        }
    }
}

struct Model {
    tds: [Td; 2],
    /// Pages in use: by the first frame, the TD, the number of frames, and whether it is a table.
    used: BTreeMap<u64, (usize, u64, bool)>,
}

#[derive(Clone, Copy, Debug)]
enum At {
    Large(u64),
    Small(u64, u64),
}

impl At {
    fn info(self) -> SeptInfo {
        match self {
            At::Large(region) => SeptInfo::new(Gpa(GPA.0 + (region << 21)), Level::L2M),
            At::Small(region, i) => SeptInfo::page(Gpa(GPA.0 + (region << 21) + (i << 12))),
        }
    }

    fn pages(self) -> u64 {
        if matches!(self, At::Large(_)) { 512 } else { 1 }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    SeptAdd(usize, u64, usize),
    Aug(usize, At, usize),
    Block(usize, At),
    Unblock(usize, At),
    Remove(usize, At),
    SeptRemove(usize, u64),
    Relocate(usize, At, usize),
    Demote(usize, u64, usize),
    Promote(usize, u64),
    Track(usize),
    Enter(usize),
    Leave(usize),
    Accept(usize, At),
    Write(usize, At),
}

/// An entry as the model finds it, or the reason why a walk ends before it.
enum Found {
    Free,
    Table(Pfn, bool, u64),
    Leaf(Leaf),
    Above,
}

impl Model {
    fn overlaps(&self, page: Pfn, pages: u64) -> bool {
        self.used.iter().any(|(first, (_, count, _))| *first < page.0 + pages && page.0 < first + count)
    }

    /// The frame at an address, also if it, or a table above it, is blocked.
    fn frame(&self, td: usize, gpa: Gpa) -> Option<Pfn> {
        let (region, part) = ((gpa.0 - GPA.0) >> 21, gpa.0 >> 12 & 511);
        match &self.tds[td].regions[region as usize] {
            Region::Large(leaf) => Some(leaf.page + part),
            _ => self.tds[td].small.get(&(region, part)).map(|leaf| leaf.page),
        }
    }

    fn find(&self, td: usize, at: At) -> Found {
        let td = &self.tds[td];
        match at {
            At::Large(region) => match &td.regions[region as usize] {
                Region::Free => Found::Free,
                Region::Table { page, blocked, bepoch } => Found::Table(*page, *blocked, *bepoch),
                Region::Large(leaf) => Found::Leaf(*leaf),
            },
            At::Small(region, i) => match &td.regions[region as usize] {
                Region::Table { blocked: false, .. } => {
                    td.small.get(&(region, i)).map_or(Found::Free, |leaf| Found::Leaf(*leaf))
                }
                _ => Found::Above,
            },
        }
    }

    fn set(&mut self, td: usize, at: At, leaf: Option<Leaf>) {
        match at {
            At::Large(region) => self.tds[td].regions[region as usize] = leaf.map_or(Region::Free, Region::Large),
            At::Small(region, i) => match leaf {
                Some(leaf) => drop(self.tds[td].small.insert((region, i), leaf)),
                None => drop(self.tds[td].small.remove(&(region, i))),
            },
        }
    }

    /// Whether a page can be had.
    fn take(&mut self, td: usize, page: Pfn, pages: u64, is_table: bool) -> StatusName {
        if self.overlaps(page, pages) {
            return StatusName::PageMetadataIncorrect;
        }
        self.used.insert(page.0, (td, pages, is_table));
        StatusName::Success
    }

    fn tracking(&self, td: usize, blocked: bool, bepoch: u64) -> StatusName {
        match blocked {
            false => StatusName::GpaRangeNotBlocked,
            true if self.tds[td].is_tracked(bepoch) => StatusName::Success,
            true => StatusName::TlbTrackingNotDone,
        }
    }

    fn sept_add(&mut self, td: usize, region: u64, page: Pfn) -> StatusName {
        if self.tds[td].regions[region as usize] != Region::Free {
            return StatusName::EptEntryStateIncorrect;
        }
        let taken = self.take(td, page, 1, true);
        if taken == StatusName::Success {
            self.tds[td].regions[region as usize] = Region::Table { page, blocked: false, bepoch: 0 };
        }
        taken
    }

    fn aug(&mut self, td: usize, at: At, page: Pfn) -> StatusName {
        match self.find(td, at) {
            Found::Above => StatusName::EptWalkFailed,
            Found::Table(..) | Found::Leaf(_) => StatusName::EptEntryStateIncorrect,
            Found::Free => {
                if !page.0.is_multiple_of(at.pages()) {
                    return StatusName::OperandInvalid;
                }
                let taken = self.take(td, page, at.pages(), false);
                if taken == StatusName::Success {
                    self.set(td, at, Some(Leaf { page, pending: true, blocked: false, bepoch: 0 }));
                }
                taken
            }
        }
    }

    fn block(&mut self, td: usize, at: At) -> StatusName {
        let epoch = self.tds[td].epoch;
        match self.find(td, at) {
            Found::Above => StatusName::EptWalkFailed,
            Found::Free => StatusName::EptEntryStateIncorrect,
            Found::Table(_, true, _) | Found::Leaf(Leaf { blocked: true, .. }) => StatusName::GpaRangeAlreadyBlocked,
            Found::Table(page, ..) => {
                let At::Large(region) = at else { unreachable!("a table is at 2 MiB") };
                self.tds[td].regions[region as usize] = Region::Table { page, blocked: true, bepoch: epoch };
                StatusName::Success
            }
            Found::Leaf(leaf) => {
                self.set(td, at, Some(Leaf { blocked: true, bepoch: epoch, ..leaf }));
                StatusName::Success
            }
        }
    }

    fn unblock(&mut self, td: usize, at: At) -> StatusName {
        let (blocked, bepoch) = match self.find(td, at) {
            Found::Above => return StatusName::EptWalkFailed,
            Found::Free => return StatusName::EptEntryStateIncorrect,
            Found::Table(_, blocked, bepoch) | Found::Leaf(Leaf { blocked, bepoch, .. }) => (blocked, bepoch),
        };
        if !blocked {
            return StatusName::EptEntryStateIncorrect;
        }
        let tracking = self.tracking(td, true, bepoch);
        if tracking == StatusName::Success {
            match (self.find(td, at), at) {
                (Found::Leaf(leaf), _) => self.set(td, at, Some(Leaf { blocked: false, ..leaf })),
                (Found::Table(page, ..), At::Large(region)) => {
                    self.tds[td].regions[region as usize] = Region::Table { page, blocked: false, bepoch };
                }
                _ => unreachable!("it was there"),
            }
        }
        tracking
    }

    fn remove(&mut self, td: usize, at: At) -> StatusName {
        match self.find(td, at) {
            Found::Above => StatusName::EptWalkFailed,
            Found::Free | Found::Table(..) => StatusName::EptEntryStateIncorrect,
            Found::Leaf(leaf) => {
                let tracking = self.tracking(td, leaf.blocked, leaf.bepoch);
                if tracking == StatusName::Success {
                    self.set(td, at, None);
                    self.used.remove(&leaf.page.0);
                }
                tracking
            }
        }
    }

    fn sept_remove(&mut self, td: usize, region: u64) -> StatusName {
        let Region::Table { page, blocked, bepoch } = self.tds[td].regions[region as usize] else {
            return StatusName::EptEntryStateIncorrect;
        };
        let tracking = self.tracking(td, blocked, bepoch);
        if tracking != StatusName::Success {
            return tracking;
        }
        if self.tds[td].small.keys().any(|(of, _)| *of == region) {
            return StatusName::EptPageNotFree;
        }
        self.tds[td].regions[region as usize] = Region::Free;
        self.used.remove(&page.0);
        StatusName::Success
    }

    fn relocate(&mut self, td: usize, at: At, page: Pfn) -> StatusName {
        match self.find(td, at) {
            Found::Above => StatusName::EptWalkFailed,
            Found::Free | Found::Table(..) => StatusName::EptEntryStateIncorrect,
            Found::Leaf(leaf) if leaf.page == page => StatusName::OperandInvalid,
            Found::Leaf(leaf) => {
                let tracking = self.tracking(td, leaf.blocked, leaf.bepoch);
                if tracking != StatusName::Success {
                    return tracking;
                }
                let taken = self.take(td, page, 1, false);
                if taken == StatusName::Success {
                    self.used.remove(&leaf.page.0);
                    self.set(td, at, Some(Leaf { page, blocked: false, bepoch: 0, ..leaf }));
                }
                taken
            }
        }
    }

    fn demote(&mut self, td: usize, region: u64, page: Pfn) -> StatusName {
        let Region::Large(leaf) = self.tds[td].regions[region as usize] else {
            return StatusName::EptEntryStateIncorrect;
        };
        let tracking = self.tracking(td, leaf.blocked, leaf.bepoch);
        if tracking != StatusName::Success {
            return tracking;
        }
        let taken = self.take(td, page, 1, true);
        if taken == StatusName::Success {
            self.used.remove(&leaf.page.0);
            for i in 0..512 {
                self.used.insert(leaf.page.0 + i, (td, 1, false));
                let part = Leaf { page: leaf.page + i, blocked: false, bepoch: 0, ..leaf };
                self.tds[td].small.insert((region, i), part);
            }
            self.tds[td].regions[region as usize] = Region::Table { page, blocked: false, bepoch: 0 };
        }
        taken
    }

    fn promote(&mut self, td: usize, region: u64) -> StatusName {
        let Region::Table { page, blocked, bepoch } = self.tds[td].regions[region as usize] else {
            return StatusName::EptEntryStateIncorrect;
        };
        let tracking = self.tracking(td, blocked, bepoch);
        if tracking != StatusName::Success {
            return tracking;
        }
        let parts: Vec<Option<Leaf>> = (0..512).map(|i| self.tds[td].small.get(&(region, i)).copied()).collect();
        let first = parts[0].filter(|leaf| !leaf.blocked && leaf.page.0.is_multiple_of(512));
        let fits = first.is_some_and(|first| {
            parts.iter().enumerate().all(|(i, part)| {
                part.is_some_and(|part| {
                    (part.pending, part.blocked, part.page) == (first.pending, false, first.page + i as u64)
                })
            })
        });
        let Some(first) = first.filter(|_| fits) else { return StatusName::EptInvalidPromoteConditions };
        for i in 0..512 {
            self.tds[td].small.remove(&(region, i));
            self.used.remove(&(first.page.0 + i));
        }
        self.used.remove(&page.0);
        self.used.insert(first.page.0, (td, 512, false));
        self.tds[td].regions[region as usize] = Region::Large(Leaf { bepoch: 0, ..first });
        StatusName::Success
    }

    fn track(&mut self, td: usize) -> StatusName {
        let td = &mut self.tds[td];
        if td.inside.is_some_and(|epoch| epoch != td.epoch) {
            return StatusName::PreviousTlbEpochBusy;
        }
        td.epoch += 1;
        StatusName::Success
    }

    /// What an accept comes to: a status, or `None` for an exit.
    fn accept(&mut self, td: usize, at: At) -> Option<StatusName> {
        match self.find(td, at) {
            Found::Above => {
                let At::Small(region, _) = at else { unreachable!("only small pages have something above") };
                let above = match &self.tds[td].regions[region as usize] {
                    Region::Large(leaf) => Some(*leaf),
                    _ => None,
                };
                above.filter(|leaf| !leaf.pending && !leaf.blocked).map(|_| StatusName::PageAlreadyAccepted)
            }
            Found::Free => None,
            Found::Table(..) => Some(StatusName::PageSizeMismatch),
            Found::Leaf(leaf) if leaf.blocked => None,
            Found::Leaf(leaf) if leaf.pending => {
                self.set(td, at, Some(Leaf { pending: false, ..leaf }));
                Some(StatusName::Success)
            }
            Found::Leaf(_) => Some(StatusName::PageAlreadyAccepted),
        }
    }
}

fn at() -> impl Strategy<Value = At> {
    prop_oneof![
        (0..REGIONS).prop_map(At::Large),
        (0..REGIONS, prop::sample::select(&NAMED[..])).prop_map(|(region, i)| At::Small(region, i)),
    ]
}

fn td() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(0usize), 1 => Just(1)]
}

/// Which page of the host: large ones first, then parts of those, then small ones.
fn page() -> impl Strategy<Value = usize> {
    0..(HUGE as usize * NAMED.len() + SMALL)
}

fn op() -> impl Strategy<Value = Op> {
    let small = (0..REGIONS, prop::sample::select(&NAMED[..])).prop_map(|(region, i)| At::Small(region, i));
    prop_oneof![
        4 => (td(), 0..REGIONS, page()).prop_map(|(td, region, page)| Op::SeptAdd(td, region, page)),
        8 => (td(), at(), page()).prop_map(|(td, at, page)| Op::Aug(td, at, page)),
        5 => (td(), at()).prop_map(|(td, at)| Op::Block(td, at)),
        2 => (td(), at()).prop_map(|(td, at)| Op::Unblock(td, at)),
        5 => (td(), at()).prop_map(|(td, at)| Op::Remove(td, at)),
        2 => (td(), 0..REGIONS).prop_map(|(td, region)| Op::SeptRemove(td, region)),
        2 => (td(), small, page()).prop_map(|(td, at, page)| Op::Relocate(td, at, page)),
        2 => (td(), 0..REGIONS, page()).prop_map(|(td, region, page)| Op::Demote(td, region, page)),
        2 => (td(), 0..REGIONS).prop_map(|(td, region)| Op::Promote(td, region)),
        4 => td().prop_map(Op::Track),
        3 => td().prop_map(Op::Enter),
        2 => td().prop_map(Op::Leave),
        5 => (td(), at()).prop_map(|(td, at)| Op::Accept(td, at)),
        4 => (td(), at()).prop_map(|(td, at)| Op::Write(td, at)),
    ]
}

struct World<'a> {
    machine: &'a Machine,
    tdrs: [Hpa; 2],
    vcpus: [Hpa; 2],
    inside: [Option<InTd<'a>>; 2],
    pages: Vec<Pfn>,
    model: Model,
    /// Of guests, each with a number of its own.
    writes: u64,
}

impl World<'_> {
    /// Does the operation on both and compares the answers.
    fn step(&mut self, cx: &Cx<'_>, op: &Op) {
        let seam = self.machine.tdx.on(Lp(2));
        let page = |i: usize| self.pages[i];
        let (answer, expected) = match *op {
            Op::SeptAdd(td, region, page_) => (
                name(seam.mem_sept_add(cx, At::Large(region).info(), self.tdrs[td], Hpa::of(page(page_)))),
                self.model.sept_add(td, region, page(page_)),
            ),
            Op::Aug(td, at, page_) => (
                name(seam.mem_page_aug(cx, at.info(), self.tdrs[td], Hpa::of(page(page_)))),
                self.model.aug(td, at, page(page_)),
            ),
            Op::Block(td, at) => (name(seam.mem_range_block(cx, at.info(), self.tdrs[td])), self.model.block(td, at)),
            Op::Unblock(td, at) => {
                (name(seam.mem_range_unblock(cx, at.info(), self.tdrs[td])), self.model.unblock(td, at))
            }
            Op::Remove(td, at) => (name(seam.mem_page_remove(cx, at.info(), self.tdrs[td])), self.model.remove(td, at)),
            Op::SeptRemove(td, region) => (
                name(seam.mem_sept_remove(cx, At::Large(region).info(), self.tdrs[td])),
                self.model.sept_remove(td, region),
            ),
            Op::Relocate(td, at, page_) => (
                name(seam.mem_page_relocate(cx, at.info(), self.tdrs[td], Hpa::of(page(page_)))),
                self.model.relocate(td, at, page(page_)),
            ),
            Op::Demote(td, region, page_) => (
                name(seam.mem_page_demote(cx, At::Large(region).info(), self.tdrs[td], Hpa::of(page(page_)), None)),
                self.model.demote(td, region, page(page_)),
            ),
            Op::Promote(td, region) => (
                name(seam.mem_page_promote(cx, At::Large(region).info(), self.tdrs[td])),
                self.model.promote(td, region),
            ),
            Op::Track(td) => (name(seam.mem_track(cx, self.tdrs[td])), self.model.track(td)),
            Op::Enter(td) => {
                if self.inside[td].is_none() {
                    let seam = self.machine.tdx.on(Lp(td as u32));
                    match seam.vp_enter(cx, self.vcpus[td]) {
                        Ok(sim_coco::tdx::Entry::Inside(mut guest)) => {
                            // It always goes on somewhere else, so that nothing is zero-stepped.
                            let rip = guest.rip() + 1;
                            guest.set_rip(rip);
                            self.inside[td] = Some(guest);
                            self.model.tds[td].inside = Some(self.model.tds[td].epoch);
                        }
                        other => panic!("not entered: {other:?}"),
                    }
                }
                return;
            }
            Op::Leave(td) => {
                if let Some(guest) = self.inside[td].take() {
                    leave(cx, guest);
                    self.model.tds[td].inside = None;
                }
                return;
            }
            Op::Accept(td, at) => return self.accept(cx, td, at),
            Op::Write(td, at) => return self.write(cx, td, at),
        };
        assert_eq!(answer, expected, "{op:?}");
    }

    fn accept(&mut self, cx: &Cx<'_>, td: usize, at: At) {
        let Some(guest) = &mut self.inside[td] else { return };
        let answer = guest.mem_page_accept(cx, at.info());
        let expected = self.model.accept(td, at);
        match answer {
            Ok(answer) => {
                assert_eq!(
                    Some(answer.map_or_else(|status| status.name, |()| StatusName::Success)),
                    expected,
                    "{at:?}"
                );
            }
            Err(GuestStop::Exit(_)) => {
                assert_eq!(expected, None, "{at:?}");
                self.inside[td] = None;
                self.model.tds[td].inside = None;
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    /// A write reaches the page that the model has there; what was blocked may still be reached by who was inside, and is the same page.
    fn write(&mut self, cx: &Cx<'_>, td: usize, at: At) {
        let Some(guest) = &mut self.inside[td] else { return };
        let gpa = at.info().gpa();
        let small = At::Small((gpa.0 - GPA.0) >> 21, gpa.0 >> 12 & 511);
        let leaf = match (self.model.find(td, small), self.model.find(td, At::Large((gpa.0 - GPA.0) >> 21))) {
            (Found::Leaf(leaf), _) | (Found::Above, Found::Leaf(leaf)) => Some(leaf),
            _ => None,
        };
        self.writes += 1;
        match guest.write_u64(cx, gpa, self.writes) {
            Ok(()) => {
                let there = self.model.frame(td, gpa).expect("a write went to a page that the TD has not");
                assert_eq!(self.machine.phys.peek_u64(there, 0), self.writes, "{gpa:?}");
                assert!(leaf.is_none_or(|leaf| !leaf.pending), "a write went to a pending page");
            }
            Err(GuestStop::Exit(_)) => {
                assert!(leaf.is_none_or(|leaf| leaf.blocked), "a write of a mapped page exits");
                self.inside[td] = None;
                self.model.tds[td].inside = None;
            }
            Err(GuestStop::Ve(_) | GuestStop::DoubleFault) => {
                assert!(leaf.is_some_and(|leaf| leaf.pending && !leaf.blocked), "#VE for what is not pending");
                // The guest asks, so that the next is a #VE again.
                let guest = self.inside[td].as_mut().expect("it is inside");
                let _ = guest.vp_veinfo_get(cx);
            }
            Err(GuestStop::PageFault) => panic!("the address is legal"),
        }
    }

    /// Ownership of every page, and states of all entries.
    fn compare(&self) {
        for page in &self.pages {
            let (_, entry) = self.machine.tdx.peek_pamt(*page);
            let expected = self.model.used.range(..=page.0).next_back();
            let expected = expected.filter(|(first, (_, pages, _))| page.0 < *first + pages);
            let expected = expected.map(|(_, (td, _, is_table))| {
                (pfn(self.tdrs[*td]), if *is_table { PageType::Ept } else { PageType::Reg })
            });
            let found = entry.owner.filter(|_| entry.page_type != PageType::Nda).map(|owner| (owner, entry.page_type));
            assert_eq!(found, expected, "{page:?}");
        }
        for (td, tdr) in self.model.tds.iter().zip(self.tdrs) {
            let info = self.machine.tdx.peek_td(pfn(tdr)).unwrap();
            assert_eq!(info.epoch.epoch, td.epoch);
            for (i, region) in td.regions.iter().enumerate() {
                let expected = match region {
                    Region::Free => SeptState::Free,
                    Region::Table { blocked: false, .. } => SeptState::NlMapped,
                    Region::Table { blocked: true, .. } => SeptState::NlBlocked,
                    Region::Large(leaf) => Td::state(leaf),
                };
                let gpa = At::Large(i as u64).info().gpa();
                assert_eq!(self.machine.state(tdr, gpa, Level::L2M), Some(expected));
                if expected != SeptState::NlMapped {
                    continue;
                }
                for part in NAMED {
                    let gpa = At::Small(i as u64, part).info().gpa();
                    let expected = td.small.get(&(i as u64, part)).map_or(SeptState::Free, Td::state);
                    assert_eq!(self.machine.state(tdr, gpa, Level::L4K), Some(expected));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn two_tds_are_flat_maps(ops in prop::collection::vec(op(), 1..80)) {
        Sim::sequential().solo(|cx| {
            let machine = Machine::new(cx, TdxConfig { contention: false, ..config() });
            let (mut tdrs, mut vcpus) = ([Hpa(0); 2], [Hpa(0); 2]);
            for (i, hkid) in [K, L].into_iter().enumerate() {
                tdrs[i] = machine.building_with(cx, hkid, &params());
                vcpus[i] = machine.vcpu(cx, tdrs[i], Lp(i as u32));
                machine.tdx.on(Lp(2)).mr_finalize(cx, tdrs[i]).unwrap();
            }
            let huge: Vec<Pfn> = (0..HUGE).map(|_| pfn(machine.huge())).collect();
            let parts = huge.iter().flat_map(|base| NAMED.map(|i| *base + i));
            let pages: Vec<Pfn> = parts.chain((0..SMALL).map(|_| pfn(machine.page()))).collect();
            let td = || Td {
                epoch: 1,
                inside: None,
                regions: vec![Region::Free; REGIONS as usize],
                small: BTreeMap::new(),
            };
            let model = Model { tds: [td(), td()], used: BTreeMap::new() };
            let mut world = World { machine: &machine, tdrs, vcpus, inside: [None, None], pages, model, writes: 0 };
            for op in &ops {
                world.step(cx, op);
                machine.tdx.check_invariants().unwrap();
                world.compare();
            }
            for guest in world.inside.into_iter().flatten() {
                leave(cx, guest);
            }
        });
    }
}
