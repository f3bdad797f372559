//! Holds the simulator against a real kernel: `gmem fuzz-compare`.
//!
//! [`generate`] makes programs from a seed, [`Pair`] runs one on both and stops where they differ, [`shrink`] makes what differs
//! small. A program is a function of the seed and its number, so a difference can be found again, and shrinking is deterministic as far
//! as the kernel is.
//!
//! Simplified: one thread, because a real kernel's races cannot be repeated; answers only, because the changes in stage 2 belong
//! to recordings.

pub mod generate;
mod pair;
mod shrink;
mod tally;

pub use pair::{Difference, Pair, Verdict};
pub use shrink::shrink;
pub use tally::{Tally, Unrepeated};
