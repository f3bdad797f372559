//! MM-040 to MM-049: what stays cached, and what takes it away.
//!
//! The machine retains: after tables change, an access shows by the frame that it reaches whether its translation was still cached.

use crate::bits::{A, D, G, RWX, Vendor};
use crate::machine::{Machine, Setup, exit, host, page_fault};
use sim_kernel::Cx;
use sim_kernel::sched::Sim;
use sim_mmu::guest_paging::{Cr0, Cr3, Cr4, PageFaultCode, Pcid};
use sim_mmu::processor::{InveptType, InvpcidType, InvvpidType, TlbControl, VmFail};
use sim_mmu::tlb::{TlbConfig, TlbTag};
use sim_mmu::walker::{Ept, Npt, Stage2};
use sim_mmu::{Access, Gfn, Gva, Level, Processor, Stage2Format};

const A_PAGE: Gva = Gva(0x7000);
const B_PAGE: Gva = Gva(0x8000);
const GLOBAL: Gva = Gva(0x9000);

/// A cached translation of the set-up: which identifier and PCID ran, on which stage-2 tree, and the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cached {
    tag: u16,
    pcid: u16,
    tree: usize,
    gva: Gva,
    name: &'static str,
}

/// Names: identifier, PCID, page; `'` is the second stage-2 tree. `1.g` was cached with PCID 1.
const CACHED: [Cached; 9] = [
    Cached { tag: 1, pcid: 1, tree: 0, gva: A_PAGE, name: "1.1a" },
    Cached { tag: 1, pcid: 1, tree: 0, gva: B_PAGE, name: "1.1b" },
    Cached { tag: 1, pcid: 1, tree: 0, gva: GLOBAL, name: "1.g" },
    Cached { tag: 1, pcid: 2, tree: 0, gva: A_PAGE, name: "1.2a" },
    Cached { tag: 1, pcid: 2, tree: 0, gva: B_PAGE, name: "1.2b" },
    Cached { tag: 2, pcid: 1, tree: 0, gva: A_PAGE, name: "2.1a" },
    Cached { tag: 2, pcid: 1, tree: 0, gva: GLOBAL, name: "2.g" },
    Cached { tag: 1, pcid: 1, tree: 1, gva: A_PAGE, name: "1.1a'" },
    Cached { tag: 1, pcid: 1, tree: 1, gva: GLOBAL, name: "1.g'" },
];

struct Tagged<F: Vendor> {
    machine: Machine<F>,
    trees: [Stage2; 2],
}

impl<F: Vendor> Tagged<F> {
    /// Everything of [`CACHED`] is cached, then every page of the guest is mapped elsewhere.
    fn new(cx: &Cx<'_>) -> Tagged<F> {
        let mut machine = Machine::<F>::new(cx, Setup::default());
        let second = machine.new_stage2_root();
        let trees = [machine.root, second].map(Stage2::new);
        machine.change_registers(|r| r.cr4.insert(Cr4::PCIDE));
        let pages = [(A_PAGE, 0x42, 0), (B_PAGE, 0x43, 0), (GLOBAL, 0x44, G)];
        for (gva, gfn, bits) in pages {
            machine.map(gva, Gfn(gfn), RWX | bits);
            machine.back(Gfn(gfn + 0x100));
        }
        // The second tree maps the same memory.
        for gfn in (0x42..0x45).chain(0x142..0x145).chain(0x100..0x110) {
            machine.map_stage2(second, Gfn(gfn).gpa(), host(Gfn(gfn)), Level::L4K, F::LEAF);
        }
        let mut tagged = Tagged { machine, trees };
        for cached in CACHED {
            tagged.enter(cached);
            assert_eq!(tagged.machine.frame(cx, cached.gva), tagged.old(cached), "{}", cached.name);
        }
        for (gva, gfn, bits) in pages {
            tagged.machine.set_guest_entry(gva, Level::L4K, RWX | bits | A | (gfn + 0x100) << 12);
        }
        tagged.enter(CACHED[0]);
        tagged
    }

    fn enter(&mut self, cached: Cached) {
        let stage2 = self.trees[cached.tree];
        self.machine.change_state(|state| {
            state.tag = TlbTag(cached.tag);
            state.stage2 = stage2;
            state.registers.cr3 = Cr3(state.registers.cr3.0 & !0xfff | u64::from(cached.pcid));
        });
    }

