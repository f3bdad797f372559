//! Calls on the address space: `mmap`, `munmap`, `mprotect`, `madvise`, `mincore`, `mlock`, and accesses.

use crate::maps;
use crate::process::{check, last_errno};
use crate::{Failure, Process, Result, access};

const PAGE: u64 = 4096;

impl Process {
    /// `mmap(2)` of `fd`, or of anonymous memory, at a multiple of `align`.
    ///
    /// # Errors
    /// The kernel's errno; refused if the arena is full.
    pub fn mmap(&mut self, fd: Option<i32>, len: u64, prot: i32, shared: bool, offset: u64, align: u64) -> Result<u64> {
        if !align.is_power_of_two() {
            return Err(Failure::Refused(format!("mmap: not done, because {align} is no alignment")));
        }
        let sharing = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let anonymous = if fd.is_none() { libc::MAP_ANONYMOUS } else { 0 };
        // What has no place is asked for without one: the kernel says what is wrong with it.
        let rounded = len.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        let place = if len == 0 { None } else { maps::place(rounded, align.max(PAGE))? };
        if place.is_none() && len != 0 && len < 1 << 46 {
            return Err(Failure::Refused("mmap: not done, because the recorder has no room left for it".into()));
        }
        let fixed = if place.is_some() { libc::MAP_FIXED_NOREPLACE } else { 0 };
        let hint = place.map_or(std::ptr::null_mut(), |start| start as *mut libc::c_void);
        // SAFETY: at a fixed place nothing is replaced; elsewhere the kernel finds free space.
        let address = unsafe {
            libc::mmap64(hint, len as usize, prot, sharing | anonymous | fixed, fd.unwrap_or(-1), offset as i64)
        };
        if address == libc::MAP_FAILED { Err(last_errno()) } else { Ok(address as u64) }
    }

    /// `munmap(2)`
    ///
    /// # Errors
    /// The kernel's errno; refused for memory of the recorder itself.
    pub fn munmap(&mut self, addr: u64, len: u64) -> Result<()> {
        maps::guard("munmap", addr, len)?;
        // SAFETY: nothing of this program is mapped there.
        check(unsafe { libc::munmap(addr as *mut _, len as usize) }.into()).map(drop)
    }

    /// `mprotect(2)`
    ///
    /// # Errors
    /// The kernel's errno; refused for memory of the recorder itself.
    pub fn mprotect(&mut self, addr: u64, len: u64, prot: i32) -> Result<()> {
        maps::guard("mprotect", addr, len)?;
        // SAFETY: nothing of this program is mapped there.
        check(unsafe { libc::mprotect(addr as *mut _, len as usize, prot) }.into()).map(drop)
    }

    /// `madvise(2)`
    ///
    /// # Errors
    /// The kernel's errno; refused for memory of the recorder itself, if it may allocate more than allowed, and for
    /// `MADV_HWPOISON` and `MADV_SOFT_OFFLINE`, which take pages of the real machine away.
    pub fn madvise(&mut self, addr: u64, len: u64, advice: i32) -> Result<()> {
        maps::guard("madvise", addr, len)?;
        match advice {
            libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE => self.affordable("madvise", len)?,
            libc::MADV_HWPOISON | libc::MADV_SOFT_OFFLINE => {
                let why = "madvise: not done, because it would take memory away from the real machine";
                return Err(Failure::Refused(why.into()));
            }
            _ => {}
        }
        // SAFETY: nothing of this program is mapped there.
        check(unsafe { libc::madvise(addr as *mut _, len as usize, advice) }.into()).map(drop)
    }

    /// `mincore(2)`: the numbers of the pages that are resident.
    ///
    /// # Errors
    /// The kernel's errno; refused for more pages than this program keeps a byte for.
    pub fn mincore(&mut self, addr: u64, len: u64) -> Result<Vec<u64>> {
        const PAGES_MAX: u64 = 1 << 26;
        let pages = len.div_ceil(PAGE);
        if pages > PAGES_MAX {
            let why =
                format!("mincore: not done, because the recorder keeps a byte for {PAGES_MAX} pages, not {pages}");
            return Err(Failure::Refused(why));
        }
        let mut vector = vec![0u8; pages as usize];
        // SAFETY: the kernel writes a byte a page, for which there is room.
        check(unsafe { libc::mincore(addr as *mut _, len as usize, vector.as_mut_ptr()) }.into())?;
        Ok((0..).zip(vector).filter(|(_, resident)| resident & 1 == 1).map(|(page, _)| page).collect())
    }

    /// `mlock(2)`
    ///
    /// # Errors
    /// The kernel's errno; refused for memory of the recorder itself, or more than allowed.
    pub fn mlock(&mut self, addr: u64, len: u64) -> Result<()> {
        maps::guard("mlock", addr, len)?;
        self.affordable("mlock", len)?;
        // SAFETY: locking changes no contents.
        check(unsafe { libc::mlock(addr as *const _, len as usize) }.into()).map(drop)
    }

    /// A 32-bit load.
    ///
    /// # Errors
    /// The signal; refused for memory of the recorder itself.
    pub fn load(&mut self, addr: u64) -> Result<u32> {
        maps::guard("host_read", addr, 4)?;
        access::load(addr)
    }

    /// A 32-bit store.
    ///
    /// # Errors
    /// The signal; refused for memory of the recorder itself.
    pub fn store(&mut self, addr: u64, value: u32) -> Result<()> {
        maps::guard("host_write", addr, 4)?;
        access::store(addr, value)
    }

    /// A 64-bit load.
    ///
    /// # Errors
    /// As [`Process::load`].
    pub fn load64(&mut self, addr: u64) -> Result<u64> {
        maps::guard("host_read64", addr, 8)?;
        access::load64(addr)
    }

    /// A 64-bit store.
    ///
    /// # Errors
    /// As [`Process::store`].
    pub fn store64(&mut self, addr: u64, value: u64) -> Result<()> {
        maps::guard("host_write64", addr, 8)?;
        access::store64(addr, value)
    }

    /// A 64-bit store to the first word of every page of a range, in order, until one faults.
    ///
    /// # Errors
    /// As [`Process::store`]; refused if it may take more memory than allowed.
    pub fn fill64(&mut self, addr: u64, len: u64, value: u64) -> Result<()> {
        self.affordable("host_fill64", len)?;
        (0..len).step_by(4096).try_for_each(|page| self.store64(addr.wrapping_add(page), value))
    }
}

/// Anonymous memory of this program, of which only what is touched exists.
#[derive(Debug)]
pub(crate) struct Buffer {
    address: *mut libc::c_void,
    len: usize,
}

impl Buffer {
    pub(crate) fn new(len: usize) -> Result<Buffer> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the kernel finds free space.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(Failure::Refused(format!("no memory for a buffer: {}", last_errno())));
        }
        Ok(Buffer { address, len })
    }

    pub(crate) fn pointer(&self) -> *mut libc::c_void {
        self.address
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's.
        unsafe { libc::munmap(self.address, self.len) };
    }
}
