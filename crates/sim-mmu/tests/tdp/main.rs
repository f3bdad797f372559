//! Tests of the stage-2 MMU through its public interface, one binary.

mod events;
mod faults;
mod invalidate;
mod model;
mod processor;
mod races;
mod spte;
mod vm;
