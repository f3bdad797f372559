//! Every state of the Secure EPT against what a guest does: ACCEPT, reads, writes, ATTR.RD and ATTR.WR (§2.3), and being entered (§3.6).

use crate::machine::{GPA, LP, Machine, config, info, leave, params, pfn};
use sim_coco::tdx::{
    Entry, GuestStop, Hpa, InTd, STATES, SeptState, Status, StatusName, TdAttributes, TdParams, TdxConfig,
};
use sim_kernel::Cx;
use sim_kernel::sched::Sim;
use sim_mmu::Level;

/// A row for each state. `xN`: a TD exit of type N; `PSM`, `PAA`: PAGE_SIZE_MISMATCH, PAGE_ALREADY_ACCEPTED with the level of the entry; `ok>N`: done, and the entry is in
/// state N; `ve`: #VE, or an exit of type 6; `walk`: the walk goes on, and ends at a free entry.
const TABLE: &str = "
#   ACCEPT READ  WRITE ARD   AWR
0   x1     x0    x0    x0    x5
1   PSM    x0    x0    x0    PSM
2   PSM    walk  walk  walk  PSM
3   PSM    x0    x0    x0    PSM
4   PAA    ok    ok    ok    ok
5   x1     x0    x0    x0    x5
6   PAA    ok    x0    ok    x5
7   PAA    ok    x0    ok    x5
8   PAA    ok    ok    ok    ok
9   PAA    ok    x0    ok    x5
10  ok>4   ve    ve    ok    ok
11  x1     x0    x0    x0    x5
12  x1     x0    x0    ok    x5
13  x1     x0    x0    ok    x5
14  ok>8   ve    ve    ok    ok
15  x1     x0    x0    ok    x5
";

fn prepare(cx: &Cx<'_>, machine: &Machine, state: SeptState, level: Level, ve_disable: bool) -> (Hpa, Hpa) {
    let attributes = if ve_disable { TdAttributes::SEPT_VE_DISABLE.bits() } else { 0 };
    let tdr = machine.building_with(cx, crate::machine::K, &TdParams { attributes, ..params() });
    let tdvpr = machine.vcpu(cx, tdr, LP);
    machine.tdx.on(LP).mr_finalize(cx, tdr).unwrap();
    let is_table = matches!(state, SeptState::NlMapped | SeptState::NlBlocked);
    if level == Level::L4K || is_table {
        machine.table(cx, tdr, GPA, Level::L2M);
    }
    if !is_table && !matches!(state, SeptState::Free | SeptState::Removed) {
        machine.aug(cx, tdr, GPA, level);
        // So that what can be read has contents.
        machine.accept(cx, tdvpr, GPA, level);
    }
    if !matches!(state, SeptState::Free | SeptState::NlMapped | SeptState::Mapped) {
        assert!(machine.tdx.force_sept_state(pfn(tdr), GPA.gfn(), level, state));
    }
    assert_eq!(machine.state(tdr, GPA, level), Some(state));
    (tdr, tdvpr)
}

/// What happened, in the words of the table.
fn word(outcome: Result<Result<(), Status>, GuestStop>, level: Level) -> String {
    let number = u32::from(level.number()) - 1;
    match outcome {
        Ok(Ok(())) => "ok".into(),
        Ok(Err(Status { name: StatusName::PageSizeMismatch, details })) if details == number => "PSM".into(),
        Ok(Err(Status { name: StatusName::PageAlreadyAccepted, details })) if details == number => "PAA".into(),
        Err(GuestStop::Exit(exit)) => format!("x{}", exit.eeq_type()),
        Err(GuestStop::Ve(_)) => "ve".into(),
        other => format!("{other:?}"),
    }
}

type Act = fn(&Cx<'_>, &mut InTd<'_>, Level) -> Result<Result<(), Status>, GuestStop>;

const ACTS: [Act; 5] = [
    |cx, guest, level| guest.mem_page_accept(cx, info(GPA, level)),
    |cx, guest, _| guest.read_u64(cx, GPA).map(|_| Ok(())),
    |cx, guest, _| guest.write_u64(cx, GPA, 1).map(Ok),
    |cx, guest, _| guest.mem_page_attr_rd(cx, GPA).map(|answer| answer.map(drop)),
    |cx, guest, level| guest.mem_page_attr_wr(cx, info(GPA, level), 0),
];

