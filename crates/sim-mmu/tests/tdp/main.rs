//! Tests of the stage-2 MMU through its public interface, one binary.

mod ageing;
mod checklist;
mod events;
mod faults;
mod invalidate;
mod logging;
mod mirror;
mod model;
mod nx;
mod processor;
mod races;
mod spte;
mod vm;