    fn old(&self, cached: Cached) -> sim_kernel::Pfn {
        host(Gfn(0x42 + (cached.gva.0 - A_PAGE.0) / 0x1000))
    }

    /// Which of them are still used.
    fn kept(mut self, cx: &Cx<'_>) -> String {
        let mut names = Vec::new();
        for cached in CACHED {
            self.enter(cached);
            // CR4 may have been changed by the operation; the tags must be those of the set-up.
            self.machine.change_registers(|r| {
                r.cr4 = Cr4::PAE | Cr4::PCIDE | Cr4::PGE;
                r.cr0.insert(Cr0::PG);
            });
            if self.machine.frame(cx, cached.gva) == self.old(cached) {
                names.push(cached.name);
            }
            self.machine.processor.check_acceleration();
        }
        names.join(" ")
    }
}

type Operation<F> = fn(&Cx<'_>, &mut Processor<F>);

#[track_caller]
fn check<F: Vendor>(rows: &[(&str, Operation<F>, &str)]) {
    Sim::sequential().solo(|cx| {
        for (name, operation, expected) in rows {
            let mut tagged = Tagged::<F>::new(cx);
            operation(cx, &mut tagged.machine.processor);
            assert_eq!(tagged.kept(cx), *expected, "{name}");
        }
    });
}

/// CR3 of the set-up with a PCID.
fn cr3<F: Stage2Format>(processor: &Processor<F>, pcid: u64) -> u64 {
    processor.state().registers.cr3.0 & !0xfff | pcid
}

#[test]
fn mm_040_mm_041_mm_043_what_each_operation_takes_on_intel() {
    let all = "1.1a 1.1b 1.g 1.2a 1.2b 2.1a 2.g 1.1a' 1.g'";
    check::<Ept>(&[
        ("nothing", |_, _| (), all),
        ("INVLPG", |cx, p| p.invlpg(cx, A_PAGE), "1.1b 1.g 1.2a 1.2b 2.1a 2.g 1.g'"),
        ("INVLPG of a global page", |cx, p| p.invlpg(cx, GLOBAL), "1.1a 1.1b 1.2a 1.2b 2.1a 2.g 1.1a'"),
        ("INVLPG, not canonical", |cx, p| p.invlpg(cx, Gva(1 << 47)), all),
        (
            "INVPCID 0",
            |cx, p| p.invpcid(cx, InvpcidType::Address(Pcid(2), A_PAGE)).unwrap(),
            "1.1a 1.1b 1.g 1.2b 2.1a 2.g 1.1a' 1.g'",
        ),
        ("INVPCID 0 of a global page", |cx, p| p.invpcid(cx, InvpcidType::Address(Pcid(1), GLOBAL)).unwrap(), all),
        ("INVPCID 1", |cx, p| p.invpcid(cx, InvpcidType::Single(Pcid(1))).unwrap(), "1.g 1.2a 1.2b 2.1a 2.g 1.g'"),
        ("INVPCID 2", |cx, p| p.invpcid(cx, InvpcidType::All).unwrap(), "2.1a 2.g"),
        ("INVPCID 3", |cx, p| p.invpcid(cx, InvpcidType::AllRetainingGlobals).unwrap(), "1.g 2.1a 2.g 1.g'"),
        ("MOV CR3", |cx, p| p.mov_to_cr3(cx, cr3(p, 2)).unwrap(), "1.1a 1.1b 1.g 2.1a 2.g 1.1a' 1.g'"),
        ("MOV CR3, bit 63", |cx, p| p.mov_to_cr3(cx, cr3(p, 2) | 1 << 63).unwrap(), all),
        (
            "CR4.PGE off and on",
            |cx, p| {
                let cr4 = p.state().registers.cr4;
                p.mov_to_cr4(cx, cr4 - Cr4::PGE).unwrap();
                p.mov_to_cr4(cx, cr4).unwrap();
            },
            "2.1a 2.g",
        ),
        ("CR4.PCIDE off", |cx, p| p.mov_to_cr4(cx, p.state().registers.cr4 - Cr4::PCIDE).unwrap(), "2.1a 2.g"),
        ("CR4.SMEP on", |cx, p| p.mov_to_cr4(cx, p.state().registers.cr4 | Cr4::SMEP).unwrap(), "1.2a 1.2b 2.1a 2.g"),
        ("CR4.SMAP on", |cx, p| p.mov_to_cr4(cx, p.state().registers.cr4 | Cr4::SMAP | Cr4::PKE).unwrap(), all),
        (
            "CR0.PG off",
            |cx, p| {
                // Paging cannot be switched off while there are PCIDs. Those go by a state that is loaded: nothing is flushed.
                let mut state = *p.state();
                state.registers.cr4.remove(Cr4::PCIDE);
                p.enter(state).unwrap();
                p.mov_to_cr0(cx, Cr0::WP).unwrap();
            },
            "2.1a 2.g",
        ),
        (
            "INVVPID 0",
            |cx, p| p.invvpid(cx, InvvpidType::Address(TlbTag(1), A_PAGE)).unwrap(),
            "1.1b 1.g 1.2b 2.1a 2.g 1.g'",
        ),
        (
            "INVVPID 0 of a global page",
            |cx, p| p.invvpid(cx, InvvpidType::Address(TlbTag(2), GLOBAL)).unwrap(),
            "1.1a 1.1b 1.g 1.2a 1.2b 2.1a 1.1a' 1.g'",
        ),
        ("INVVPID 1", |cx, p| p.invvpid(cx, InvvpidType::Single(TlbTag(1))).unwrap(), "2.1a 2.g"),
        ("INVVPID 2", |cx, p| p.invvpid(cx, InvvpidType::All).unwrap(), ""),
        (
            "INVVPID 3",
            |cx, p| p.invvpid(cx, InvvpidType::SingleRetainingGlobals(TlbTag(1))).unwrap(),
            "1.g 2.1a 2.g 1.g'",
        ),
        ("INVEPT 1", |cx, p| p.invept(cx, InveptType::Single(p.format().eptp(&p.state().stage2))), "1.1a' 1.g'"),
        ("INVEPT 2", |cx, p| p.invept(cx, InveptType::All), ""),
        ("a VM entry without VPIDs", |cx, p| p.vm_transition_without_vpid(cx), all),
    ]);
}

#[test]
fn mm_040_what_each_operation_takes_on_amd() {
    // nCR3 is no tag: what was cached on one tree is used on the other.
    let all = "1.1a 1.1b 1.g 1.2a 1.2b 2.1a 2.g 1.1a' 1.g'";
    check::<Npt>(&[
        ("nothing", |_, _| (), all),
        ("TLB_CONTROL 0", |cx, p| p.tlb_control(cx, TlbControl::DoNothing), all),
        ("TLB_CONTROL 1", |cx, p| p.tlb_control(cx, TlbControl::FlushAllAsid), ""),
        ("TLB_CONTROL 3", |cx, p| p.tlb_control(cx, TlbControl::FlushAsid), "2.1a 2.g"),
        ("TLB_CONTROL 7", |cx, p| p.tlb_control(cx, TlbControl::FlushAsidLocal), "1.g 2.1a 2.g 1.g'"),
        ("INVLPGA", |cx, p| p.invlpga(cx, A_PAGE, TlbTag(1)), "1.1b 1.g 1.2b 2.1a 2.g 1.g'"),
        (
            "INVLPGA of another ASID",
            |cx, p| p.invlpga(cx, GLOBAL, TlbTag(2)),
            "1.1a 1.1b 1.g 1.2a 1.2b 2.1a 1.1a' 1.g'",
        ),
        ("INVLPG", |cx, p| p.invlpg(cx, A_PAGE), "1.1b 1.g 1.2a 1.2b 2.1a 2.g 1.g'"),
        ("MOV CR3", |cx, p| p.mov_to_cr3(cx, cr3(p, 1)).unwrap(), "1.g 1.2a 1.2b 2.1a 2.g 1.g'"),
        ("INVPCID 2", |cx, p| p.invpcid(cx, InvpcidType::All).unwrap(), "2.1a 2.g"),
    ]);
}

#[test]
fn mm_041_without_pcids_cr3_takes_all_but_global_pages() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::default());
        machine.map(A_PAGE, Gfn(0x42), RWX);
        machine.map(GLOBAL, Gfn(0x44), RWX | G);
        machine.frame(cx, A_PAGE);
        machine.frame(cx, GLOBAL);
        let cr3 = machine.cr3().0 << 12;
        machine.processor.mov_to_cr3(cx, cr3).unwrap();
        let contents = machine.processor.tlb().contents();
        assert_eq!((contents.combined, contents.global, contents.guest_structures), (1, 1, 0));
        assert!(contents.guest_physical > 0);
        // G says nothing while CR4.PGE is off.
        machine.change_registers(|r| r.cr4.remove(Cr4::PGE));
        machine.frame(cx, GLOBAL);
        machine.processor.mov_to_cr3(cx, cr3).unwrap();
        assert_eq!(machine.processor.tlb().contents().combined, 0);
    });
}

