//! Exploration: strategies, reductions and their oracle, checkpoints.

mod api;
mod differential;
mod programs;
