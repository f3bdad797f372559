//! gmem

pub mod ops;
