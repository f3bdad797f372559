//! The walker and the TLBs beside a naive model, under random programs.
//!
//! The model keeps no cache. It remembers what every table word ever was, and for each context and address since when something may be
//! cached; an access is right if *some* walk explains it in which each word has a value that it had since then. That is the
//! architectural rule: a TLB may hold any translation that was valid since the last flush. Beside it the same program runs without the
//! acceleration TLB, and must answer the same, word for word.

use crate::bits::{A, D, G, NX, RWX, Vendor};
use crate::machine::{Machine, Setup, host};
use proptest::prelude::*;
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Pfn};
use sim_mmu::guest_paging::{AccessMode, Cr3, Cr4, GuestFault, Pcid};
use sim_mmu::processor::{InveptType, InvpcidType, InvvpidType, TlbControl, Translated};
use sim_mmu::tlb::{TlbConfig, TlbTag};
use sim_mmu::walker::{CountReferences, Ept, MmuFault, Npt, Stage2, Stage2Root};
use sim_mmu::{Access, Gfn, Gpa, Gva, Level};
use std::collections::{BTreeMap, BTreeSet};

/// Pages of the guest; the last two are pieces of one 2 MiB page.
const PAGES: [Gva; 6] = [Gva(0x7000), Gva(0x8000), Gva(0x20_3000), Gva(0x20_7000), Gva(0x4000_1000), Gva(0x4000_5000)];
/// Which of them have a small page.
const SMALL_PAGES: usize = 4;
const LARGE: Gva = Gva(0x4000_0000);
/// Guest frames of data. The large page maps 0x800 or 0xa00 on, so its pieces are among them.
const FRAMES: [u64; 6] = [0x800, 0x801, 0x805, 0xa01, 0xa05, 0x900];

#[derive(Clone, Debug)]
enum Op {
    /// A small page becomes another, or goes.
    Guest {
        page: usize,
        frame: usize,
        bits: u64,
    },
    /// The large page does.
    GuestLarge {
        second: bool,
        bits: u64,
    },
    /// The table of the third and fourth page is replaced by the other one.
    GuestTable {
        second: bool,
    },
    /// A data frame's mapping at stage 2.
    Stage2 {
        tree: usize,
        frame: usize,
        pfn: u64,
        bits: u64,
    },
    /// The mapping of the first table's frame at stage 2: another copy.
    Stage2Table {
        tree: usize,
        second: bool,
    },
    Access {
        page: usize,
        user: bool,
        access: Access,
    },
    Enter {
        tag: u16,
        pcid: u16,
        tree: usize,
    },
    Invlpg {
        page: usize,
    },
    Invpcid {
        kind: u8,
        pcid: u16,
        page: usize,
    },
    MovCr3 {
        keep: bool,
    },
    /// INVEPT or TLB_CONTROL.
    Machine {
        kind: u8,
    },
    /// INVVPID or INVLPGA.
    Tagged {
        kind: u8,
        tag: u16,
        page: usize,
    },
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Exec)]
}

fn guest_bits() -> impl Strategy<Value = u64> {
    let some = prop_oneof![4 => Just(RWX), 1 => Just(RWX & !2), 1 => Just(RWX & !4), 1 => Just(RWX | NX), 1 => Just(0)];
    (some, prop_oneof![3 => Just(0), 1 => Just(G)], prop_oneof![Just(0), Just(A), Just(A | D)])
        .prop_map(|(bits, global, used)| if bits == 0 { 0 } else { bits | global | used })
}

