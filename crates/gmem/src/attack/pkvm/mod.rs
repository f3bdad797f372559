//! Steps on an Arm machine with pKVM: the host's calls to the hypervisor and its accesses, devices, and two protected guests and one that is not, each with its vCPU on a processor.

mod machine;

pub(super) use machine::perform_all;

use super::machine::{Facts, StoppedBy, Way};
use super::step::{self, Answer, PageName, Who, expected, gpa, page, value};
use crate::scenario::words::number;
use sim_coco::pkvm::mutants;

/// What there is to know of the machine.
pub static FACTS: Facts = Facts {
    name: "pkvm",
    ways: &[
        Way {
            by: StoppedBy::Hypervisor,
            word: "EL2",
            label: "blocked by the hypervisor",
            stops: |answer| matches!(answer, Answer::Fail(_) | Answer::Segv | Answer::Invalid),
        },
        Way {
            by: StoppedBy::Cleared,
            word: "cleared",
            label: "the host finds nothing",
            stops: |answer| answer == Answer::Value(0),
        },
        Way {
            by: StoppedBy::Guest,
            word: "guest",
            label: "the guest does not go on",
            stops: |answer| answer == Answer::Abort,
        },
    ],
    answers: &[("segv", Answer::Segv), ("abort", Answer::Abort), ("invalid", Answer::Invalid)],
    other_answer: |text| {
        let code = text.strip_prefix("fail ").and_then(number)?;
        u32::try_from(code).ok().map(Answer::Fail)
    },
    other_answers: "`fail ERRNO`",
    mutants: &mutants::ALL,
    switches: &[],
    usage: USAGE,
};

/// What is done.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the operands are said in `USAGE`")]
pub enum Action {
    Donate { page: PageName, who: Who, gpa: u64 },
    DonateDevice { who: Who, gpa: u64 },
    WriteTable { who: Who, value: u64 },
    Take { page: PageName },
    Reclaim { who: Who, gpa: u64 },
    End { who: Who },
    Teardown { who: Who },
    Load { who: Who },
    Finish { who: Who },
    Again { who: Who },
    Share { page: PageName },
    UnshareVm { who: Who },
    Lend { page: PageName, gpa: u64, read_only: bool },
    Unlend { gpa: u64 },
    Ask,
    HostRead { page: PageName },
    HostWrite { page: PageName, value: u64 },
    DeviceRead { page: PageName },
    DeviceWrite { page: PageName, value: u64 },
    GuestShare { who: Who, gpa: u64 },
    GuestUnshare { who: Who, gpa: u64 },
    Read { who: Who, gpa: u64 },
    Write { who: Who, gpa: u64, value: u64 },
    OtherRead { gpa: u64 },
    OtherWrite { gpa: u64, value: u64 },
}

/// Every form of a step, with what it does.
pub const USAGE: &[(&str, &str)] = &[
    ("host donate PAGE WHO GPA", "__pkvm_host_donate_guest, by the guest's vCPU"),
    ("host donate-device WHO GPA", "the same, of a page of a device"),
    (
        "host write-table WHO VALUE",
        "a store by a process of the host to the last page that it gave for the guest's tables",
    ),
    ("host take PAGE", "__pkvm_force_reclaim_guest_page"),
    ("host end WHO", "the guest's vCPU is put, and __pkvm_start_teardown_vm"),
    ("host teardown WHO", "__pkvm_start_teardown_vm alone"),
    ("host load WHO", "__pkvm_vcpu_load of the guest's vCPU, on its processor; answers `ok` whatever comes of it"),
    ("host reclaim WHO GPA", "__pkvm_reclaim_dying_guest_page"),
    ("host finish WHO", "__pkvm_finalize_teardown_vm"),
    ("host again WHO", "another guest is made, in the place of one that is gone"),
    ("host share PAGE", "__pkvm_host_share_hyp"),
    ("host unshare-vm WHO", "__pkvm_host_unshare_hyp of the page of the guest's struct kvm"),
    ("host lend PAGE n GPA", "__pkvm_host_share_guest, by the vCPU of a guest that is not protected"),
    ("host lend-read PAGE n GPA", "the same, to be read only"),
    ("host unlend n GPA", "__pkvm_host_unshare_guest"),
    ("host ask n", "__pkvm_vcpu_in_poison_fault"),
    ("host read PAGE", "a load by a process of the host"),
    ("host write PAGE VALUE", "a store by a process of the host"),
    ("device read PAGE", "a load by DMA"),
    ("device write PAGE VALUE", "a store by DMA"),
    ("guest WHO share GPA", "MEM_SHARE"),
    ("guest WHO unshare GPA", "MEM_UNSHARE"),
    ("guest WHO read GPA", "a load"),
    ("guest WHO write GPA VALUE", "a store"),
    ("guest n read GPA", "a load of the guest that is not protected"),
    ("guest n write GPA VALUE", "its store"),
];

