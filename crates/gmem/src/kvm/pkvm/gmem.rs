//! guest_memfd under protected VMs, as it is proposed for Linux and as 7.3 does not have it: a switch of the machine, `pkvm_gmem`, to compare the two.
//!
//! Each page of a file is private or shared. Private pages cannot be mapped by the host: a process that touches one gets SIGBUS before any stage 2 is asked. A guest's fault takes the page
//! from the file and donates it, without pin and accounting. MEM_SHARE makes the page shared in place; MEM_UNSHARE first takes it from the host's page tables, and has to
//! wait as long as anybody else holds a reference: `KVM_RUN` fails with `EAGAIN` and a memory-fault exit, and the guest executes its call again at the next run. A hole that is punched takes private
//! pages back from the guest by force, so that it finds a mark there; a shared page leaves the file and stays with the guest until the end.
//!
//! A file with `GUEST_MEMFD_FLAG_INIT_SHARED` begins shared, so that the VMM can load an image; a page becomes private when the guest first touches it, with what is in it.
//!
//! States change under `invalidate_lock` for writing, like everything else that takes memory away; a page's mappings under its lock.

use super::abort::S2Fault;
use super::mappings::Mapping;
use super::vm::KvmPkvm;
use crate::kvm::guest_memfd::{GmemFile, GmemInode};
use crate::kvm::memslots::Memslot;
use crate::kvm::mutants::PKVM_GMEM_KEEPS_MAPPING;
use crate::kvm::uapi::KVM_MEMORY_EXIT_FLAG_PRIVATE;
use crate::kvm::vcpu::{ExitInfo, Vcpu, VcpuState};
use crate::kvm::vm::Vm;
use sim_coco::pkvm::{HostCall, Pa, func};
use sim_kernel::sync::RwLockWriteGuard;
use sim_kernel::{Cx, Errno, PAGE_SIZE, Pfn, Pgoff};
use sim_mmu::{Gfn, GfnRange, Gpa};
use std::collections::BTreeSet;

/// Which pages of a guest_memfd are shared.
#[derive(Debug)]
pub struct GmemSharing {
    init_shared: bool,
    /// Pages that are not as at the beginning. Changes under `invalidate_lock`.
    changed: parking_lot::Mutex<BTreeSet<u64>>,
}

impl GmemSharing {
    /// All pages shared, or none.
    pub(crate) fn new(init_shared: bool) -> GmemSharing {
        GmemSharing { init_shared, changed: Default::default() }
    }

    /// Whether the host may map the page.
    pub fn is_shared(&self, index: Pgoff) -> bool {
        self.init_shared != self.changed.lock().contains(&index.0)
    }

    fn set_shared(&self, index: Pgoff, shared: bool) {
        let mut changed = self.changed.lock();
        if shared == self.init_shared {
            changed.remove(&index.0);
        } else {
            changed.insert(index.0);
        }
    }
}

impl GmemInode {
    /// Makes a page private: the host's mappings go, and nobody else may have the page then. `held` of its references are those of the caller and of a record.
    ///
    /// # Errors
    /// `EAGAIN` if somebody has: the page stays shared.
    fn make_private(&self, cx: &Cx<'_>, index: Pgoff, held: u32) -> Result<(), Errno> {
        let Some(sharing) = self.sharing() else { return Ok(()) };
        let _lock = self.mapping().invalidate_lock.write(cx);
        if !sharing.is_shared(index) {
            return Ok(());
        }
        sharing.set_shared(index, false);
        let Some(pfn) = self.mapping().load(cx, index) else { return Ok(()) };
        let phys = self.phys();
        phys.lock(cx, pfn);
        let kept = if cx.has_mutant(PKVM_GMEM_KEEPS_MAPPING) {
            phys.mapcount(pfn)
        } else {
            self.mapping().i_mmap().unmap_page(cx, index);
            0
        };
        // The cache's own is one more.
        let busy = phys.refcount(pfn) > held + 1 + kept;
        phys.unlock(cx, pfn);
        if busy {
            sharing.set_shared(index, true);
            return Err(Errno::EAGAIN);
        }
        Ok(())
    }

    fn make_shared(&self, cx: &Cx<'_>, index: Pgoff) {
        let Some(sharing) = self.sharing() else { return };
        let _lock = self.mapping().invalidate_lock.write(cx);
        sharing.set_shared(index, true);
    }
}

impl Vcpu {
    /// A protected guest's fault where a guest_memfd is: the page is made private and donated.
    ///
    /// # Errors
    /// Those of the look-up and `EAGAIN` if somebody else has the page, with a memory-fault exit; `ENOMEM`; those of the hypervisor.
    pub(super) fn pkvm_gmem_private_abort(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        fault: &S2Fault<'_>,
    ) -> Result<(), Errno> {
        let (vm, gfn) = (&self.vm, fault.gfn());
        fault.vcpu.topup_memcache(cx)?;
        let seq = vm.mmu.invalidate.seq(cx);
        let page = vm.gmem_get_pfn(cx, fault.slot, gfn).inspect_err(|_| self.pkvm_memory_fault(state, fault, true))?;
        let result = self.donate_gmem(cx, state, fault, page.pfn, seq);
        if result.is_err() {
            // Otherwise the reference is the record's.
            vm.host.phys.put(cx, page.pfn);
        }
        result
    }