fn op() -> impl Strategy<Value = Op> {
    let page = 0..PAGES.len();
    let tree = 0..2usize;
    let frame = 0..FRAMES.len();
    prop_oneof![
        3 => (0..SMALL_PAGES, frame.clone(), guest_bits()).prop_map(|(page, frame, bits)| Op::Guest { page, frame, bits }),
        1 => (any::<bool>(), guest_bits()).prop_map(|(second, bits)| Op::GuestLarge { second, bits }),
        1 => any::<bool>().prop_map(|second| Op::GuestTable { second }),
        3 => (tree.clone(), frame, 0..4u64, 0..4u64).prop_map(|(tree, frame, pfn, bits)| Op::Stage2 { tree, frame, pfn, bits }),
        1 => (tree.clone(), any::<bool>()).prop_map(|(tree, second)| Op::Stage2Table { tree, second }),
        12 => (page.clone(), any::<bool>(), access()).prop_map(|(page, user, access)| Op::Access { page, user, access }),
        2 => (1..3u16, 1..3u16, tree).prop_map(|(tag, pcid, tree)| Op::Enter { tag, pcid, tree }),
        1 => page.clone().prop_map(|page| Op::Invlpg { page }),
        1 => (0..4u8, 1..3u16, page.clone()).prop_map(|(kind, pcid, page)| Op::Invpcid { kind, pcid, page }),
        1 => any::<bool>().prop_map(|keep| Op::MovCr3 { keep }),
        1 => (0..4u8).prop_map(|kind| Op::Machine { kind }),
        1 => (0..4u8, 1..3u16, page).prop_map(|(kind, tag, page)| Op::Tagged { kind, tag, page }),
    ]
}

/// Since when something of an address may be cached.
#[derive(Clone, Copy, Debug, Default)]
struct Since {
    /// Its translation, which is the leaf's value.
    leaf: u64,
    /// Upper entries of what the translation was made of.
    upper: u64,
    /// Stage-2 entries of it.
    stage2: u64,
}

/// Of one context and page: the translation, and the guest's tables that lead to it.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    translation: Since,
    structures: u64,
}

/// What can be told of an access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Outcome {
    Frame(u64),
    PageFault(u32),
    Stage2(u64, bool),
}

type Context = (u16, Option<u16>, usize);

/// The naive model.
struct Model {
    now: u64,
    /// By identifier, PCID (none: global pages) and tree; then by page.
    windows: BTreeMap<Context, [Window; PAGES.len()]>,
    /// Since when stage 2 may be cached, by identifier and tree; equal for all identifiers on Intel.
    stage2: BTreeMap<(u16, usize), u64>,
    is_intel: bool,
}

impl Model {
    fn new(is_intel: bool) -> Model {
        let trees = 0..2;
        let contexts = (1..3).flat_map(|tag| [None, Some(1), Some(2)].map(|pcid| (tag, pcid)));
        let windows =
            contexts.flat_map(|(tag, pcid)| trees.clone().map(move |tree| ((tag, pcid, tree), Default::default())));
        let windows = windows.collect();
        let stage2 = (1..3).flat_map(|tag| (0..2).map(move |tree| ((tag, tree), 0))).collect();
        Model { now: 0, windows, stage2, is_intel }
    }

    /// On AMD a tree is no tag: one window for both.
    fn tree(&self, tree: usize) -> usize {
        if self.is_intel { tree } else { 0 }
    }

    /// Translations of pages go, and with them what they were made of.
    fn flush(&mut self, contexts: impl Fn(Context) -> bool, pages: &[usize], structures: bool) {
        let now = self.now;
        let keys: Vec<_> = self.windows.keys().copied().filter(|&key| contexts(key)).collect();
        for key in keys {
            for &page in pages {
                if structures {
                    self.windows.get_mut(&key).unwrap()[page].structures = now;
                }
                let (tag, pcid, tree) = key;
                // A global entry may be made by any PCID.
                let pcids: Vec<_> = pcid.map_or(vec![1, 2], |pcid| vec![pcid]);
                let upper = pcids.iter().map(|&pcid| self.windows[&(tag, Some(pcid), tree)][page].structures).min();
                let stage2 = self.stage2[&(tag, self.tree(tree))];
                self.windows.get_mut(&key).unwrap()[page].translation =
                    Since { leaf: now, upper: upper.unwrap(), stage2 };
            }
        }
    }

    fn flush_structures(&mut self, contexts: impl Fn(Context) -> bool) {
        let now = self.now;
        for (_, windows) in self.windows.iter_mut().filter(|(key, _)| contexts(**key)) {
            windows.iter_mut().for_each(|window| window.structures = now);
        }
    }

