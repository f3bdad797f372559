//! Exploration: strategies, reductions and their oracle, checkpoints.

mod api;
