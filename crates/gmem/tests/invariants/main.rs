//! Invariants: silent on what is right, whatever the schedule, and not on what is wrong.

mod answers;
mod broken;
mod contents;
mod locks;
mod watching;