#[test]
fn every_state_against_everything_a_guest_does() {
    let rows: Vec<Vec<&str>> =
        TABLE.lines().filter(|line| !line.is_empty()).skip(1).map(|line| line.split_whitespace().collect()).collect();
    let config = TdxConfig { contention: false, ..config() };
    for (row, of) in rows.iter().zip(&STATES) {
        let is_table = matches!(of.state, SeptState::NlMapped | SeptState::NlBlocked);
        let levels: &[Level] = if is_table { &[Level::L2M] } else { &[Level::L4K, Level::L2M] };
        for (i, (act, cell)) in ACTS.into_iter().zip(&row[1..]).enumerate() {
            for level in levels {
                for ve_disable in [false, true] {
                    Sim::sequential().solo(|cx| {
                        let machine = Machine::new(cx, config.clone());
                        let (tdr, tdvpr) = prepare(cx, &machine, of.state, *level, ve_disable);
                        let mut guest = machine.enter(cx, tdvpr, LP);
                        let outcome = word(act(cx, &mut guest, *level), *level);
                        let expected = match *cell {
                            "walk" => "x0".into(),
                            "ve" if ve_disable => "x6".into(),
                            cell => cell.split('>').next().unwrap().to_string(),
                        };
                        assert_eq!(outcome, expected, "column {i} of {:?} at {level:?}", of.state);
                        let to = cell.split_once('>').map_or(of.state as u8, |(_, to)| to.parse().unwrap());
                        assert_eq!(machine.state(tdr, GPA, *level).map(|state| state as u8), Some(to), "{cell}");
                        if guest.is_inside() {
                            leave(cx, guest);
                        }
                    });
                }
            }
        }
    }
    assert_eq!(rows.len(), 16);
}

#[test]
fn what_attributes_say() {
    crate::machine::with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        machine.aug(cx, tdr, GPA, Level::L4K);
        let mut guest = machine.enter(cx, tdvpr, LP);
        let read = guest.mem_page_attr_rd(cx, GPA).unwrap().unwrap();
        assert_eq!((read.gpa, read.level, read.pending, read.attributes), (GPA, Level::L4K, true, 0));
        guest.mem_page_accept(cx, info(GPA, Level::L4K)).unwrap().unwrap();
        assert!(!guest.mem_page_attr_rd(cx, GPA).unwrap().unwrap().pending);
        let refused = guest.mem_page_attr_wr(cx, info(GPA, Level::L4K), 1).unwrap().unwrap_err();
        assert_eq!(format!("{refused:?}"), "OPERAND_INVALID|2");
        leave(cx, guest);
    });
}

/// A VP.ENTER that stops zero-stepping goes the same way as the accesses that faulted: only an entry with all permissions lets the vCPU in, at whatever size.
#[test]
fn every_state_against_an_entry_that_stops_zero_stepping() {
    let config = TdxConfig { contention: false, ..config() };
    for of in &STATES {
        let is_table = matches!(of.state, SeptState::NlMapped | SeptState::NlBlocked);
        let levels: &[Level] = if is_table { &[Level::L2M] } else { &[Level::L4K, Level::L2M] };
        for level in levels {
            Sim::sequential().solo(|cx| {
                let machine = Machine::new(cx, config.clone());
                let (tdr, tdvpr) = prepare(cx, &machine, SeptState::Free, *level, false);
                for _ in 0..7 {
                    let mut guest = machine.enter(cx, tdvpr, LP);
                    assert!(guest.read_u64(cx, GPA).is_err());
                }
                match of.state {
                    SeptState::Free | SeptState::Removed => {}
                    _ if is_table => {
                        machine.table(cx, tdr, GPA, *level);
                    }
                    _ => {
                        machine.aug(cx, tdr, GPA, *level);
                    }
                }
                if machine.state(tdr, GPA, *level) != Some(of.state) {
                    assert!(machine.tdx.force_sept_state(pfn(tdr), GPA.gfn(), *level, of.state));
                }
                let entered = match machine.tdx.on(LP).vp_enter(cx, tdvpr).unwrap() {
                    Entry::Inside(guest) => {
                        leave(cx, guest);
                        true
                    }
                    Entry::Exit(exit) => {
                        assert_eq!((exit.eeq_type(), exit.gpa), (0, GPA), "{:?}", of.state);
                        false
                    }
                };
                let lets_in = matches!(of.state, SeptState::Mapped | SeptState::ExpDirty);
                assert_eq!(entered, lets_in, "{:?} at {level:?}", of.state);
            });
        }
    }
}
