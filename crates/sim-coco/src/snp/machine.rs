//! The machine: memory with keys, the RMP over it, the firmware beside it, and the registers that turn it on.
//!
//! Registers are of all processors at once (SYSCFG) where software always writes them so.

use super::config::SnpConfig;
use super::firmware::Psp;
use super::lock::{Conflict, Holder};
use super::memory::EncryptedMemory;
use super::mutants;
use super::rmp::Rmp;
use super::tlb::GuestTlbs;
use super::types::{Asid, Spa};
use sim_kernel::mm::PhysMem;
use sim_kernel::mm::phys::WORDS_PER_PAGE;
use sim_kernel::sched::Access;
use sim_kernel::sync::Mutex;
use sim_kernel::{Cx, Mutant, MutantSet, Pfn};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A processor, by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CpuId(pub u32);

/// Registers and caches.
#[derive(Debug, Default)]
pub(super) struct Cpus {
    /// VM_HSAVE_PA, where it was written.
    pub(super) hsave_pa: BTreeMap<CpuId, Spa>,
    /// Processors that have not written back their caches since an ASID was given up.
    pub(super) wbinvd_owed: BTreeSet<CpuId>,
}

/// A host with SEV-SNP.
///
/// ```
/// use sim_coco::snp::{Asid, PageState, RmpLayout, RmpUpdate, Snp, SnpConfig};
/// use sim_kernel::{mm::PhysMem, sched::Sim};
/// use sim_mmu::Gpa;
/// use std::sync::Arc;
/// Sim::sequential().solo(|cx| {
///     let memory = Arc::new(PhysMem::new(cx, 1 << 20));
///     let snp = Snp::new(cx, Arc::clone(&memory), SnpConfig::new(RmpLayout::above(256)));
///     snp.bring_up(cx).unwrap();
///     let pfn = memory.alloc_zeroed().unwrap();
///     snp.rmpupdate(cx, pfn, RmpUpdate::guest(Asid(1), Gpa(0x5000))).unwrap();
///     assert_eq!(snp.rmp().state(pfn), Some(PageState::GuestInvalid));
/// });
/// ```
pub struct Snp {
    pub(super) config: SnpConfig,
    pub(super) rmp: Rmp,
    pub(super) memory: EncryptedMemory,
    pub(super) psp: Mutex<Psp>,
    pub(super) cpus: parking_lot::Mutex<Cpus>,
    pub(super) tlbs: GuestTlbs,
    /// Rules that are off.
    mutants: MutantSet,
    /// SYSCFG.SNP_EN.
    snp_en: AtomicBool,
    /// What RMP operations are announced on.
    object: sim_kernel::sched::ObjId,
}

impl Snp {
    /// A host that was just reset: SNP is not enabled, the firmware not initialised.
    pub fn new(cx: &Cx<'_>, phys: Arc<PhysMem>, config: SnpConfig) -> Snp {
        Snp {
            rmp: Rmp::new(config.layout.clone()),
            object: phys.object(),
            memory: EncryptedMemory::new(phys),
            psp: Mutex::new(cx, "psp", Psp::new(config.seed)),
            cpus: Default::default(),
            tlbs: GuestTlbs::new(config.guest_tlb),
            mutants: mutants::chosen(cx),
            snp_en: AtomicBool::new(false),
            config,
        }
    }

    /// What the machine is made of.
    pub fn config(&self) -> &SnpConfig {
        &self.config
    }

    /// The table, for reading: checkers, and software that maps it.
    pub fn rmp(&self) -> &Rmp {
        &self.rmp
    }

    /// Memory and its keys, without any check: what a probe on the bus sees.
    pub fn memory(&self) -> &EncryptedMemory {
        &self.memory
    }

    /// Whether SYSCFG.SNP_EN is set.
    #[inline]
    pub fn is_enabled(&self) -> bool {
        self.snp_en.load(Ordering::Relaxed)
    }

    /// Sets SYSCFG.SNP_EN on all processors, which cannot be undone by software. The RMP was zeroed before.
    pub fn set_snp_en(&self, cx: &Cx<'_>) {
        cx.cond_resched();
        if !self.is_enabled() {
            self.rmp.clear();
            self.owe_wbinvd();
        }
        self.snp_en.store(true, Ordering::Relaxed);
    }

    /// The firmware clears SYSCFG.SNP_EN (SHUTDOWN_EX with `x86_snp_shutdown`).
    pub(super) fn clear_snp_en(&self) {
        self.snp_en.store(false, Ordering::Relaxed);
    }

