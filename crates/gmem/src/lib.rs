//! gmem

pub mod ops;
pub mod trace;
