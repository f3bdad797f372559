//! Open files (`struct file`, `fs/file_table.c`): a reference count, and operations that a file system or KVM supplies.
//!
//! The last reference releases the file. From `close` that happens at once; from anywhere else in the kernel it is queued as work
//! for the moment when the task holds no lock any more, which is why a release may take locks that the put happened under.

use crate::mm::{IMmap, Mempolicy};
use crate::mutants::{RC_18, RC_59};
use crate::sync::RefCount;
use crate::{Cx, Errno, Pfn, Pgoff};
use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// What a file answers to `fstat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat {
    /// `st_ino`.
    pub ino: u64,
    /// `st_mode`: type and permission bits.
    pub mode: u32,
    /// `st_nlink`.
    pub nlink: u32,
    /// `st_size`, in bytes.
    pub size: u64,
    /// `st_blksize`, in bytes.
    pub blksize: u64,
    /// `st_blocks`, in units of 512 bytes.
    pub blocks: u64,
}

/// What `mmap` asks a file for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmapRequest {
    /// `MAP_SHARED` rather than `MAP_PRIVATE`.
    pub shared: bool,
    /// First page of the file that is mapped.
    pub pgoff: Pgoff,
    /// Pages that are mapped.
    pub pages: u64,
}

/// A page that a file supplies for a fault (`vm_fault_t` with `VM_FAULT_LOCKED`): locked, with a reference for the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The page.
    pub pfn: Pfn,
}

/// Why a file cannot supply a page (`VM_FAULT_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FaultError {
    /// `VM_FAULT_SIGBUS`: nothing is there, or it may not be touched from the host.
    #[error("SIGBUS")]
    Sigbus,
    /// `VM_FAULT_OOM`: no memory.
    #[error("out of memory")]
    Oom,
    /// `VM_FAULT_HWPOISON`: the page is broken.
    #[error("hardware poison")]
    HwPoison,
}

