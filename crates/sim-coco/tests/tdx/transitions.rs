//! Every pair of a state of the Secure EPT and an operation of the host, while a TD is built, while it runs, and after tracking, against the tables of the specification.

use crate::machine::{GPA, LP, Machine, config, info, params, pfn, told};
use sim_coco::tdx::{
    HostOp, Hpa, OpState, PageType, SeamFail, Seamcall, SeptEntry, SeptState, TdAttributes, TdParams, TdxConfig,
};
use sim_kernel::Cx;
use sim_kernel::sched::Sim;
use sim_mmu::Level;

/// §2.1 and §2.2, a row for each state. `n`: done, and the entry is in state `n` (of DEMOTE, the children); `NBn`: GPA_RANGE_NOT_BLOCKED while the TD runs, else `n`;
/// `NTn`: TLB_TRACKING_NOT_DONE while it runs and tracking is not done, else `n`; `bare`: EPT_ENTRY_NOT_PRESENT without an operand; `=`: done, and nothing changes.
const TABLE: &str = "
#   SADD ADD AUG BLOCK UNBL  REM   SREM PROM  DEM   RELO  EXT  RD WR SRD
0   2    4   10  SI    SI    SI    SI   SI    SI    SI    NP   NP NP =
1   SI   SI  10  SI    SI    SI    SI   SI    SI    SI    NP   NP NP =
2   SI   SI  SI  3     SI    SI    NB0  NB10  SI    SI    NP   NP NP =
3   SI   SI  SI  AB    NT2   SI    NT0  NT10  SI    SI    NP   NP NP =
4   SI   SI  SI  5     SI    NB0   SI   SI    NB4   NB4   =    =  =  =
5   SI   SI  SI  AB    NT4   NT0   SI   SI    NT4   NT4   NP   NP NP =
6   SI   SI  SI  5     SI    NB0   SI   SI    SI    NB6   bare =  SI =
7   SI   SI  SI  SI    SI    SI    SI   SI    SI    7     bare =  SI =
8   SI   SI  SI  SI    SI    SI    SI   SI    SI    NB8   bare =  =  =
9   SI   SI  SI  SI    SI    SI    SI   SI    SI    NB9   bare =  SI =
10  SI   SI  SI  11    SI    NB0   SI   SI    NB10  NB10  NP   NP NP =
11  SI   SI  SI  AB    NT10  NT0   SI   SI    NT10  NT10  NP   NP NP =
12  SI   SI  SI  11    SI    NB0   SI   SI    SI    NB12  NP   NP NP =
13  SI   SI  SI  SI    SI    SI    SI   SI    SI    13    NP   NP NP =
14  SI   SI  SI  SI    SI    SI    SI   SI    SI    NB14  NP   NP NP =
15  SI   SI  SI  SI    SI    SI    SI   SI    SI    NB15  NP   NP NP =
";

/// How far the TD is, and TLB tracking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Regime {
    Build,
    Run,
    Tracked,
}

/// Level at which the operation and the state meet; `None`: they cannot.
fn levels(op: HostOp, state: SeptState) -> Vec<Level> {
    let is_table = matches!(state, SeptState::NlMapped | SeptState::NlBlocked);
    let levels: &[Level] = match op {
        HostOp::SeptAdd | HostOp::SeptRemove | HostOp::PagePromote | HostOp::PageDemote => &[Level::L2M, Level::L1G],
        HostOp::PageAdd | HostOp::PageRelocate => &[Level::L4K],
        HostOp::PageAug => &[Level::L4K, Level::L2M],
        // Of contents there is a test of its own, because a guest accepts nothing so large.
        HostOp::MrExtend | HostOp::MemRd | HostOp::MemWr => &[Level::L4K, Level::L2M],
        HostOp::RangeBlock | HostOp::RangeUnblock | HostOp::PageRemove | HostOp::SeptRd => {
            &[Level::L4K, Level::L2M, Level::L1G]
        }
    };
    levels.iter().copied().filter(|level| !is_table || *level > Level::L4K).collect()
}

