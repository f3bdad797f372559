//! `KVM_GET_DIRTY_LOG` and `KVM_CLEAR_DIRTY_LOG`: which pages of a slot the guest wrote, and starting over
//! (`kvm_get_dirty_log_protect`, `kvm_clear_dirty_log_protect`).
//!
//! Getting starts over by itself, unless the VM has `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`: then user space clears what it has dealt
//! with. Clearing works without the capability too.

use super::memslots::{DirtyBitmap, Memslot, SlotId};
use super::mutants::{COLLECT_NO_FLUSH, FLUSH_BY_SPTE, PML_CLEAR_ALL, PROTECT_THEN_TAKE};
use super::uapi::{KVM_USER_MEM_SLOTS, kvm_clear_dirty_log};
use super::vm::Vm;
use crate::invariants::guest_stores::Moment;
use sim_kernel::{Cx, Errno};
use sim_mmu::mutants::COLLECT_READLOCK;
use sim_mmu::walker::Pml;
use sim_mmu::{Gfn, GfnRange, MmuLock, RemoteFlush, SlotView};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Pages of one word of a bitmap.
const WORD_PAGES: u64 = 64;

impl Vm {
    /// `KVM_GET_DIRTY_LOG`: the bitmap of a slot, one bit a page. Unless user space clears it itself, the pages are clean and
    /// write-protected afterwards.
    ///
    /// # Errors
    /// `EINVAL` for numbers out of range; `ENOENT` if there is no such slot or it is not logged.
    pub fn get_dirty_log(self: &Arc<Vm>, cx: &Cx<'_>, slot: u32) -> Result<Vec<u64>, Errno> {
        let _slots = self.slots_lock.lock(cx);
        let (as_id, id) = self.logged_slot_number(slot)?;
        let slot = self.active_slot(as_id, id)?;
        let bitmap = slot.dirty_bitmap.as_ref().ok_or(Errno::ENOENT)?;
        // Records that a vCPU has not reported yet must get out.
        self.kick_all(cx);
        if self.dirty_log_is_manual() {
            return Ok((0..bitmap.len()).map(|i| bitmap.word(cx, i)).collect());
        }
        let mut changed = false;
        let words: Vec<u64> = {
            let (mut reading, mut writing);
            let mut lock = if cx.has_mutant(COLLECT_READLOCK) {
                reading = self.mmu.mmu_lock.read(cx);
                MmuLock::Read(&mut reading)
            } else {
                writing = self.mmu.mmu_lock.write(cx);
                MmuLock::Write(&mut writing)
            };
            let take = |i| {
                if cx.has_mutant(PROTECT_THEN_TAKE) {
                    changed |= self.start_over(cx, &mut lock, &slot, i, bitmap.word(cx, i));
                    return self.take_dirty(cx, bitmap, i, u64::MAX);
                }
                let taken = self.take_dirty(cx, bitmap, i, u64::MAX);
                changed |= self.start_over(cx, &mut lock, &slot, i, taken);
                taken
            };
            (0..bitmap.len()).map(take).collect()
        };
        self.flush_after_collecting(cx, words.iter().any(|word| *word != 0), changed);
        self.handed_out(bitmap);
        Ok(words)
    }

