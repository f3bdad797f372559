//! A process of the host: the VMM. Its address space, its descriptors, and the plain system calls on files.
//!
//! The checks of `fallocate` that every file system shares are here (`vfs_fallocate`), as are those of `mmap` that come before the
//! file is looked at.

use super::host::Host;
use super::uapi::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE};
use sim_kernel::fs::{FdTable, File, RawFd, Shmem, Stat};
use sim_kernel::mm::{Advice, Mempolicy, Mm, MmapArgs, Prot, Signal};
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE};
use std::fmt;
use std::sync::Arc;

/// `fallocate` modes besides KEEP_SIZE and PUNCH_HOLE.
const FALLOC_FL_COLLAPSE_RANGE: u32 = 0x08;
const FALLOC_FL_ZERO_RANGE: u32 = 0x10;
const FALLOC_FL_INSERT_RANGE: u32 = 0x20;
const FALLOC_FL_UNSHARE_RANGE: u32 = 0x40;
const FALLOC_FL_WRITE_ZEROES: u32 = 0x80;
const FALLOC_FL_MODE_MASK: u32 = FALLOC_FL_PUNCH_HOLE
    | FALLOC_FL_COLLAPSE_RANGE
    | FALLOC_FL_ZERO_RANGE
    | FALLOC_FL_INSERT_RANGE
    | FALLOC_FL_UNSHARE_RANGE
    | FALLOC_FL_WRITE_ZEROES;

/// Largest file offset.
const MAX_LFS_FILESIZE: u64 = i64::MAX as u64;

/// A process.
pub struct Process {
    pub(crate) host: Arc<Host>,
    pub(crate) mm: Arc<Mm>,
    pub(crate) fds: Arc<FdTable>,
}

/// What `mmap` maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// Anonymous memory.
    Anonymous,
    /// A file, from this byte on.
    File {
        /// Descriptor of the file.
        fd: RawFd,
        /// First byte, a multiple of the page size.
        offset: u64,
    },
}

/// Whether stores go to the file or to a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// `MAP_SHARED`.
    Shared,
    /// `MAP_PRIVATE`.
    Private,
}

impl Process {
    pub(crate) fn new(cx: &Cx<'_>, host: &Arc<Host>) -> Arc<Process> {
        Arc::new(Process {
            host: Arc::clone(host),
            mm: Mm::with_huge_pages(cx, Arc::clone(&host.phys), host.config.huge_pages()),
            fds: Arc::new(FdTable::new(cx, host.config.files_max)),
        })
    }

    /// The address space.
    pub fn mm(&self) -> &Arc<Mm> {
        &self.mm
    }

    /// The descriptors.
    pub fn fds(&self) -> &FdTable {
        &self.fds
    }

