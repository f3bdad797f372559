//! One workload on Linux 7.3's design and on the proposed one, and what it takes: the table of `docs/pkvm.md`. `UPDATE_EXPECT=1` writes it.

use super::Script;
use gmem::MachineConfig;
use sim_coco::pkvm::TraceEvent;
use std::collections::BTreeMap;
use std::path::Path;

/// A step, and its lines: those that are the same, or 7.3's and the proposal's.
type Step = (&'static str, &'static str, [&'static str; 2]);

const STEPS: &[Step] = &[
    (
        "the VMM writes an image of 4 pages",
        "host_write m0 0 1 => ok\n host_write m0 4K 2 => ok\n host_write m0 8K 3 => ok\n host_write m0 12K 4 => ok",
        [""; 2],
    ),
    (
        "the guest reads it",
        "guest_read c0 0x200000 => hlt 1\n guest_read c0 0x201000 => hlt 2\n guest_read c0 0x202000 => hlt 3
         guest_read c0 0x203000 => hlt 4",
        [""; 2],
    ),
    (
        "the guest writes 4 others",
        "guest_write c0 0x204000 5 => hlt\n guest_write c0 0x205000 6 => hlt\n guest_write c0 0x206000 7 => hlt
         guest_write c0 0x207000 8 => hlt",
        [""; 2],
    ),
    ("the guest shares 4 new ones", "guest_set_memory c0 0x208000 16K shared => hlt 0", [""; 2]),
    ("the VMM writes 2 of them", "host_write m0 0x8000 9 => ok\n host_write m0 0x9000 10 => ok", [""; 2]),
    ("the guest takes all 4 back", "guest_set_memory c0 0x208000 16K private => hlt 0", [""; 2]),
    (
        "the VMM reads one of them",
        "guest_read c0 0x208000 => hlt 9",
        ["host_read m0 0x8000 => SIGSEGV", "host_read m0 0x8000 => SIGBUS"],
    ),
    (
        "the VMM drops 2 pages of the guest",
        "",
        ["madvise m0 0x4000 8K dontneed => ok", "fallocate g0 punch_hole 0x4000 8K => ok"],
    ),
    ("the guest reads one of these", "", ["guest_read c0 0x204000 => hlt 5", "guest_read c0 0x204000 => EFAULT"]),
    ("the VM ends", "close c0 => ok\n munmap m0 0 64K => ok", ["close vm0 => ok", "close g0 => ok\n close vm0 => ok"]),
];

/// How the memory of the guest is made.
const SETUP: [&str; 2] = [
    "mmap m0 len=64K => ok
     set_user_memory_region vm0 slot=0 gpa=0x200000 size=64K hva=m0 => ok",
    "create_guest_memfd vm0 g0 size=64K flags=mmap|init_shared => ok
     mmap m0 fd=g0 len=64K shared=true => ok
     set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=64K hva=m0 guest_memfd=g0 => ok",
];

/// After a step: what EL2 was entered for, pages that the guest has, and pages that count as locked.
struct Took {
    calls: String,
    guests: usize,
    locked: u64,
}

/// Left out: two of these are for each visit to a guest, on both; and the host's stage 2 is filled wherever the host first comes to.
const LEFT_OUT: [&str; 3] = ["vcpu_load", "vcpu_put", "host_mem_abort"];

fn run(proposed: bool) -> Vec<Took> {
    let config = MachineConfig { pkvm_gmem: proposed, pkvm_trace: true, ..MachineConfig::default() };
    let mut script = Script::new(config);
    let design = usize::from(proposed);
    script.run("create_vm vm0 type=protected => ok\n create_vcpu vm0 c0 => ok");
    script.run(SETUP[design]);
    let mut seen = script.pkvm(|_, pkvm| pkvm.trace().len());
    let mut took = Vec::new();
    for (_, both, of) in STEPS {
        script.run(both);
        script.run(of[design]);
        let (calls, guests) = script.pkvm(|_, pkvm| {
            let trace = pkvm.trace();
            let mut calls: BTreeMap<&str, u32> = BTreeMap::new();
            for record in &trace[seen..] {
                if let TraceEvent::Enter { call } = record.event
                    && !LEFT_OUT.contains(&call)
                {
                    *calls.entry(call).or_default() += 1;
                }
            }
            seen = trace.len();
            let guests = pkvm.ownership().pages.values().filter(|page| !page.guests.is_empty()).count();
            (calls, guests)
        });
        let calls: Vec<String> = calls.into_iter().map(|(call, times)| format!("{times} {call}")).collect();
        let calls = if calls.is_empty() { "none".to_string() } else { calls.join(", ") };
        took.push(Took { calls, guests, locked: script.locked() });
    }
    script.end();
    took
}

#[test]
fn what_a_workload_takes_on_both_designs() {
    let mut table =
        "| step | calls to EL2, 7.3 | proposed | the guest's pages, 7.3 | proposed | locked, 7.3 | proposed |\n"
            .to_string();
    table += "|---|---|---|---|---|---|---|\n";
    let (now, proposed) = (run(false), run(true));
    for (((step, ..), now), then) in STEPS.iter().zip(&now).zip(&proposed) {
        let (Took { calls, guests, locked }, of) = (now, then);
        table +=
            &format!("| {step} | {calls} | {} | {guests} | {} | {locked} | {} |\n", of.calls, of.guests, of.locked);
    }
    // What the designs are about.
    assert!(now.iter().all(|took| took.locked as usize == took.guests), "all is pinned and accounted until the end");
    assert!(proposed.iter().all(|took| took.locked == 0), "nothing is");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/pkvm.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (start, end) = ("<!-- designs -->\n", "<!-- /designs -->");
    let from = page.find(start).expect("the table begins") + start.len();
    let to = page.find(end).expect("the table ends");
    if page[from..to] != table {
        assert!(std::env::var_os("UPDATE_EXPECT").is_some(), "docs/pkvm.md: UPDATE_EXPECT=1 writes:\n{table}");
        std::fs::write(&path, format!("{}{table}{}", &page[..from], &page[to..])).unwrap();
    }
}
