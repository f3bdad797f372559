//! The guest's kernel on the machine, with a host that is as small as it can be.

mod accepting;
mod changing;
mod host;
mod leaving;
