//! Tests of the pKVM hypervisor through its public interface, one binary. `pk_...` are rows of the conformance checklist.

mod access;
mod boot;
mod corrupted;
mod discipline;
mod exhaustive;
mod guest;
mod invariants;
mod lifecycle;
mod machine;
mod matrix;
mod model;
mod mutants;
mod native;
mod np;
mod protected;
mod races;
mod trace;