/// Whether the table has to be full.
fn prepare(cx: &Cx<'_>, machine: &Machine, regime: Regime, state: SeptState, level: Level, full: bool) -> Hpa {
    let params = TdParams { attributes: TdAttributes::DEBUG.bits(), ..params() };
    let tdr = machine.initialized(cx, crate::machine::K, &params);
    for above in [Level::L512G, Level::L1G, Level::L2M].into_iter().filter(|above| *above > level) {
        machine.table(cx, tdr, GPA, above);
    }
    machine.vcpu(cx, tdr, LP);
    let seam = machine.tdx.on(LP);
    match state {
        SeptState::Free | SeptState::Removed => {}
        SeptState::NlMapped | SeptState::NlBlocked => {
            machine.table(cx, tdr, GPA, level);
            if full {
                machine.fill_table(cx, tdr, info(GPA, level).gpa(), level);
            }
        }
        _ if level == Level::L1G => {
            machine.giant(cx, tdr, info(GPA, level).gpa());
        }
        _ => {
            machine.aug(cx, tdr, GPA, level);
        }
    }
    let put = |to| assert!(machine.tdx.force_sept_state(pfn(tdr), GPA.gfn(), level, to));
    if regime != Regime::Build {
        seam.mr_finalize(cx, tdr).unwrap();
    }
    match state {
        // By the leaf, because it leaves its epoch.
        SeptState::NlBlocked | SeptState::PendingBlocked => {
            seam.mem_range_block(cx, info(GPA, level), tdr).unwrap();
        }
        SeptState::Blocked => {
            put(SeptState::Mapped);
            seam.mem_range_block(cx, info(GPA, level), tdr).unwrap();
        }
        SeptState::Free | SeptState::NlMapped | SeptState::Pending => {}
        other => put(other),
    }
    if regime == Regime::Tracked {
        seam.mem_track(cx, tdr).unwrap();
    }
    assert_eq!(machine.state(tdr, GPA, level), Some(state));
    tdr
}

fn perform(cx: &Cx<'_>, machine: &Machine, op: HostOp, tdr: Hpa, level: Level) -> Seamcall<()> {
    let (seam, at) = (machine.tdx.on(LP), info(GPA, level));
    match op {
        HostOp::SeptAdd => seam.mem_sept_add(cx, at, tdr, machine.page()).map(drop),
        HostOp::PageAdd => seam.mem_page_add(cx, at, tdr, machine.page(), machine.page()),
        HostOp::PageAug => seam.mem_page_aug(cx, at, tdr, machine.of_level(level)),
        HostOp::RangeBlock => seam.mem_range_block(cx, at, tdr),
        HostOp::RangeUnblock => seam.mem_range_unblock(cx, at, tdr),
        HostOp::PageRemove => seam.mem_page_remove(cx, at, tdr).map(drop),
        HostOp::SeptRemove => seam.mem_sept_remove(cx, at, tdr).map(drop),
        HostOp::PagePromote => seam.mem_page_promote(cx, at, tdr).map(drop),
        HostOp::PageDemote => seam.mem_page_demote(cx, at, tdr, machine.page(), None),
        HostOp::PageRelocate => seam.mem_page_relocate(cx, at, tdr, machine.page()).map(drop),
        HostOp::MrExtend => seam.mr_extend(cx, GPA, tdr),
        HostOp::MemRd => seam.mem_rd(cx, GPA, tdr).map(drop),
        HostOp::MemWr => seam.mem_wr(cx, GPA, tdr, 1).map(drop),
        HostOp::SeptRd => seam.mem_sept_rd(cx, at, tdr).map(drop),
    }
}

/// What a cell means in a regime: a status, or a number.
fn expected(cell: &str, regime: Regime, state: SeptState) -> Result<u8, &'static str> {
    let number = |text: &str| text.parse().unwrap();
    match cell {
        "SI" => Err("EPT_ENTRY_STATE_INCORRECT|1"),
        "AB" => Err("GPA_RANGE_ALREADY_BLOCKED|1"),
        "NP" => Err("EPT_ENTRY_NOT_PRESENT|1"),
        "bare" => Err("EPT_ENTRY_NOT_PRESENT|0"),
        "=" => Ok(state as u8),
        _ if cell.starts_with("NB") && regime != Regime::Build => Err("GPA_RANGE_NOT_BLOCKED|1"),
        _ if cell.starts_with("NT") && regime == Regime::Run => Err("TLB_TRACKING_NOT_DONE|"),
        _ => Ok(number(cell.trim_start_matches(['N', 'B', 'T']))),
    }
}

