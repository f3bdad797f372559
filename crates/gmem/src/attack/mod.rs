//! Attacks on an SNP guest by its hypervisor: what stops each, and what happens on a machine without that.
//!
//! The hypervisor here is not KVM: it owns the nested tables and does with the host's instructions what it likes. The guest does what Linux does, one access at a
//! time. An attack is a file, of which each line is a step with its answer; a second answer is that of a machine on which the check that
//! stops the attack is off ([`Attack::mutant`]).
//!
//! ```toml
//! [attack]
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
//! Simplified: one processor, no time; a page has one value of eight bytes at its beginning.

mod file;
mod machine;
mod step;

pub use file::{Attack, StoppedBy, parse};
pub use machine::{Ran, Report, run};
pub use step::{Action, Answer, PageName, Step, USAGE, Who};
