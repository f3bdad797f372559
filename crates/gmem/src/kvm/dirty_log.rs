//! `KVM_GET_DIRTY_LOG`: which pages of a slot the guest wrote, and starting over (`kvm_get_dirty_log_protect`).

use super::memslots::SlotId;
use super::uapi::KVM_USER_MEM_SLOTS;
use super::vm::Vm;
use sim_kernel::{Cx, Errno};
use sim_mmu::RemoteFlush;
use std::sync::Arc;

impl Vm {
    /// `KVM_GET_DIRTY_LOG`: the bitmap of a slot, one bit a page. Unless user space clears it itself, the pages are clean and
    /// write-protected afterwards.
    ///
    /// # Errors
    /// `EINVAL` for numbers out of range; `ENOENT` if there is no such slot or it is not logged.
    pub fn get_dirty_log(self: &Arc<Vm>, cx: &Cx<'_>, slot: u32) -> Result<Vec<u64>, Errno> {
        let (as_id, id) = (slot >> 16, slot & 0xffff);
        let _slots = self.slots_lock.lock(cx);
        if as_id >= self.address_spaces() || id >= KVM_USER_MEM_SLOTS {
            return Err(Errno::EINVAL);
        }
        let slot = self.memslots.peek_active(as_id, |set| set.by_id(SlotId(id as u16)).cloned());
        let slot = slot.ok_or(Errno::ENOENT)?;
        let bitmap = slot.dirty_bitmap.as_ref().ok_or(Errno::ENOENT)?;
        // Records that a vCPU has not reported yet must get out.
        self.kick_all(cx);
        if self.dirty_log_is_manual() {
            return Ok((0..bitmap.len()).map(|i| bitmap.word(cx, i)).collect());
        }
        let mut taken_any = false;
        let words = {
            let mut lock = self.mmu.mmu_lock.write(cx);
            let mut words = Vec::with_capacity(bitmap.len());
            for i in 0..bitmap.len() {
                let mask = bitmap.take_word(cx, i);
                words.push(mask);
                if mask != 0 {
                    taken_any = true;
                    self.mmu.enable_log_dirty_pt_masked(
                        cx,
                        &mut lock,
                        slot.as_id,
                        slot.base_gfn + i as u64 * 64,
                        mask,
                        self.dirty_log_initially_set(),
                    );
                }
            }
            words
        };
        if taken_any {
            self.flush_remote_tlbs(cx);
        }
        Ok(words)
    }
}