#[test]
fn errors_of_invalidations() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::default());
        let bad = Gva(1 << 47);
        let p = &mut machine.processor;
        let failed = Err(VmFail(28));
        assert_eq!(p.invvpid(cx, InvvpidType::Address(TlbTag(1), bad)), failed);
        assert_eq!(p.invvpid(cx, InvvpidType::Single(TlbTag(0))), failed);
        assert_eq!(p.invvpid(cx, InvvpidType::SingleRetainingGlobals(TlbTag(0))), failed);
        assert!(p.invpcid(cx, InvpcidType::Address(Pcid(0), bad)).is_err());
        assert!(p.invpcid(cx, InvpcidType::Single(Pcid(1))).is_err(), "PCIDs are off");
        assert!(p.invpcid(cx, InvpcidType::Single(Pcid(0))).is_ok());
    });
}

#[test]
fn mm_042_mm_043_what_they_take_of_structures_and_guest_physical_mappings() {
    Sim::sequential().solo(|cx| {
        type Row = (&'static str, Operation<Ept>, [bool; 4]);
        // Whether combined mappings of page A, guest structures, guest-physical mappings, stage-2 structures are left.
        let rows: [Row; 6] = [
            ("INVLPG of another page", |cx, p| p.invlpg(cx, Gva(0x4000_0000_0000)), [true, false, true, true]),
            ("INVVPID 1", |cx, p| p.invvpid(cx, InvvpidType::Single(TlbTag(1))).unwrap(), [false, false, true, true]),
            ("INVEPT 2", |cx, p| p.invept(cx, InveptType::All), [false; 4]),
            (
                "INVPCID 0 of another page",
                |cx, p| p.invpcid(cx, InvpcidType::Address(Pcid(0), Gva(0x4000_0000_0000))).unwrap(),
                [true; 4],
            ),
            (
                "INVPCID 0",
                |cx, p| p.invpcid(cx, InvpcidType::Address(Pcid(0), A_PAGE)).unwrap(),
                [false, false, true, true],
            ),
            ("INVPCID 1", |cx, p| p.invpcid(cx, InvpcidType::Single(Pcid(0))).unwrap(), [false, false, true, true]),
        ];
        for (name, operation, expected) in rows {
            let mut machine = Machine::<Ept>::new(cx, Setup::default());
            machine.map(A_PAGE, Gfn(0x42), RWX);
            machine.frame(cx, A_PAGE);
            operation(cx, &mut machine.processor);
            let left = machine.processor.tlb().contents();
            let left =
                [left.combined, left.guest_structures, left.guest_physical, left.stage2_structures].map(|n| n > 0);
            assert_eq!(left, expected, "{name}");
        }
    });
}

fn stale_permissions_fault_once<F: Vendor>() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<F>::new(cx, Setup::default());
        machine.map(A_PAGE, Gfn(0x42), RWX);
        let entry = machine.stage2_entry(Gfn(0x42), Level::L4K);
        machine.set_stage2_entry(Gfn(0x42), Level::L4K, entry & !F::WRITE);
        machine.frame(cx, A_PAGE);
        // Another vCPU has upgraded the entry meanwhile.
        machine.set_stage2_entry(Gfn(0x42), Level::L4K, entry);
        assert_eq!(F::place(&exit(machine.access(cx, A_PAGE, Access::Write))), (0x42 << 12, true), "stale: once");
        machine.access(cx, A_PAGE, Access::Write).unwrap();
        // The same at stage 1.
        machine.set_guest_entry(B_PAGE, Level::L4K, RWX & !2 | 0x42 << 12);
        machine.frame(cx, B_PAGE);
        machine.set_guest_entry(B_PAGE, Level::L4K, RWX | 0x42 << 12);
        let code = page_fault(machine.access(cx, B_PAGE, Access::Write)).code;
        assert_eq!(code, PageFaultCode::PRESENT | PageFaultCode::WRITE);
        machine.access(cx, B_PAGE, Access::Write).unwrap();
    });
}

