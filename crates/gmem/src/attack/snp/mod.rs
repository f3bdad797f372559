//! Steps on a machine with SEV-SNP: the host's instructions, the firmware's commands, nested tables that the attacker writes, and accesses of guests.

mod machine;

pub(super) use machine::perform_all;

use super::machine::{Facts, StoppedBy, Switch, Way};
use super::step::{self, Answer, PageName, Who, expected, gpa, page, split_large, value};
use crate::scenario::words::number;
use sim_coco::snp::mutants;
use sim_kernel::PMD_SIZE;

/// What there is to know of the machine.
pub static FACTS: Facts = Facts {
    name: "snp",
    ways: &[
        Way {
            by: StoppedBy::Rmp,
            word: "RMP",
            label: "blocked by RMP",
            stops: |answer| matches!(answer, Answer::Npf | Answer::Pf | Answer::Dropped | Answer::Fail(_)),
        },
        Way {
            by: StoppedBy::Guest,
            word: "guest",
            label: "blocked by guest (#VC/CF)",
            stops: |answer| matches!(answer, Answer::Vc | Answer::Cf),
        },
        Way {
            by: StoppedBy::Firmware,
            word: "firmware",
            label: "blocked by firmware (policy)",
            stops: |answer| answer == Answer::Refused,
        },
    ],
    answers: &[
        ("npf", Answer::Npf),
        ("vc", Answer::Vc),
        ("cf", Answer::Cf),
        ("pf", Answer::Pf),
        ("dropped", Answer::Dropped),
        ("refused", Answer::Refused),
    ],
    other_answer: |text| {
        let code = text.strip_prefix("fail ").and_then(number)?;
        u32::try_from(code).ok().map(Answer::Fail)
    },
    other_answers: "`fail N`",
    mutants: &mutants::ALL,
    switches: &[("forbids_moves", Switch::ForbidsMoves, "for a guest whose policy allows it")],
    usage: USAGE,
};

/// What is done.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the operands are said in `USAGE`")]
pub enum Action {
    Give { page: PageName, who: Who, gpa: u64, huge: bool },
    Map { who: Who, gpa: u64, page: PageName, huge: bool },
    Take { page: PageName },
    Smash { page: PageName },
    Close { page: PageName },
    HostWrite { page: PageName, value: u64 },
    DeviceWrite { page: PageName, value: u64 },
    Note { page: PageName, note: String },
    Compare { page: PageName, note: String },
    BusWrite { page: PageName, note: String },
    Move { from: PageName, to: PageName },
    Accept { who: Who, gpa: u64, huge: bool },
    Rescind { who: Who, gpa: u64 },
    Read { who: Who, gpa: u64, vmpl: u8 },
    Write { who: Who, gpa: u64, value: u64 },
    ReadShared { who: Who, gpa: u64 },
    WriteShared { who: Who, gpa: u64, value: u64 },
}

/// Every form of a step, with what it does.
pub const USAGE: &[(&str, &str)] = &[
    ("host give PAGE WHO GPA [2m]", "RMPUPDATE: the page becomes the guest's at this address, and is mapped there"),
    ("host map WHO GPA PAGE [2m]", "the nested tables show the page at this address"),
    ("host take PAGE", "RMPUPDATE: the page becomes the hypervisor's again"),
    ("host smash PAGE", "PSMASH of 2 MiB"),
    ("host close PAGE", "RMPUPDATE: the page becomes immutable"),
    ("host write PAGE VALUE", "a store through the direct map"),
    ("host note PAGE NOTE", "reads what lies in memory, and keeps it"),
    ("host compare PAGE NOTE", "whether what lies in memory is what was noted"),
    ("host move PAGE PAGE", "PAGE_MOVE by the firmware: closes the first, gives the second, and maps it"),
    ("device write PAGE VALUE", "a store by DMA"),
    ("bus write PAGE NOTE", "somebody at the memory bus puts back what was noted"),
    ("guest WHO accept GPA [2m]", "PVALIDATE"),
    ("guest WHO rescind GPA", "PVALIDATE, to take acceptance back"),
    ("guest WHO read GPA [vmpl1]", "a load with the C-bit"),
    ("guest WHO write GPA VALUE", "a store with the C-bit"),
    ("guest WHO read-shared GPA", "a load without the C-bit"),
    ("guest WHO write-shared GPA VALUE", "a store without the C-bit"),
];

fn who(word: &str) -> Result<Who, String> {
    step::who(word, "guest")
}

/// A leaf of 2 MiB has an address and a frame at the head of 2 MiB.
fn large_leaf(address: &str, frame: &str) -> Result<(), String> {
    if !gpa(address)?.is_multiple_of(PMD_SIZE) {
        return Err(format!("`{address}` is no address of 2 MiB"));
    }
    if page(frame)?.offset != 0 {
        return Err(format!("`{frame}` is not at the head of 2 MiB"));
    }
    Ok(())
}

impl Action {
    /// What a line says.
    ///
    /// # Errors
    /// What was expected instead.
    pub(in crate::attack) fn parse(text: &str) -> Result<Action, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (words, huge) = split_large(&words);
        if let ["host", "give", p, _, g] | ["host", "map", _, g, p] = *words
            && huge
        {
            large_leaf(g, p)?;
        }
        let note = |word: &str| word.to_string();
        let action = match *words {
            ["host", "give", p, w, g] => Action::Give { page: page(p)?, who: who(w)?, gpa: gpa(g)?, huge },
            ["host", "map", w, g, p] => Action::Map { who: who(w)?, gpa: gpa(g)?, page: page(p)?, huge },
            ["guest", w, "accept", g] => Action::Accept { who: who(w)?, gpa: gpa(g)?, huge },
            _ if huge => return Err(expected(USAGE, words)),
            ["host", "take", p] => Action::Take { page: page(p)? },
            ["host", "smash", p] => Action::Smash { page: page(p)? },
            ["host", "close", p] => Action::Close { page: page(p)? },
            ["host", "write", p, v] => Action::HostWrite { page: page(p)?, value: value(v)? },
            ["host", "note", p, n] => Action::Note { page: page(p)?, note: note(n) },
            ["host", "compare", p, n] => Action::Compare { page: page(p)?, note: note(n) },
            ["host", "move", p, q] => Action::Move { from: page(p)?, to: page(q)? },
            ["device", "write", p, v] => Action::DeviceWrite { page: page(p)?, value: value(v)? },
            ["bus", "write", p, n] => Action::BusWrite { page: page(p)?, note: note(n) },
            ["guest", w, "rescind", g] => Action::Rescind { who: who(w)?, gpa: gpa(g)? },
            ["guest", w, "read", g] => Action::Read { who: who(w)?, gpa: gpa(g)?, vmpl: 0 },
            ["guest", w, "read", g, "vmpl1"] => Action::Read { who: who(w)?, gpa: gpa(g)?, vmpl: 1 },
            ["guest", w, "write", g, v] => Action::Write { who: who(w)?, gpa: gpa(g)?, value: value(v)? },
            ["guest", w, "read-shared", g] => Action::ReadShared { who: who(w)?, gpa: gpa(g)? },
            ["guest", w, "write-shared", g, v] => Action::WriteShared { who: who(w)?, gpa: gpa(g)?, value: value(v)? },
            _ => return Err(expected(USAGE, words)),
        };
        Ok(action)
    }
}
