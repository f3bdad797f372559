//! Whatever stands in the registers of a SEAMCALL: an answer, never a panic; and what fails changes nothing.

use crate::machine::{GPA, K, L, LP, Machine, config, leave, params};
use proptest::prelude::*;
use sim_coco::tdx::{Hpa, Leaf, SeamRegisters, SeptInfo, StatusName, TdxConfig};
use sim_kernel::sched::Sim;
use sim_mmu::{Gpa, Level};

/// Values that mean something, those near them, and others.
fn register(interesting: Vec<u64>) -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => prop::sample::select(interesting.clone()),
        2 => (prop::sample::select(interesting), 0..64u32).prop_map(|(value, bit)| value ^ 1 << bit),
        1 => any::<u64>(),
    ]
}

/// Leaves that may have written a page and not assigned it, with what they answer then; and a TD that consumed poison is fatal from then on.
const LEAVES_TRACES: [(Leaf, StatusName); 3] = [
    (Leaf::MngCreate, StatusName::RndNoEntropy),
    (Leaf::MngAddcx, StatusName::RndNoEntropy),
    (Leaf::MngAddcx, StatusName::OpStateIncorrect),
];

fn machine(cx: &sim_kernel::Cx<'_>, dynamic_pamt: bool) -> (Machine, Vec<u64>) {
    let machine = Machine::new(cx, TdxConfig { contention: false, dynamic_pamt, ..config() });
    let mut values = vec![
        0,
        1,
        2,
        u64::MAX,
        1 << 47,
        1 << 63,
        GPA.0,
        GPA.0 | 1,
        GPA.0 | 2,
        GPA.0 + 0x1000,
        33,
        34,
        40,
        64 << 20,
        1 << 30,
    ];
    if !dynamic_pamt {
        let (running, tdvpr) = machine.running(cx);
        let built = machine.building_with(cx, L, &params());
        machine.table(cx, built, GPA, Level::L2M);
        machine.aug(cx, running, GPA, Level::L4K);
        machine.add(cx, built, GPA);
        values.extend([running, tdvpr, built, machine.params(cx, &params())].map(|page| page.0));
        values.push(machine.page().with_keyid(K, machine.tdx.config().keyid_shift).0);
        leave(cx, machine.enter(cx, tdvpr, LP));
    }
    values.extend([machine.page(), machine.page(), machine.huge()].map(|page| page.0));
    let pages = machine.tdx.peek_used_pages();
    values.extend(pages.into_iter().map(|(pfn, _, _)| Hpa::of(pfn).0));
    values.push(SeptInfo::new(Gpa(machine.huge().0), Level::L2M).0);
    (machine, values)
}

/// Values of the machine, which is the same each time.
fn values(dynamic_pamt: bool) -> Vec<u64> {
    Sim::sequential().solo(|cx| machine(cx, dynamic_pamt).1)
}

fn call(interesting: Vec<u64>) -> impl Strategy<Value = SeamRegisters> {
    let leaves: Vec<u64> = Leaf::ALL.iter().map(|leaf| u64::from(leaf.number())).collect();
    let rax = prop_oneof![
        12 => prop::sample::select(leaves.clone()),
        2 => prop::sample::select(leaves).prop_map(|leaf| leaf | 1 << 16),
        1 => any::<u64>(),
    ];
    // A machine that is shut down has nothing more to say.
    let rax = rax.prop_filter("shut down", |rax| *rax as u16 != Leaf::SysShutdown.number());
    let register = || register(interesting.clone());
    (rax, register(), register(), register(), register(), register())
        .prop_map(|(rax, rcx, rdx, r8, r9, r10)| SeamRegisters { rax, rcx, rdx, r8, r9, r10 })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_registers(calls in prop::collection::vec(call(values(false)), 1..40)) {
        run(&calls, false);
    }

    #[test]
    fn any_registers_with_dynamic_pamt(calls in prop::collection::vec(call(values(true)), 1..40)) {
        run(&calls, true);
    }
}

fn run(calls: &[SeamRegisters], dynamic_pamt: bool) {
    Sim::sequential().solo(|cx| {
        let (machine, _) = machine(cx, dynamic_pamt);
        for regs in calls {
            let before = machine.tdx.snapshot();
            let fatal_before = machine.tdx.peek_tds().iter().filter(|(_, td)| td.fatal).count();
            let after = machine.tdx.on(LP).seamcall(cx, *regs);
            let leaf = Leaf::from_number(regs.rax as u16);
            let is = |of: Leaf, name: StatusName| leaf == Some(of) && name.code() == after.rax & !0xffff_ffff;
            let traces = LEAVES_TRACES.into_iter().any(|(of, name)| is(of, name));
            // Each is fatal once: afterwards the same answer changes nothing.
            let fatal = || machine.tdx.peek_tds().iter().filter(|(_, td)| td.fatal).count();
            let became_fatal = fatal() != fatal_before;
            if after.rax != 0 && !traces && !became_fatal {
                assert_eq!(machine.tdx.snapshot(), before, "TDX-INV-014: {regs:x?} {:x}", after.rax);
            }
            machine.tdx.check_invariants().unwrap();
        }
    });
}

