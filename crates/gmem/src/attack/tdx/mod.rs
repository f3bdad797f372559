//! Steps on a machine with TDX: leaves of the module, accesses and instructions of the host, and what vCPUs do in their TDs.

mod machine;

pub(super) use machine::perform_all;

use super::machine::{Facts, StoppedBy, Switch, Way};
use super::step::{self, Answer, PageName, Who, expected, gpa, page, split_large, value};
use sim_coco::tdx::{StatusName, mutants};

/// What there is to know of the machine.
pub static FACTS: Facts = Facts {
    name: "tdx",
    ways: &[
        Way {
            by: StoppedBy::Module,
            word: "module",
            label: "blocked by module",
            stops: |answer| matches!(answer, Answer::Status(_) | Answer::Value(0) | Answer::Different),
        },
        Way {
            by: StoppedBy::Processor,
            word: "processor",
            label: "blocked by processor (Secure EPT, TLB)",
            stops: |answer| answer == Answer::Violation,
        },
        Way {
            by: StoppedBy::Memory,
            word: "memory",
            label: "blocked by memory (poison)",
            stops: |answer| answer == Answer::Poison,
        },
        Way {
            by: StoppedBy::Guest,
            word: "guest",
            label: "blocked by guest (ACCEPT, #VE or exit)",
            stops: |answer| {
                use StatusName::{PageAlreadyAccepted, PageSizeMismatch};
                matches!(answer, Answer::Pending | Answer::Ve | Answer::Status(PageAlreadyAccepted | PageSizeMismatch))
            },
        },
    ],
    answers: &[
        ("violation", Answer::Violation),
        ("pending", Answer::Pending),
        ("ve", Answer::Ve),
        ("poison", Answer::Poison),
        ("mc", Answer::MachineCheck),
    ],
    other_answer: |text| StatusName::ALL.iter().find(|name| name.name() == text).map(|name| Answer::Status(*name)),
    other_answers: "a status of the module such as `TLB_TRACKING_NOT_DONE`",
    mutants: &mutants::ALL,
    switches: &[
        ("sept_ve_disable", Switch::SeptVeDisable, "for a TD without SEPT_VE_DISABLE"),
        ("caches", Switch::Caches, "on a machine without caches"),
        ("partial_write_erratum", Switch::PartialWriteErratum, "on a processor without the erratum"),
        ("building", Switch::Building, "for a TD that is built already"),
    ],
    usage: USAGE,
};

/// A vCPU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Vcpu {
    /// The first of `Who::G`.
    G,
    /// Its second.
    G2,
    /// That of `Who::H`.
    H,
}

impl Vcpu {
    /// Its TD.
    pub const fn td(self) -> Who {
        match self {
            Vcpu::G | Vcpu::G2 => Who::G,
            Vcpu::H => Who::H,
        }
    }
}

/// What is done.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the operands are said in `USAGE`")]
pub enum Action {
    Aug { page: PageName, td: Who, gpa: u64, huge: bool },
    Add { page: PageName, td: Who, gpa: u64, source: PageName, through: Option<Who> },
    Block { td: Who, gpa: u64, huge: bool },
    Unblock { td: Who, gpa: u64, huge: bool },
    Track { td: Who },
    Remove { td: Who, gpa: u64, huge: bool },
    RemoveTable { td: Who, gpa: u64 },
    Promote { td: Who, gpa: u64 },
    Relocate { td: Who, gpa: u64, page: PageName },
    Finalize { td: Who },
    Kick { vcpu: Vcpu },
    Enter { vcpu: Vcpu, lp: u32 },
    Wbinvd { page: PageName, td: Who },
    Reset { page: PageName },
    Flush { page: PageName },
    Evict { page: PageName },
    Reclaim { page: PageName },
    VpFlush { vcpu: Vcpu },
    VpFlushDone { td: Who },
    CacheWb,
    FreeKey { td: Who },
    Launch { td: Who, key_of: Who },
    Map { td: Who, gpa: u64, page: PageName },
    HostRead { page: PageName },
    HostWrite { page: PageName, value: u64 },
    HostWriteLine { page: PageName, value: u64 },
    DeviceWrite { page: PageName, value: u64 },
    BusNote { page: PageName, note: String },
    BusWrite { page: PageName, note: String },
    CompareMrtd { td: Who, with: Who },
    Accept { vcpu: Vcpu, gpa: u64, huge: bool },
    Read { vcpu: Vcpu, gpa: u64 },
    Write { vcpu: Vcpu, gpa: u64, value: u64 },
    ReadShared { vcpu: Vcpu, gpa: u64 },
    WriteShared { vcpu: Vcpu, gpa: u64, value: u64 },
}

