//! A run, recorded: every step, and how the whole state changed at it. What `gmem report` shows and `gmem step` steps through.
//!
//! [`capture`] rides on a run and is told every operation; before each it has [`look`] describe the state as rows of [`table`]s, and
//! [`store`] keeps what differs from the moment before. Any state is had again by replaying differences from the nearest keyframe. [`assemble`](mod@assemble)
//! puts that beside the engine's log: operations with places, locks from taking to release, flushes from zap to acknowledgement.
//!
//! Looking has no scheduling points, so a recorded run is the run that was asked for, to the hash of its log. What nobody records costs one test of a
//! flag for each guest access.
//!
//! No kernel file: what ftrace, `/proc/kpageflags` and a debugger are to a kernel, together, at every instruction.

pub mod assemble;
pub mod capture;
pub mod look;
pub mod names;
pub mod recording;
pub mod store;
pub mod table;

pub use capture::{Limits, Plan, Prefix, scenario, trace};
pub use recording::{Recording, Step};
