//! gmem
