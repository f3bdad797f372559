//! What the host keeps for TDX: the module, the KeyIDs that TDs may have, and pages that can never be used again
//! (`arch/x86/virt/vmx/tdx/tdx.c`).

use super::pamt::PamtCounts;
use crate::kvm::config::MachineConfig;
use sim_coco::tdx::{Hkid, Hpa, Leaf, Lp, Seam, Seamcall, StatusName, Tdmr, Tdx, TdxConfig};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::TaskId;
use sim_kernel::sched::Tracepoint;
use sim_kernel::sync::{Mutex, WaitQueue};
use sim_kernel::{Cx, Errno, PAGE_SHIFT, Pfn};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A SEAMCALL has returned: its leaf, and what RAX holds.
pub(crate) static TDX_SEAMCALL: Tracepoint = Tracepoint { name: "tdx_seamcall", fields: &["leaf", "rax"] };

/// `RDRAND_RETRY_LOOPS`: how often a leaf that found no random numbers is called.
const ENTROPY_TRIES: u32 = 10;

/// How often something was done, by whom.
#[derive(Debug, Default)]
pub(super) struct Tally {
    all: AtomicU64,
    of: parking_lot::Mutex<BTreeMap<TaskId, u64>>,
}

impl Tally {
    pub(super) fn add(&self, cx: &Cx<'_>) {
        self.all.fetch_add(1, Ordering::Relaxed);
        *self.of.lock().entry(cx.task()).or_default() += 1;
    }

    pub(super) fn all(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    /// By other tasks than this.
    pub(super) fn of_others(&self, cx: &Cx<'_>) -> u64 {
        self.all() - self.of.lock().get(&cx.task()).copied().unwrap_or(0)
    }
}

/// TDX on a host.
pub struct TdxHost {
    tdx: Arc<Tdx>,
    phys: Arc<PhysMem>,
    /// `tdx_guest_keyid_pool`: KeyIDs that TDs have.
    keyids: Mutex<BTreeSet<Hkid>>,
    /// `tdx_lock`: leaves that take a lock of the whole module.
    pub(super) tdx_lock: Mutex<()>,
    has_large_pages: bool,
    pub(super) pamt: PamtCounts,
    /// Pages that were leaked.
    leaked: parking_lot::Mutex<Vec<Pfn>>,
    /// How often each leaf was called by KVM.
    calls: parking_lot::Mutex<BTreeMap<Leaf, u64>>,
    /// Leaves that are being executed, and how many have returned: who met a lock waits for one to return, instead of trying again and again.
    in_flight: AtomicU64,
    pub(super) returned: Tally,
    returns: WaitQueue,
}

impl fmt::Debug for TdxHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TdxHost").field("tdx", &self.tdx).finish_non_exhaustive()
    }
}

impl TdxHost {
    /// The host at the end of its boot: the module is initialised, and all memory is in TDMRs. `None` if the machine has no TDX.
    pub(crate) fn boot(cx: &Cx<'_>, phys: &Arc<PhysMem>, config: &MachineConfig) -> Option<Arc<TdxHost>> {
        if !config.has_tdx() {
            return None;
        }
        let mut machine = TdxConfig::new(Tdmr::below(config.memory >> PAGE_SHIFT));
        let first = machine.hkids.start;
        // One more: the first is the global one.
        machine.hkids = first..first + 1 + config.tdx_hkids;
        machine.packages = config.tdx_packages.into();
        machine.contention = config.tdx_contention;
        machine.tree_host_priority = config.tdx_host_priority;
        machine.partial_write_erratum = config.tdx_erratum;
        machine.caches = config.tdx_caches;
        machine.dynamic_pamt = config.tdx_dynamic_pamt;
        let tdx = Arc::new(Tdx::new(cx, Arc::clone(phys), machine));
        tdx.bring_up(cx);
        let watched = Arc::downgrade(&tdx);
        phys.set_write_guard(Box::new(move |pfn, _| {
            if let Some(tdx) = watched.upgrade() {
                tdx.host_uses(pfn);
            }
            true
        }));
        Some(Arc::new(TdxHost {
            tdx,
            phys: Arc::clone(phys),
            keyids: Mutex::new(cx, "tdx_guest_keyid_pool", BTreeSet::new()),
            tdx_lock: Mutex::new(cx, "tdx_lock", ()),
            has_large_pages: config.tdx_2m,
            pamt: PamtCounts::new(cx),
            leaked: Default::default(),
            calls: Default::default(),
            in_flight: AtomicU64::new(0),
            returned: Tally::default(),
            returns: WaitQueue::new(cx, "SEAMCALL"),
        }))
    }