fn has_entry_details(fail: &SeamFail) -> bool {
    let status = format!("{:?}", fail.status);
    !status.starts_with("TLB_TRACKING") && !status.ends_with("|0")
}

#[test]
fn every_state_against_every_operation() {
    let rows: Vec<Vec<&str>> =
        TABLE.lines().filter(|line| !line.is_empty()).skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 16);
    let mut pairs = 0;
    for regime in [Regime::Build, Regime::Run, Regime::Tracked] {
        for (row, state) in rows.iter().zip(sim_coco::tdx::STATES.iter().map(|row| row.state)) {
            for (op, cell) in HostOp::ALL.into_iter().zip(&row[1..]) {
                for level in levels(op, state) {
                    // Pages of 1 GiB are slow to make: a cell that says nothing of tracking is the same in all regimes.
                    let is_same = !cell.starts_with('N') || *cell == "NP";
                    if level == Level::L1G && regime != Regime::Build && is_same {
                        continue;
                    }
                    pair(regime, state, op, level, cell);
                    pairs += 1;
                }
            }
        }
    }
    let tracked = TABLE.split_whitespace().filter(|cell| cell.starts_with('N') && *cell != "NP").count();
    // Ten of these are RELOCATE's, which is of 4 KiB.
    let of_1g = 8 * 16 + 2 * (tracked - 10);
    assert_eq!(pairs, 3 * (4 * 16 + 2 * 14 + 8 * 30) + of_1g, "states, operations and levels that can meet");
}

fn pair(regime: Regime, state: SeptState, op: HostOp, level: Level, cell: &str) {
    let what = format!("{regime:?}: {op:?} of {state:?} at {level:?}");
    // One step for a leaf, so that a pair is quick.
    let config = TdxConfig { contention: false, ..config() };
    Sim::sequential().solo(|cx| {
        let machine = if level == Level::L1G { Machine::large(cx, config) } else { Machine::new(cx, config) };
        let full = op == HostOp::PagePromote;
        let tdr = prepare(cx, &machine, regime, state, level, full);
        // What is allowed only while a TD is built is not found out by the entry.
        let build_only = matches!(op, HostOp::PageAdd | HostOp::MrExtend);
        // Contents that these two look at: a page that a test put in a state was not written by its guest.
        let defined = matches!(op, HostOp::MrExtend | HostOp::MemRd | HostOp::MemWr | HostOp::PageRelocate);
        if defined && state != SeptState::Free {
            fill(cx, &machine, tdr, state, level);
        }
        let before = machine.tdx.snapshot();
        let entry = machine.tdx.peek_sept(pfn(tdr), GPA.gfn(), level);
        let pages = machine.tdx.peek_used_pages().into_iter();
        let first = pages.filter(|(_, _, entry)| entry.page_type == PageType::Reg).map(|(pfn, _, _)| pfn).min();
        let owned = || machine.tdx.peek_td(pfn(tdr)).unwrap().chldcnt;
        let owned_before = owned();
        let answer = perform(cx, &machine, op, tdr, level);
        if build_only && regime != Regime::Build {
            assert_eq!(told(answer), "OP_STATE_INCORRECT|0", "{what}");
            assert_eq!(machine.tdx.snapshot(), before, "TDX-INV-014: {what}");
            return;
        }
        match expected(cell, regime, state) {
            Ok(to) => {
                assert_eq!(told(answer), "SUCCESS", "{what}");
                let below = || level.down().expect("what is split is large");
                let to_level = if op == HostOp::PageDemote { below() } else { level };
                let first_gpa = info(GPA, level).gpa();
                assert_eq!(machine.state(tdr, first_gpa, to_level).map(|state| state as u8), Some(to), "{what}");
                if op == HostOp::PageDemote {
                    assert_eq!(machine.state(tdr, GPA, level), Some(SeptState::NlMapped), "{what}");
                }
                let after = machine.tdx.peek_sept(pfn(tdr), first_gpa.gfn(), to_level).unwrap();
                let old = entry.expect("the entry was there");
                assert_eq!(after, becomes(op, old, first, after), "{what}");
                assert_eq!(owned().wrapping_sub(owned_before), gains(op, level) as u64, "{what}");
            }
            Err(status) => {
                let fail = answer.expect_err(&what);
                let operand = if op == HostOp::RangeUnblock { "146" } else { "1" };
                let status = if status.ends_with('|') { format!("{status}{operand}") } else { status.to_string() };
                assert_eq!(format!("{:?}", fail.status), status, "{what}");
                let details = match (op, state) {
                    // These go on through a table, and end at what is free in it.
                    (HostOp::MrExtend | HostOp::MemRd | HostOp::MemWr, SeptState::NlMapped) => {
                        SeptEntry::FREE.details(Level::L4K)
                    }
                    _ => entry.expect("the entry is there").details(level),
                };
                let shown = if has_entry_details(&fail) { (details.rcx, details.rdx) } else { (0, 0) };
                assert_eq!((fail.rcx, fail.rdx), shown, "{what}");
                assert_eq!(machine.tdx.snapshot(), before, "TDX-INV-014: {what}");
            }
        }
    });
}

