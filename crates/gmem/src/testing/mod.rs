//! What one's own property tests are made of: operations, machines and whole scenarios to draw, and a search that shrinks what it finds.
//!
//! - [`values`]: numbers at which something changes, objects to work on, what must hold at the end.
//! - [`race`]: a scenario under many interleavings; a failure is made small and keeps its interleaving.
//! - [`reference`](mod@reference): a naive guest_memfd of flat maps.
//! - `strategies`, `swarm` (feature `proptest`): [proptest](https://docs.rs/proptest) strategies for operations and programs, and for
//!   scenarios of two or three threads of which each draws its machine and the operations that it may do at all.
//!
//! `docs/property-testing.md` is the guide.

pub mod race;
pub mod reference;
#[cfg(feature = "proptest")]
pub mod strategies;
#[cfg(feature = "proptest")]
pub mod swarm;
pub mod values;
