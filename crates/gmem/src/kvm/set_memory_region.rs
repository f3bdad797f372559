//! `KVM_SET_USER_MEMORY_REGION{,2}`: creating, deleting, moving and re-flagging slots, as a transaction.
//!
//! `slots_lock` is held throughout, `slots_arch_lock` from before the slot sets are copied until just after the pointer swap, and
//! never across the grace period. Deleting and moving first publish an INVALID stand-in, wait for every vCPU that may use the old
//! slot, and zap; then they publish the result. The checks are in the order of the kernel's: the first that fails is the answer.

use super::lpage_info::LpageInfo;
use super::memslots::{DirtyBitmap, Memslot, MemslotParts, SlotId};
use super::mutants::*;
use super::pkvm::SlotChange;
use super::uapi::*;
use super::vm::Vm;
use sim_kernel::fs::File;
use sim_kernel::sync::MutexGuard;
use sim_kernel::{Cx, Errno, Hva, PAGE_SHIFT, PAGE_SIZE, Pgoff, TASK_SIZE};
use sim_mmu::{Gfn, GfnRange, Gpa, MayYield, RootFilter};
use std::sync::Arc;

/// What a request changes (`enum kvm_mr_change`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Create,
    Delete,
    Move,
    FlagsOnly,
}

/// What `slots_lock` protects besides the sets.
#[derive(Debug, Default)]
pub(crate) struct SlotsState {
    /// Sum of the pages of all slots.
    pub(crate) nr_memslot_pages: u64,
    next_handle: u32,
}

impl Vm {
    /// `KVM_SET_USER_MEMORY_REGION`: the first version knows neither guest_memfd nor its flags.
    ///
    /// # Errors
    /// As [`Vm::set_user_memory_region2`]; also `EINVAL` for flags of the second version.
    pub fn set_user_memory_region(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        caller: &super::process::Process,
        region: &kvm_userspace_memory_region,
    ) -> Result<(), Errno> {
        if region.flags & !(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY) != 0 {
            return Err(Errno::EINVAL);
        }
        let region = kvm_userspace_memory_region2 {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
            ..Default::default()
        };
        self.set_user_memory_region2(cx, caller, &region)
    }

    /// `KVM_SET_USER_MEMORY_REGION2`.
    ///
    /// # Errors
    /// The first failing check: `EINVAL` for malformed requests and changes that are not allowed, `EEXIST` for
    /// overlapping guest frames or file ranges, `EBADF` for a guest_memfd that is not open, `ENOMEM`.
    pub fn set_user_memory_region2(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        caller: &super::process::Process,
        region: &kvm_userspace_memory_region2,
    ) -> Result<(), Errno> {
        if region.slot & 0xffff >= KVM_USER_MEM_SLOTS {
            return Err(Errno::EINVAL);
        }
        let mut slots = self.slots_lock.lock(cx);
        let before = (slots.nr_memslot_pages, self.slot_count());
        let result = self.set_memory_region(cx, &mut slots, caller, region);
        let after = (slots.nr_memslot_pages, self.slot_count());
        assert!(
            result.is_ok() || before == after,
            "INV-601: changing a slot failed: {result:?}, and the slots changed"
        );
        result
    }

    /// Slots of all address spaces, without a scheduling point.
    fn slot_count(&self) -> usize {
        (0..self.address_spaces()).map(|as_id| self.memslots.peek_active(as_id, |set| set.len())).sum()
    }

