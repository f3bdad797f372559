//! KVM's use of TDX, by the ids of its checklist (`TD-060` and above): scripts in the language of scenarios, each line with what it must answer, and looks at the
//! module in between.

mod answers;
mod build;
mod failures;
mod known;
mod large;
mod pamt;
mod refused;
mod runtime;
mod slots;

use gmem::kvm::tdx::{KvmTdx, TdxHost};
use gmem::{MachineConfig, Stage2Kind};
use sim_coco::tdx::{Leaf, SeptEntry, SeptState, Tdx};
use sim_kernel::sched::TraceRecord;
use sim_kernel::{Cx, PAGE_SHIFT, Pfn};
use sim_mmu::{Gfn, Level};
use std::sync::Arc;

/// TDX protects guests.
enum OfTdx {}

type Script = crate::script::Script<OfTdx>;

/// The machine.
fn config() -> MachineConfig {
    MachineConfig { tdx: true, stage2: Stage2Kind::Ept, ..MachineConfig::default() }
}

/// A TD with a vCPU and 64 KiB at 0x200000 of which the first half is private; not final.
const TD: &str = "
    create_vm vm0 type=tdx                                   => ok
    tdx_init_vm vm0                                          => ok
    enable_cap vm0 exit_hypercall 4096                       => ok
    mmap m0 len=64K                                          => ok
    create_guest_memfd vm0 g0 size=64K                       => ok
    set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=64K hva=m0 guest_memfd=g0 => ok
    set_memory_attributes vm0 0x200000 32K private           => ok
    create_vcpu vm0 c0                                       => ok
    tdx_init_vcpu c0                                         => ok
";

/// The same, with one page of 7s, measured, and final.
const RUNNING: &str = "
    mmap m1 len=4K                                           => ok
    host_write m1 0 7                                        => ok
    tdx_init_mem_region c0 0x200000 m1 4K measure            => ok
    tdx_finalize_vm vm0                                      => ok
";

impl Script {
    fn new(config: MachineConfig) -> Script {
        Script::on(config)
    }

    /// A machine with a TD that is not final.
    fn td() -> Script {
        let mut script = Script::new(config());
        script.run(TD);
        script
    }

    /// A machine with a TD that runs.
    fn running() -> Script {
        let mut script = Script::td();
        script.run(RUNNING);
        script
    }

    fn host<R>(&mut self, look: impl FnOnce(&Cx<'_>, &Arc<TdxHost>) -> R) -> R {
        self.with(|cx, world| look(cx, world.process().host().tdx().expect("the machine has TDX")))
    }

    fn of_td<R>(&mut self, look: impl FnOnce(&KvmTdx) -> R) -> R {
        self.of_vm("vm0", |_, vm| look(vm.tdx().expect("a TD")))
    }

    /// How often KVM called a leaf so far.
    fn calls(&mut self, leaf: Leaf) -> u64 {
        self.host(|_, host| host.calls(leaf))
    }

    /// The module of the machine.
    fn module(&mut self) -> Arc<Tdx> {
        self.host(|_, host| Arc::clone(host.tdx()))
    }

    /// The TDR of the TD.
    fn tdr(&mut self) -> Pfn {
        self.of_td(|tdx| tdx.tdr().expect("it was created"))
    }

    /// An entry of the Secure EPT; `None` without a table for it.
    fn entry(&mut self, gpa: u64, level: Level) -> Option<SeptEntry> {
        let tdr = self.tdr();
        self.module().peek_sept(tdr, Gfn(gpa >> PAGE_SHIFT), level)
    }

    /// The frame of a private page.
    fn frame(&mut self, gpa: u64) -> Pfn {
        self.entry(gpa, Level::L4K).expect("it is mapped").pfn()
    }

    /// State of the entry of a page in the Secure EPT; `None` without a table for it.
    fn sept(&mut self, gpa: u64) -> Option<SeptState> {
        self.entry(gpa, Level::L4K).and_then(|entry| entry.state())
    }
}

/// The leaves that KVM has called, in order.
fn leaves(records: &[TraceRecord]) -> Vec<Leaf> {
    let calls = records.iter().filter(|record| record.tracepoint.name == "tdx_seamcall");
    calls.map(|record| Leaf::from_number(record.args[0] as u16).expect("a leaf that there is")).collect()
}
