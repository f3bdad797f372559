//! A slot and its range of a file: binding in two halves, and unbinding (`kvm_gmem_bind`, `kvm_gmem_unbind`), as the kernels that are modelled do it.

use super::GmemFile;
use crate::kvm::memslots::Memslot;
use crate::kvm::mutants::{BUG_03, BUG_06, RC_47, RC_51, RC_66};
use crate::kvm::process::Process;
use crate::kvm::uapi::kvm_userspace_memory_region2;
use crate::kvm::versions::UnbindOfDyingFile;
use crate::kvm::vm::Vm;
use sim_kernel::fs::{File, RawFd};
use sim_kernel::sync::synchronize_rcu;
use sim_kernel::xarray::Handle;
use sim_kernel::{Cx, Errno, PAGE_SHIFT, PAGE_SIZE};
use std::sync::Arc;

impl Vm {
    /// First half of binding: the file exists, is one of this VM's, and has the range. Returns it with a reference.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL`.
    pub(crate) fn gmem_prepare(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        caller: &Process,
        mem: &kvm_userspace_memory_region2,
    ) -> Result<Arc<File>, Errno> {
        let file = caller.fds.get(cx, mem.guest_memfd as RawFd)?;
        let valid = file.downcast::<GmemFile>().is_some_and(|view| {
            Arc::ptr_eq(&view.vm, self)
                && mem.guest_memfd_offset.is_multiple_of(PAGE_SIZE)
                && self.ends_in_file(cx, mem.guest_memfd_offset, mem.memory_size, view.inode.size)
        });
        if valid {
            Ok(file)
        } else {
            file.put(cx);
            Err(Errno::EINVAL)
        }
    }

    fn ends_in_file(&self, cx: &Cx<'_>, offset: u64, size: u64, file_size: u64) -> bool {
        if self.kernel().adds_binding_offset_unsigned() && !cx.has_mutant(RC_66) {
            return offset.checked_add(size).is_some_and(|end| end <= file_size);
        }
        let offset = offset.cast_signed();
        offset >= 0 && offset.wrapping_add(size.cast_signed()) <= file_size.cast_signed()
    }

    /// Second half of binding: the slot owns its range of the file from now on.
    ///
    /// # Errors
    /// `EEXIST` (before 7.2 `EINVAL`) if part of the range belongs to another slot; `ENOMEM`.
    pub(crate) fn gmem_commit_bind(&self, cx: &Cx<'_>, file: &Arc<File>, slot: &Arc<Memslot>) -> Result<(), Errno> {
        let view = self.gmem_of(file);
        let (first, last) = (slot.gmem.pgoff.0, slot.gmem.pgoff.0 + slot.npages - 1);
        let in_file = (last + 1) << PAGE_SHIFT <= view.inode.size;
        assert!(in_file || !self.kernel().adds_binding_offset_unsigned(), "INV-306: a binding ends after its file");
        let _lock = view.inode.mapping.invalidate_lock.write(cx);
        view.assert_live();
        if view.bindings.find(cx, first, last).is_some() && !cx.has_mutant(RC_47) {
            return Err(self.kernel().binding_overlap());
        }
        view.slots.lock().insert(slot.handle, Arc::clone(slot));
        if let Err(errno) = view.bindings.store_range(cx, first, last, Some(Handle(slot.handle))) {
            if !self.kernel().handles_failed_binding() || cx.has_mutant(BUG_06) {
                // Nobody looks at the result. What was stored stays; a slot of which nothing was stored is unknown to the file.
                if view.bindings.peek_find(first, last).is_none() {
                    view.slots.lock().remove(&slot.handle);
                }
                return Ok(());
            }
            view.bindings.store_range(cx, first, last, None).expect("erasing needs no memory");
            view.slots.lock().remove(&slot.handle);
            return Err(errno);
        }
        Ok(())
    }

    /// On a kernel that binds before everything else: the slot in the bindings has become complete.
    pub(crate) fn gmem_replace_bound(&self, file: &Arc<File>, slot: &Arc<Memslot>) {
        if let Some(bound) = self.gmem_of(file).slots.lock().get_mut(&slot.handle) {
            *bound = Arc::clone(slot);
        }
    }

    /// `kvm_gmem_unbind`: the slot gives its range back; `slots_lock` is held.
    ///
    /// The file may be on its way to release (count already zero): that needs `slots_lock` first, so it is still intact.
    pub(crate) fn gmem_unbind(&self, cx: &Cx<'_>, slot: &Arc<Memslot>) {
        if !slot.has_gmem() {
            return;
        }
        let dying = match () {
            () if cx.has_mutant(RC_51) => UnbindOfDyingFile::Skipped,
            () if cx.has_mutant(BUG_03) => UnbindOfDyingFile::Unlocked,
            () => self.kernel().unbind_of_dying_file(),
        };
        if dying != UnbindOfDyingFile::Locked {
            if let Some(file) = slot.gmem_get_file(cx) {
                {
                    let _lock = self.gmem_of(&file).inode.mapping.invalidate_lock.write(cx);
                    self.gmem_erase_bindings(cx, &file, slot);
                }
                file.put(cx);
                return;
            }
            if dying == UnbindOfDyingFile::Skipped {
                return;
            }
        }
        let Some(file) = slot.gmem.file(cx).and_then(|file| file.upgrade()) else { return };
        let view = self.gmem_of(&file);
        let _lock = (dying == UnbindOfDyingFile::Locked).then(|| view.inode.mapping.invalidate_lock.write(cx));
        self.gmem_erase_bindings(cx, &file, slot);
    }

    fn gmem_erase_bindings(&self, cx: &Cx<'_>, file: &Arc<File>, slot: &Memslot) {
        let view = self.gmem_of(file);
        view.assert_live();
        let (first, last) = (slot.gmem.pgoff.0, slot.gmem.pgoff.0 + slot.npages - 1);
        view.bindings.store_range(cx, first, last, None).expect("erasing needs no memory");
        view.slots.lock().remove(&slot.handle);
        slot.gmem.set_file(cx, None);
        if self.kernel().unbinding_synchronizes_rcu() {
            synchronize_rcu(cx);
        }
    }
}