    /// WRMSR of VM_HSAVE_PA: the page must not be assigned; 0 takes it away.
    ///
    /// # Errors
    /// `#GP(0)` if it is.
    pub fn wrmsr_vm_hsave_pa(&self, cx: &Cx<'_>, cpu: CpuId, page: Spa) -> Result<(), super::vmrun::Gp0> {
        self.point(cx, Access::Load, page.pfn(), 1);
        if page != Spa(0) && self.is_enabled() && self.rmp.is_assigned(page.pfn()) {
            return Err(super::vmrun::Gp0);
        }
        self.cpus.lock().hsave_pa.insert(cpu, page);
        Ok(())
    }

    /// WBINVD on one processor. Caches are coherent here: it is remembered, not performed.
    pub fn wbinvd(&self, cx: &Cx<'_>, cpu: CpuId) {
        cx.cond_resched();
        self.cpus.lock().wbinvd_owed.remove(&cpu);
    }

    /// WBINVD on all processors (`wbinvd_on_all_cpus`).
    pub fn wbinvd_all(&self, cx: &Cx<'_>) {
        cx.cond_resched();
        self.cpus.lock().wbinvd_owed.clear();
    }

    /// An ASID was given up: every processor may still have lines of it.
    pub(super) fn owe_wbinvd(&self) {
        self.cpus.lock().wbinvd_owed.extend((0..self.config.cpus).map(CpuId));
    }

    /// Whether a processor may still have lines of an ASID that was given up: for checkers.
    pub fn owes_wbinvd(&self) -> bool {
        !self.cpus.lock().wbinvd_owed.is_empty()
    }

    /// What software does at boot, in its order: WBINVD, SNP_EN, VM_HSAVE_PA cleared, WBINVD, INIT_EX, WBINVD, DF_FLUSH.
    ///
    /// # Errors
    /// The firmware's, if it was initialised before.
    pub fn bring_up(&self, cx: &Cx<'_>) -> Result<(), super::firmware::PspFail> {
        self.wbinvd_all(cx);
        self.set_snp_en(cx);
        self.cpus.lock().hsave_pa.clear();
        self.wbinvd_all(cx);
        self.snp_init(cx, &[])?;
        self.wbinvd_all(cx);
        self.snp_df_flush(cx)
    }

    /// The scheduling point of an operation on the entries of `pages` frames, and on their contents.
    ///
    /// It is announced on the frames' bytes: whether an access goes through depends on the entry at the moment of the access, so
    /// that an operation on the entry and an access to the page are never independent.
    #[track_caller]
    pub(super) fn point(&self, cx: &Cx<'_>, access: Access, first: Pfn, pages: u64) {
        let words = WORDS_PER_PAGE as u64;
        cx.point_range(access, self.object, first.0 * words, pages * words);
    }

    /// As [`Snp::point`] for an access to some words of one page.
    #[inline]
    #[track_caller]
    pub(super) fn point_words(&self, cx: &Cx<'_>, access: Access, pfn: Pfn, word: u64, words: u64) {
        cx.point_range(access, self.object, pfn.0 * WORDS_PER_PAGE as u64 + word, words);
    }

    /// Between mark and commit: a point of its own where contention is wanted.
    #[track_caller]
    pub(super) fn contend(&self, cx: &Cx<'_>, first: Pfn, pages: u64) {
        if self.config.contention {
            self.point(cx, Access::Rmw, first, pages);
        }
    }

    /// Whether this rule is switched off.
    #[inline]
    pub(super) fn is_off(&self, mutant: Mutant) -> bool {
        self.mutants.contains(mutant)
    }

    pub(super) fn cpu(&self, cx: &Cx<'_>) -> Holder {
        Holder::Cpu(cx.task())
    }

    /// Drops cached translations of all guests to these frames (the broadcast of RMPUPDATE and PSMASH).
    pub(super) fn broadcast(&self, first: Pfn, pages: u64) {
        if !self.is_off(mutants::R23) {
            self.tlbs.invalidate(first, pages);
        }
    }

    pub(super) fn is_guest_asid(&self, asid: Asid) -> bool {
        asid != Asid::HOST && asid.0 <= self.config.asid_max
    }
}

/// The code of RMPUPDATE for a mark that could not be set.
pub(super) fn rmpupdate_conflict(conflict: Conflict) -> super::RmpFail {
    match conflict {
        Conflict::InUse | Conflict::Entry => super::RmpFail::Inuse,
        Conflict::Region => super::RmpFail::Overlap,
    }
}

impl fmt::Debug for Snp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snp").field("enabled", &self.is_enabled()).field("rmp", &self.rmp).finish_non_exhaustive()
    }
}
