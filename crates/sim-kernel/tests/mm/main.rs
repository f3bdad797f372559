//! Address spaces: the rules of host memory as scripts, random calls against a naive model, and races.

mod guest_file;
mod large_folio;
mod mempolicy;
mod model;
mod races;
mod rules;
mod script;
mod shmem;