#[test]
fn mm_044_faults_drop_what_covers_them() {
    stale_permissions_fault_once::<Ept>();
    stale_permissions_fault_once::<Npt>();
}

#[test]
fn mm_044_stale_structures_and_guest_physical_mappings() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::default());
        machine.map(A_PAGE, Gfn(0x42), RWX);
        machine.frame(cx, A_PAGE);
        // The page table of the guest moves; the old one says that B is not there. The page fault drops the stale table.
        let old = machine.guest_entry(A_PAGE, Level::L2M);
        let new = machine.new_guest_table();
        machine.memory.set(host(new), B_PAGE.index(Level::L4K), RWX | 0x43 << 12);
        machine.back(Gfn(0x43));
        machine.set_guest_entry(A_PAGE, Level::L2M, old & 0xfff | new.0 << 12);
        assert_eq!(page_fault(machine.access(cx, B_PAGE, Access::Read)).code, PageFaultCode::empty());
        assert_eq!(machine.frame(cx, B_PAGE), host(Gfn(0x43)));
        // A guest-physical mapping that forbids writes: the guest's tables are read through it, as writes.
        let table = machine.stage2_entry(new, Level::L4K);
        machine.set_stage2_entry(new, Level::L4K, table & !2);
        machine.processor.invept(cx, InveptType::All);
        assert_eq!(Ept::place(&exit(machine.access(cx, B_PAGE, Access::Read))), (new.0 << 12 | 0x40, false));
        machine.set_stage2_entry(new, Level::L4K, table);
        assert_eq!(machine.frame(cx, B_PAGE), host(Gfn(0x43)), "nothing refused was kept");
    });
}