    /// The machine.
    pub fn tdx(&self) -> &Arc<Tdx> {
        &self.tdx
    }

    pub(super) fn phys(&self) -> &Arc<PhysMem> {
        &self.phys
    }

    /// Whether the Secure EPT may have leaves of 2 MiB (`tdx_huge_page`, the machine's `tdx_2m`).
    pub(super) fn has_large_pages(&self) -> bool {
        self.has_large_pages
    }

    /// Pages that the kernel could not take back and never uses again.
    pub fn leaked(&self) -> Vec<Pfn> {
        self.leaked.lock().clone()
    }

    /// How often KVM called a leaf since the host came up.
    pub fn calls(&self, leaf: Leaf) -> u64 {
        self.calls.lock().get(&leaf).copied().unwrap_or(0)
    }

    /// The processor that the task runs on: each task has its own.
    pub(super) fn lp(&self, cx: &Cx<'_>) -> Lp {
        Lp(u32::from(cx.task().0))
    }

    /// A SEAMCALL of the task's processor, and again while there are no random numbers (`sc_retry`), unless it is VP.ENTER.
    ///
    /// # Errors
    /// The leaf's.
    pub(super) fn call<'a, T>(
        &'a self,
        cx: &Cx<'_>,
        leaf: Leaf,
        call: impl FnMut(Seam<'a>) -> Seamcall<T>,
    ) -> Seamcall<T> {
        self.call_on(cx, self.lp(cx), leaf, call)
    }

