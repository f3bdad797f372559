//! gmem
fn main() {}