    fn flush_stage2(&mut self, contexts: impl Fn(u16, usize) -> bool) {
        let now = self.now;
        for (_, since) in self.stage2.iter_mut().filter(|((tag, tree), _)| contexts(*tag, *tree)) {
            *since = now;
        }
    }
}

const ALL: [usize; PAGES.len()] = [0, 1, 2, 3, 4, 5];

/// An invalidation of one page reaches all of its guest page.
fn same_guest_page(page: usize) -> Vec<usize> {
    if page < SMALL_PAGES { vec![page] } else { vec![4, 5] }
}

/// One program's machine.
struct Run<F: Vendor> {
    machine: Machine<F>,
    trees: [Stage2Root; 2],
    /// Page tables of the third and fourth page.
    tables: [Gfn; 2],
    /// Guest frame of the first page's table.
    first_table: Gfn,
    current: (u16, u16, usize),
}

impl<F: Vendor> Run<F> {
    fn new(cx: &Cx<'_>, tlb: TlbConfig) -> Run<F> {
        let mut machine = Machine::<F>::new(cx, Setup { tlb, ..Setup::default() });
        machine.change_registers(|r| {
            r.cr4.insert(Cr4::PCIDE);
            r.cr3 = Cr3(r.cr3.0 | 1);
        });
        for page in 0..SMALL_PAGES {
            machine.map_guest(PAGES[page], Gfn(FRAMES[page]), Level::L4K, RWX);
        }
        machine.map_guest(LARGE, Gfn(0x800), Level::L2M, RWX);
        let of = |entry: u64| Gfn(entry >> 12 & 0xfff_ffff);
        let first_table = of(machine.guest_entry(PAGES[0], Level::L2M));
        let tables = [of(machine.guest_entry(PAGES[2], Level::L2M)), machine.new_guest_table()];
        let second = machine.new_stage2_root();
        let trees = [machine.root, second];
        for tree in trees {
            for gfn in 0x100..0x110 {
                machine.map_stage2(tree, Gfn(gfn).gpa(), host(Gfn(gfn)), Level::L4K, F::LEAF);
            }
            for gfn in FRAMES {
                machine.map_stage2(tree, Gfn(gfn).gpa(), host(Gfn(gfn)), Level::L4K, F::LEAF);
            }
        }
        let mut run = Run { machine, trees, tables, first_table, current: (1, 1, 0) };
        run.enter(1, 1, 0);
        run
    }

    fn enter(&mut self, tag: u16, pcid: u16, tree: usize) {
        self.current = (tag, pcid, tree);
        let stage2 = Stage2::new(self.trees[tree]);
        self.machine.change_state(|state| {
            state.tag = TlbTag(tag);
            state.stage2 = stage2;
            state.registers.cr3 = Cr3(state.registers.cr3.0 & !0xfff | u64::from(pcid));
        });
    }

    /// Changes of tables: by software, so without the processor.
    fn write(&mut self, op: &Op) {
        let machine = &mut self.machine;
        match *op {
            Op::Guest { page, frame, bits } => {
                machine.set_guest_entry(PAGES[page], Level::L4K, bits | FRAMES[frame] << 12)
            }
            Op::GuestLarge { second, bits } => {
                let gfn = if second { 0xa00 } else { 0x800 };
                machine.set_guest_entry(LARGE, Level::L2M, bits | 1 << 7 | gfn << 12);
            }
            Op::GuestTable { second } => {
                let table = self.tables[usize::from(second)];
                machine.set_guest_entry(PAGES[2], Level::L2M, RWX | table.0 << 12);
            }
            Op::Stage2 { tree, frame, pfn, bits } => {
                let gfn = Gfn(FRAMES[frame]);
                let bits = match bits {
                    0 => F::LEAF & !F::WRITE,
                    1 => 0,
                    2 => F::LEAF | F::ACCESSED | F::DIRTY,
                    _ => F::LEAF,
                };
                machine.map_stage2(self.trees[tree], gfn.gpa(), Pfn(host(gfn).0 + pfn * 0x1_0000), Level::L4K, bits);
            }
            Op::Stage2Table { tree, second } => {
                // The copy has the pages' entries exchanged.
                let original = host(self.first_table);
                let copy = Pfn(original.0 + 0x1_0000);
                let [a, b] = [PAGES[0], PAGES[1]].map(|gva| gva.index(Level::L4K));
                let values = (machine.memory.get(original, a), machine.memory.get(original, b));
                machine.memory.set(copy, a, values.1);
                machine.memory.set(copy, b, values.0);
                let pfn = if second { copy } else { original };
                machine.map_stage2(self.trees[tree], self.first_table.gpa(), pfn, Level::L4K, F::LEAF);
            }
            _ => {}
        }
    }