#[test]
fn mm_044_amd_may_walk_again_before_it_reports() {
    Sim::sequential().solo(|cx| {
        let tlb = TlbConfig { rewalks_before_fault: true, ..TlbConfig::SMALL };
        let mut machine = Machine::<Npt>::new(cx, Setup { tlb, ..Setup::default() });
        machine.map(A_PAGE, Gfn(0x42), RWX & !2);
        machine.frame(cx, A_PAGE);
        machine.set_guest_entry(A_PAGE, Level::L4K, RWX | 0x42 << 12);
        machine.access(cx, A_PAGE, Access::Write).unwrap();
    });
}

#[test]
fn mm_045_what_is_not_present_is_never_cached() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Npt>::new(cx, Setup::default());
        for level in [Level::L512G, Level::L1G, Level::L2M, Level::L4K] {
            let gva = Gva(0x1000 + ((level.number() as u64) << 39));
            machine.map(gva, Gfn(0x42), RWX);
            let entry = machine.guest_entry(gva, level);
            for absent in [entry & !1, entry | 1 << 50] {
                machine.set_guest_entry(gva, level, absent);
                page_fault(machine.access(cx, gva, Access::Read));
            }
            machine.set_guest_entry(gva, level, entry);
            assert_eq!(machine.frame(cx, gva), host(Gfn(0x42)), "{level:?}: no flush is needed");
        }
        for level in [Level::L512G, Level::L1G, Level::L2M, Level::L4K] {
            let gfn = Gfn((level.number() as u64) << 27 | 0x42);
            let gva = Gva(0x10_1000 + ((level.number() as u64) << 12));
            machine.map(gva, gfn, RWX);
            let entry = machine.stage2_entry(gfn, level);
            for absent in [0, entry | 1 << 50] {
                machine.set_stage2_entry(gfn, level, absent);
                exit(machine.access(cx, gva, Access::Read));
            }
            machine.set_stage2_entry(gfn, level, entry);
            assert_eq!(machine.frame(cx, gva), host(gfn), "{level:?}: no flush is needed");
        }
    });
}

