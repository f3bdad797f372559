//! Attacks on a protected guest by its host: what stops each, and what happens on a machine without that.
//!
//! The host here is not KVM: it does with the instructions of its machine and the commands of its firmware what it likes. The guest does what Linux does, one access at a
//! time. An attack is a file, of which each line is a step with its answer; a second answer is that of a machine on which the check that
//! stops the attack is off ([`Attack::mutant`]).
//!
//! ```toml
//! [attack]
//! machine = "snp"               # or "tdx": whose steps, answers and checks follow
//! teaches = "The hypervisor shows the guest another of its own pages"
//! stopped_by = "RMP"            # or "guest", "firmware", "nothing"
//! check = "REVMAP"
//! mutant = "SNP-REVMAP"         # the check to switch off; not if nothing stops it
//! run = """
//! host give a g 0x1000          => ok
//! guest g accept 0x1000         => ok
//! guest g write 0x1000 1        => ok
//! host give b g 0x2000
//! guest g accept 0x2000
//! host map g 0x1000 b
//! guest g read 0x1000           => npf | 1
//! """
//! ```
//!
//! | file | what |
//! |---|---|
//! | `file.rs` | reads a file |
//! | `step.rs` | a step: an action and its answers |
//! | `machine.rs` | what differs between machines, and runs an attack on two of them |
//! | `snp/`, `tdx/`, `pkvm/` | the steps of a machine with SEV-SNP, TDX, or pKVM on Arm, and what performs them |
//!
//! Simplified: no time, and one step after the other; a page has one value of eight bytes at its beginning.

mod file;
mod machine;
mod pages;
pub mod pkvm;
pub mod snp;
mod step;
pub mod tdx;

pub use file::{Attack, parse};
pub use machine::{Action, Facts, Machine, Ran, Report, StoppedBy, Switch, Way, run};
pub use step::{Answer, PageName, Step};