    fn access(
        &mut self,
        cx: &Cx<'_>,
        page: usize,
        user: bool,
        access: Access,
    ) -> Result<Translated, MmuFault<F::Exit>> {
        self.machine.processor.set_privilege(if user { 3 } else { 0 }, false);
        if self.machine.setup.tlb.acceleration_slots != 0 {
            return self.machine.access(cx, PAGES[page], access);
        }
        let mode = if user { AccessMode::User } else { AccessMode::Supervisor };
        let counts = &mut CountReferences::default();
        self.machine.processor.translate_observed(cx, &self.machine.memory, PAGES[page], mode, access, counts)
    }
}

/// Every stage-2 walk that words since a time allow: the frame, or nothing.
fn stage2_walks<F: Vendor>(
    run: &Run<F>,
    roots: &[Stage2Root],
    gpa: Gpa,
    access: Access,
    since: u64,
) -> BTreeSet<Option<u64>> {
    let mut found = BTreeSet::new();
    let mut open: Vec<(Pfn, Level)> = roots.iter().map(|root| (root.table, root.level)).collect();
    while let Some((table, level)) = open.pop() {
        for entry in run.machine.memory.values_since(table, gpa.gfn().index(level), since) {
            let pfn = Pfn(entry >> 12 & ((1 << 40) - 1));
            if entry & 1 == 0 {
                found.insert(None);
            } else if level == Level::L4K {
                let is_write = access == Access::Write;
                if is_write && entry & F::WRITE == 0 {
                    found.insert(None);
                } else if entry & F::ACCESSED != 0 && (!is_write || entry & F::DIRTY != 0) {
                    found.insert(Some(pfn.0));
                }
            } else if entry & F::ACCESSED != 0 {
                open.push((pfn, level.down().unwrap()));
            }
        }
    }
    found
}

/// Everything that an access may come to, for translations made since these times.
#[expect(clippy::too_many_arguments, reason = "all that an access depends on")]
fn outcomes<F: Vendor>(
    run: &Run<F>,
    roots: &[Stage2Root],
    since: Since,
    leaf_filter: impl Fn(u64) -> bool,
    page: usize,
    user: bool,
    access: Access,
    found: &mut BTreeSet<Outcome>,
) {
    let gva = PAGES[page];
    let mut kind = u32::from(access == Access::Write) << 1 | u32::from(user) << 2;
    kind |= u32::from(access == Access::Exec) << 4;
    let mut open = vec![(run.machine.cr3(), Level::L512G, RWX)];
    while let Some((table, level, rights)) = open.pop() {
        let gpa = Gpa(table.0 << 12 | (gva.index(level) as u64) << 3);
        for frame in stage2_walks(run, roots, gpa, Access::Write, since.stage2) {
            let Some(frame) = frame else {
                found.insert(Outcome::Stage2(gpa.0, false));
                continue;
            };
            let is_last = level == Level::L4K || (level == Level::L2M && page >= SMALL_PAGES);
            let time = if is_last { since.leaf } else { since.upper };
            for entry in run.machine.memory.values_since(Pfn(frame), gva.index(level), time) {
                if entry & 1 == 0 {
                    found.insert(Outcome::PageFault(kind));
                    continue;
                }
                let rights = rights & (entry | !7) & !NX | (rights | entry) & NX;
                if !is_last {
                    if entry & A != 0 {
                        open.push((Gfn(entry >> 12 & 0xfff_ffff), level.down().unwrap(), rights));
                    }
                    continue;
                }
                if !leaf_filter(entry) {
                    continue;
                }
                let allowed = (!user || rights & 4 != 0)
                    && (access != Access::Write || rights & 2 != 0)
                    && (access != Access::Exec || rights & NX == 0);
                if !allowed {
                    found.insert(Outcome::PageFault(kind | 1));
                    continue;
                }
                let inside = if level == Level::L2M { gva.0 >> 12 & 511 } else { 0 };
                let gfn = Gfn((entry >> 12 & 0xfff_ffff) + inside);
                for frame in stage2_walks(run, roots, gfn.gpa(), access, since.stage2) {
                    match frame {
                        None => {
                            found.insert(Outcome::Stage2(gfn.gpa().0, true));
                        }
                        Some(pfn) if entry & A != 0 && (access != Access::Write || entry & D != 0) => {
                            found.insert(Outcome::Frame(pfn));
                        }
                        Some(_) => {}
                    }
                }
            }
        }
    }
}

