//! Exploration: strategies, reductions and their oracle, checkpoints.

mod api;
mod differential;
mod litmus;
mod programs;
mod spaces;