    /// `kvm_set_memory_region`, with `slots_lock` held.
    fn set_memory_region(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        slots: &mut MutexGuard<'_, SlotsState>,
        caller: &super::process::Process,
        mem: &kvm_userspace_memory_region2,
    ) -> Result<(), Errno> {
        self.check_flags(mem)?;
        check_geometry(mem)?;
        let as_id = (mem.slot >> 16) as u16;
        if u32::from(as_id) >= self.address_spaces() {
            return Err(Errno::EINVAL);
        }
        if mem.guest_phys_addr.wrapping_add(mem.memory_size) < mem.guest_phys_addr {
            return Err(Errno::EINVAL);
        }
        let npages = mem.memory_size >> PAGE_SHIFT;
        if npages > KVM_MEM_MAX_NR_PAGES {
            return Err(Errno::EINVAL);
        }

        let id = SlotId(mem.slot as u16);
        let old = self.memslots.peek_active(u32::from(as_id), |set| set.by_id(id).cloned());
        if npages == 0 {
            let Some(old) = old else { return Err(Errno::EINVAL) };
            if slots.nr_memslot_pages < old.npages {
                return Err(Errno::EIO);
            }
            return self.set_memslot(cx, slots, Some(old), None, Change::Delete);
        }

        let base_gfn = Gpa(mem.guest_phys_addr).gfn();
        let change = match &old {
            None => {
                if slots.nr_memslot_pages.checked_add(npages).is_none() {
                    return Err(Errno::EINVAL);
                }
                Change::Create
            }
            Some(old) => match self.change_of(cx, old, mem, npages, base_gfn)? {
                Some(change) => change,
                None => return Ok(()),
            },
        };
        let gfns = GfnRange { start: base_gfn, end: base_gfn + npages };
        if matches!(change, Change::Create | Change::Move)
            && self.memslots.peek_active(u32::from(as_id), |set| set.overlaps(gfns, id))
        {
            return Err(Errno::EEXIST);
        }

        // gmem prepare: the file is held to the end of the request.
        let file = match change {
            Change::Create if mem.flags & KVM_MEM_GUEST_MEMFD != 0 => Some(self.gmem_prepare(cx, caller, mem)?),
            _ => None,
        };
        let mut new = NewSlot {
            id,
            as_id,
            gfns,
            userspace_addr: Hva(mem.userspace_addr),
            flags: mem.flags,
            pgoff: Pgoff(mem.guest_memfd_offset >> PAGE_SHIFT),
            file: file.clone(),
            bound: None,
        };
        let Some(file) = file else { return self.set_memslot(cx, slots, old, Some(new), change) };
        if self.kernel().binds_last() && !cx.has_mutant(BUG_05) {
            if cx.has_mutant(RC_49) {
                file.put(cx);
            }
            let result = self.set_memslot(cx, slots, old, Some(new), change);
            if !cx.has_mutant(RC_49) {
                file.put(cx);
            }
            return result;
        }
        // `kvm_gmem_bind` of older kernels: bound before anything else is known, and the file may go from then on.
        let bound = self.bind_first(cx, slots, &file, &new);
        file.put(cx);
        let bound = bound?;
        new.bound = Some(Arc::clone(&bound));
        let result = self.set_memslot(cx, slots, old, Some(new), change);
        if result.is_err() {
            if !cx.has_mutant(BUG_05) {
                self.gmem_unbind(cx, &bound);
            }
            bound.free(cx);
        }
        result
    }

    /// Binds a slot of which only the geometry is known.
    fn bind_first(
        &self,
        cx: &Cx<'_>,
        slots: &mut MutexGuard<'_, SlotsState>,
        file: &Arc<File>,
        new: &NewSlot,
    ) -> Result<Arc<Memslot>, Errno> {
        let slot = Memslot::new(
            cx,
            MemslotParts {
                id: new.id,
                as_id: new.as_id,
                base_gfn: new.gfns.start,
                npages: new.gfns.end - new.gfns.start,
                userspace_addr: new.userspace_addr,
                flags: self.flags_with(new.flags, Some(file)),
                lpage_info: Arc::new(LpageInfo::none(&self.host)),
                dirty_bitmap: None,
                gmem_file: Some(Arc::downgrade(file)),
                gmem_pgoff: new.pgoff,
                handle: slots.new_handle(),
            },
        );
        self.gmem_commit_bind(cx, file, &slot)?;
        Ok(slot)
    }

    /// The flags of a new slot, with what the file that it is bound to adds.
    fn flags_with(&self, flags: u32, file: Option<&Arc<File>>) -> u32 {
        let gmem_only = file.is_some_and(|file| self.gmem_of(file).is_mappable());
        if gmem_only { flags | KVM_MEMSLOT_GMEM_ONLY } else { flags }
    }

