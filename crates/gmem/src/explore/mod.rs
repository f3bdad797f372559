//! The explorer: a scenario under many interleavings, and what to say of the one that fails.
//!
//! [`program`] is the scenario as a program, which `gmem run` shares; [`guide`] bends an interleaving, [`witness`] looks at one closely,
//! [`state`] says what there is to see.

pub mod collision;
mod columns;
pub mod functions;
pub mod guide;
pub mod minimise;
pub mod program;
pub mod report;
pub mod state;
pub mod trial;
pub mod witness;

pub use program::{Failure, ScenarioProgram};
