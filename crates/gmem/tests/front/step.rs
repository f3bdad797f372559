//! `gmem step`: a scenario by hand, seen through a terminal that is none.

use std::fs;
use std::process::{Command, Stdio};

use expect_test::expect;
use gmem::cli::Backend;
use gmem::explore::portfolio::Memory;
use gmem::record::recording::Note;
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
        notes.filter(|note| matches!(note, Note::Completed(_))).count()
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

/// Lets the run end, and goes back to the last step in which `text` was called.
fn back_to(stepper: &mut Stepper<'_>, text: &str) {
    keys(stepper, "f$");
    let is_it = |note: &Note| matches!(note, Note::Call(_, call) if call == text);
    while !stepper.recording().steps[stepper.at() - 1].notes.iter().any(is_it) {
        assert!(stepper.at() > 1, "{text} was never called");
        keys(stepper, "←");
    }
}

#[test]
fn a_page_of_a_td_is_blocked() {
    let read = read("tdx/drop-and-refault.toml", None);
    let mut stepper = stepper(&read, &Schedule::default());
    back_to(&mut stepper, "TDH.MEM.RANGE.BLOCK: SUCCESS");
    expect![[r#"
        drop-and-refault  step 21 of 157
        schedule gmem1:aexa
        ┌Steps───────────────────────────────────────────────────────┐┌State───────────────────────────────────────────────────┐
        │       vmm: line 26: fallocate g0 punch_hole 0 4K           ││Locks held                                              │
        │     1 vmm reads files_struct  fallocate                    ││  invalidate_lock  vmm exclusively                      │
        │     2 vmm changes f_ref#2  fallocate                       ││  mmu_lock  vmm exclusively                             │
        │     3 vmm takes invalidate_lock  kvm_gmem_punch_hole       ││Guest-physical map                                      │
        │     4 vmm reads gmem->bindings  bound_frames               ││  0x200  private  vm0 slot 0  g0[0x0]: frame 0x11  not m│
        │     5 vmm reads gmem->bindings[0x1]  bound_frames          ││  0x201..0x203  private  vm0 slot 0  g0[0x1..0x3]: no pa│
        │     6 vmm takes mmu_lock  kvm_gmem_invalidate_start        ││Sequence counters                                       │
        │     7 vmm changes mmu_invalidate_in_progress  kvm_mmu_inval││  mmu_invalidate_seq  1                                 │
        │     8 vmm writes mmu_invalidate_range_start  kvm_mmu_invali││  mmu_invalidate_in_progress  1                         │
        │     9 vmm writes mmu_invalidate_range_end  kvm_mmu_invalida││  mmu_invalidate_range  0x200                           │
        │    10 vmm writes mmu_invalidate_range_start  kvm_mmu_invali││  mn_active_invalidate_count  0                         │
        │    11 vmm writes mmu_invalidate_range_end  kvm_mmu_invalida││  memslot generation  1                                 │
        │    12 vmm changes tdp_mmu_root_count  for_each_tdp_mmu_root││  users_count  3                                        │
        │    13 vmm reads spte[gfn 0x0, level 4]  read               ││  leafs of 4 KiB  0                                     │
        │    14 vmm reads spte[gfn 0x0, level 4]  read               ││  leafs of 2 MiB  0                                     │
        │    15 vmm reads spte[gfn 0x0, level 3]  read               ││  frames that are tables  5                             │
        │    16 vmm reads spte[gfn 0x0, level 3]  read               ││vCPUs                                                   │
        │    17 vmm reads spte[gfn 0x200, level 2]  read             ││  c0  OUTSIDE_GUEST_MODE    none                        │
        │    18 vmm reads spte[gfn 0x200, level 2]  read             ││TLBs                                                    │
        │    19 vmm reads spte[gfn 0x200, level 1]  read             ││  vm0 on processor 0  0x200000  0x200  frame 0x11  4 KiB│
        │    20 vmm writes spte[gfn 0x200, level 1]  kvm_tdp_mmu_writ││TDs                                                     │
        │         kvm_tdp_mmu_spte_changed: gfn 0x200, level 1: prese││  vm0  KeysConfigured, Runnable  HKID 33  1  even 0, odd│
        │▶   21 vmm changes tdx  mem_range_block                     ││  c0  Ready  processor 0  1                             │
        │         SEAMCALL TDH.MEM.RANGE.BLOCK: SUCCESS              ││Secure EPT                                              │
        │    22 vmm reads kvm_tdx->state  state                      ││  vm0  0x0..0x7ffffff  4  NlMapped, table 0x13  table 0x│
        │    23 vmm changes tdx  mem_track                           ││  vm0  0x0..0x3ffff  3  NlMapped, table 0x15  table 0x14│
        │         SEAMCALL TDH.MEM.TRACK: SUCCESS                    ││  vm0  0x200..0x3ff  2  NlMapped, table 0x17  table 0x16│
        │    24 vmm changes vcpu->mode  kvm_vcpu_exiting_guest_mode  ││- vm0  0x200  1  Mapped, 4 KiB leaf, frame 0x11  not pre│
        │    25 vmm changes tdx  mem_page_remove                     ││+ vm0  0x200  1  Blocked, 4 KiB leaf, frame 0x11  not pr│
        │         SEAMCALL TDH.MEM.PAGE.REMOVE: SUCCESS              ││PAMT                                                    │
        │    26 vmm changes tdx  phymem_page_wbinvd                  ││  0x2  PT_TDR  4 KiB    0                               │
        │    27 vmm changes memory[0x2200..0x2400]  phymem_page_wbinv││  0x3  PT_TDCX  4 KiB  TDR 0x2  0                       │
        │         SEAMCALL TDH.PHYMEM.PAGE.WBINVD: SUCCESS           ││  0x4  PT_TDCX  4 KiB  TDR 0x2  0                       │
        │    28 vmm changes tdp_mmu_root_count  kvm_tdp_mmu_put_root ││  0x5  PT_TDCX  4 KiB  TDR 0x2  0                       │
        │    29 vmm changes vcpu->requests  kvm_make_request         ││  0x6  PT_TDCX  4 KiB  TDR 0x2  0                       │
        │    30 vmm changes vcpu->mode  kvm_vcpu_exiting_guest_mode  ││  0x7  PT_TDCX  4 KiB  TDR 0x2  0                       │
        │    31 vmm reads i_pages[0x0..0xffffffff]  is_empty_at      ││  0x8  PT_TDCX  4 KiB  TDR 0x2  0                       │
        └────────────────────────────────────────────────────────────┘│  0x9  PT_TDVPR  4 KiB  TDR 0x2  0                      │
        ┌Next────────────────────────────────────────────────────────┐│  0xa  PT_TDCX  4 KiB  TDR 0x2  0                       │
        │ vmm reads kvm_tdx->state                                   ││  0xb  PT_TDCX  4 KiB  TDR 0x2  0                       │
        └────────────────────────────────────────────────────────────┘└────────────────────────────────────────────────────────┘

        → step  ← back  1-9 who goes on  ↑↓ select  l line  f finish  x cut  [ ] ten  PgUp PgDn state  q quit
    "#]].assert_eq(&screen(&stepper, 120, 46));
}

#[test]
fn a_protected_guest_shares_its_page() {
    let read = read("pkvm/convert.toml", None);
    let mut stepper = stepper(&read, &Schedule::default());
    back_to(&mut stepper, "MEM_SHARE 0x200000: SUCCESS");
    expect![[r#"
        convert  step 18 of 168
        schedule gmem1:aghqc
        ┌Steps───────────────────────────────────────────────────────┐┌State───────────────────────────────────────────────────┐
        │     2 guest changes f_ref  peek_vcpu                       ││Locks held                                              │
        │     3 guest changes f_ref  peek_vcpu                       ││  vmm->vcpu  guest exclusively                          │
        │     4 guest takes vmm->vcpu  set_memory_decrypted          ││  vcpu->mutex  guest exclusively                        │
        │     5 guest takes vcpu->mutex  set_program                 ││Guest-physical map                                      │
        │     6 guest reads files_struct  with_vcpu                  ││- 0x200  none  vm0 slot 0  host memory: frame 0x5fb  4 K│
        │     7 guest changes f_ref  with_vcpu                       ││+ 0x200  none  vm0 slot 0  host memory: frame 0x5fb  4 K│
        │     8 guest takes vcpu->mutex  run_answered                ││  0x201..0x203  none  vm0 slot 0  host memory: no page  │
        │     9 guest takes vm_table_lock  load_vcpu                 ││Sequence counters                                       │
        │         EL2 vcpu_load: ok                                  ││  mmu_invalidate_seq  0                                 │
        │    10 guest writes vcpu->mode  store_guest_mode            ││  mmu_invalidate_in_progress  0                         │
        │    11 guest reads vcpu->requests  has_requests             ││  mmu_invalidate_range  none                            │
        │    12 guest changes vcpu->mode  leave_guest_mode           ││  mn_active_invalidate_count  0                         │
        │    13 guest takes host_mmu.lock  guest_share_host          ││  memslot generation  2                                 │
        │    14 guest takes vm->lock  guest_share_host               ││  users_count  2                                        │
        │    15 guest writes guest_s2[0x200]  update_pte             ││  leafs of 4 KiB  0                                     │
        │    16 guest writes memory[0xbf600..0xbf800]  write_pte     ││  leafs of 2 MiB  0                                     │
        │    17 guest writes memory[0xbf600..0xbf800]  write_pte     ││  frames that are tables  0                             │
        │▶   18 guest writes memory[0xbf600..0xbf800]  write_pte     ││vCPUs                                                   │
        │         HVC MEM_SHARE 0x200000: SUCCESS                    ││  c0  OUTSIDE_GUEST_MODE    none                        │
        │    19 guest writes vcpu->mode  store_guest_mode            ││TLBs                                                    │
        │    20 guest reads vcpu->requests  has_requests             ││  vm0 on processor 0  0x200000  0x200  frame 0x5fb  R W │
        │    21 guest changes vcpu->mode  leave_guest_mode           ││pKVM owners                                             │
        │    22 guest takes vm_table_lock  put_vcpu                  ││  0x200..0x22b  NoPage: the hypervisor's  Owned         │
        │         EL2 vcpu_put: ok                                   ││  0x3fd..0x3fe  SharedOwned  SharedBorrowed, 1 pins     │
        │    23 guest changes f_ref  with_vcpu                       ││  0x400..0x401  NoPage: the hypervisor's  Owned         │
        │    24 guest takes vcpu->mutex  regs                        ││- 0x5fb  vm0's at 0x200: NoPage    vm0 0x200  Owned     │
        │    25 guest takes vcpu->mutex  set_program                 ││+ 0x5fb  SharedBorrowed    vm0 0x200  SharedOwned       │
        │    26 guest reads files_struct  with_vcpu                  ││  0x5fc..0x5ff  NoPage: the hypervisor's  Owned         │
        │    27 guest changes f_ref  with_vcpu                       ││                                                        │
        │    28 guest takes vcpu->mutex  run_answered                ││                                                        │
        │    29 guest takes vm_table_lock  load_vcpu                 ││                                                        │
        └────────────────────────────────────────────────────────────┘│                                                        │
        ┌Next────────────────────────────────────────────────────────┐│                                                        │
        │ guest writes vcpu->mode                                    ││                                                        │
        └────────────────────────────────────────────────────────────┘└────────────────────────────────────────────────────────┘

        → step  ← back  1-9 who goes on  ↑↓ select  l line  f finish  x cut  [ ] ten  PgUp PgDn state  q quit
    "#]].assert_eq(&screen(&stepper, 120, 40));
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
