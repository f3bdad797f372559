//! Tests of the machine's MMU through its public interface, one binary: guest paging, stage 2, TLBs. Names begin with the ids
//! of the specification's checklist where they have one.

mod bits;
mod machine;
mod permission;
mod property;
mod recordings;
mod references;
mod stage1;
mod stage2;
mod tlb;