    /// `kvm_set_memslot`: the transaction.
    fn set_memslot(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        slots: &mut MutexGuard<'_, SlotsState>,
        old: Option<Arc<Memslot>>,
        new: Option<NewSlot>,
        change: Change,
    ) -> Result<(), Errno> {
        let as_id = old.as_ref().map(|s| s.as_id).or(new.as_ref().map(|n| n.as_id)).expect("one of them exists");
        let mut arch = self.slots_arch_lock.lock(cx);

        // Delete and move: vCPUs must stop using the old slot before it is taken apart.
        let mut current = old.clone();
        if let (Change::Delete | Change::Move, Some(old)) = (change, &old) {
            if cx.has_mutant(RC_21) {
                drop(arch);
                self.arch_flush_shadow_memslot(cx, old);
                old.set_zapped(true);
                arch = self.slots_arch_lock.lock(cx);
            } else {
                let invalid = old.invalid_copy(cx);
                self.memslots.inactive(as_id, |set| set.replace(Some(old), Some(&invalid)));
                self.swap_active_memslots(cx, as_id, arch, true);
                self.arch_flush_shadow_memslot(cx, old);
                old.set_zapped(true);
                arch = self.slots_arch_lock.lock(cx);
                current = Some(invalid);
            }
        }

        let file = new.as_ref().and_then(|new| new.file.clone()).filter(|_| cx.has_mutant(RC_19));
        let prepared = match new {
            None => self.pkvm_prepare_memory_region(cx, &SlotChange { removes: true, new: None }).map(|()| None),
            Some(new) => self.prepare_memory_region(cx, slots, old.as_deref(), new, change).map(Some),
        };
        let new = match prepared {
            Ok(new) => new,
            Err(errno) => {
                if let (Change::Delete | Change::Move, Some(old)) = (change, &old) {
                    // The inactive set still has the untouched old slot: make it active again.
                    old.set_zapped(false);
                    self.swap_active_memslots(cx, as_id, arch, true);
                    let invalid = current.expect("the stand-in was published");
                    self.memslots.inactive(as_id, |set| set.replace(Some(&invalid), Some(old)));
                    invalid.free(cx);
                } else {
                    drop(arch);
                }
                return Err(errno);
            }
        };

        // The inactive set still has the old slot (delete, move: the set that was active before the stand-in came).
        self.memslots.inactive(as_id, |set| set.replace(old.as_deref(), new.as_ref()));
        let waits = change != Change::FlagsOnly || !cx.has_mutant(ENABLE_NO_SRCU);
        self.swap_active_memslots(cx, as_id, arch, waits);
        self.memslots.inactive(as_id, |set| set.replace(current.as_deref(), new.as_ref()));
        if let Some((file, slot)) = file.zip(new.as_ref()) {
            self.gmem_commit_bind(cx, &file, slot).expect("the scenario of this mutant has room");
        }
        if let (Change::Delete | Change::Move, Some(invalid)) = (change, current)
            && invalid.is_invalid()
        {
            invalid.free(cx);
        }

        self.commit_memory_region(cx, slots, old, new, change);
        Ok(())
    }

