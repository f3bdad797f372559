//! The end of a TD: its KeyID first, then its pages (`tdx_mmu_release_hkid`, `tdx_reclaim_td_control_pages`, `tdx_vm_destroy`).
//!
//! Memory that a guest_memfd gave is gone by then: closing the file takes it out of the Secure EPT while the KeyID is still there, and a VM lives as long as its
//! guest_memfds. What is left is tables, and what the TD and its vCPUs consist of, which is reclaimed without any tracking, because nobody can run any more.

use super::vm::KvmTdx;
use crate::kvm::mutants::{TDX_FREEID_BEFORE_CACHE_WB, TDX_RELEASE_UNLOCKED};
use crate::kvm::vm::Vm;
use sim_coco::tdx::{Hpa, Leaf, Lp, StatusName};
use sim_kernel::Cx;
use std::sync::atomic::Ordering;

/// `TDX_SEAMCALL_RETRIES`.
const CACHE_WB_TRIES: u32 = 10_000;

impl Vm {
    /// `tdx_mmu_release_hkid`: no vCPU belongs to a processor, no cache has anything of the TD, and its KeyID is free. If that does not succeed, the KeyID is lost, and
    /// nothing of the TD is ever reclaimed.
    pub(crate) fn tdx_mmu_release_hkid(&self, cx: &Cx<'_>, tdx: &KvmTdx) {
        if !tdx.is_hkid_assigned() {
            return;
        }
        for vcpu in self.all_vcpus() {
            vcpu.tdx().expect("a vCPU of a TD").flush_on_cpu(cx, self, tdx);
        }
        let (host, tdr) = (&tdx.host, tdx.tdr_hpa());
        tdx.release_tried.store(true, Ordering::Relaxed);
        let _global = (!cx.has_mutant(TDX_RELEASE_UNLOCKED)).then(|| host.tdx_lock.lock(cx));
        match host.call(cx, Leaf::MngVpflushdone, |seam| seam.mng_vpflushdone(cx, tdr)) {
            Ok(()) => {}
            // A vCPU belongs to a processor all the same: the KeyID is lost.
            Err(fail) if fail.name() == StatusName::FlushvpNotDone => return,
            Err(_) => return self.bug(cx),
        }
        if !cx.has_mutant(TDX_FREEID_BEFORE_CACHE_WB) {
            tdx.write_back_caches(cx);
        }
        let freed = host.call(cx, Leaf::MngKeyFreeid, |seam| seam.mng_key_freeid(cx, tdr));
        if freed.is_err() {
            return self.bug(cx);
        }
        tdx.hkid_free(cx);
    }
}

impl Vm {
    /// `tdx_terminate_vm`, with the mutex of every vCPU held: none of them runs, and none will.
    pub(super) fn tdx_terminate_vm(&self, cx: &Cx<'_>, tdx: &KvmTdx) {
        self.die(cx);
        self.tdx_mmu_release_hkid(cx, tdx);
    }
}

impl KvmTdx {
    /// `smp_func_do_phymem_cache_wb`, on one processor of each package.
    fn write_back_caches(&self, cx: &Cx<'_>) {
        let config = self.host.tdx().config();
        for package in 0..config.packages {
            let lp = Lp(package * config.lps_per_package);
            let mut resume = false;
            for _ in 0..CACHE_WB_TRIES {
                match self.host.call_on(cx, lp, Leaf::PhymemCacheWb, |seam| seam.phymem_cache_wb(cx, resume)) {
                    Err(fail) if fail.name() == StatusName::InterruptedResumable => {
                        // The interrupt is served between two tries.
                        self.host.tdx().ack_interrupt(lp);
                        resume = true;
                    }
                    // Nothing to do: somebody else did it. Any other failure makes KEY.FREEID fail.
                    _ => break,
                }
            }
        }
    }

    /// `tdx_reclaim_td_control_pages`.
    pub(super) fn reclaim_td_control_pages(&self, cx: &Cx<'_>, vm: &Vm) {
        let pages = std::mem::take(&mut *self.pages.lock());
        if self.is_hkid_assigned() {
            pages.tdcs.into_iter().chain(pages.tdr).for_each(|page| self.host.leak_page(page));
            return;
        }
        for page in pages.tdcs {
            self.host.reclaim_control_page(cx, page);
        }
        let Some(tdr) = pages.tdr else { return };
        if self.host.reclaim(cx, tdr).is_err() {
            self.host.leak_page(tdr);
            return;
        }
        let config = self.host.tdx().config();
        // What the module wrote of a TDR is under the global KeyID.
        let page = Hpa::of(tdr).with_keyid(config.global_hkid(), config.keyid_shift);
        if self.host.call(cx, Leaf::PhymemPageWbinvd, |seam| seam.phymem_page_wbinvd(cx, page)).is_err() {
            vm.bug(cx);
            self.host.leak_page(tdr);
            return;
        }
        self.host.quirk_reset_page(cx, tdr);
        self.host.free_page(cx, tdr);
    }

    /// `tdx_vm_destroy`.
    pub(crate) fn vm_destroy(&self, cx: &Cx<'_>, vm: &Vm) {
        self.pamt_drop_spare(cx);
        self.reclaim_td_control_pages(cx, vm);
    }
}