fn outcome<F: Vendor>(result: &Result<Translated, MmuFault<F::Exit>>) -> Outcome {
    match result {
        Ok(found) => Outcome::Frame(found.pfn.0),
        Err(MmuFault::Guest(GuestFault::Page(fault))) => Outcome::PageFault(fault.code.bits()),
        Err(MmuFault::Guest(fault)) => panic!("{fault:?}"),
        Err(MmuFault::Stage2(exit)) => {
            let (gpa, is_final) = F::place(exit);
            Outcome::Stage2(if is_final { gpa & !0xfff } else { gpa }, is_final)
        }
    }
}

/// What only one vendor has.
trait Invalidate: Vendor {
    const IS_INTEL: bool;
    fn machine(cx: &Cx<'_>, run: &mut Run<Self>, model: &mut Model, kind: u8);
    fn tagged(cx: &Cx<'_>, run: &mut Run<Self>, model: &mut Model, kind: u8, tag: u16, page: usize);
}

impl Invalidate for Ept {
    const IS_INTEL: bool = true;

    fn machine(cx: &Cx<'_>, run: &mut Run<Ept>, model: &mut Model, kind: u8) {
        let processor = &mut run.machine.processor;
        let only = (kind < 3).then_some(run.current.2);
        match only {
            Some(_) => {
                let eptp = processor.format().eptp(&processor.state().stage2);
                processor.invept(cx, InveptType::Single(eptp));
            }
            None => processor.invept(cx, InveptType::All),
        }
        let meant = |tree: usize| only.is_none_or(|only| only == tree);
        model.flush_stage2(|_, tree| meant(tree));
        model.flush_structures(|(.., tree)| meant(tree));
        model.flush(|(.., tree)| meant(tree), &ALL, true);
    }

    fn tagged(cx: &Cx<'_>, run: &mut Run<Ept>, model: &mut Model, kind: u8, tag: u16, page: usize) {
        let processor = &mut run.machine.processor;
        let id = TlbTag(tag);
        let of_tag = |(its, ..): Context| its == tag;
        match kind {
            0 => {
                processor.invvpid(cx, InvvpidType::Address(id, PAGES[page])).unwrap();
                model.flush(of_tag, &same_guest_page(page), false);
                model.flush(of_tag, &[page], true);
            }
            1 => {
                processor.invvpid(cx, InvvpidType::Single(id)).unwrap();
                model.flush_structures(of_tag);
                model.flush(of_tag, &ALL, true);
            }
            2 => {
                processor.invvpid(cx, InvvpidType::All).unwrap();
                model.flush_structures(|_| true);
                model.flush(|_| true, &ALL, true);
            }
            _ => {
                processor.invvpid(cx, InvvpidType::SingleRetainingGlobals(id)).unwrap();
                let linear = |(its, pcid, _): Context| its == tag && pcid.is_some();
                model.flush_structures(linear);
                model.flush(linear, &ALL, true);
            }
        }
    }
}

impl Invalidate for Npt {
    const IS_INTEL: bool = false;

    fn machine(cx: &Cx<'_>, run: &mut Run<Npt>, model: &mut Model, kind: u8) {
        let tag = run.current.0;
        let (control, all, globals) = [
            (TlbControl::DoNothing, false, false),
            (TlbControl::FlushAllAsid, true, true),
            (TlbControl::FlushAsid, false, true),
            (TlbControl::FlushAsidLocal, false, false),
        ][usize::from(kind)];
        run.machine.processor.tlb_control(cx, control);
        if kind != 0 {
            let meant = |its: u16| all || its == tag;
            model.flush_stage2(|its, _| meant(its));
            model.flush_structures(|(its, pcid, _)| meant(its) && pcid.is_some());
            model.flush(|(its, pcid, _)| meant(its) && (globals || pcid.is_some()), &ALL, true);
        }
    }

    fn tagged(cx: &Cx<'_>, run: &mut Run<Npt>, model: &mut Model, _kind: u8, tag: u16, page: usize) {
        run.machine.processor.invlpga(cx, PAGES[page], TlbTag(tag));
        model.flush(|(its, ..)| its == tag, &same_guest_page(page), false);
        model.flush(|(its, ..)| its == tag, &[page], true);
    }
}

/// Invalidations that both vendors have: by the processor, and in the model.
fn invalidate<F: Invalidate>(cx: &Cx<'_>, run: &mut Run<F>, model: &mut Model, op: &Op) {
    let (tag, current, _) = run.current;
    let linear = |pcid: u16| move |(its, of, _): Context| its == tag && of == Some(pcid);
    let processor = &mut run.machine.processor;
    match *op {
        Op::Enter { tag, pcid, tree } => run.enter(tag, pcid, tree),
        Op::Invlpg { page } => {
            processor.invlpg(cx, PAGES[page]);
            model.flush_structures(linear(current));
            model.flush(
                |(its, of, _)| its == tag && (of == Some(current) || of.is_none()),
                &same_guest_page(page),
                false,
            );
        }
        Op::Invpcid { kind: 0, pcid, page } => {
            processor.invpcid(cx, InvpcidType::Address(Pcid(pcid), PAGES[page])).unwrap();
            model.flush(linear(pcid), &same_guest_page(page), false);
            model.flush(linear(pcid), &[page], true);
        }
        Op::Invpcid { kind: 1, pcid, .. } => {
            processor.invpcid(cx, InvpcidType::Single(Pcid(pcid))).unwrap();
            model.flush_structures(linear(pcid));
            model.flush(linear(pcid), &ALL, true);
        }
        Op::Invpcid { kind, .. } => {
            let globals = kind == 2;
            let kind = if globals { InvpcidType::All } else { InvpcidType::AllRetainingGlobals };
            processor.invpcid(cx, kind).unwrap();
            model.flush_structures(|(its, of, _)| its == tag && of.is_some());
            model.flush(|(its, of, _)| its == tag && (globals || of.is_some()), &ALL, true);
        }
        Op::MovCr3 { keep } => {
            let cr3 = processor.state().registers.cr3.0;
            processor.mov_to_cr3(cx, cr3 | u64::from(keep) << 63).unwrap();
            if !keep {
                model.flush_structures(linear(current));
                model.flush(linear(current), &ALL, true);
            }
        }
        Op::Machine { kind } => F::machine(cx, run, model, kind),
        Op::Tagged { kind, tag, page } => F::tagged(cx, run, model, kind, tag, page),
        _ => {}
    }
}

/// Whether the model can explain an access.
fn explain<F: Invalidate>(run: &Run<F>, model: &mut Model, page: usize, user: bool, access: Access, got: Outcome) {
    let (tag, pcid, tree) = run.current;
    // On AMD what was cached of either tree is used.
    let (trees, roots) =
        if F::IS_INTEL { (vec![tree], vec![run.trees[tree]]) } else { (vec![0, 1], run.trees.to_vec()) };
    let mut possible = BTreeSet::new();
    for tree in trees {
        let linear = model.windows[&(tag, Some(pcid), tree)][page];
        let global = model.windows[&(tag, None, tree)][page];
        let local = |entry: u64| entry & G == 0;
        let any = |_: u64| true;
        // What is cached: small windows for what INVLPG and its like reach; then a walk now, through cached tables.
        outcomes(run, &roots, linear.translation, local, page, user, access, &mut possible);
        outcomes(run, &roots, global.translation, |entry| entry & G != 0, page, user, access, &mut possible);
        let stage2 = model.stage2[&(tag, model.tree(tree))];
        let walk = Since { leaf: model.now, upper: linear.structures, stage2 };
        outcomes(run, &roots, walk, any, page, user, access, &mut possible);
    }
    assert!(possible.contains(&got), "{access:?} of {:?}: {got:x?}, possible {possible:x?}", PAGES[page]);
}

fn program<F: Invalidate>(ops: &[Op], tlb: TlbConfig) {
    Sim::sequential().solo(|cx| {
        let mut run = Run::<F>::new(cx, tlb);
        let mut plain = Run::<F>::new(cx, TlbConfig { acceleration_slots: 0, ..tlb });
        let mut model = Model::new(F::IS_INTEL);
        let mut ignored = Model::new(F::IS_INTEL);
        for op in ops {
            model.now += 1;
            for run in [&mut run, &mut plain] {
                run.machine.memory.now.set(model.now);
                run.write(op);
            }
            if let Op::Access { page, user, access } = *op {
                let result = run.access(cx, page, user, access);
                let without = plain.access(cx, page, user, access);
                assert_eq!(result, without, "the acceleration TLB changes nothing");
                explain(&run, &mut model, page, user, access, outcome::<F>(&result));
            } else {
                invalidate(cx, &mut run, &mut model, op);
                invalidate(cx, &mut plain, &mut ignored, op);
            }
            run.machine.processor.check_acceleration();
        }
        assert_eq!(run.machine.memory.words(), plain.machine.memory.words(), "nor what the tables become");
    });
}

/// So small that entries are evicted all the time.
const TINY: TlbConfig = TlbConfig {
    combined_sets: 1,
    physical_sets: 1,
    guest_structure_slots: 2,
    stage2_structure_slots: 2,
    acceleration_slots: 4,
    rewalks_before_fault: false,
};

fn configs() -> impl Strategy<Value = TlbConfig> {
    prop_oneof![
        Just(TlbConfig::SMALL),
        Just(TINY),
        Just(TlbConfig { rewalks_before_fault: true, ..TlbConfig::SMALL }),
        Just(TlbConfig { physical_sets: 0, ..TlbConfig::SMALL }),
        Just(TlbConfig { guest_structure_slots: 0, stage2_structure_slots: 0, ..TlbConfig::SMALL }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// MMU-INV-030, MMU-INV-070: every access is explained by what some walk since the last flush could find.
    #[test]
    fn accesses_are_explained_by_words_since_the_last_flush_ept(
        ops in proptest::collection::vec(op(), 1..80), tlb in configs()
    ) {
        program::<Ept>(&ops, tlb);
    }

    #[test]
    fn accesses_are_explained_by_words_since_the_last_flush_npt(
        ops in proptest::collection::vec(op(), 1..80), tlb in configs()
    ) {
        program::<Npt>(&ops, tlb);
    }

    /// Without caches, nothing is stale: the windows are empty.
    #[test]
    fn without_caches_every_access_is_a_walk_now(ops in proptest::collection::vec(op(), 1..60)) {
        Sim::sequential().solo(|cx| {
            let mut run = Run::<Ept>::new(cx, TlbConfig::NONE);
            let mut now = 0;
            for op in &ops {
                now += 1;
                run.machine.memory.now.set(now);
                run.write(op);
                match *op {
                    Op::Enter { tag, pcid, tree } => run.enter(tag, pcid, tree),
                    Op::Access { page, user, access } => {
                        let got = outcome::<Ept>(&run.access(cx, page, user, access));
                        let mut possible = BTreeSet::new();
                        let since = Since { leaf: now, upper: now, stage2: now };
                        let roots = [run.trees[run.current.2]];
                        outcomes(&run, &roots, since, |_| true, page, user, access, &mut possible);
                        assert!(possible.contains(&got), "{got:x?}, possible {possible:x?}");
                    }
                    _ => {}
                }
            }
        });
    }
}