    /// `kvm_prepare_memory_region` and the gmem commit: everything that can still fail.
    fn prepare_memory_region(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        slots: &mut MutexGuard<'_, SlotsState>,
        old: Option<&Memslot>,
        new: NewSlot,
        change: Change,
    ) -> Result<Arc<Memslot>, Errno> {
        let npages = new.gfns.end - new.gfns.start;
        let dirty_bitmap = if new.flags & KVM_MEM_LOG_DIRTY_PAGES == 0 {
            None
        } else if let Some(bitmap) = old.and_then(|old| old.dirty_bitmap.clone()) {
            Some(bitmap)
        } else {
            let bitmap = DirtyBitmap::new(cx, &self.host, npages)?;
            if self.dirty_log_initially_set() {
                bitmap.fill(npages);
            }
            Some(Arc::new(bitmap))
        };
        let gmem = new.file.as_ref().map(|file| self.gmem_of(file).is_mappable());
        let gmem = gmem.or_else(|| old.filter(|old| old.has_gmem()).map(Memslot::is_gmem_only));
        let removes = change == Change::Move;
        self.pkvm_prepare_memory_region(cx, &SlotChange { removes, new: Some((&new.gfns, new.flags, gmem)) })?;
        let lpage_info = match (change, old) {
            (Change::FlagsOnly, Some(old)) => Arc::clone(&old.lpage_info),
            _ => {
                let last = new.gfns.end.0 - 1;
                // `kvm_is_gfn_alias`: above a TD's shared bit are the shared addresses of what is below it.
                if last > self.max_gfn().0 || last & self.mmu.gfn_direct_bits() != 0 {
                    return Err(Errno::EINVAL);
                }
                let info = LpageInfo::new(&self.host, new.gfns, new.userspace_addr)?;
                if self.has_private_mem() {
                    if cx.has_mutant(RC_52) {
                        // Without `slots_lock` against conversions this is a race.
                        self.attributes.get(cx, new.gfns.start);
                    }
                    info.init_mixed(cx, new.gfns, &self.attributes);
                }
                Arc::new(info)
            }
        };
        let handle = match old.or(new.bound.as_deref()) {
            Some(slot) => slot.handle,
            None => slots.new_handle(),
        };
        let flags = self.flags_with(new.flags, new.file.as_ref());
        let slot = Memslot::new(
            cx,
            MemslotParts {
                id: new.id,
                as_id: new.as_id,
                base_gfn: new.gfns.start,
                npages,
                userspace_addr: new.userspace_addr,
                flags,
                lpage_info,
                dirty_bitmap,
                gmem_file: new.file.as_ref().map(Arc::downgrade),
                gmem_pgoff: new.pgoff,
                handle,
            },
        );
        match (&new.file, &new.bound) {
            (Some(_), None) if cx.has_mutant(RC_19) => {}
            (Some(file), None) => self.gmem_commit_bind(cx, file, &slot)?,
            (Some(file), Some(_)) => self.gmem_replace_bound(file, &slot),
            (None, _) => {}
        }
        Ok(slot)
    }

    /// `kvm_commit_memory_region`: accounting, and what the change means for pages that are mapped already.
    fn commit_memory_region(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        slots: &mut MutexGuard<'_, SlotsState>,
        old: Option<Arc<Memslot>>,
        new: Option<Arc<Memslot>>,
        change: Change,
    ) {
        self.account_dirty_logging(cx, old.as_deref(), new.as_deref());
        let promised = new.clone();
        match (change, old, new) {
            (Change::Create, _, Some(new)) => slots.nr_memslot_pages += new.npages,
            (Change::Delete, Some(old), _) => {
                slots.nr_memslot_pages -= old.npages;
                if cx.has_mutant(RC_44) {
                    old.free(cx);
                    return self.gmem_unbind(cx, &old);
                }
                self.gmem_unbind(cx, &old);
                old.free(cx);
            }
            (Change::FlagsOnly, Some(old), Some(new)) => {
                self.check_commit(&old, "the flags of a guest_memfd slot never change");
                self.apply_dirty_logging_change(cx, &old, &new);
                old.free(cx);
            }
            (Change::Move, Some(old), Some(_)) => {
                self.check_commit(&old, "a guest_memfd slot never moves");
                old.free(cx);
            }
            other => unreachable!("inconsistent change {other:?}"),
        }
        if let Some(new) = promised {
            self.promise_dirty_log(&new);
        }
    }

    /// Whether a slot may be replaced by another one: not if it is bound. Where that happens nevertheless, its bindings stay behind.
    fn check_commit(&self, old: &Memslot, rule: &str) {
        assert!(!old.has_gmem() || self.kernel().slot_may_lose_guest_memfd(), "INV-310: {rule}");
    }

    /// `kvm_swap_active_memslots`: publishes the inactive set and waits until nobody uses the other one.
    fn swap_active_memslots(self: &Arc<Vm>, cx: &Cx<'_>, as_id: u16, arch: MutexGuard<'_, ()>, waits: bool) {
        let generation = self.memslots.peek_active(u32::from(as_id), |set| set.generation);
        self.memslots.inactive(as_id, |set| set.generation = generation | KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS);

        self.wait_for_notifiers_and(cx, || {
            self.memslots.publish(cx, as_id);
            if let Some(spinners) = &self.pre_fault_spinners {
                spinners.wake_unscheduled(cx);
            }
            self.sev_wake_spinners(cx);
        });
        if cx.has_mutant(RC_60) {
            self.srcu.synchronize(cx);
        }
        drop(arch);
        if waits && !cx.has_mutant(RC_60) && !cx.has_mutant(RC_20) {
            self.srcu.synchronize(cx);
        }

        let generation = generation.wrapping_add(u64::from(self.address_spaces()));
        // Before the generation is stored: until then no MMIO entry matches, and a repeated one must find none.
        self.arch_memslots_updated(cx, generation);
        self.memslots.set_generation(cx, as_id, generation);
    }

