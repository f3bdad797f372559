//! Tests of the TDX machine through its public interface, one binary. `td_...` are rows of the conformance checklist.

mod dynamic_pamt;
mod epochs;
mod exhaustive;
mod guest;
mod guest_states;
mod integrity;
mod lifecycle;
mod machine;
mod measurement;
mod memory_leaves;
mod model;
mod mutants;
mod native;
mod operands;
mod pamt;
mod races;
mod shared;
mod sizes;
mod transitions;
mod zero_step;