    fn donate_gmem(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        fault: &S2Fault<'_>,
        pfn: Pfn,
        seq: u64,
    ) -> Result<(), Errno> {
        let (vm, gfn) = (&self.vm, fault.gfn());
        vm.with_gmem(cx, fault.slot, |inode| {
            let known = u32::from(!fault.pkvm.records(cx).in_range(GfnRange::new(gfn, gfn + 1)).is_empty());
            inode.make_private(cx, fault.slot.gmem_index(gfn), 1 + known)
        })
        .inspect_err(|_| self.pkvm_memory_fault(state, fault, true))?;
        let lock = vm.mmu.mmu_lock.write(cx);
        if vm.mmu.invalidate.retry(cx, &lock, seq) {
            return Err(Errno::EAGAIN);
        }
        fault.pkvm.stage2_donate(cx, &lock, gfn, pfn, true)
    }

    /// The page of a call by which a guest shares its memory, or takes it back, if a guest_memfd is there.
    fn converted(&self, cx: &Cx<'_>, pkvm: &KvmPkvm, args: [u64; 3]) -> Option<(std::sync::Arc<Memslot>, Gfn)> {
        let [ipa, x2, x3] = args;
        if !pkvm.host.backs_with_gmem() || !pkvm.is_protected() || !ipa.is_multiple_of(PAGE_SIZE) || x2 | x3 != 0 {
            return None;
        }
        let gfn = Gpa(ipa).gfn();
        let _srcu = self.vm.srcu.read(cx);
        let slot = self.vm.memslots.read(cx, 0, |set| set.by_gfn(gfn).cloned())?;
        slot.has_gmem().then_some((slot, gfn))
    }

    /// Before the hypervisor gives a page back to the guest alone, the host's mappings go. False if the guest has to wait, and user space hears of it.
    ///
    /// # Errors
    /// `EAGAIN` with a memory-fault exit.
    pub(super) fn pkvm_before_conversion(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        pkvm: &KvmPkvm,
        function: u32,
        args: [u64; 3],
    ) -> Result<bool, Errno> {
        if function != func::MEM_UNSHARE {
            return Ok(true);
        }
        let Some((slot, gfn)) = self.converted(cx, pkvm, args) else { return Ok(true) };
        let known = pkvm.records(cx).in_range(GfnRange::new(gfn, gfn + 1)).len() as u32;
        let private = self.vm.with_gmem(cx, &slot, |inode| inode.make_private(cx, slot.gmem_index(gfn), known));
        match private {
            Err(Errno::EAGAIN) => {
                let flags = KVM_MEMORY_EXIT_FLAG_PRIVATE;
                state.exit = ExitInfo::MemoryFault { flags, gpa: gfn.gpa(), size: PAGE_SIZE };
                Err(Errno::EAGAIN)
            }
            // A file that is gone has nothing to convert.
            _ => Ok(true),
        }
    }

    /// After the hypervisor has shared a page with the host, the host may map it.
    pub(super) fn pkvm_after_conversion(&self, cx: &Cx<'_>, pkvm: &KvmPkvm, function: u32, args: [u64; 3]) {
        if function != func::MEM_SHARE {
            return;
        }
        if let Some((slot, gfn)) = self.converted(cx, pkvm, args) {
            let shared = self.vm.with_gmem(cx, &slot, |inode| {
                inode.make_shared(cx, slot.gmem_index(gfn));
                Ok(())
            });
            // A file that is gone has nothing to convert.
            let _gone = shared;
        }
    }
}

impl Vm {
    /// A guest_memfd takes pages of these guest frames away, under `mmu_lock` for writing: private ones are taken from the guest by force.
    pub(crate) fn pkvm_gmem_unmap(&self, cx: &Cx<'_>, _lock: &mut RwLockWriteGuard<'_, ()>, range: GfnRange) {
        let takes = |pkvm: &&KvmPkvm| pkvm.is_protected() && pkvm.has_pgt(cx) && pkvm.host.backs_with_gmem();
        let Some(pkvm) = self.pkvm().filter(takes) else { return };
        let known: Vec<Mapping> = pkvm.records(cx).in_range(range);
        for Mapping { gfn, pfn, .. } in known.into_iter().filter(|mapping| mapping.gmem && !mapping.taken) {
            let taken = pkvm.host.call(cx, HostCall::ForceReclaimGuestPage { pa: Pa::of(pfn) });
            if taken.is_ok() {
                pkvm.records(cx).set_taken(gfn);
                self.host.phys.put(cx, pfn);
            }
        }
    }
}

impl GmemFile {
    /// The guest frames are about to lose their pages (`kvm_gmem_invalidate_start`).
    pub(crate) fn pkvm_invalidate(&self, cx: &Cx<'_>, lock: &mut RwLockWriteGuard<'_, ()>, frames: &[(u16, GfnRange)]) {
        for (_, range) in frames {
            self.vm().pkvm_gmem_unmap(cx, lock, *range);
        }
    }
}