/// Every form of a step, with what it does.
pub const USAGE: &[(&str, &str)] = &[
    ("host aug PAGE TD GPA [2m]", "MEM.PAGE.AUG, and MEM.SEPT.ADD of the tables that are missing"),
    ("host add PAGE TD GPA from PAGE [keyid TD]", "MEM.PAGE.ADD; its source is read through the KeyID of a TD"),
    ("host block TD GPA [2m]", "MEM.RANGE.BLOCK of a page, or of what stands for 2 MiB"),
    ("host unblock TD GPA [2m]", "MEM.RANGE.UNBLOCK"),
    ("host track TD", "MEM.TRACK"),
    ("host remove TD GPA [2m]", "MEM.PAGE.REMOVE"),
    ("host remove-table TD GPA", "MEM.SEPT.REMOVE of the table of 4 KiB pages"),
    ("host promote TD GPA", "MEM.PAGE.PROMOTE: 512 pages become one"),
    ("host relocate TD GPA PAGE", "MEM.PAGE.RELOCATE: the module moves the page to another frame"),
    ("host finalize TD", "MR.FINALIZE"),
    ("host kick VCPU", "an interrupt: the vCPU leaves its TD"),
    ("host enter VCPU LP", "VP.ENTER on this processor"),
    ("host wbinvd PAGE TD", "PHYMEM.PAGE.WBINVD through the KeyID of the TD"),
    ("host reset PAGE", "MOVDIR64B of zeroes over the page"),
    ("host flush PAGE", "CLFLUSH of the page"),
    ("host evict PAGE", "has the cache evict what it holds of the page"),
    ("host reclaim PAGE", "PHYMEM.PAGE.RECLAIM"),
    ("host vpflush VCPU", "VP.FLUSH, on the vCPU's processor"),
    ("host vpflushdone TD", "MNG.VPFLUSHDONE"),
    ("host cache-wb", "PHYMEM.CACHE.WB"),
    ("host free-key TD", "MNG.KEY.FREEID"),
    ("host launch TD keyid TD", "another TD of this name, with the KeyID that the second had"),
    ("host map TD GPA PAGE", "the Shared EPT shows the page at this address with the shared bit"),
    ("host read PAGE", "a load"),
    ("host write PAGE VALUE", "a store of eight bytes"),
    ("host write-line PAGE VALUE", "a store of a whole line, past the caches"),
    ("device write PAGE VALUE", "a store of eight bytes by DMA"),
    ("bus note PAGE NOTE", "somebody at the memory bus keeps the first line of the page as it lies in memory"),
    ("bus write PAGE NOTE", "and puts it back"),
    ("verifier compare TD TD", "whether two TDs have the same MRTD"),
    ("guest VCPU accept GPA [2m]", "MEM.PAGE.ACCEPT"),
    ("guest VCPU read GPA", "a load from private memory"),
    ("guest VCPU write GPA VALUE", "a store to private memory"),
    ("guest VCPU read-shared GPA", "a load with the shared bit"),
    ("guest VCPU write-shared GPA VALUE", "a store with the shared bit"),
];

fn td(word: &str) -> Result<Who, String> {
    step::who(word, "TD")
}

fn vcpu(word: &str) -> Result<Vcpu, String> {
    match word {
        "g" => Ok(Vcpu::G),
        "g2" => Ok(Vcpu::G2),
        "h" => Ok(Vcpu::H),
        _ => Err(format!("`{word}` is no vCPU: expected g, g2 or h")),
    }
}

/// Processors of the machine; the last is the host's own.
const LPS: u32 = 4;

fn lp(word: &str) -> Result<u32, String> {
    let lp = value(word).ok().and_then(|lp| u32::try_from(lp).ok()).filter(|lp| *lp < LPS - 1);
    lp.ok_or_else(|| format!("`{word}` is no processor for a vCPU: expected 0 to {}", LPS - 2))
}

