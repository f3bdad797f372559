//! What the log of a run says of each step of its scenario, as counts.

use crate::explore::program::Part;
use crate::scenario::Scenario;
use sim_coco::tdx::Leaf;
use sim_kernel::sched::{Access, Event, Sim, TaskId};
use std::collections::{BTreeMap, BTreeSet};

/// Of what kind something is that was done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Group {
    /// System calls of the VMM.
    Calls,
    /// Reasons for which `KVM_RUN` came back.
    Exits,
    /// Instructions by which a guest asks somebody.
    Guest,
    /// Faults in stage 2.
    Faults,
    /// Entries of stage 2.
    Stage2,
    /// TLBs of others.
    Tlbs,
    /// Instructions of SEV-SNP's host.
    Rmp,
    /// Commands to SEV-SNP's firmware.
    Firmware,
    /// SEAMCALLs.
    Seamcalls,
    /// pKVM's hypervisor.
    El2,
    /// Locks of the kernel and of what is beneath it.
    Locks,
    /// Grace periods that were waited for.
    Grace,
    /// Pages.
    Pages,
}

impl Group {
    /// Every group, in the order in which they are shown.
    pub const ALL: [Group; 13] = [
        Group::Calls,
        Group::Exits,
        Group::Guest,
        Group::Faults,
        Group::Stage2,
        Group::Tlbs,
        Group::Rmp,
        Group::Firmware,
        Group::Seamcalls,
        Group::El2,
        Group::Locks,
        Group::Grace,
        Group::Pages,
    ];

    /// A word or two.
    pub const fn name(self) -> &'static str {
        match self {
            Group::Calls => "call",
            Group::Exits => "exit",
            Group::Guest => "guest",
            Group::Faults => "fault",
            Group::Stage2 => "stage 2",
            Group::Tlbs => "TLB",
            Group::Rmp => "RMP",
            Group::Firmware => "firmware",
            Group::Seamcalls => "SEAMCALL",
            Group::El2 => "EL2",
            Group::Locks => "lock",
            Group::Grace => "RCU",
            Group::Pages => "page",
        }
    }

    /// The group of a note.
    fn of_note(kind: &str) -> Option<Group> {
        Group::ALL.into_iter().find(|group| group.name() == kind)
    }
}

/// A step of a scenario.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Step {
    /// The step with this index of a part.
    Of(Part, usize),
    /// The process ends, and with it its VMs.
    End,
}

/// How often something was done in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Of what kind.
    pub group: Group,
    /// What.
    pub what: String,
    /// How often.
    pub times: u64,
}

/// What was done in each step: things in the order in which they were first done.
pub type Tally = BTreeMap<Step, Vec<Count>>;

/// Of the run that a simulation was made for last, with notes in its log.
pub(super) fn of(sim: &Sim, scenario: &Scenario) -> Tally {
    let mut tally = Tally::new();
    // Tasks that are in a system call.
    let mut in_call = BTreeSet::new();
    let mut tasks = BTreeMap::from([(TaskId::BOOT, Progress { part: Some(Part::Setup), begun: 0, step: None })]);
    for event in sim.log().events() {
        let (task, group, what) = match event {
            Event::Spawn { task, name } => {
                let part = scenario.threads.iter().position(|thread| thread.name == **name).map(Part::Thread);
                tasks.insert(*task, Progress { part, begun: 0, step: None });
                continue;
            }
            Event::Note { task, kind: "step", what } => {
                in_call.remove(task);
                if let Some(progress) = tasks.get_mut(task) {
                    progress.begin(scenario, what);
                }
                continue;
            }
            Event::Note { task, kind: "return", .. } => {
                in_call.remove(task);
                continue;
            }
            Event::Note { task, kind: "call", what } => {
                in_call.insert(*task);
                (task, Some(Group::Calls), (*what).to_string())
            }
            Event::Note { task, kind, what } => (task, Group::of_note(kind), (*what).to_string()),
            Event::Trace(record) if record.tracepoint.name == "tdx_seamcall" => {
                (&record.task, Some(Group::Seamcalls), leaf(record.args[0]))
            }
            Event::Op { task, access, object, .. } => {
                let class = || sim.object_name(*object).split('#').next().unwrap_or_default().to_string();
                match access {
                    Access::LockExclusive => (task, Some(Group::Locks), class()),
                    Access::LockShared => (task, Some(Group::Locks), format!("{} for reading", class())),
                    Access::TryLock => (task, Some(Group::Locks), format!("{} tried", class())),
                    Access::Synchronize => (task, Some(Group::Grace), "grace period".to_string()),
                    _ => continue,
                }
            }
            Event::Trace(_) | Event::End { .. } => continue,
        };
        let step = tasks.get(task).and_then(|progress| progress.step);
        // Who operates a vCPU is no lock of the kernel's; to give a vCPU a program, and to look at its registers, is no call.
        let of_the_simulator = what == "vmm->vcpu" || what == "vcpu->mutex" && !in_call.contains(task);
        if let (Some(step), Some(group)) = (step, group)
            && !of_the_simulator
        {
            count(tally.entry(step).or_default(), group, what);
        }
    }
    tally
}

/// How far a task is.
struct Progress {
    part: Option<Part>,
    begun: usize,
    step: Option<Step>,
}

impl Progress {
    fn begin(&mut self, scenario: &Scenario, what: &str) {
        if what == "end" {
            self.step = Some(Step::End);
            return;
        }
        // The task of the set-up performs what comes after the threads, too.
        if self.part == Some(Part::Setup) && self.begun == scenario.setup.len() {
            (self.part, self.begun) = (Some(Part::Finish), 0);
        }
        self.step = self.part.map(|part| Step::Of(part, self.begun));
        self.begun += 1;
    }
}

fn count(counts: &mut Vec<Count>, group: Group, what: String) {
    match counts.iter_mut().find(|count| count.group == group && count.what == what) {
        Some(count) => count.times += 1,
        None => counts.push(Count { group, what, times: 1 }),
    }
}

fn leaf(number: u64) -> String {
    Leaf::ALL.into_iter().find(|leaf| u64::from(leaf.number()) == number).map_or_else(|| number.to_string(), Leaf::name)
}