    /// `KVM_CLEAR_DIRTY_LOG`: the pages of the range whose bits are set are clean and write-protected afterwards. `bits` has the words of
    /// user space's bitmap that are not 0, by number, the first of them for `first_page`.
    ///
    /// # Errors
    /// `EINVAL` for numbers out of range, a first page that begins no word, and a length that ends in the middle of one although the slot goes
    /// on; `ENOENT` if there is no such slot or it is not logged.
    pub fn clear_dirty_log(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        range: &kvm_clear_dirty_log,
        bits: &BTreeMap<u64, u64>,
    ) -> Result<(), Errno> {
        let _slots = self.slots_lock.lock(cx);
        let (as_id, id) = self.logged_slot_number(range.slot)?;
        if !range.first_page.is_multiple_of(WORD_PAGES) {
            return Err(Errno::EINVAL);
        }
        let slot = self.active_slot(as_id, id)?;
        let bitmap = slot.dirty_bitmap.as_ref().ok_or(Errno::ENOENT)?;
        let pages = u64::from(range.num_pages);
        let left = slot.npages.checked_sub(range.first_page).ok_or(Errno::EINVAL)?;
        if pages > left || (pages < left && !pages.is_multiple_of(WORD_PAGES)) {
            return Err(Errno::EINVAL);
        }
        self.kick_all(cx);
        let (mut taken_any, mut changed) = (false, false);
        {
            let mut writing = self.mmu.mmu_lock.write(cx);
            let mut lock = MmuLock::Write(&mut writing);
            let first = range.first_page / WORD_PAGES;
            for (word, mask) in bits.range(..pages.div_ceil(WORD_PAGES)).filter(|(_, mask)| **mask != 0) {
                let i = (first + word) as usize;
                let taken = self.take_dirty(cx, bitmap, i, *mask);
                taken_any |= taken != 0;
                changed |= self.start_over(cx, &mut lock, &slot, i, taken);
            }
        }
        self.flush_after_collecting(cx, taken_any, changed);
        self.handed_out(bitmap);
        Ok(())
    }

    /// `vmx_flush_pml_buffer`: what a vCPU's processor logged becomes dirty, in the order in which it was written, and the log is empty. KVM does
    /// so first thing on every exit, in the section of `kvm->srcu` that keeps the slots.
    pub fn flush_pml_buffer(&self, cx: &Cx<'_>, log: &mut Pml) {
        if log.is_empty() {
            return;
        }
        for gpa in log.drain(cx) {
            self.mark_page_dirty(cx, 0, gpa.gfn());
        }
    }

    /// `kvm_vcpu_mark_page_dirty`: the page is dirty if a slot has it and is logged.
    pub(crate) fn mark_page_dirty(&self, cx: &Cx<'_>, as_id: u32, gfn: Gfn) {
        if let Some(slot) = self.memslots.read(cx, as_id, |set| set.by_gfn(gfn).cloned()) {
            self.slot_view(&slot).mark_page_dirty(cx, gfn);
        }
    }

    /// `kvm->nr_memslots_dirty_logging`: whether any slot is logged. While none is, vCPUs run with their modification log off; who starts or ends
    /// the last logging asks all of them to look ([`Request::UpdateCpuDirtyLogging`](super::vcpu::Request)).
    pub fn logs_dirty_pages(&self) -> bool {
        self.nr_memslots_dirty_logging.load(Ordering::SeqCst) > 0
    }

    /// Address space and id of a slot's number, if they can exist.
    fn logged_slot_number(&self, slot: u32) -> Result<(u32, SlotId), Errno> {
        let (as_id, id) = (slot >> 16, slot & 0xffff);
        if as_id >= self.address_spaces() || id >= KVM_USER_MEM_SLOTS {
            return Err(Errno::EINVAL);
        }
        Ok((as_id, SlotId(id as u16)))
    }

    fn active_slot(&self, as_id: u32, id: SlotId) -> Result<Arc<Memslot>, Errno> {
        self.memslots.peek_active(as_id, |set| set.by_id(id).cloned()).ok_or(Errno::ENOENT)
    }

    /// Takes the bits of a word that are set and in `mask`.
    fn take_dirty(&self, cx: &Cx<'_>, bitmap: &DirtyBitmap, word: usize, mask: u64) -> u64 {
        let Some(runs) = &self.runs else { return bitmap.take_bits(cx, word, mask) };
        let taken = bitmap.take_bits(cx, word, mask);
        let value = bitmap.peek_word(word) | taken;
        let kept = bitmap.unreported().map(|mut record| record.take(word as u64, value, taken, &runs.lock()));
        if let Some(Err(page)) = kept {
            panic!(
                "MMU-INV-040: a guest has written to page {page} of a logged slot, which is not marked dirty when its word is collected"
            );
        }
        taken
    }