/// The whole entry after an operation that was done: `after` says only its state and, where there is a new page, which.
fn becomes(op: HostOp, old: SeptEntry, first: Option<sim_kernel::Pfn>, after: SeptEntry) -> SeptEntry {
    let to = after.state().unwrap();
    match op {
        HostOp::SeptAdd => SeptEntry::table(after.pfn()),
        HostOp::PageAdd | HostOp::PageAug => SeptEntry::leaf(to, after.pfn()),
        HostOp::PageRelocate => {
            assert_ne!(after.pfn(), old.pfn());
            SeptEntry::leaf(to, after.pfn())
        }
        HostOp::PageRemove | HostOp::SeptRemove => SeptEntry::FREE.with_state(to),
        HostOp::PagePromote => SeptEntry::leaf(to, first.expect("the table was full")),
        HostOp::PageDemote => SeptEntry::leaf(to, old.pfn()),
        HostOp::RangeBlock | HostOp::RangeUnblock => old.with_state(to),
        HostOp::MrExtend | HostOp::MemRd | HostOp::MemWr | HostOp::SeptRd => old,
    }
}

/// Pages that the TD owns afterwards and did not before.
fn gains(op: HostOp, level: Level) -> i64 {
    let pages = level.span() as i64;
    match op {
        HostOp::SeptAdd | HostOp::PageDemote => 1,
        HostOp::SeptRemove | HostOp::PagePromote => -1,
        HostOp::PageAdd | HostOp::PageAug => pages,
        HostOp::PageRemove => -pages,
        _ => 0,
    }
}

/// What says that a leaf which failed has changed nothing: it knows entries and metadata, and not the mark that the host wants an entry.
#[test]
fn a_snapshot_has_the_entries() {
    crate::machine::with(|cx, machine| {
        let (tdr, _) = machine.running(cx);
        machine.aug(cx, tdr, GPA, Level::L4K);
        let before = machine.tdx.snapshot();
        let put = |to| machine.tdx.force_sept_state(pfn(tdr), GPA.gfn(), Level::L4K, to);
        put(SeptState::PendingBlocked);
        assert_ne!(machine.tdx.snapshot(), before);
        put(SeptState::Pending);
        machine.tdx.force_host_priority(pfn(tdr), GPA.gfn(), Level::L4K);
        assert_eq!(machine.tdx.snapshot(), before);
    });
}

/// Gives a page contents of the TD, whatever its state: by the guest's own accept, before the state is put back.
fn fill(cx: &Cx<'_>, machine: &Machine, tdr: Hpa, state: SeptState, level: Level) {
    if matches!(state, SeptState::NlMapped | SeptState::NlBlocked | SeptState::Removed) {
        return;
    }
    let (tdr_pfn, gfn) = (pfn(tdr), GPA.gfn());
    let op_state = machine.op_state(tdr);
    machine.tdx.force_sept_state(tdr_pfn, gfn, level, SeptState::Pending);
    machine.tdx.force_op_state(tdr_pfn, OpState::Runnable);
    let tdvpr = machine.tdx.peek_used_pages();
    let tdvpr = tdvpr.into_iter().find(|(_, _, entry)| entry.page_type == PageType::Tdvpr);
    let tdvpr = Hpa::of(tdvpr.expect("there is a vCPU").0);
    machine.accept(cx, tdvpr, GPA, level);
    machine.tdx.force_op_state(tdr_pfn, op_state);
    machine.tdx.force_sept_state(tdr_pfn, gfn, level, state);
}
