//! Programs that nobody would write: sequences of all operations of the language with numbers from the edges of 64 bits, on small
//! hosts that run out of memory. Whatever the program, there is an answer, the invariants hold, and nothing is left behind.

mod extremes;
mod random;
mod reference;
mod swarms;
mod tasks;