#[test]
fn mm_046_invalidation_reaches_all_fragments() {
    Sim::sequential().solo(|cx| {
        type Row = (&'static str, fn(&Cx<'_>, &mut Processor<Ept>, Gva));
        let rows: [Row; 3] = [
            ("INVLPG", |cx, p, gva| p.invlpg(cx, gva)),
            ("INVPCID 0", |cx, p, gva| p.invpcid(cx, InvpcidType::Address(Pcid(0), gva)).unwrap()),
            ("INVVPID 0", |cx, p, gva| p.invvpid(cx, InvvpidType::Address(TlbTag(1), gva)).unwrap()),
        ];
        for (name, invalidate) in rows {
            let mut machine = Machine::<Ept>::new(cx, Setup::default());
            let page = Gva(0x4020_0000);
            machine.map_guest(page, Gfn(0x800), Level::L2M, RWX);
            machine.map(A_PAGE, Gfn(0x42), RWX);
            let pieces = [0u64, 1, 77, 511];
            for n in pieces {
                machine.back(Gfn(0x800 + n));
                machine.back(Gfn(0xa00 + n));
                assert_eq!(machine.frame(cx, page + (n << 12)), host(Gfn(0x800 + n)));
            }
            machine.frame(cx, A_PAGE);
            assert_eq!(machine.processor.tlb().contents().fragments, pieces.len());
            machine.map_guest(page, Gfn(0xa00), Level::L2M, RWX);
            assert_eq!(machine.frame(cx, page + 0x1000), host(Gfn(0x801)), "stale");
            invalidate(cx, &mut machine.processor, page + 0x1f_ffff);
            let contents = machine.processor.tlb().contents();
            assert_eq!((contents.fragments, contents.combined), (0, 1), "{name}: the other page stays");
            for n in pieces {
                assert_eq!(machine.frame(cx, page + (n << 12)), host(Gfn(0xa00 + n)), "{name}");
            }
        }
    });
}

#[test]
fn mm_044_mm_046_a_fault_leaves_other_fragments() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::default());
        let page = Gva(0x4020_0000);
        machine.map_guest(page, Gfn(0x800), Level::L2M, RWX);
        for n in [0, 1] {
            machine.back(Gfn(0x800 + n));
            machine.frame(cx, page + (n << 12));
        }
        // The fragment's frame moves and nobody flushes; an access of the same guest page faults in stage 2, and one at stage 1.
        machine.map_stage2(machine.root, Gfn(0x801).gpa(), host(Gfn(0x42)), Level::L4K, Ept::LEAF);
        exit(machine.access(cx, page + 0x2000, Access::Read));
        assert_eq!(machine.processor.tlb().contents().fragments, 2);
        assert_eq!(machine.frame(cx, page + 0x1000), host(Gfn(0x801)), "stale: the fault was of another address");
        machine.change_registers(|r| r.cr4.insert(Cr4::SMEP));
        page_fault(machine.access(cx, page, Access::Exec));
        assert_eq!(machine.processor.tlb().contents().fragments, 1, "what the page fault was of is gone");
        assert_eq!(machine.frame(cx, page + 0x1000), host(Gfn(0x801)), "and the other stays");
        machine.processor.invlpg(cx, page);
        assert_eq!(machine.frame(cx, page + 0x1000), host(Gfn(0x801)), "the guest-physical mapping is still there");
        machine.processor.invept(cx, InveptType::All);
        assert_eq!(machine.frame(cx, page + 0x1000), host(Gfn(0x42)));
    });
}

#[test]
fn large_entries() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Npt>::new(cx, Setup { stage2_page: Level::L2M, ..Setup::default() });
        let page = Gva(0x4020_0000);
        machine.map_guest(page, Gfn(0x800), Level::L2M, RWX);
        machine.back(Gfn(0x800));
        machine.back(Gfn(0xa00));
        for n in [0, 1, 511] {
            assert_eq!(machine.frame(cx, page + (n << 12)), host(Gfn(0x800 + n)));
        }
        let contents = machine.processor.tlb().contents();
        assert_eq!((contents.combined, contents.fragments), (1, 0), "one entry for all of it");
        machine.map_guest(page, Gfn(0xa00), Level::L2M, RWX);
        assert_eq!(machine.frame(cx, page + 0x3000), host(Gfn(0x803)), "stale");
        machine.processor.invlpg(cx, page + 0x5000);
        assert_eq!(machine.frame(cx, page + 0x1000), host(Gfn(0xa01)));
        // A large page at stage 2 below small pages of the guest gives small entries.
        machine.map_guest(A_PAGE, Gfn(0xa05), Level::L4K, RWX);
        machine.map_guest(B_PAGE, Gfn(0xa07), Level::L4K, RWX);
        assert_eq!((machine.frame(cx, A_PAGE), machine.frame(cx, B_PAGE)), (host(Gfn(0xa05)), host(Gfn(0xa07))));
        assert_eq!(machine.processor.tlb().contents().combined, 3);
    });
}