impl Action {
    /// What a line says.
    ///
    /// # Errors
    /// What was expected instead.
    pub(in crate::attack) fn parse(text: &str) -> Result<Action, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (words, huge) = split_large(&words);
        let note = |word: &str| word.to_string();
        let action = match *words {
            ["host", "aug", p, t, g] => Action::Aug { page: page(p)?, td: td(t)?, gpa: gpa(g)?, huge },
            ["host", "block", t, g] => Action::Block { td: td(t)?, gpa: gpa(g)?, huge },
            ["host", "unblock", t, g] => Action::Unblock { td: td(t)?, gpa: gpa(g)?, huge },
            ["host", "remove", t, g] => Action::Remove { td: td(t)?, gpa: gpa(g)?, huge },
            ["guest", v, "accept", g] => Action::Accept { vcpu: vcpu(v)?, gpa: gpa(g)?, huge },
            _ if huge => return Err(expected(USAGE, words)),
            ["host", "add", p, t, g, "from", s] => {
                Action::Add { page: page(p)?, td: td(t)?, gpa: gpa(g)?, source: page(s)?, through: None }
            }
            ["host", "add", p, t, g, "from", s, "keyid", k] => {
                Action::Add { page: page(p)?, td: td(t)?, gpa: gpa(g)?, source: page(s)?, through: Some(td(k)?) }
            }
            ["host", "track", t] => Action::Track { td: td(t)? },
            ["host", "remove-table", t, g] => Action::RemoveTable { td: td(t)?, gpa: gpa(g)? },
            ["host", "promote", t, g] => Action::Promote { td: td(t)?, gpa: gpa(g)? },
            ["host", "relocate", t, g, p] => Action::Relocate { td: td(t)?, gpa: gpa(g)?, page: page(p)? },
            ["host", "finalize", t] => Action::Finalize { td: td(t)? },
            ["host", "kick", v] => Action::Kick { vcpu: vcpu(v)? },
            ["host", "enter", v, l] => Action::Enter { vcpu: vcpu(v)?, lp: lp(l)? },
            ["host", "wbinvd", p, t] => Action::Wbinvd { page: page(p)?, td: td(t)? },
            ["host", "reset", p] => Action::Reset { page: page(p)? },
            ["host", "flush", p] => Action::Flush { page: page(p)? },
            ["host", "evict", p] => Action::Evict { page: page(p)? },
            ["host", "reclaim", p] => Action::Reclaim { page: page(p)? },
            ["host", "vpflush", v] => Action::VpFlush { vcpu: vcpu(v)? },
            ["host", "vpflushdone", t] => Action::VpFlushDone { td: td(t)? },
            ["host", "cache-wb"] => Action::CacheWb,
            ["host", "free-key", t] => Action::FreeKey { td: td(t)? },
            ["host", "launch", t, "keyid", k] => Action::Launch { td: td(t)?, key_of: td(k)? },
            ["host", "map", t, g, p] => Action::Map { td: td(t)?, gpa: gpa(g)?, page: page(p)? },
            ["host", "read", p] => Action::HostRead { page: page(p)? },
            ["host", "write", p, v] => Action::HostWrite { page: page(p)?, value: value(v)? },
            ["host", "write-line", p, v] => Action::HostWriteLine { page: page(p)?, value: value(v)? },
            ["device", "write", p, v] => Action::DeviceWrite { page: page(p)?, value: value(v)? },
            ["bus", "note", p, n] => Action::BusNote { page: page(p)?, note: note(n) },
            ["bus", "write", p, n] => Action::BusWrite { page: page(p)?, note: note(n) },
            ["verifier", "compare", t, w] => Action::CompareMrtd { td: td(t)?, with: td(w)? },
            ["guest", v, "read", g] => Action::Read { vcpu: vcpu(v)?, gpa: gpa(g)? },
            ["guest", v, "write", g, n] => Action::Write { vcpu: vcpu(v)?, gpa: gpa(g)?, value: value(n)? },
            ["guest", v, "read-shared", g] => Action::ReadShared { vcpu: vcpu(v)?, gpa: gpa(g)? },
            ["guest", v, "write-shared", g, n] => {
                Action::WriteShared { vcpu: vcpu(v)?, gpa: gpa(g)?, value: value(n)? }
            }
            _ => return Err(expected(USAGE, words)),
        };
        Ok(action)
    }
}