#[test]
fn numbers_and_versions_that_no_leaf_has() {
    Sim::sequential().solo(|cx| {
        let (machine, _) = machine(cx, false);
        let invalid = StatusName::OperandInvalid.code();
        let answer = |rax| machine.tdx.on(LP).seamcall(cx, SeamRegisters { rax, ..SeamRegisters::default() }).rax;
        for rax in [11, 13, 99, 1 << 24, 38 | 1 << 40, 38 | 1 << 16, 3 | 2 << 16, 6 | 1 << 16] {
            assert_eq!(answer(rax), invalid, "{rax:#x}");
        }
        assert_ne!(answer(3 | 1 << 16), invalid);
        for number in 0..=u16::MAX {
            assert_eq!(Leaf::from_number(number).map(Leaf::number), Leaf::from_number(number).map(|_| number));
        }
    });
}

#[test]
fn what_registers_hold_afterwards() {
    Sim::sequential().solo(|cx| {
        let machine = Machine::new(cx, config());
        let (tdr, _) = machine.running(cx);
        let seam = machine.tdx.on(LP);
        let before = |leaf: Leaf, rcx: u64, rdx: Hpa, r8: Hpa| SeamRegisters {
            rax: u64::from(leaf.number()),
            rcx,
            rdx: rdx.0,
            r8: r8.0,
            r9: 7,
            r10: 8,
        };
        // Done: no details. Refused: those of the entry; of what has none, what was there.
        let aug = before(Leaf::MemPageAug, GPA.0, tdr, machine.page());
        assert_eq!(seam.seamcall(cx, aug), SeamRegisters { rax: 0, rcx: 0, rdx: 0, ..aug });
        let again = seam.seamcall(cx, SeamRegisters { r8: machine.page().0, ..aug });
        assert_eq!((again.rax, again.rdx), (0xc000_0b0d_0000_0001, 2 << 8));
        let none = seam.seamcall(cx, before(Leaf::MemPageAug, GPA.0 | 7, tdr, machine.page()));
        assert_eq!((none.rax, none.rcx, none.rdx), (0xc000_0100_0000_0001, 0, 0));
        let create = before(Leaf::MngCreate, machine.page().0, Hpa(1), Hpa(3));
        assert_eq!(seam.seamcall(cx, create), SeamRegisters { rax: 0xc000_0100_0000_0002, ..create });
        // Interrupted: as it was.
        let large = Gpa(GPA.0 + (2 << 20));
        machine.aug(cx, tdr, large, Level::L2M);
        seam.mem_range_block(cx, SeptInfo::new(large, Level::L2M), tdr).unwrap();
        seam.mem_track(cx, tdr).unwrap();
        machine.tdx.post_interrupt(LP);
        let demote = before(Leaf::MemPageDemote, large.0 | 1, tdr, machine.page());
        let interrupted = SeamRegisters { rax: StatusName::InterruptedRestartable.code(), ..demote };
        assert_eq!(seam.seamcall(cx, demote), interrupted);
        let read = seam.seamcall(cx, before(Leaf::PhymemPageRdmd, aug.r8, Hpa(0), Hpa(0)));
        assert_eq!((read.rcx, read.rdx, read.r8, read.r9), (3, tdr.0, 0, 0));
        let reclaim = seam.seamcall(cx, before(Leaf::PhymemPageReclaim, aug.r8, Hpa(9), Hpa(9)));
        assert_eq!((reclaim.rax, reclaim.rcx, reclaim.rdx, reclaim.r8), (0xc000_0607_0000_0000, 3, tdr.0, 0));
    });
}

#[test]
fn numbers_of_statuses() {
    let mut codes: Vec<u64> = StatusName::ALL.iter().map(|name| name.code()).collect();
    codes.sort();
    codes.dedup();
    assert_eq!(codes.len(), StatusName::ALL.len(), "each once");
    // Some that software compares with.
    assert_eq!(StatusName::OperandBusy.code(), 0x8000_0200_0000_0000);
    assert_eq!(StatusName::PreviousTlbEpochBusy.code(), 0x8000_0201_0000_0000);
    assert_eq!(StatusName::EptEntryStateIncorrect.code(), 0xc000_0b0d_0000_0000);
    assert_eq!(StatusName::RndNoEntropy.code(), 0x8000_0203_0000_0000);
}

#[test]
fn nothing_is_looked_at_before_the_module_is_ready() {
    Sim::sequential().solo(|cx| {
        let phys = std::sync::Arc::new(sim_kernel::mm::PhysMem::new(cx, 1 << 20));
        let tdx = sim_coco::tdx::Tdx::new(cx, phys, config());
        let answer = |leaf: Leaf, rcx, rdx| {
            let regs = SeamRegisters { rax: u64::from(leaf.number()), rcx, rdx, ..SeamRegisters::default() };
            tdx.on(LP).seamcall(cx, regs).rax
        };
        let (not_ready, invalid) = (StatusName::SysNotReady.code(), StatusName::OperandInvalid.code());
        assert_eq!(answer(Leaf::PhymemCacheWb, 2, 0), not_ready);
        assert_eq!(answer(Leaf::MngCreate, 0, 1 << 16), not_ready);
        tdx.bring_up(cx);
        assert_eq!(answer(Leaf::PhymemCacheWb, 2, 0), invalid | 1);
        assert_eq!(answer(Leaf::MngCreate, 0, 1 << 16), invalid | 2);
    });
}
