//! `gmem step`: a scenario by hand, seen through a terminal that is none.

use std::fs;
use std::process::{Command, Stdio};

use expect_test::expect;
use gmem::cli::Backend;
use gmem::explore::portfolio::Memory;
use gmem::scenario::{Scenario, parse};
use gmem::visual::stepper::{Action, Stepper};
use gmem::visual::terminal::{action_of, draw, is_end};
use gmem::{Simulator, mutants};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use sim_kernel::sched::{Schedule, TaskId};

use super::report::{failing_schedule, scenario};

fn read(name: &str, mutant: Option<&str>) -> Scenario {
    let mut read = parse(name, &fs::read_to_string(scenario(name)).unwrap()).unwrap();
    if let Some(id) = mutant {
        read.machine.mutants = read.machine.mutants.with(mutants::named(id).unwrap().mutant);
    }
    read
}

fn stepper<'a>(scenario: &'a Scenario, schedule: &Schedule) -> Stepper<'a> {
    let run = |schedule: &Schedule, goes_on| Simulator.record_prefix(scenario, Memory::Sc, schedule, goes_on);
    Stepper::new(Box::new(run), schedule).unwrap()
}

/// What is on the screen, without the blanks at the ends of lines.
fn screen(stepper: &Stepper<'_>, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, stepper)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_string() + "\n";
    (0..height).map(line).collect()
}

fn keys(stepper: &mut Stepper<'_>, keys: &str) {
    for key in keys.chars() {
        let code = match key {
            '→' => KeyCode::Right,
            '←' => KeyCode::Left,
            '↓' => KeyCode::Down,
            '$' => KeyCode::End,
            key => KeyCode::Char(key),
        };
        let key = KeyEvent::new(code, KeyModifiers::NONE);
        stepper.act(action_of(key).unwrap_or_else(|| panic!("{code:?} does something"))).unwrap();
    }
}

