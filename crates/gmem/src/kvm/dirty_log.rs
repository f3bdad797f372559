//! `KVM_GET_DIRTY_LOG` and `KVM_CLEAR_DIRTY_LOG`: which pages of a slot the guest wrote, and starting over
//! (`kvm_get_dirty_log_protect`, `kvm_clear_dirty_log_protect`).
//!
//! Getting starts over by itself, unless the VM has `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`: then user space clears what it has dealt
//! with. Clearing works without the capability too.

use super::memslots::{Memslot, SlotId};
use super::mutants::PROTECT_THEN_TAKE;
use super::uapi::{KVM_USER_MEM_SLOTS, kvm_clear_dirty_log};
use super::vm::Vm;
use sim_kernel::sync::RwLockWriteGuard;
use sim_kernel::{Cx, Errno};
use sim_mmu::walker::Pml;
use sim_mmu::{Gfn, RemoteFlush, SlotView};
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
        let words: Vec<u64> = {
            let mut lock = self.mmu.mmu_lock.write(cx);
            let take = |i| {
                if cx.has_mutant(PROTECT_THEN_TAKE) {
                    self.start_over(cx, &mut lock, &slot, i, bitmap.word(cx, i));
                    return bitmap.take_word(cx, i);
                }
                self.start_over(cx, &mut lock, &slot, i, bitmap.take_word(cx, i))
            };
            (0..bitmap.len()).map(take).collect()
        };
        if words.iter().any(|word| *word != 0) {
            self.flush_remote_tlbs(cx);
        }
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
        let mut taken_any = false;
        {
            let mut lock = self.mmu.mmu_lock.write(cx);
            let first = range.first_page / WORD_PAGES;
            for (word, mask) in bits.range(..pages.div_ceil(WORD_PAGES)).filter(|(_, mask)| **mask != 0) {
                let i = (first + word) as usize;
                taken_any |= self.start_over(cx, &mut lock, &slot, i, bitmap.take_bits(cx, i, *mask)) != 0;
            }
        }
        if taken_any {
            self.flush_remote_tlbs(cx);
        }
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

    /// Writes to the pages whose bits were taken from a word will be seen again. Returns the bits.
    fn start_over(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockWriteGuard<'_, ()>,
        slot: &Memslot,
        word: usize,
        taken: u64,
    ) -> u64 {
        let base = slot.base_gfn + word as u64 * WORD_PAGES;
        self.mmu.enable_log_dirty_pt_masked(cx, lock, slot.as_id, base, taken, self.dirty_log_initially_set());
        taken
    }
}