#[test]
fn mm_047_cached_accessed_and_dirty_bits() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::default());
        machine.map(A_PAGE, Gfn(0x42), RWX);
        machine.access(cx, A_PAGE, Access::Write).unwrap();
        // Somebody clears the bits in memory, at both stages, and flushes nothing.
        machine.set_guest_entry(A_PAGE, Level::L4K, RWX | 0x42 << 12);
        let stage2 = machine.stage2_entry(Gfn(0x42), Level::L4K);
        machine.set_stage2_entry(Gfn(0x42), Level::L4K, stage2 & !(Ept::ACCESSED | Ept::DIRTY));
        machine.access(cx, A_PAGE, Access::Write).unwrap();
        assert_eq!(machine.guest_entry(A_PAGE, Level::L4K) & (A | D), 0, "what is cached counts");
        assert_eq!(machine.stage2_entry(Gfn(0x42), Level::L4K) & Ept::DIRTY, 0);
        machine.processor.invept(cx, InveptType::All);
        machine.access(cx, A_PAGE, Access::Write).unwrap();
        assert_eq!(machine.guest_entry(A_PAGE, Level::L4K) & (A | D), A | D);
        assert_eq!(machine.stage2_entry(Gfn(0x42), Level::L4K) & Ept::DIRTY, Ept::DIRTY);
    });
}

#[test]
fn mm_048_ncr3_is_no_tag() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Npt>::new(cx, Setup::default());
        machine.map(A_PAGE, Gfn(0x42), RWX);
        let second = machine.new_stage2_root();
        for gfn in 0x100..0x108 {
            machine.map_stage2(second, Gfn(gfn).gpa(), host(Gfn(gfn)), Level::L4K, Npt::LEAF);
        }
        machine.map_stage2(second, Gfn(0x42).gpa(), host(Gfn(0x99)), Level::L4K, Npt::LEAF);
        machine.frame(cx, A_PAGE);
        machine.change_state(|state| state.stage2 = Stage2::new(second));
        assert_eq!(machine.frame(cx, A_PAGE), host(Gfn(0x42)), "the old root's translation");
        assert_eq!(machine.processor.tlb().contents().combined, 1);
        machine.processor.tlb_control(cx, TlbControl::FlushAsid);
        assert_eq!(machine.frame(cx, A_PAGE), host(Gfn(0x99)), "what KVM's root load prevents");
    });
}

/// The machine's half; that KVM flushes when a vCPU comes to another processor is KVM's.
#[test]
fn mm_049_each_processor_keeps_its_own() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::default());
        machine.map(A_PAGE, Gfn(0x42), RWX);
        machine.frame(cx, A_PAGE);
        machine.set_guest_entry(A_PAGE, Level::L4K, RWX | 0x43 << 12);
        machine.back(Gfn(0x43));
        let state = *machine.processor.state();
        let format = machine.setup.format;
        let mut other = Processor::new(cx, Ept::processor(), format, TlbConfig::SMALL, state).unwrap();
        other.invlpg(cx, A_PAGE);
        let there = other.translate(cx, &machine.memory, A_PAGE, Access::Read).unwrap();
        assert_eq!(there.pfn, host(Gfn(0x43)));
        assert_eq!(machine.frame(cx, A_PAGE), host(Gfn(0x42)), "back on the first one, the stale entry revives");
        machine.processor.invvpid(cx, InvvpidType::Single(TlbTag(1))).unwrap();
        assert_eq!(machine.frame(cx, A_PAGE), host(Gfn(0x43)));
    });
}

#[test]
fn many_contexts_are_more_than_are_kept_apart() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::default());
        machine.map(A_PAGE, Gfn(0x42), RWX);
        for tag in 1..2000 {
            machine.change_state(|state| state.tag = TlbTag(tag));
            assert_eq!(machine.frame(cx, A_PAGE), host(Gfn(0x42)));
        }
        machine.set_guest_entry(A_PAGE, Level::L4K, RWX | 0x43 << 12);
        machine.back(Gfn(0x43));
        assert_eq!(machine.frame(cx, A_PAGE), host(Gfn(0x42)), "the last one is kept");
        machine.processor.invlpg(cx, A_PAGE);
        assert_eq!(machine.frame(cx, A_PAGE), host(Gfn(0x43)));
    });
}
