//! Tests of the SEV-SNP machine through its public interface, one binary. `sn_...` are rows of the conformance checklist.

mod access;
mod cipher;
mod digest;
mod firmware;
mod firmware_pages;
mod guest_insns;
mod lookup;
mod machine;
mod messages;
mod model;
mod mutants;
mod native;
mod psmash;
mod races;
mod rmpupdate;
mod states;
mod vmrun;