#[test]
fn one_is_the_scheduler() {
    let read = read("races/fault-punch.toml", None);
    let mut stepper = stepper(&read, &Schedule::default());
    assert_eq!(stepper.choices().len(), 2, "both threads can begin");
    // The second begins, then the first goes on to the end of its line, then the second.
    keys(&mut stepper, "2→→");
    expect![[r#"
        fault-punch  step 2 of 2
        schedule gmem1:aibq
        ┌Steps──────────────────────────────────────────────────┐┌State──────────────────────────────────────────────┐
        │   -13 setup changes vcpu->mode#0  leave_guest_mode    ││Guest-physical map                                 │
        │   -12 setup enters kvm->srcu#0  outside               ││  0x200  private  vm0 slot 0  g0[0x0]: frame 0xa  n│
        │   -11 setup leaves kvm->srcu#0  drop                  ││  0x201  shared  vm0 slot 0  host memory: frame 0x7│
        │   -10 setup changes f_ref#2  with_vcpu                ││  0xf0000  shared  vm0 slot 31  host memory: frame │
        │    -9 setup takes vcpu->mutex#0  regs                 ││Sequence counters                                  │
        │         ⇒ {"exit": "hlt"}                             ││  mmu_invalidate_seq  1                            │
        │       setup: line 14: fallocate g0 keep_size 0 4K     ││  mmu_invalidate_in_progress  0                    │
        │    -8 setup reads files_struct  fallocate             ││  mmu_invalidate_range  none                       │
        │    -7 setup changes f_ref  fallocate                  ││  mn_active_invalidate_count  0                    │
        │    -6 setup takes (read) invalidate_lock#0  kvm_gmem_a││  memslot generation  2                            │
        │    -5 setup reads i_pages#0  filemap_get_entry        ││  users_count  3                                   │
        │    -4 setup takes folio_lock#0[0xa]  find_or_create   ││  leafs of 4 KiB  2                                │
        │    -3 setup writes i_pages#0  filemap_add_folio       ││  leafs of 2 MiB  0                                │
        │    -2 setup changes folio_ref#0[0xa]  kvm_gmem_allocat││  frames that are tables  6                        │
        │    -1 setup cond_resched  kvm_gmem_allocate           ││vCPUs                                              │
        │     0 setup changes f_ref  fallocate                  ││  c0  OUTSIDE_GUEST_MODE    0x3                    │
        │         ⇒ {"ok": 0}                                   ││TLBs                                               │
        │       vmm: line 24: fallocate g0 punch_hole 0 4K      ││  c0  0x201000  0x201  frame 0x7  4 KiB, read-write│
        │     1 vmm reads files_struct  fallocate               ││  c0  0xf0000000  0xf0000  frame 0x2  4 KiB, read-w│
        │▶    2 vmm changes f_ref  fallocate                    ││  c0  0x201000  0x201  frame 0x7  4 KiB, read-write│
        └───────────────────────────────────────────────────────┘│  c0  0xf0000000  0xf0000  frame 0x2  4 KiB, read-w│
        ┌Who goes on?───────────────────────────────────────────┐│Page cache                                         │
        │ 1 vcpu begins  spawn                                  ││  g0  0x0  0xa  1  not uptodate                    │
        │ 2 vmm takes invalidate_lock#0  kvm_gmem_punch_hole    ││                                                   │
        └───────────────────────────────────────────────────────┘└───────────────────────────────────────────────────┘

        → step  ← back  1-9 who goes on  ↑↓ select  l line  f finish  x cut  [ ] ten  PgUp PgDn state  q quit
    "#]]
    .assert_eq(&screen(&stepper, 110, 30));
    keys(&mut stepper, "1l");
    let vcpu = TaskId(1);
    let lines = |stepper: &Stepper<'_>| {
        let notes = stepper.recording().steps.iter().filter(|step| step.task == vcpu).flat_map(|step| &step.notes);
        notes.filter(|note| matches!(note, gmem::record::recording::Note::Completed(_))).count()
    };
    assert_eq!(lines(&stepper), 1, "the vCPU has completed its only line");
    keys(&mut stepper, "f");
    assert!(stepper.is_over());
    assert!(stepper.recording().is_as_expected, "{}", stepper.recording().ending);
    let schedule = stepper.schedule();
    // The schedule that was made by hand gives the same run.
    let again = self::stepper(&read, &schedule);
    assert_eq!(again.recording().digest, stepper.recording().digest);
}

#[test]
fn back_is_the_same_states_and_deciding_otherwise_cuts() {
    let read = read("fault-against-conversion.toml", None);
    let mut stepper = stepper(&read, &Schedule::default());
    let mut seen = vec![screen(&stepper, 120, 40)];
    for _ in 0..12 {
        keys(&mut stepper, "→");
        seen.push(screen(&stepper, 120, 40));
    }
    let decided = stepper.schedule();
    let end = stepper.at();
    keys(&mut stepper, "←←←←←");
    assert_eq!(stepper.at(), end - 5);
    assert_eq!(stepper.schedule(), decided, "looking back decides nothing");
    keys(&mut stepper, "→→→→→");
    assert_eq!(screen(&stepper, 120, 40), seen[12], "forwards again");
    // The other task from four steps back on.
    keys(&mut stepper, "←←←←x");
    assert!(stepper.schedule().decisions().len() < decided.decisions().len());
    let other =
        stepper.choices().iter().position(|pending| pending.task != stepper.recording().steps.last().unwrap().task);
    stepper.act(Action::Choose(other.expect("both can go on"))).unwrap();
    assert_eq!(stepper.schedule().decisions()[..4], decided.decisions()[..4]);
    assert_ne!(stepper.schedule(), decided);
}

#[test]
fn the_failing_step_is_shown() {
    let schedule: Schedule = failing_schedule("races/fault-punch.toml", "RC-01").parse().unwrap();
    let read = read("races/fault-punch.toml", Some("RC-01"));
    let mut stepper = stepper(&read, &schedule);
    keys(&mut stepper, "$");
    assert!(stepper.is_over());
    expect![[r#"
        fault-punch  step 71 of 71  INV-201: Gfn(0x200) is mapped to Pfn(0xa), which left its page cache
        schedule gmem1:aesaefi
        ┌Steps───────────────────────────────────────────────────────┐┌State───────────────────────────────────────────────────┐
        │    48 vmm changes tdp_mmu_root_count  for_each_tdp_mmu_root││Guest-physical map                                      │
        │    49 vmm reads spte[gfn 0x0, level 4]  read               ││  0x200  private  vm0 slot 0  g0[0x0]: no page  not mapp│
        │    50 vmm reads spte[gfn 0x0, level 4]  read               ││  0x201  shared  vm0 slot 0  host memory: frame 0x7  4 K│
        │    51 vmm reads spte[gfn 0x0, level 3]  read               ││  0xf0000  shared  vm0 slot 31  host memory: frame 0x2  │
        │    52 vmm reads spte[gfn 0x0, level 3]  read               ││Sequence counters                                       │
        │    53 vmm reads spte[gfn 0x200, level 2]  read             ││  mmu_invalidate_seq  2                                 │
        │    54 vmm reads spte[gfn 0x200, level 2]  read             ││  mmu_invalidate_in_progress  0                         │
        │    55 vmm changes tdp_mmu_root_count  kvm_tdp_mmu_put_root ││  mmu_invalidate_range  none                            │
        │    56 vmm reads i_pages[0x0..0xffffffff]  is_empty_at      ││  mn_active_invalidate_count  0                         │
        │    57 vmm reads i_pages  lookup_batch                      ││  memslot generation  2                                 │
        │    58 vmm changes folio_ref[0xa]  lookup_batch             ││  users_count  3                                        │
        │    59 vmm reads i_pages  lookup_batch                      ││  leafs of 4 KiB  2                                     │
        │    60 vmm tries folio_lock[0xa]  lookup_batch              ││  leafs of 2 MiB  0                                     │
        │    61 vmm writes i_pages  delete_batch                     ││  frames that are tables  6                             │
        │    62 vmm changes folio_ref[0xa]  delete_batch             ││vCPUs                                                   │
        │    63 vmm changes folio_ref[0xa]  delete_batch             ││  c0  OUTSIDE_GUEST_MODE    0x3                         │
        │    64 vmm reads i_pages  filemap_get_entry                 ││TLBs                                                    │
        │    65 vmm reads i_pages  lookup_batch                      ││  c0  0x201000  0x201  frame 0x7  4 KiB, read-write     │
        │    66 vmm reads gmem->bindings  kvm_gmem_invalidate_end    ││  c0  0xf0000000  0xf0000  frame 0x2  4 KiB, read-write │
        │    67 vmm takes mmu_lock  kvm_gmem_invalidate_end          ││  c0  0x201000  0x201  frame 0x7  4 KiB, read-write, gue│
        │    68 vmm changes mmu_invalidate_seq  kvm_mmu_invalidate_en││  c0  0xf0000000  0xf0000  frame 0x2  4 KiB, read-write,│
        │    69 vmm changes mmu_invalidate_in_progress  kvm_mmu_inval││                                                        │
        │    70 vmm changes f_ref#3  fallocate                       ││                                                        │
        │         ⇒ {"ok": 0}                                        ││                                                        │
        │         ends                                               ││                                                        │
        │▶   71 vcpu takes (read) mmu_lock  kvm_mmu_do_page_fault    ││                                                        │
        │         INV-201: Gfn(0x200) is mapped to Pfn(0xa), which le││                                                        │
        └────────────────────────────────────────────────────────────┘│                                                        │
        ┌Next────────────────────────────────────────────────────────┐│                                                        │
        │   vcpu is blocked: takes (read) mmu_lock#0  kvm_mmu_do_page││                                                        │
        └────────────────────────────────────────────────────────────┘└────────────────────────────────────────────────────────┘

        → step  ← back  1-9 who goes on  ↑↓ select  l line  f finish  x cut  [ ] ten  PgUp PgDn state  q quit
    "#]].assert_eq(&screen(&stepper, 120, 36));
    keys(&mut stepper, "→");
    assert_eq!(stepper.message(), "the run is over");
}

#[test]
fn keys_that_mean_nothing_and_the_end() {
    let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
    assert_eq!(action_of(key(KeyCode::Char('z'))), None);
    assert!(is_end(key(KeyCode::Char('q'))) && is_end(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    assert!(!is_end(key(KeyCode::Char('c'))));
    let read = read("races/fault-punch.toml", None);
    let mut stepper = stepper(&read, &Schedule::default());
    stepper.act(Action::Choose(7)).unwrap();
    assert_eq!(stepper.message(), "2 tasks can go on, and this is none of them");
    // Far too small, and still no panic.
    screen(&stepper, 7, 3);
}

#[test]
fn a_schedule_that_does_not_fit_is_refused() {
    let read = read("races/fault-punch.toml", None);
    let schedule = Schedule::new(vec![TaskId(9)]);
    let error = Simulator.record_prefix(&read, Memory::Sc, &schedule, false).unwrap_err();
    assert!(error.contains("the schedule names task T9"), "{error}");
}

#[test]
fn without_a_terminal_it_says_so() {
    let output = Command::new(env!("CARGO_BIN_EXE_gmem"))
        .args(["step", &scenario("punch-hole.toml")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("gmem step needs a terminal; gmem report writes a page that does without"), "{errors}");
}