    /// `kvm_arch_flush_shadow_memslot`: nothing of the slot stays mapped.
    fn arch_flush_shadow_memslot(self: &Arc<Vm>, cx: &Cx<'_>, slot: &Memslot) {
        if self.pkvm().is_some() {
            let mut lock = self.mmu.mmu_lock.write(cx);
            return self.pkvm_unmap_gfn_range(cx, &mut lock, slot.gfns());
        }
        if self.zaps_all_on_delete() {
            self.zap_all_fast(cx);
            return;
        }
        let mut lock = self.mmu.mmu_lock.write(cx);
        let flush = self.mmu.zap_leafs(
            cx,
            &mut lock,
            Some(slot.as_id),
            RootFilter::ValidOnly,
            slot.gfns(),
            MayYield::Yes,
            &**self,
        );
        flush.discharge(cx, &**self);
        self.sev_gmem_invalidate_range(cx, &[(slot.as_id, slot.gfns())]);
    }
}

/// A slot that is to be made.
#[derive(Debug)]
struct NewSlot {
    id: SlotId,
    as_id: u16,
    gfns: GfnRange,
    userspace_addr: Hva,
    flags: u32,
    pgoff: Pgoff,
    file: Option<Arc<File>>,
    /// On a kernel that binds first: what is in the bindings.
    bound: Option<Arc<Memslot>>,
}

impl SlotsState {
    fn new_handle(&mut self) -> u32 {
        self.next_handle += 1;
        self.next_handle
    }
}

fn check_geometry(mem: &kvm_userspace_memory_region2) -> Result<(), Errno> {
    let aligned = |value: u64| value.is_multiple_of(PAGE_SIZE);
    if !aligned(mem.memory_size) || !aligned(mem.guest_phys_addr) || !aligned(mem.userspace_addr) {
        return Err(Errno::EINVAL);
    }
    // access_ok: the range must be one that user space could have.
    match mem.userspace_addr.checked_add(mem.memory_size) {
        Some(end) if end <= TASK_SIZE => {}
        _ => return Err(Errno::EINVAL),
    }
    if mem.flags & KVM_MEM_GUEST_MEMFD != 0
        && (!aligned(mem.guest_memfd_offset) || mem.guest_memfd_offset.checked_add(mem.memory_size).is_none())
    {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

impl Vm {
    fn check_flags(&self, mem: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        let valid = if mem.flags & KVM_MEM_GUEST_MEMFD == 0 {
            // `kvm_arch_has_readonly_mem`: nobody emulates a write of a guest whose state KVM does not see.
            let readonly = if self.is_protected() { 0 } else { KVM_MEM_READONLY };
            KVM_MEM_LOG_DIRTY_PAGES | readonly
        } else if self.kernel().has_guest_memfd_flags() || self.has_private_mem() {
            KVM_MEM_GUEST_MEMFD
        } else {
            0
        };
        if mem.flags & !valid != 0 { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// What a request for an existing slot changes; `None`: nothing.
    fn change_of(
        &self,
        cx: &Cx<'_>,
        old: &Memslot,
        mem: &kvm_userspace_memory_region2,
        npages: u64,
        base_gfn: Gfn,
    ) -> Result<Option<Change>, Errno> {
        if mem.flags & KVM_MEM_GUEST_MEMFD != 0 {
            return Err(Errno::EINVAL);
        }
        let kept = if self.kernel().slot_may_lose_guest_memfd() || cx.has_mutant(BUG_02) {
            KVM_MEM_READONLY
        } else {
            KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD
        };
        let old_flags = old.flags & 0xffff;
        if mem.userspace_addr != old.userspace_addr.0 || npages != old.npages || (mem.flags ^ old_flags) & kept != 0 {
            return Err(Errno::EINVAL);
        }
        if base_gfn != old.base_gfn {
            Ok(Some(Change::Move))
        } else if mem.flags != old_flags {
            Ok(Some(Change::FlagsOnly))
        } else {
            Ok(None)
        }
    }
}
