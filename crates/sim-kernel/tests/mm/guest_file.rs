//! A file with the mapping rules of guest memory: shared only, never executable.

use sim_kernel::fs::{Fault, FaultError, FileOperations, MmapRequest, Shmem, Stat};
use sim_kernel::mm::IMmap;
use sim_kernel::{Cx, Errno, Pgoff};
use std::any::Any;
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct GuestFile(pub(crate) Shmem);

impl FileOperations for GuestFile {
    fn release(&self, cx: &Cx<'_>) {
        self.0.release(cx);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn fallocate(&self, cx: &Cx<'_>, mode: u32, offset: u64, len: u64) -> Result<(), Errno> {
        self.0.fallocate(cx, mode, offset, len)
    }

    fn stat(&self, cx: &Cx<'_>) -> Stat {
        self.0.stat(cx)
    }

    fn mmap(&self, _cx: &Cx<'_>, request: &MmapRequest) -> Result<(), Errno> {
        if request.shared { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn may_exec(&self) -> bool {
        false
    }

    fn fault(&self, cx: &Cx<'_>, pgoff: Pgoff) -> Result<Fault, FaultError> {
        self.0.fault(cx, pgoff)
    }

    fn i_mmap(&self) -> Option<&Arc<IMmap>> {
        self.0.i_mmap()
    }

    fn resident_pages(&self, cx: &Cx<'_>, range: std::ops::Range<Pgoff>) -> Vec<Pgoff> {
        self.0.resident_pages(cx, range)
    }
}
