//! Files: open files with reference counts, descriptor tables, inodes with page caches.

mod address_space;
mod fd;
mod file;
mod shmem;

pub use address_space::AddressSpace;
pub use fd::{FdTable, RawFd};
pub use file::{Fault, FaultError, File, FileOperations, MmapRequest, Stat};
pub use shmem::{Seals, Shmem};