/// What a kind of file can do (`struct file_operations`, and the parts of `vm_operations_struct` that matter here).
///
/// The defaults are the answers of a kernel whose operation is absent.
pub trait FileOperations: Any + Send + Sync + fmt::Debug {
    /// The last reference is gone: give back everything.
    fn release(&self, cx: &Cx<'_>);

    /// The operations as a concrete type, to recognise one's own files (`file->f_op == &kvm_gmem_fops`).
    fn as_any(&self) -> &dyn Any;

    /// Whether the inode is a regular file (`S_ISREG`).
    fn is_regular(&self) -> bool {
        true
    }

    /// `fallocate`, after the generic checks: `mode` has only known bits, `offset + len` does not overflow.
    ///
    /// # Errors
    /// `EOPNOTSUPP` unless the file can.
    fn fallocate(&self, _cx: &Cx<'_>, _mode: u32, _offset: u64, _len: u64) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// `ftruncate`, `fchmod` and friends end here.
    ///
    /// # Errors
    /// `EINVAL` unless the file can.
    fn truncate(&self, _cx: &Cx<'_>, _size: u64) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    /// `fstat`.
    fn stat(&self, cx: &Cx<'_>) -> Stat;

    /// Whether the file has a position, so that `lseek`, `pread` and `pwrite` can work at all.
    fn is_seekable(&self) -> bool {
        false
    }

    /// `lseek`; returns the new position. `whence` is 0 to 4.
    ///
    /// # Errors
    /// `ESPIPE` unless the file has a position.
    fn seek(&self, _cx: &Cx<'_>, _offset: i64, _whence: u32) -> Result<u64, Errno> {
        Err(Errno::ESPIPE)
    }

    /// Reads up to `len` bytes at `offset`.
    ///
    /// # Errors
    /// `EINVAL` unless the file can.
    fn read_at(&self, _cx: &Cx<'_>, _offset: u64, _len: u64) -> Result<Vec<u8>, Errno> {
        Err(Errno::EINVAL)
    }

    /// Writes bytes at `offset`; returns how many.
    ///
    /// # Errors
    /// `EINVAL` unless the file can.
    fn write_at(&self, _cx: &Cx<'_>, _offset: u64, _bytes: &[u8]) -> Result<u64, Errno> {
        Err(Errno::EINVAL)
    }

    /// `mmap`: may this part of the file be mapped this way?
    ///
    /// # Errors
    /// `ENODEV` unless the file can.
    fn mmap(&self, _cx: &Cx<'_>, _request: &MmapRequest) -> Result<(), Errno> {
        Err(Errno::ENODEV)
    }

    /// Whether a mapping may be made executable (`path_noexec` is false).
    fn may_exec(&self) -> bool {
        true
    }

    /// A mapping touched page `pgoff`: supplies it, locked and referenced.
    ///
    /// # Errors
    /// What the toucher gets instead.
    fn fault(&self, _cx: &Cx<'_>, _pgoff: Pgoff) -> Result<Fault, FaultError> {
        Err(FaultError::Sigbus)
    }

    /// `mbind` of a mapping of these pages (`vm_operations_struct.set_policy`). A file that keeps no policy has none to give back.
    fn set_policy(&self, _cx: &Cx<'_>, _pages: Range<Pgoff>, _policy: Mempolicy) {}

    /// The policy of a page, if the file has one for it (`vm_operations_struct.get_policy`).
    fn get_policy(&self, _cx: &Cx<'_>, _pgoff: Pgoff) -> Option<Mempolicy> {
        None
    }

    /// The memory of a page of the file broke (`memory_failure`, `error_remove_folio`).
    ///
    /// # Errors
    /// What became of it, if it is not simply gone; `EINVAL` unless the file can. Simplified: only guest_memfd can.
    fn memory_failure(&self, _cx: &Cx<'_>, _pgoff: Pgoff) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    /// Where mappings of the file register themselves (`i_mmap`), if it can be mapped.
    fn i_mmap(&self) -> Option<&Arc<IMmap>> {
        None
    }

    /// `mincore` of pages that are not mapped: those of the range that the page cache holds, up to date, ascending. The work is
    /// proportional to what is cached, not to the range.
    fn resident_pages(&self, _cx: &Cx<'_>, _range: Range<Pgoff>) -> Vec<Pgoff> {
        Vec::new()
    }
}

/// An open file.
pub struct File {
    operations: Arc<dyn FileOperations>,
    count: RefCount,
}

impl File {
    /// An open file with one reference.
    pub fn new(cx: &Cx<'_>, operations: Arc<dyn FileOperations>) -> Arc<File> {
        Arc::new(File { operations, count: RefCount::with_rule(cx, "f_ref", 1, "INV-110: ") })
    }

    /// The file's operations.
    pub fn operations(&self) -> &Arc<dyn FileOperations> {
        &self.operations
    }

    /// The operations, if they are of this type.
    pub fn downcast<T: FileOperations>(&self) -> Option<&T> {
        self.operations.as_any().downcast_ref()
    }

    /// `get_file`: one more reference, taken by somebody who has one.
    #[track_caller]
    pub fn get(&self, cx: &Cx<'_>) {
        self.count.get(cx);
    }

    /// `get_file_active`: one more reference unless the file is being released.
    #[track_caller]
    #[must_use]
    pub fn get_if_live(&self, cx: &Cx<'_>) -> bool {
        self.count.get_if_live(cx)
    }

    /// `fput`: one reference less; the release is queued for when the task holds no kernel lock.
    #[track_caller]
    pub fn put(self: &Arc<File>, cx: &Cx<'_>) {
        if self.count.put(cx) {
            if cx.has_mutant(RC_59) {
                return self.operations.release(cx);
            }
            let file = Arc::clone(self);
            cx.task_work_add(Box::new(move |cx| file.operations.release(cx)));
        }
    }

    /// `__fput_sync`: one reference less, released here and now if it was the last.
    #[track_caller]
    pub fn put_sync(&self, cx: &Cx<'_>) {
        if self.count.put(cx) || cx.has_mutant(RC_18) {
            self.operations.release(cx);
        }
    }

    /// References, for checkers.
    pub fn references(&self) -> u64 {
        self.count.peek()
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("operations", &self.operations).field("count", &self.count).finish()
    }
}
