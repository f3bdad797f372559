//! Small concurrent programs with an answer that is known: one file each.
//!
//! A model is a function that runs one schedule on a [`Sim`](sim_kernel::sched::Sim) from nothing, asserts what must hold at its
//! end, and says which of the possible outcomes it was, so that a test can ask for all of them.

pub mod fault_conversion;
pub mod fault_punch;
pub mod mutex_counter;
pub mod small_vm;
