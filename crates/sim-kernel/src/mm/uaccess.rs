//! Accesses of the process to its own memory: the processor's walk of the page table and the fault handler behind it
//! (`arch/x86/mm/fault.c`).
//!
//! The access happens under the page-table lock, so that none uses a translation after it was taken away; this stands for the
//! TLB flush that the kernel does before it lets go of a page. An access that is not aligned is made of 32-bit ones.

use super::mm::{Mm, Signal};
use super::phys::User;
use super::vma::Prot;
use crate::{Cx, Hva, PAGE_SIZE, Pfn};

/// Bytes of a word that an unaligned access is made of.
const WORD: u64 = 4;

impl Mm {
    /// Runs `access` on the frame and offset behind the address, after as many faults as it takes.
    fn access<R>(
        &self,
        cx: &Cx<'_>,
        hva: Hva,
        write: bool,
        access: impl Fn(&User<'_>, Pfn, u64) -> R,
    ) -> Result<R, Signal> {
        let user = User::new(&self.phys);
        loop {
            let aborted = {
                let mut tables = self.page_table_lock.lock(cx);
                let pte = tables.pte(hva);
                if pte.permits(write) {
                    tables.mark_young(hva);
                    let done = access(&user, pte.pfn(), hva.0 % PAGE_SIZE);
                    // The kernel finds nothing wrong with the address, and the task would fault again and again.
                    if write && self.phys.take_refusal() {
                        return Err(Signal::Sigbus);
                    }
                    let aborted = user.aborted();
                    if aborted.is_none() {
                        return Ok(done);
                    }
                    aborted
                } else {
                    None
                }
            };
            match aborted {
                // What the hypervisor keeps from the host is no fault of the process's mapping: `SEGV_ACCERR`.
                Some(pfn) if !self.phys.user_abort(cx, pfn) => return Err(Signal::Sigsegv),
                Some(_) => {}
                None => self.do_user_addr_fault(cx, hva, write)?,
            }
        }
    }

    /// `do_user_addr_fault`: finds the area, checks the rights, resolves the fault.
    fn do_user_addr_fault(&self, cx: &Cx<'_>, hva: Hva, write: bool) -> Result<(), Signal> {
        let tree = self.mmap_lock.read(cx);
        let vma = tree.find(hva).ok_or(Signal::Sigsegv)?;
        let allowed = if write { vma.prot.contains(Prot::WRITE) } else { vma.prot.is_accessible() };
        if !allowed {
            return Err(Signal::Sigsegv);
        }
        Ok(self.handle_mm_fault(cx, &tree, vma, hva, write)?)
    }

    /// The process, or the kernel in its place, reads `size` bytes, at most 8, word by word.
    ///
    /// # Errors
    /// As [`Mm::read_u32`].
    pub fn read_words(&self, cx: &Cx<'_>, hva: Hva, size: u64) -> Result<u64, Signal> {
        let mut window = 0;
        for (i, word, _) in words(hva, size)? {
            let read = self.access(cx, word, false, |phys, pfn, offset| phys.read_u32(cx, pfn, offset))?;
            window |= u128::from(read) << (32 * i);
        }
        Ok((window >> (8 * (hva.0 % WORD))) as u64)
    }

    /// The process, or the kernel in its place, writes the low `size` bytes, at most 8, of the value, word by word. Where that is in two pages, both
    /// are made writable before either is changed.
    ///
    /// # Errors
    /// As [`Mm::write_u32`].
    pub fn write_words(&self, cx: &Cx<'_>, hva: Hva, size: u64, value: u64) -> Result<(), Signal> {
        let last = Hva(hva.0.checked_add(size - 1).ok_or(Signal::Sigsegv)?);
        if last.page() != hva.page() {
            self.access(cx, Hva(hva.0 - hva.0 % WORD), true, |_, _, _| ())?;
            self.access(cx, Hva(last.0 - last.0 % WORD), true, |_, _, _| ())?;
        }
        let window = u128::from(value) << (8 * (hva.0 % WORD));
        for (i, word, mask) in words(hva, size)? {
            let part = (window >> (32 * i)) as u32;
            self.access(cx, word, true, |phys, pfn, offset| phys.merge_u32(cx, pfn, offset, part, mask))?;
        }
        Ok(())
    }

    /// The process reads 32 bits.
    ///
    /// # Errors
    /// [`Signal::Sigsegv`] without a mapping that has a right; [`Signal::Sigbus`] if the page cannot be had.
    pub fn read_u32(&self, cx: &Cx<'_>, hva: Hva) -> Result<u32, Signal> {
        if !hva.0.is_multiple_of(4) {
            return Ok(self.read_words(cx, hva, 4)? as u32);
        }
        self.access(cx, hva, false, |phys, pfn, offset| phys.read_u32(cx, pfn, offset))
    }

    /// The process writes 32 bits.
    ///
    /// # Errors
    /// [`Signal::Sigsegv`] without a mapping that may be written; [`Signal::Sigbus`] if the page cannot be had.
    pub fn write_u32(&self, cx: &Cx<'_>, hva: Hva, value: u32) -> Result<(), Signal> {
        if !hva.0.is_multiple_of(4) {
            return self.write_words(cx, hva, 4, u64::from(value));
        }
        self.access(cx, hva, true, |phys, pfn, offset| phys.write_u32(cx, pfn, offset, value))
    }

    /// The process reads 64 bits.
    ///
    /// # Errors
    /// As [`Mm::read_u32`].
    pub fn read_u64(&self, cx: &Cx<'_>, hva: Hva) -> Result<u64, Signal> {
        if !hva.0.is_multiple_of(8) {
            return self.read_words(cx, hva, 8);
        }
        self.access(cx, hva, false, |phys, pfn, offset| phys.read_u64(cx, pfn, offset))
    }

    /// The process writes 64 bits.
    ///
    /// # Errors
    /// As [`Mm::write_u32`].
    pub fn write_u64(&self, cx: &Cx<'_>, hva: Hva, value: u64) -> Result<(), Signal> {
        if !hva.0.is_multiple_of(8) {
            return self.write_words(cx, hva, 8, value);
        }
        self.access(cx, hva, true, |phys, pfn, offset| phys.write_u64(cx, pfn, offset, value))
    }

    /// The kernel replaces 64 bits of the process, if they are `old` (`__try_cmpxchg_user`); says whether they were.
    ///
    /// # Errors
    /// As [`Mm::write_u32`].
    ///
    /// # Panics
    /// If the address is no multiple of 8.
    pub fn cmpxchg_u64(&self, cx: &Cx<'_>, hva: Hva, old: u64, new: u64) -> Result<bool, Signal> {
        self.access(cx, hva, true, |phys, pfn, offset| phys.cmpxchg_u64(cx, pfn, offset, old, new).is_ok())
    }
}

/// The aligned words that `size` bytes at an address lie in: number, address, and which bits of it.
fn words(hva: Hva, size: u64) -> Result<impl Iterator<Item = (u64, Hva, u32)>, Signal> {
    hva.0.checked_add(size).ok_or(Signal::Sigsegv)?;
    let skew = hva.0 % WORD;
    let mask = ((1_u128 << (8 * size)) - 1) << (8 * skew);
    let count = (skew + size).div_ceil(WORD);
    Ok((0..count).map(move |i| (i, Hva(hva.0 - skew + WORD * i), (mask >> (32 * i)) as u32)))
}