fn who(word: &str) -> Result<Who, String> {
    step::who(word, "guest")
}

impl Action {
    /// What a line says.
    ///
    /// # Errors
    /// What was expected instead.
    pub(in crate::attack) fn parse(text: &str) -> Result<Action, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let action = match words[..] {
            ["host", "donate", p, w, g] => Action::Donate { page: page(p)?, who: who(w)?, gpa: gpa(g)? },
            ["host", "donate-device", w, g] => Action::DonateDevice { who: who(w)?, gpa: gpa(g)? },
            ["host", "write-table", w, v] => Action::WriteTable { who: who(w)?, value: value(v)? },
            ["host", "take", p] => Action::Take { page: page(p)? },
            ["host", "end", w] => Action::End { who: who(w)? },
            ["host", "teardown", w] => Action::Teardown { who: who(w)? },
            ["host", "load", w] => Action::Load { who: who(w)? },
            ["host", "finish", w] => Action::Finish { who: who(w)? },
            ["host", "again", w] => Action::Again { who: who(w)? },
            ["host", "unshare-vm", w] => Action::UnshareVm { who: who(w)? },
            ["host", "lend", p, "n", g] => Action::Lend { page: page(p)?, gpa: gpa(g)?, read_only: false },
            ["host", "lend-read", p, "n", g] => Action::Lend { page: page(p)?, gpa: gpa(g)?, read_only: true },
            ["host", "unlend", "n", g] => Action::Unlend { gpa: gpa(g)? },
            ["host", "ask", "n"] => Action::Ask,
            ["host", "reclaim", w, g] => Action::Reclaim { who: who(w)?, gpa: gpa(g)? },
            ["host", "share", p] => Action::Share { page: page(p)? },
            ["host", "read", p] => Action::HostRead { page: page(p)? },
            ["host", "write", p, v] => Action::HostWrite { page: page(p)?, value: value(v)? },
            ["device", "read", p] => Action::DeviceRead { page: page(p)? },
            ["device", "write", p, v] => Action::DeviceWrite { page: page(p)?, value: value(v)? },
            ["guest", "n", "read", g] => Action::OtherRead { gpa: gpa(g)? },
            ["guest", "n", "write", g, v] => Action::OtherWrite { gpa: gpa(g)?, value: value(v)? },
            ["guest", w, "share", g] => Action::GuestShare { who: who(w)?, gpa: gpa(g)? },
            ["guest", w, "unshare", g] => Action::GuestUnshare { who: who(w)?, gpa: gpa(g)? },
            ["guest", w, "read", g] => Action::Read { who: who(w)?, gpa: gpa(g)? },
            ["guest", w, "write", g, v] => Action::Write { who: who(w)?, gpa: gpa(g)?, value: value(v)? },
            _ => return Err(expected(USAGE, &words)),
        };
        Ok(action)
    }
}
