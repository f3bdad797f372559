//! File descriptors (`fs/file.c`): small numbers that name open files within a process.

use super::file::File;
use crate::sched::{Access, ObjId};
use crate::{Cx, Errno};
use std::fmt;
use std::sync::Arc;

/// A file descriptor number, as system calls pass it.
pub type RawFd = i32;

/// The descriptors of a process.
pub struct FdTable {
    object: ObjId,
    /// `RLIMIT_NOFILE`.
    limit: usize,
    files: parking_lot::Mutex<Files>,
}

/// Standard streams have the first three numbers.
const FIRST: RawFd = 3;

/// What the numbers name (`struct fdtable`).
#[derive(Debug, Default)]
struct Files {
    /// By number, from [`FIRST`].
    open: Vec<Option<Arc<File>>>,
    /// How many of them name something.
    count: usize,
    /// `next_fd`: no number below it names nothing.
    next: usize,
}

impl Files {
    fn slot(fd: RawFd) -> Option<usize> {
        usize::try_from(fd.checked_sub(FIRST)?).ok()
    }

    fn get(&self, fd: RawFd) -> Option<&Arc<File>> {
        self.open.get(Files::slot(fd)?)?.as_ref()
    }

    /// The lowest number that names nothing.
    fn lowest_free(&mut self) -> RawFd {
        while self.open.get(self.next).is_some_and(Option::is_some) {
            self.next += 1;
        }
        self.next as RawFd + FIRST
    }

    /// Gives the lowest number to a file.
    fn insert(&mut self, file: Arc<File>) -> RawFd {
        let fd = self.lowest_free();
        match self.open.get_mut(self.next) {
            Some(slot) => *slot = Some(file),
            None => self.open.push(Some(file)),
        }
        self.count += 1;
        fd
    }

    fn remove(&mut self, fd: RawFd) -> Option<Arc<File>> {
        let slot = Files::slot(fd)?;
        let file = self.open.get_mut(slot)?.take()?;
        self.count -= 1;
        self.next = self.next.min(slot);
        Some(file)
    }
}

impl FdTable {
    /// An empty table with numbers 0 to 2 taken (standard streams), and at most `limit` descriptors.
    pub fn new(cx: &Cx<'_>, limit: usize) -> FdTable {
        FdTable { object: cx.new_object("files_struct"), limit, files: Default::default() }
    }

    /// Installs a file under the lowest free number; the table takes over the caller's reference.
    ///
    /// # Errors
    /// `EMFILE` if the process has as many descriptors as it may.
    pub fn install(&self, cx: &Cx<'_>, file: Arc<File>) -> Result<RawFd, Errno> {
        cx.point(Access::Store, self.object, 0);
        let mut files = self.files.lock();
        if files.lowest_free() as usize >= self.limit {
            return Err(Errno::EMFILE);
        }
        Ok(files.insert(file))
    }

    /// Whether a descriptor could be installed now.
    ///
    /// # Errors
    /// `EMFILE` if not.
    pub fn reserve(&self) -> Result<(), Errno> {
        if self.len() + FIRST as usize >= self.limit { Err(Errno::EMFILE) } else { Ok(()) }
    }

    /// `fget`: the file behind a descriptor, with a reference for the caller, who must put it.
    ///
    /// # Errors
    /// `EBADF` if the number names nothing.
    #[track_caller]
    pub fn get(&self, cx: &Cx<'_>, fd: RawFd) -> Result<Arc<File>, Errno> {
        cx.point(Access::Load, self.object, 0);
        let file = self.files.lock().get(fd).cloned().ok_or(Errno::EBADF)?;
        // The table's own reference keeps the count above zero until `close` took it out.
        if file.get_if_live(cx) { Ok(file) } else { Err(Errno::EBADF) }
    }

    /// The file behind a descriptor, without a scheduling point and without a reference that counts: for reports.
    pub fn peek(&self, fd: RawFd) -> Option<Arc<File>> {
        self.files.lock().get(fd).cloned()
    }

    /// Runs `body` with the file behind a descriptor and puts the reference afterwards.
    ///
    /// # Errors
    /// `EBADF` if the number names nothing; otherwise what `body` returns.
    #[track_caller]
    pub fn with<R>(
        &self,
        cx: &Cx<'_>,
        fd: RawFd,
        body: impl FnOnce(&Arc<File>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let file = self.get(cx, fd)?;
        let result = body(&file);
        file.put(cx);
        result
    }

    /// `dup`: another number for the same file.
    ///
    /// # Errors
    /// `EBADF`, `EMFILE`.
    pub fn dup(&self, cx: &Cx<'_>, fd: RawFd) -> Result<RawFd, Errno> {
        let file = self.get(cx, fd)?;
        self.install(cx, Arc::clone(&file)).inspect_err(|_| file.put(cx))
    }

    /// `close`: forgets the number and puts the table's reference; the last one releases the file before this returns.
    ///
    /// # Errors
    /// `EBADF` if the number names nothing.
    #[track_caller]
    pub fn close(&self, cx: &Cx<'_>, fd: RawFd) -> Result<(), Errno> {
        cx.point(Access::Store, self.object, 0);
        let file = self.files.lock().remove(fd).ok_or(Errno::EBADF)?;
        file.put_sync(cx);
        cx.task_work_run();
        Ok(())
    }

    /// Closes every descriptor, in ascending order, as process exit does.
    pub fn close_all(&self, cx: &Cx<'_>) {
        let mut slot = 0;
        loop {
            let is_open = match self.files.lock().open.get(slot) {
                Some(file) => file.is_some(),
                None => return,
            };
            if is_open {
                self.close(cx, slot as RawFd + FIRST).expect("the descriptor was just seen");
            }
            slot += 1;
        }
    }

    /// Open descriptors.
    pub fn len(&self) -> usize {
        self.files.lock().count
    }

    /// Whether no descriptor is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for FdTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FdTable").field("files", &self.files.lock().open).finish_non_exhaustive()
    }
}
