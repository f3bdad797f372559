//! VMs and vCPUs begin and end (`__pkvm_init_vm`, `__pkvm_init_vcpu`, `__pkvm_start_teardown_vm`, `__pkvm_finalize_teardown_vm` in `pkvm.c`).
//!
//! All memory for them is the host's, given for good: the hypervisor clears it, and gives it back when the VM is gone, as a list.

use super::el2::El2;
use super::mutants;
use super::pgtable::Root;
use super::pte::Pte;
use super::trace::TraceEvent;
use super::types::{Handle, PageState, Vmid};
use super::vm::{HostKvm, HostVcpu, HypVcpu, HypVm, Place};
use sim_kernel::{Errno, Pfn};
use sim_mmu::Gfn;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl El2<'_> {
    /// A handle for a VM that is made later.
    ///
    /// # Errors
    /// `ENOMEM` if there are as many VMs as can be.
    pub(super) fn reserve_vm(&self) -> Result<Handle, Errno> {
        let mut vms = self.lock_vms();
        let index = vms.places.iter().position(|place| matches!(place, Place::Free)).ok_or(Errno::ENOMEM)?;
        vms.places[index] = Place::Reserved;
        Ok(Handle::of(index))
    }

    /// Gives a handle back for which no VM was made; any other is left alone.
    pub(super) fn unreserve_vm(&self, handle: Handle) {
        if let Some(place @ Place::Reserved) = self.lock_vms().place(handle) {
            *place = Place::Free;
        }
    }

    /// Takes pages from the host and clears them (`map_donated_memory`).
    fn take_donated(&self, pfn: Pfn, pages: u64) -> Result<(), Errno> {
        self.host_donate_hyp(pfn, pages).map_err(|_| Errno::ENOMEM)?;
        (0..pages).for_each(|i| self.zero(pfn + i));
        Ok(())
    }

    /// Gives such pages back, cleared (`unmap_donated_memory`).
    fn return_donated(&self, pfn: Pfn, pages: u64) {
        (0..pages).for_each(|i| self.zero(pfn + i));
        if self.hyp_donate_host(pfn, pages).is_err() {
            self.warn("memory of the hypervisor cannot go back to the host");
        }
    }

    /// Makes a VM from the host's, for a handle that was reserved, with a page for itself and pages for the root of its stage 2.
    pub(super) fn init_vm(&self, kvm: &Arc<HostKvm>, handle: Handle, frame: Pfn, pgd: Pfn) -> Result<(), Errno> {
        self.pin_shared_mem(kvm.frame, 1).map_err(|_| Errno::EPERM)?;
        let made = self.init_pinned_vm(kvm, handle, frame, pgd);
        if made.is_err() {
            self.unpin_shared_mem(kvm.frame, 1);
        }
        made
    }

    fn init_pinned_vm(&self, kvm: &Arc<HostKvm>, handle: Handle, frame: Pfn, pgd: Pfn) -> Result<(), Errno> {
        let created_vcpus = kvm.created_vcpus;
        if created_vcpus < 1 || handle.0 < Handle::BASE {
            return Err(Errno::EINVAL);
        }
        let bits = self.hv.config.guest_bits;
        let pgd_pages = Root::pages(bits);
        self.take_donated(frame, 1)?;
        if let Err(error) = self.take_donated(pgd, pgd_pages) {
            self.return_donated(frame, 1);
            return Err(error);
        }
        if !pgd.0.is_multiple_of(pgd_pages) {
            // Its allocator has single pages only, and nobody looks whether it found what was asked for.
            self.warn("the root of a VM is not aligned to its size");
            return Err(Errno::ENOMEM);
        }
        let mut vms = self.lock_vms();
        let index = handle.index();
        if let (Some(place @ Place::Reserved), Some(index)) = (vms.place(handle), index) {
            let vmid = Vmid(index as u16 + 1);
            let vm = HypVm::new(self.cx, handle, Arc::clone(kvm), created_vcpus, bits, frame, pgd, vmid);
            let level = vm.root.start;
            *place = Place::Vm(Arc::new(vm));
            self.record(TraceEvent::Root { vmid, pfn: pgd, pages: pgd_pages, level });
            return Ok(());
        }
        drop(vms);
        self.return_donated(pgd, pgd_pages);
        self.return_donated(frame, 1);
        Err(Errno::EINVAL)
    }

    /// Makes a vCPU from the host's, with a page for itself.
    pub(super) fn init_vcpu(&self, handle: Handle, host: &Arc<HostVcpu>, frame: Pfn) -> Result<(), Errno> {
        self.take_donated(frame, 1)?;
        let made = self.init_donated_vcpu(handle, host, frame);
        if made.is_err() {
            self.return_donated(frame, 1);
        }
        made
    }

    fn init_donated_vcpu(&self, handle: Handle, host: &Arc<HostVcpu>, frame: Pfn) -> Result<(), Errno> {
        let vms = self.lock_vms();
        let vm = vms.vm(handle).ok_or(Errno::ENOENT)?;
        self.pin_shared_mem(host.frame, 1).map_err(|_| Errno::EBUSY)?;
        if let Some(sve) = host.sve_state
            && self.pin_shared_mem(sve, 1).is_err()
        {
            self.unpin_shared_mem(host.frame, 1);
            return Err(Errno::EPERM);
        }
        let mut vcpus = vm.vcpus.lock();
        if host.index >= vm.created_vcpus || vcpus.contains_key(&host.index) {
            drop(vcpus);
            self.unpin_vcpu(host);
            return Err(Errno::EINVAL);
        }
        vcpus.insert(host.index, Arc::new(HypVcpu::new(Arc::clone(&vm), Arc::clone(host), frame)));
        Ok(())
    }

    fn unpin_vcpu(&self, host: &HostVcpu) {
        host.sve_state.into_iter().for_each(|sve| self.unpin_shared_mem(sve, 1));
        self.unpin_shared_mem(host.frame, 1);
    }

    /// From now on no vCPU of the VM can be loaded, and its pages can be taken one by one.
    pub(super) fn start_teardown(&self, handle: Handle) -> Result<(), Errno> {
        let vms = self.lock_vms();
        let vm = vms.vm(handle).ok_or(Errno::EINVAL)?;
        if self.is_used(&vm) || vm.is_dying() {
            return Err(Errno::EINVAL);
        }
        vm.dying.store(true, Ordering::Release);
        Ok(())
    }

    fn is_used(&self, vm: &HypVm) -> bool {
        // K12: without it, the VM goes while a vCPU of it runs.
        vm.refs.load(Ordering::Acquire) != 0 && !self.hv.is_off(mutants::K12)
    }

    /// The VM is gone: its memory goes back to the host. Whether all pages of the guest were taken is not asked; those that were not are lost
    /// (PKVM-INV-015).
    pub(super) fn finalize_teardown(&self, handle: Handle) -> Result<(), Errno> {
        let mut vms = self.lock_vms();
        let vm = vms.vm(handle).ok_or(Errno::EINVAL)?;
        if self.is_used(&vm) || !vm.is_dying() {
            return Err(Errno::EINVAL);
        }
        // K13: the next VM in this place has the same VMID, and would find what is left of this one.
        if !self.hv.is_off(mutants::K13) {
            self.flush_vmid(&vm);
        }
        if let Some(place) = vms.place(handle) {
            *place = Place::Free;
        }
        self.record(TraceEvent::RootGone { vmid: vm.vmid() });
        drop(vms);
        let mut pages: BTreeSet<Pfn> = (0..vm.pgd_pages).map(|i| vm.pgd + i).collect();
        {
            let guest = self.lock_vm(&vm);
            let mut ghost = self.hv.ghost.lock();
            vm.root.for_each(&self.hv.phys, |slot, pte: Pte| {
                if pte.is_leaf(slot.level) {
                    let lost = (0..slot.level.pages()).map(|i| (pte.pfn() + i, (handle, Gfn(slot.first.0 + i))));
                    ghost.lost.extend(lost);
                    if pte.state() == PageState::SharedBorrowed {
                        let counts = (0..slot.level.pages()).map(|i| pte.pfn() + i);
                        counts.for_each(|pfn| *ghost.lost_shares.entry(pfn).or_default() += 1);
                    }
                }
            });
            pages.extend(guest.table.tables());
            pages.extend(guest.pool.iter());
        }
        let vcpus = std::mem::take(&mut *vm.vcpus.lock());
        for vcpu in vcpus.values() {
            pages.extend(vcpu.memcache.lock().drain(..));
            pages.insert(vcpu.frame);
            self.unpin_vcpu(vcpu.host());
        }
        pages.insert(vm.frame);
        for pfn in pages {
            self.zero(pfn);
            self.push_teardown(&vm.host, pfn);
            if self.hyp_donate_host(pfn, 1).is_err() {
                self.warn("memory of a VM cannot go back to the host");
            }
        }
        self.unpin_shared_mem(vm.host.frame, 1);
        Ok(())
    }
}
