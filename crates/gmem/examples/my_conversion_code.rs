//! A VMM's code that makes private memory shared, against a vCPU that writes to it: proptest draws the ranges, partial-order reduction the interleavings.
//!
//! Run with `cargo run -p gmem --example my_conversion_code --features proptest`. Copy [`convert`] into it as your VMM has it.

use gmem::kvm::host::Host;
use gmem::uapi::*;
use gmem::{Gpa, GuestInsn, GuestMemfd, Kvm, MachineConfig, Mapping, Process, Prot, Sharing, VcpuExit, VcpuFd, VmFd};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use sim_kernel::explore::{Exploration, Judgement, Options, Problem, Program, StrategyKind};
use sim_kernel::sched::{Sim, Verdict};
use sim_kernel::{Cx, PAGE_SIZE, Pgoff};
use std::sync::Arc;

/// Pages of the guest.
const PAGES: u64 = 4;
/// Executions after which a case counts as passed, if it has more interleavings.
const EXECUTIONS_MAX: u64 = 2_000;

/// The code under test: `pages` pages from `first` become shared, and their private memory goes back to the host.
fn convert(cx: &Cx<'_>, vm: &VmFd, memory: &GuestMemfd, order: Order, first: u64, pages: u64) -> gmem::api::Result<()> {
    let (address, size) = (first * PAGE_SIZE, pages * PAGE_SIZE);
    let share = || vm.set_memory_attributes(cx, kvm_memory_attributes { address, size, attributes: 0, flags: 0 });
    match order {
        Order::ShareThenPunch => {
            share()?;
            memory.punch_hole(cx, address, size)
        }
        Order::PunchThenShare => {
            memory.punch_hole(cx, address, size)?;
            share()
        }
    }
}

/// Both ways to write it; one is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    ShareThenPunch,
    PunchThenShare,
}

/// One case.
#[derive(Clone, Copy, Debug)]
struct Conversion {
    order: Order,
    first: u64,
    pages: u64,
    /// The page that the guest writes to meanwhile.
    written: u64,
}

struct Booted {
    process: Arc<Process>,
    vm: Arc<VmFd>,
    memory: Arc<GuestMemfd>,
}

impl Conversion {
    fn boot(&self, cx: &Cx<'_>) -> gmem::api::Result<(Booted, VcpuFd)> {
        let process = Host::new(cx, MachineConfig::default()).process(cx);
        let vm = Kvm::new(cx, &process)?.create_vm_with_type(cx, KVM_X86_SW_PROTECTED_VM)?;
        let size = PAGES * PAGE_SIZE;
        let memory = vm.create_guest_memfd(cx, kvm_create_guest_memfd { size, ..Default::default() })?;
        let shared = Mapping::anonymous(cx, &process, size, Prot::READ | Prot::WRITE, Sharing::Private)?;
        let region = kvm_userspace_memory_region2 {
            flags: KVM_MEM_GUEST_MEMFD,
            memory_size: size,
            userspace_addr: shared.addr().0,
            guest_memfd: memory.as_raw_fd() as u32,
            ..Default::default()
        };
        vm.set_user_memory_region2(cx, region)?;
        let attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE;
        vm.set_memory_attributes(cx, kvm_memory_attributes { address: 0, size, attributes, flags: 0 })?;
        let vcpu = vm.create_vcpu(cx, 0)?;
        Ok((Booted { process, vm: Arc::new(vm), memory: Arc::new(memory) }, vcpu))
    }
}

impl Program for Conversion {
    type State = Booted;

    fn setup(&self, cx: &Cx<'_>) -> Booted {
        let (booted, mut vcpu) = self.boot(cx).expect("the VM boots");
        let gpa = Gpa(self.written * PAGE_SIZE);
        cx.spawn("vcpu", move |cx| {
            vcpu.load_program(cx, &[GuestInsn::Write { gpa, value: 7 }]);
            // As a VMM does: a write that met the conversion comes back as a memory fault, and is made again.
            loop {
                match vcpu.run(cx) {
                    Ok(VcpuExit::Hlt) => return,
                    Ok(VcpuExit::MemoryFault { .. }) => {}
                    other => panic!("the guest's write completes, to either memory, not {other:?}"),
                }
            }
        });
        let (vm, memory, case) = (Arc::clone(&booted.vm), Arc::clone(&booted.memory), *self);
        cx.spawn("vmm", move |cx| {
            convert(cx, &vm, &memory, case.order, case.first, case.pages).expect("the conversion succeeds");
        });
        booted
    }

    /// What the VMM wants of its code: no private page is left behind what is shared now.
    fn judge(&self, sim: &mut Sim, booted: Booted, verdict: &Verdict) -> Judgement {
        let problem =
            |message: String| Judgement { outcome: String::new(), problem: Some(Problem { id: None, message }) };
        if !verdict.is_completed() {
            return problem(verdict.to_string());
        }
        let shared = self.first..self.first + self.pages;
        let left = sim.solo(|cx| {
            booted.vm.vm().check_invariants();
            let inode = booted.memory.inode(cx).expect("the file is open");
            let left: Vec<u64> = shared.clone().filter(|page| inode.mapping().peek(Pgoff(*page)).is_some()).collect();
            booted.process.exit(cx);
            left
        });
        match left[..] {
            [] => Judgement::outcome("converted"),
            [page, ..] => problem(format!("page {page} is shared, and its private memory is still allocated")),
        }
    }
}

/// Runs the case under every interleaving, or the first of very many.
fn check(case: Conversion) -> Result<u64, TestCaseError> {
    let mut exploration = Exploration::new(&case, StrategyKind::Dpor, 0, Options::default());
    while exploration.statistics().executions < EXECUTIONS_MAX {
        let Some(execution) = exploration.step() else { break };
        if let Some(problem) = execution.judgement.problem {
            return Err(TestCaseError::fail(format!("{}, schedule {}", problem.message, execution.schedule)));
        }
    }
    Ok(exploration.statistics().executions)
}

fn main() {
    for order in [Order::ShareThenPunch, Order::PunchThenShare] {
        let config = Config { cases: 12, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let cases = (0..PAGES, 1..=PAGES, 0..PAGES).prop_map(move |(first, pages, written)| Conversion {
            order,
            first,
            pages: pages.min(PAGES - first),
            written,
        });
        let checked = runner.run(&cases, |case| check(case).map(|_| ()));
        match &checked {
            Ok(()) => println!("{order:?}: no case fails"),
            Err(TestError::Fail(why, case)) => println!("{order:?}: {why}\n    {case:?}"),
            Err(TestError::Abort(why)) => panic!("{why}"),
        }
        assert_eq!(checked.is_ok(), order == Order::ShareThenPunch, "{order:?}");
    }
}

#[test]
fn one_order_is_right() {
    main();
}
