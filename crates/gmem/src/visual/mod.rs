//! A recording, shown: as one page for a browser, as a file for the Perfetto UI, and step by step in a terminal.
//!
//! Nothing here runs a simulation but [`stepper`], which runs prefixes again. Everything is a function of the recording: the same one gives the same
//! bytes.

pub mod data;
pub mod html;
pub mod perfetto;
pub mod stepper;
pub mod terminal;
