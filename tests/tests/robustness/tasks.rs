//! Threads that use what another one takes away. Every schedule ends: no deadlock, nothing left behind, the same twice.

use gmem::runner::{self, RunReport};
use gmem::scenario::parse;
use sim_kernel::sched::{Chooser, LogLevel, Random};

/// A VM with a page of private memory at 2 MiB, shared memory at 4 MiB, and two vCPUs.
const SET_UP: &str = r#"
[setup]
run = """
create_vm vm0 sw_protected
create_guest_memfd vm0 g0 size=64K
mmap m0 len=4M align=2M
set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=64K hva=m0 guest_memfd=g0
set_user_memory_region vm0 slot=1 gpa=0x400000 size=2M hva=m0+2M
create_vcpu vm0 c0 0
create_vcpu vm0 c1 1
enable_cap vm0 exit_hypercall 4096
set_memory_attributes vm0 0x200000 32K private
guest_write c0 0x200000 1
guest_write c1 0x400000 1
"""
"#;

fn run(text: &str, seed: u64) -> RunReport {
    let scenario = parse("tasks.toml", text).unwrap_or_else(|mistake| panic!("{mistake}"));
    runner::run(&scenario, Chooser::Random(Random::new()), seed, LogLevel::Hash)
}

/// Runs threads, each with its operations separated by `;`, under many schedules.
fn race(threads: &[&str], seeds: u64) {
    let mut text = SET_UP.to_string();
    for (n, ops) in threads.iter().enumerate() {
        let ops: String = ops.split(';').map(|op| format!("{}\n", op.trim())).collect();
        text.push_str(&format!("[thread.t{n}]\nrun = \"\"\"\n{ops}\"\"\"\n"));
    }
    for seed in 0..seeds {
        let report = run(&text, seed);
        assert!(report.is_as_expected(), "seed {seed} of {threads:?}: {} {:?}", report.verdict, report.invariant);
        if seed % 16 == 0 {
            assert_eq!(report.log_digest, run(&text, seed).log_digest, "seed {seed} of {threads:?}");
        }
    }
}

#[test]
fn what_one_thread_uses_another_takes_away() {
    let races: &[&[&str]] = &[
        // Closing what is in use.
        &["guest_write c0 0x200000 2; guest_rmw c0 0x201000 1; guest_read c0 0x202000", "close g0"],
        &["guest_write c0 0x200000 2; guest_read c1 0x400000", "close vm0; close c0; close g0", "close c1"],
        &[
            "fallocate g0 punch_hole 0 64K; fallocate g0 keep_size 0 64K",
            "close g0; close vm0",
            "guest_read c0 0x203000",
        ],
        &["pre_fault_memory c0 0x200000 64K", "close g0", "guest_write c0 0x204000 3"],
        &[
            "set_user_memory_region2 vm0 slot=2 flags=guest_memfd gpa=0x800000 size=4K hva=m0 guest_memfd=g0",
            "close g0",
        ],
        &["dup g0 g1; close g1", "close g0", "fstat g0; mmap m9 g0 4K shared=true"],
        &["create_vcpu vm0 c2 2; guest_read c2 0x400000", "close vm0", "create_guest_memfd vm0 g5 4K; close g5"],
        // Unmapping what is in use.
        &["guest_write c0 0x400000 2; guest_rmw c0 0x401000 2", "munmap m0 2M 2M", "host_write m0 2M 3"],
        &["madvise m0 0 4M populate_write; host_read m0 2M", "munmap m0 0 4M", "mlock m0 0 4M"],
        &["mincore m0 0 4M; madvise m0 2M 2M free", "mprotect m0 2M 4K r", "guest_write c0 0x400000 9"],
        // Two threads, one vCPU.
        &[
            "guest_read c0 0x200000; guest_hypercall c0 12 [0x200000, 1, 8] 5",
            "guest_write c0 0x400000 7",
            "guest_rmw c0 0 1",
        ],
        &[
            "guest_hypercall c0 12 [0, 1, 0] 1",
            "guest_hypercall c0 12 [0x1000, 1, 8] 2",
            "pre_fault_memory c0 0x400000 8K",
        ],
        &[
            "guest_hypercall c0 12 [0, 1, 0] 1",
            "close c0; create_vcpu vm0 c3 3; guest_hypercall c3 12 [0, 1, 0] 1",
            "guest_read c0 0",
        ],
        // Slots and attributes under vCPUs.
        &[
            "set_user_memory_region vm0 slot=1 gpa=0x400000 size=0 hva=m0+2M",
            "guest_write c0 0x400000 2",
            "pre_fault_memory c1 0x400000 8K",
        ],
        &[
            "set_user_memory_region vm0 slot=1 gpa=0x600000 size=2M hva=m0+2M",
            "guest_write c0 0x400000 2",
            "munmap m0 2M 4K",
        ],
        &[
            "set_memory_attributes vm0 0x200000 64K private",
            "set_memory_attributes vm0 0x200000 64K 0",
            "guest_rmw c0 0x200000 1; guest_read c1 0x200000",
        ],
        &[
            "set_user_memory_region vm0 slot=1 flags=1 gpa=0x400000 size=2M hva=m0+2M; get_dirty_log vm0 1 512",
            "guest_write c0 0x400000 2",
            "guest_write c1 0x401000 2",
        ],
    ];
    for threads in races {
        race(threads, 64);
    }
}

#[test]
fn as_many_threads_as_there_may_be() {
    let threads: Vec<String> = (0..63)
        .map(|n| match n % 7 {
            0 => "guest_write c0 0x200000 1; guest_read c1 0x400000".to_string(),
            1 => format!("fallocate g0 punch_hole {}K 4K", n % 16 * 4),
            2 => format!("set_memory_attributes vm0 {} 4K {}", 0x20_0000 + n * 4096, n % 2 * 8),
            3 => format!("host_write m0 {}K {n}; madvise m0 0 2M dontneed", n * 4),
            4 => format!("create_guest_memfd vm0 h{n} 4K; close h{n}"),
            5 => format!("mmap n{n} len=8K; host_write n{n} 0 1; munmap n{n} 0 8K"),
            _ => "pre_fault_memory c1 0x400000 16K".to_string(),
        })
        .collect();
    let threads: Vec<&str> = threads.iter().map(String::as_str).collect();
    race(&threads, 8);
}