    /// The host that the process runs on.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Puts a new file into the descriptor table; on failure the file is released.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(crate) fn install(&self, cx: &Cx<'_>, file: Arc<File>) -> Result<RawFd, Errno> {
        self.fds.install(cx, Arc::clone(&file)).inspect_err(|_| file.put_sync(cx))
    }

    /// Ends a system call: work that was put off until no lock is held runs now.
    fn finish<R>(&self, cx: &Cx<'_>, result: R) -> R {
        super::ioctl::return_to_user(cx);
        result
    }

    /// `fallocate(2)`.
    ///
    /// # Errors
    /// In this order: `EBADF` for a descriptor that is not open; `EINVAL` for a negative offset or a length that is not positive;
    /// `EOPNOTSUPP` for modes that do not exist; `ENODEV` for what is no regular file; `EFBIG`; then what the file answers.
    pub fn fallocate(&self, cx: &Cx<'_>, fd: RawFd, mode: u32, offset: i64, len: i64) -> Result<(), Errno> {
        cx.note("call", "fallocate");
        let result = self.fds.with(cx, fd, |file| {
            if offset < 0 || len <= 0 {
                return Err(Errno::EINVAL);
            }
            check_fallocate_mode(mode)?;
            if !file.operations().is_regular() {
                return Err(Errno::ENODEV);
            }
            let (offset, len) = (offset as u64, len as u64);
            if offset + len > MAX_LFS_FILESIZE {
                return Err(Errno::EFBIG);
            }
            file.operations().fallocate(cx, mode, offset, len)
        });
        self.finish(cx, result)
    }

    /// `ftruncate(2)`.
    ///
    /// # Errors
    /// `EINVAL` for a negative size; `EBADF`; then what the file answers.
    pub fn ftruncate(&self, cx: &Cx<'_>, fd: RawFd, size: i64) -> Result<(), Errno> {
        cx.note("call", "ftruncate");
        if size < 0 {
            return Err(Errno::EINVAL);
        }
        let result = self.fds.with(cx, fd, |file| file.operations().truncate(cx, size as u64));
        self.finish(cx, result)
    }

    /// `fstat(2)`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn fstat(&self, cx: &Cx<'_>, fd: RawFd) -> Result<Stat, Errno> {
        cx.note("call", "fstat");
        let result = self.fds.with(cx, fd, |file| Ok(file.operations().stat(cx)));
        self.finish(cx, result)
    }

    /// `pread(2)`.
    ///
    /// # Errors
    /// `EINVAL` for a negative offset; `EBADF`; `ESPIPE` for a file without a position; then what the file answers.
    pub fn pread(&self, cx: &Cx<'_>, fd: RawFd, offset: i64, len: u64) -> Result<Vec<u8>, Errno> {
        cx.note("call", "pread");
        if offset < 0 {
            return Err(Errno::EINVAL);
        }
        let result = self.fds.with(cx, fd, |file| {
            if !file.operations().is_seekable() {
                return Err(Errno::ESPIPE);
            }
            file.operations().read_at(cx, offset as u64, len)
        });
        self.finish(cx, result)
    }

    /// `pwrite(2)`; returns the number of bytes written.
    ///
    /// # Errors
    /// As [`Process::pread`].
    pub fn pwrite(&self, cx: &Cx<'_>, fd: RawFd, offset: i64, bytes: &[u8]) -> Result<u64, Errno> {
        cx.note("call", "pwrite");
        if offset < 0 {
            return Err(Errno::EINVAL);
        }
        let result = self.fds.with(cx, fd, |file| {
            if !file.operations().is_seekable() {
                return Err(Errno::ESPIPE);
            }
            file.operations().write_at(cx, offset as u64, bytes)
        });
        self.finish(cx, result)
    }

    /// `read(2)`: at the file's position, which moves on.
    ///
    /// Simplified: without `f_pos_lock`, so that two threads may start at the same place of one open file.
    ///
    /// # Errors
    /// `EBADF`; then what the file answers: `EINVAL` from one that cannot be read.
    pub fn read(&self, cx: &Cx<'_>, fd: RawFd, len: u64) -> Result<Vec<u8>, Errno> {
        let result = self.fds.with(cx, fd, |file| {
            let operations = file.operations();
            let bytes = operations.read_at(cx, position(cx, file)?, len)?;
            advance(cx, file, bytes.len() as u64)?;
            Ok(bytes)
        });
        self.finish(cx, result)
    }

    /// `write(2)`: at the file's position, which moves on; returns the number of bytes written. Simplified as [`Process::read`].
    ///
    /// # Errors
    /// `EBADF`; then what the file answers: `EINVAL` from one that cannot be written.
    pub fn write(&self, cx: &Cx<'_>, fd: RawFd, bytes: &[u8]) -> Result<u64, Errno> {
        let result = self.fds.with(cx, fd, |file| {
            let done = file.operations().write_at(cx, position(cx, file)?, bytes)?;
            advance(cx, file, done)?;
            Ok(done)
        });
        self.finish(cx, result)
    }

    /// `lseek(2)`; returns the new position.
    ///
    /// # Errors
    /// `EBADF`; `EINVAL` for an unknown `whence`; `ESPIPE` for a file without a position; then what the file answers.
    pub fn lseek(&self, cx: &Cx<'_>, fd: RawFd, offset: i64, whence: u32) -> Result<u64, Errno> {
        cx.note("call", "lseek");
        let result = self.fds.with(cx, fd, |file| {
            if whence > 4 {
                return Err(Errno::EINVAL);
            }
            file.operations().seek(cx, offset, whence)
        });
        self.finish(cx, result)
    }

    /// `dup(2)`.
    ///
    /// # Errors
    /// `EBADF`, `EMFILE`.
    pub fn dup(&self, cx: &Cx<'_>, fd: RawFd) -> Result<RawFd, Errno> {
        cx.note("call", "dup");
        let result = self.fds.dup(cx, fd);
        self.finish(cx, result)
    }

    /// Gives another process a descriptor of the same file, as `SCM_RIGHTS` does and as a child has it after `fork`; returns its
    /// number there.
    ///
    /// # Errors
    /// `EBADF`; `EMFILE` if the other process has as many descriptors as it may.
    pub fn send_fd(&self, cx: &Cx<'_>, fd: RawFd, to: &Process) -> Result<RawFd, Errno> {
        let file = self.fds.get(cx, fd)?;
        let result = to.fds.install(cx, Arc::clone(&file)).inspect_err(|_| file.put(cx));
        self.finish(cx, result)
    }

    /// `close(2)`: the last reference releases the file before this returns.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn close(&self, cx: &Cx<'_>, fd: RawFd) -> Result<(), Errno> {
        cx.note("call", "close");
        self.fds.close(cx, fd)
    }

    /// `memfd_create(2)`: an ordinary file in memory, of this size.
    ///
    /// # Errors
    /// `EINVAL` for flags that do not exist; `EMFILE`.
    pub fn memfd_create(&self, cx: &Cx<'_>, size: u64, flags: u32) -> Result<RawFd, Errno> {
        cx.note("call", "memfd_create");
        // MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL, MFD_EXEC.
        if flags & !(1 | 2 | 8 | 16) != 0 || flags & (8 | 16) == (8 | 16) {
            return Err(Errno::EINVAL);
        }
        if size > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        let ino = u64::from(self.host.new_ino());
        let file = Shmem::new(cx, Arc::clone(&self.host.phys), ino, size);
        let file = if flags & 8 != 0 { file.not_executable() } else { file };
        self.install(cx, File::new(cx, Arc::new(file)))
    }

    /// `mmap(2)` at an address of the kernel's choice, a multiple of `align`.
    ///
    /// # Errors
    /// In this order: `EINVAL` for an unaligned offset; `EBADF`; `EINVAL` for an empty mapping; `EOVERFLOW`; then what the file answers;
    /// `ENOMEM`.
    pub fn mmap(
        &self,
        cx: &Cx<'_>,
        len: u64,
        prot: Prot,
        sharing: Sharing,
        mapped: Mapped,
        align: u64,
    ) -> Result<Hva, Errno> {
        cx.note("call", "mmap");
        let shared = sharing == Sharing::Shared;
        let result = match mapped {
            Mapped::Anonymous => self.mm.mmap(cx, &MmapArgs { len, prot, shared, file: None, offset: 0, align }),
            Mapped::File { offset, .. } if !offset.is_multiple_of(PAGE_SIZE) => Err(Errno::EINVAL),
            Mapped::File { fd, offset } => self.fds.with(cx, fd, |file| {
                self.mm.mmap(cx, &MmapArgs { len, prot, shared, file: Some(file), offset, align })
            }),
        };
        self.finish(cx, result)
    }

    /// `munmap(2)`.
    ///
    /// # Errors
    /// `EINVAL` for an unaligned address or an empty range.
    pub fn munmap(&self, cx: &Cx<'_>, addr: Hva, len: u64) -> Result<(), Errno> {
        cx.note("call", "munmap");
        let result = self.mm.munmap(cx, addr, len);
        self.finish(cx, result)
    }

    /// `mprotect(2)`.
    ///
    /// # Errors
    /// `EINVAL`, `ENOMEM`, `EACCES`.
    pub fn mprotect(&self, cx: &Cx<'_>, addr: Hva, len: u64, prot: Prot) -> Result<(), Errno> {
        cx.note("call", "mprotect");
        let result = self.mm.mprotect(cx, addr, len, prot);
        self.finish(cx, result)
    }

    /// `madvise(2)`.
    ///
    /// # Errors
    /// `EINVAL`, `ENOMEM`, `EACCES`, `EFAULT`, as the advice has it.
    pub fn madvise(&self, cx: &Cx<'_>, addr: Hva, len: u64, advice: Advice) -> Result<(), Errno> {
        cx.note("call", "madvise");
        let result = match advice {
            Advice::Hwpoison if self.host.config.memory_failure => self.mm.inject_memory_failure(cx, addr, len),
            _ => self.mm.madvise(cx, addr, len, advice),
        };
        self.finish(cx, result)
    }

    /// `mincore(2)`: the pages that are resident, counted from the start of the range.
    ///
    /// # Errors
    /// `EINVAL`, `ENOMEM`.
    pub fn mincore(&self, cx: &Cx<'_>, addr: Hva, len: u64) -> Result<Vec<u64>, Errno> {
        cx.note("call", "mincore");
        self.mm.mincore(cx, addr, len)
    }

    /// Writes ones for a range's pages to `/sys/kernel/mm/page_idle/bitmap`, as root.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn page_idle_mark(&self, cx: &Cx<'_>, addr: Hva, len: u64) -> Result<(), Errno> {
        self.mm.page_idle_mark(cx, addr, len)
    }

    /// Reads there which of a range's pages are idle, counted from the start of the range.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn page_idle_read(&self, cx: &Cx<'_>, addr: Hva, len: u64) -> Result<Vec<u64>, Errno> {
        self.mm.page_idle_read(cx, addr, len)
    }

    /// `mlock(2)`.
    ///
    /// # Errors
    /// `EINVAL`, `ENOMEM`.
    pub fn mlock(&self, cx: &Cx<'_>, addr: Hva, len: u64) -> Result<(), Errno> {
        cx.note("call", "mlock");
        let result = self.mm.mlock(cx, addr, len);
        self.finish(cx, result)
    }

    /// `mbind(2)`: `nodes` is the mask of nodes, without flags.
    ///
    /// # Errors
    /// `EINVAL` for an address that is not page-aligned, a mode that does not exist and nodes that do not fit it; `EFAULT` if part of the range is
    /// not mapped.
    pub fn mbind(&self, cx: &Cx<'_>, addr: Hva, len: u64, mode: u32, nodes: u64) -> Result<(), Errno> {
        let result = self.mm.mbind(cx, addr, len, mode, nodes);
        self.finish(cx, result)
    }

    /// `get_mempolicy(2)` with `MPOL_F_ADDR`.
    ///
    /// # Errors
    /// `EFAULT` if nothing is mapped there.
    pub fn get_mempolicy(&self, cx: &Cx<'_>, addr: Hva) -> Result<Mempolicy, Errno> {
        self.mm.get_mempolicy(cx, addr)
    }

    /// `move_pages(2)` without nodes to move to: the node on which a page lies.
    ///
    /// # Errors
    /// `EFAULT` if nothing is mapped there; `ENOENT` if no page is.
    pub fn page_node(&self, cx: &Cx<'_>, addr: Hva) -> Result<u32, Errno> {
        self.mm.page_node(cx, addr)
    }

    /// The process loads a 32-bit word.
    ///
    /// # Errors
    /// The signal that it gets instead.
    pub fn read_u32(&self, cx: &Cx<'_>, addr: Hva) -> Result<u32, Signal> {
        self.mm.read_u32(cx, addr)
    }

    /// The process stores a 32-bit word.
    ///
    /// # Errors
    /// The signal that it gets instead.
    pub fn write_u32(&self, cx: &Cx<'_>, addr: Hva, value: u32) -> Result<(), Signal> {
        self.mm.write_u32(cx, addr, value)
    }

    /// The process loads a 64-bit word.
    ///
    /// # Errors
    /// The signal that it gets instead.
    pub fn read_u64(&self, cx: &Cx<'_>, addr: Hva) -> Result<u64, Signal> {
        self.mm.read_u64(cx, addr)
    }

    /// The process stores a 64-bit word.
    ///
    /// # Errors
    /// The signal that it gets instead.
    pub fn write_u64(&self, cx: &Cx<'_>, addr: Hva, value: u64) -> Result<(), Signal> {
        self.mm.write_u64(cx, addr, value)
    }

    /// The process ends: its memory goes, then its descriptors are closed.
    pub fn exit(&self, cx: &Cx<'_>) {
        self.mm.exit_mmap(cx);
        cx.task_work_run();
        self.fds.close_all(cx);
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("fds", &self.fds).finish_non_exhaustive()
    }
}

