//! KVM's use of pKVM, by the ids of its checklist (`PK-...`; those of the hypervisor alone are in `crates/sim-coco/tests/pkvm`): scripts in the language of scenarios, each line with
//! what it must answer, and looks at the hypervisor and KVM's records in between.

mod designs;
mod faults;
mod host;
mod in_place;
mod slots;
mod teardown;
mod trace;

use gmem::MachineConfig;
use gmem::kvm::pkvm::Mapping;
use sim_coco::pkvm::{PageState, PageView, Pkvm};
use sim_kernel::{Cx, Pfn};

/// pKVM protects guests.
enum OfPkvm {}

type Script = crate::script::Script<OfPkvm>;

/// One protected VM with a vCPU and 64 KiB of the VMM's anonymous memory at 0x200000.
const VM: &str = "
    create_vm vm0 type=protected                             => ok
    create_vcpu vm0 c0                                       => ok
    mmap m0 len=64K                                          => ok
    set_user_memory_region vm0 slot=0 gpa=0x200000 size=64K hva=m0 => ok
";

impl Script {
    fn new(config: MachineConfig) -> Script {
        Script::on(MachineConfig { pkvm: true, memory: 64 << 20, ..config })
    }

    /// A machine with [`VM`].
    fn vm() -> Script {
        let mut script = Script::new(MachineConfig::default());
        script.run(VM);
        script
    }

    fn pkvm<R>(&mut self, look: impl FnOnce(&Cx<'_>, &Pkvm) -> R) -> R {
        self.with(|cx, world| look(cx, world.process().host().pkvm().expect("the machine has pKVM").pkvm()))
    }

    /// What `vm0` has records of.
    fn records(&mut self) -> Vec<Mapping> {
        self.of_vm("vm0", |_, vm| vm.pkvm().expect("a VM with pKVM").mappings())
    }

    /// The frame of a guest address of `vm0`, by KVM's records.
    #[track_caller]
    fn frame(&mut self, gpa: u64) -> Pfn {
        let gfn = sim_mmu::Gpa(gpa).gfn();
        let found = self.records().into_iter().find(|mapping| mapping.gfns().contains(gfn)).expect("it is mapped");
        found.pfn + (gfn.0 - found.gfn.0)
    }

    fn page(&mut self, pfn: Pfn) -> PageView {
        self.pkvm(|_, pkvm| pkvm.page(pfn))
    }

    /// State of a page for the host.
    fn host_state(&mut self, pfn: Pfn) -> PageState {
        self.page(pfn).host.state
    }

    /// Pages that count as locked for the process.
    fn locked(&mut self) -> u64 {
        self.with(|_, world| world.process().mm().locked_vm())
    }
}

/// `SMCCC_RET_INVALID_PARAMETER`, as a guest has it in x0.
const INVALID_PARAMETER: &str = "hlt 0xfffffffffffffffd";