    /// Nobody uses a translation any more that lets writes to pages go unseen whose bits were taken. Only if no bit was taken can there be none: an entry
    /// that had no W to lose may have had it when a TLB was filled.
    fn flush_after_collecting(&self, cx: &Cx<'_>, taken_any: bool, changed: bool) {
        let needed = if cx.has_mutant(FLUSH_BY_SPTE) { changed } else { taken_any };
        if needed && !cx.has_mutant(COLLECT_NO_FLUSH) {
            self.flush_remote_tlbs(cx);
        }
    }

    /// User space is told what was collected.
    fn handed_out(&self, bitmap: &DirtyBitmap) {
        if let Some(mut record) = bitmap.unreported() {
            record.handed_out();
        }
    }

    /// User space is told that the slot is logged.
    pub(super) fn promise_dirty_log(&self, slot: &Memslot) {
        if let Some(mut record) = slot.dirty_bitmap.as_ref().and_then(|bitmap| bitmap.unreported()) {
            record.promise();
        }
    }

    /// Whether stores of guests are recorded.
    #[inline]
    pub(super) fn watches_guests(&self) -> bool {
        self.runs.is_some()
    }

    /// A guest has written to a frame.
    pub(super) fn record_store(&self, gfn: Gfn) {
        let Some(runs) = &self.runs else { return };
        self.memslots.peek_active(0, |set| {
            let slot = set.by_gfn(gfn).filter(|slot| slot.dirty_bitmap.is_some());
            if let Some(slot) = slot
                && let Some(mut record) = slot.dirty_bitmap.as_ref().and_then(|bitmap| bitmap.unreported())
            {
                record.store(gfn - slot.base_gfn, runs.lock().now());
            }
        });
    }

    /// A run of a vCPU begins, if anybody counts.
    pub(super) fn run_begins(&self) -> Option<Moment> {
        self.runs.as_ref().map(|runs| runs.lock().begin())
    }

    /// It has ended: whatever it had to mark is marked.
    ///
    /// # Panics
    /// MMU-INV-040: if a store is lost.
    pub(super) fn run_ends(&self, run: Option<Moment>) {
        let (Some(run), Some(runs)) = (run, &self.runs) else { return };
        runs.lock().end(run);
        self.check_stores();
    }

    /// MMU-INV-040: every store of a guest to a logged slot, of which user space was not told, is marked by now.
    ///
    /// # Panics
    /// If one is not.
    pub(super) fn check_stores(&self) {
        let Some(runs) = &self.runs else { return };
        if !self.logs_dirty_pages() {
            return;
        }
        self.memslots.peek_active(0, |set| {
            for slot in set.iter().filter(|slot| !slot.is_invalid()) {
                let Some(bitmap) = &slot.dirty_bitmap else { continue };
                let word = |word: u64| bitmap.peek_word(word as usize);
                if let Some(Err(page)) = bitmap.unreported().map(|record| record.check(word, &runs.lock())) {
                    panic!(
                        "MMU-INV-040: a guest has written to page {page} of slot {:?}, which is logged, and user space will not be told",
                        slot.id
                    );
                }
            }
        });
    }

    /// Writes to the pages whose bits were taken from a word will be seen again. Whether any entry changed.
    fn start_over(&self, cx: &Cx<'_>, lock: &mut MmuLock<'_, '_>, slot: &Memslot, word: usize, taken: u64) -> bool {
        let base = slot.base_gfn + word as u64 * WORD_PAGES;
        if let (Some(pkvm), MmuLock::Write(lock)) = (self.pkvm(), &mut *lock) {
            // From the first page to the last (`kvm_arch_mmu_enable_log_dirty_pt_masked`).
            return taken != 0 && {
                let (first, last) = (u64::from(taken.trailing_zeros()), 63 - u64::from(taken.leading_zeros()));
                pkvm.wrprotect_dirty(cx, lock, GfnRange::new(base + first, base + last + 1));
                true
            };
        }
        let mask =
            if cx.has_mutant(PML_CLEAR_ALL) { u64::MAX >> (64 - (slot.gfns().end - base).min(64)) } else { taken };
        self.mmu.enable_log_dirty_pt_masked(cx, lock, slot.as_id, base, mask, self.dirty_log_initially_set())
    }
}
