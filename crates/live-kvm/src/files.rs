//! Calls on descriptors: `fallocate`, `ftruncate`, `fstat`, `pread`, `pwrite`, `lseek`, `dup`, `close`, `memfd_create`.
//!
//! Simplified: data that is read goes nowhere, and data that is written is zero: traces hold lengths, not contents.

use crate::memory::Buffer;
use crate::process::check;
use crate::{Failure, Process, Result, Stat};

/// `MAX_RW_COUNT`: no read or write moves more.
const RW_MAX: usize = 0x7fff_f000;
/// `FALLOC_FL_PUNCH_HOLE`
const PUNCH_HOLE: i32 = 2;

/// Whether pages can be allocated behind the file's end: not in a guest_memfd, whose inode is of one of two file systems by release. A file that
/// cannot be asked is taken for another.
fn has_pages_behind_its_end(fd: i32) -> bool {
    /// `ANON_INODE_FS_MAGIC` and `GUEST_MEMFD_MAGIC`
    const OF_GUEST_MEMFD: [i64; 2] = [0x0904_1934, 0x474d_454d];
    // SAFETY: an all-zero statfs is valid.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is written by the call, and lives.
    let result = unsafe { libc::fstatfs(fd, &raw mut stat) };
    result != 0 || !OF_GUEST_MEMFD.contains(&stat.f_type)
}

impl Process {
    /// `memfd_create` and the `ftruncate` that gives it `size`.
    ///
    /// # Errors
    /// Either call's errno.
    pub fn memfd_create(&mut self, size: u64, flags: u32) -> Result<i32> {
        // SAFETY: the name is a C string.
        let fd = check(unsafe { libc::memfd_create(c"gmem".as_ptr(), flags) }.into())? as i32;
        match self.ftruncate(fd, size as i64) {
            Ok(()) => Ok(fd),
            Err(failure) => {
                self.close(fd).ok();
                Err(failure)
            }
        }
    }

    /// `fallocate(2)`
    ///
    /// # Errors
    /// The kernel's errno; refused if it may allocate more than allowed.
    pub fn fallocate(&mut self, fd: i32, mode: u32, offset: i64, len: i64) -> Result<()> {
        if mode as i32 & PUNCH_HOLE == 0 && offset >= 0 && len > 0 && offset.checked_add(len).is_some() && fd >= 0 {
            // A guest_memfd has nothing behind its end. A memory file has, whether it grows or keeps its size.
            let size = self.fstat(fd).map_or(u64::MAX, |stat| stat.size);
            if offset as u64 + len as u64 <= size || has_pages_behind_its_end(fd) {
                self.affordable("fallocate", len as u64)?;
            }
        }
        // SAFETY: no memory is passed.
        check(unsafe { libc::fallocate(fd, mode as i32, offset, len) }.into()).map(drop)
    }

    /// `ftruncate(2)`
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn ftruncate(&mut self, fd: i32, size: i64) -> Result<()> {
        // SAFETY: no memory is passed.
        check(unsafe { libc::ftruncate(fd, size) }.into()).map(drop)
    }

    /// `fstat(2)`
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn fstat(&mut self, fd: i32) -> Result<Stat> {
        // SAFETY: an all-zero stat is valid.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is written by the call, and lives.
        check(unsafe { libc::fstat(fd, &raw mut stat) }.into())?;
        Ok(Stat {
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            blksize: stat.st_blksize as u64,
            mode: stat.st_mode.into(),
            nlink: stat.st_nlink,
        })
    }

    /// `pread(2)` of `len` bytes, which are thrown away.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn pread(&mut self, fd: i32, offset: i64, len: i64) -> Result<u64> {
        let buffer = Buffer::new(RW_MAX)?;
        // SAFETY: the kernel moves RW_MAX bytes at most, and fails where `len` is negative.
        check(unsafe { libc::pread(fd, buffer.pointer(), len as usize, offset) } as i64)
    }

    /// `pwrite(2)` of `len` zero bytes.
    ///
    /// # Errors
    /// The kernel's errno; refused if it may allocate more than allowed.
    pub fn pwrite(&mut self, fd: i32, offset: i64, len: i64) -> Result<u64> {
        if len > 0 {
            self.affordable("pwrite", (len as u64).min(RW_MAX as u64))?;
        }
        let buffer = Buffer::new(RW_MAX)?;
        // SAFETY: as in `pread`; the buffer is only read.
        check(unsafe { libc::pwrite(fd, buffer.pointer(), len as usize, offset) } as i64)
    }

    /// `lseek(2)`
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn lseek(&mut self, fd: i32, offset: i64, whence: u32) -> Result<u64> {
        // SAFETY: no memory is passed.
        check(unsafe { libc::lseek(fd, offset, whence as i32) })
    }

    /// `dup(2)`
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn dup(&mut self, fd: i32) -> Result<i32> {
        // SAFETY: no memory is passed.
        let new = check(unsafe { libc::dup(fd) }.into())? as i32;
        if let Some(code) = self.codes.get(&fd).cloned() {
            self.codes.insert(new, code);
        }
        Ok(new)
    }

    /// `close(2)`
    ///
    /// # Errors
    /// The kernel's errno; refused for descriptors of the recorder itself.
    pub fn close(&mut self, fd: i32) -> Result<()> {
        if (0..=self.kvm()).contains(&fd) {
            return Err(Failure::Refused(format!(
                "close: not done, because {fd} is a descriptor of the recorder itself"
            )));
        }
        self.codes.remove(&fd);
        // SAFETY: the descriptor is the trace's: it was made after `/dev/kvm` was opened, and nobody else holds it.
        check(unsafe { libc::close(fd) }.into()).map(drop)
    }
}