    /// One SEAMCALL.
    fn call_once<'a, T>(
        &'a self,
        cx: &Cx<'_>,
        lp: Lp,
        leaf: Leaf,
        call: impl FnOnce(Seam<'a>) -> Seamcall<T>,
    ) -> Seamcall<T> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let result = self.tdx.refuses(leaf).map_or_else(|| call(self.tdx.on(lp)), Err);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.returned.add(cx);
        self.returns.wake_unscheduled(cx);
        *self.calls.lock().entry(leaf).or_default() += 1;
        let rax = result.as_ref().err().map_or(0, |fail| fail.status.raw());
        cx.trace(&TDX_SEAMCALL, &[u64::from(leaf.number()), rax]);
        result
    }

    /// The same of another processor, by an interrupt that it cannot refuse (`smp_call_function_single`).
    ///
    /// # Errors
    /// The leaf's.
    pub(super) fn call_on<'a, T>(
        &'a self,
        cx: &Cx<'_>,
        lp: Lp,
        leaf: Leaf,
        mut call: impl FnMut(Seam<'a>) -> Seamcall<T>,
    ) -> Seamcall<T> {
        let most = if leaf == Leaf::VpEnter { 1 } else { ENTROPY_TRIES };
        let mut tries = 1;
        loop {
            match self.call_once(cx, lp, leaf, &mut call) {
                Err(fail) if fail.name() == StatusName::RndNoEntropy && tries < most => tries += 1,
                result => return result,
            }
        }
    }

    /// After a lock of the module was met: the turn is given away, and if another leaf is being executed, until one has returned.
    pub(super) fn wait_for_lock(&self, cx: &Cx<'_>) {
        cx.cond_resched();
        let seen = self.returned.all();
        if self.is_calling() {
            self.returns.wait_event(cx, || self.returned.all() != seen || cx.signal_pending());
        }
    }

    /// Whether a leaf is being executed.
    pub(super) fn is_calling(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0
    }

    /// INVEPT of all contexts on the task's processor.
    pub(crate) fn ept_sync_global(&self, cx: &Cx<'_>) {
        self.tdx.on(self.lp(cx)).invept_global(cx);
    }

    /// `tdx_guest_keyid_alloc`: the lowest KeyID that no TD has.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub(super) fn keyid_alloc(&self, cx: &Cx<'_>) -> Result<Hkid, Errno> {
        let mut keyids = self.keyids.lock(cx);
        let range = &self.tdx.config().hkids;
        let free = (range.start + 1..range.end).map(Hkid).find(|hkid| !keyids.contains(hkid)).ok_or(Errno::ENOSPC)?;
        keyids.insert(free);
        Ok(free)
    }

    /// `tdx_guest_keyid_free`.
    pub(super) fn keyid_free(&self, cx: &Cx<'_>, hkid: Hkid) {
        let had = self.keyids.lock(cx).remove(&hkid);
        assert!(had, "TDX-INV-012: {hkid:?} is freed, and no TD has it");
    }

    /// KeyIDs that TDs have: for checkers.
    pub fn peek_keyids(&self) -> Vec<Hkid> {
        self.keyids.peek(|keyids| keyids.iter().copied().collect())
    }

    /// `tdx_alloc_control_page`: a page for the module, with metadata.
    ///
    /// # Errors
    /// `ENOMEM`, and those of [`TdxHost::pamt_get`].
    pub(super) fn alloc_page(&self, cx: &Cx<'_>) -> Result<Pfn, Errno> {
        let page = self.phys.alloc_zeroed()?;
        self.pamt_get(cx, page).inspect_err(|_| self.phys.put(cx, page))?;
        Ok(page)
    }

    /// As many pages, or none.
    ///
    /// # Errors
    /// As [`TdxHost::alloc_page`].
    pub(super) fn alloc_pages(&self, cx: &Cx<'_>, count: usize) -> Result<Vec<Pfn>, Errno> {
        let mut pages = Vec::with_capacity(count);
        while pages.len() < count {
            match self.alloc_page(cx) {
                Ok(page) => pages.push(page),
                Err(errno) => {
                    self.free_pages(cx, pages);
                    return Err(errno);
                }
            }
        }
        Ok(pages)
    }

    /// `tdx_free_control_page`.
    pub(super) fn free_page(&self, cx: &Cx<'_>, pfn: Pfn) {
        self.pamt_put(cx, pfn);
        self.phys.put(cx, pfn);
    }

    pub(super) fn free_pages(&self, cx: &Cx<'_>, pages: impl IntoIterator<Item = Pfn>) {
        pages.into_iter().for_each(|page| self.free_page(cx, page));
    }

    /// `tdx_clflush_page`: what the host wrote of a page is in memory before the module gets it. Only caches can tell.
    pub(super) fn clflush_page(&self, cx: &Cx<'_>, pfn: Pfn) {
        if self.tdx.config().caches {
            self.tdx.on(self.lp(cx)).clflush(cx, pfn);
        }
    }

    /// `tdx_quirk_reset_paddr`: where a partial write to what was a TD's poisons it, the page is written once as a whole.
    pub(super) fn quirk_reset_page(&self, cx: &Cx<'_>, pfn: Pfn) {
        if self.tdx.config().partial_write_erratum {
            self.tdx.on(self.lp(cx)).host_reset_page(cx, pfn);
        }
    }

    /// `__tdx_reclaim_page`.
    ///
    /// # Errors
    /// `EIO`; the page must be leaked.
    pub(super) fn reclaim(&self, cx: &Cx<'_>, pfn: Pfn) -> Result<(), Errno> {
        let reclaimed = self.call(cx, Leaf::PhymemPageReclaim, |seam| seam.phymem_page_reclaim(cx, Hpa::of(pfn)));
        reclaimed.map(drop).map_err(|_| Errno::EIO)
    }

    /// `tdx_reclaim_page`.
    ///
    /// # Errors
    /// As [`TdxHost::reclaim`].
    pub(super) fn reclaim_page(&self, cx: &Cx<'_>, pfn: Pfn) -> Result<(), Errno> {
        self.reclaim(cx, pfn)?;
        self.quirk_reset_page(cx, pfn);
        Ok(())
    }

    /// `tdx_reclaim_control_page`: reclaimed and freed, or leaked.
    pub(super) fn reclaim_control_page(&self, cx: &Cx<'_>, pfn: Pfn) {
        match self.reclaim_page(cx, pfn) {
            Ok(()) => self.free_page(cx, pfn),
            Err(_) => self.leak_page(pfn),
        }
    }

    /// Nobody gets this page any more; its reference is kept.
    pub(super) fn leak_page(&self, pfn: Pfn) {
        self.leaked.lock().push(pfn);
        self.phys.keep(pfn);
    }
}