/// `SEEK_CUR`.
const SEEK_CUR: u32 = 1;

/// `f_pos`; 0 for a file that has none.
fn position(cx: &Cx<'_>, file: &File) -> Result<u64, Errno> {
    if file.operations().is_seekable() { file.operations().seek(cx, 0, SEEK_CUR) } else { Ok(0) }
}

fn advance(cx: &Cx<'_>, file: &File, by: u64) -> Result<(), Errno> {
    if file.operations().is_seekable() { file.operations().seek(cx, by as i64, SEEK_CUR).map(|_| ()) } else { Ok(()) }
}

/// `vfs_fallocate`'s checks of the mode.
fn check_fallocate_mode(mode: u32) -> Result<(), Errno> {
    if mode & !(FALLOC_FL_MODE_MASK | FALLOC_FL_KEEP_SIZE) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let keep_size = mode & FALLOC_FL_KEEP_SIZE != 0;
    match mode & FALLOC_FL_MODE_MASK {
        0 | FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_ZERO_RANGE => Ok(()),
        FALLOC_FL_PUNCH_HOLE if keep_size => Ok(()),
        FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE | FALLOC_FL_WRITE_ZEROES if !keep_size => Ok(()),
        _ => Err(Errno::EOPNOTSUPP),
    }
}
