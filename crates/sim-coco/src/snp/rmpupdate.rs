//! RMPUPDATE (F2 0F 01 FE): the hypervisor gives a page away, or takes it back.

use super::config::ResizeRule;
use super::entry::{RmpEntry, RmpUpdate};
use super::fail::RmpFail;
use super::lock::{Conflict, Span};
use super::machine::{Snp, rmpupdate_conflict};
use super::mutants;
use super::types::{Asid, RmpSize, VmplPerms, head_of};
use sim_kernel::sched::Access;
use sim_kernel::{Cx, PAGES_PER_PMD, Pfn};
use sim_mmu::Gpa;

impl Snp {
    /// RMPUPDATE of the page at `pfn`. No contents change.
    ///
    /// When it returns, no processor uses a cached translation to the page any more.
    ///
    /// # Errors
    /// In the order of the checks: `Input`, then `Inuse` or `Overlap` if somebody else is at work there, `Permission`, `Overlap`.
    #[track_caller]
    pub fn rmpupdate(&self, cx: &Cx<'_>, pfn: Pfn, new: RmpUpdate) -> Result<(), RmpFail> {
        let resizes = self.config.resize == ResizeRule::ClearsValidated;
        let (first, pages) = match new.page_size {
            RmpSize::Size2M => (pfn, PAGES_PER_PMD),
            // These look at, or change, the whole region.
            RmpSize::Size4K if self.config.contention || resizes => (head_of(pfn), PAGES_PER_PMD),
            RmpSize::Size4K => (pfn, 1),
        };
        self.point(cx, Access::Rmw, first, pages);
        cx.note("RMP", "RMPUPDATE");
        if !self.is_enabled() {
            return Err(RmpFail::Ud);
        }
        if !new.page_size.is_aligned(pfn) {
            return Err(RmpFail::Input);
        }
        if !new.assigned && (new.immutable || new.asid != Asid::HOST) || new.asid.0 > self.config.asid_max {
            return Err(RmpFail::Input);
        }
        let is_2m = new.page_size == RmpSize::Size2M;
        if !(if is_2m { self.rmp.covers_region(pfn) } else { self.rmp.covers(pfn) }) {
            return Err(RmpFail::Input);
        }

        // R6, R8: without these marks, a page that a vCPU runs with, or that another processor is changing, changes.
        let span = if is_2m { Span::Region } else { Span::Entry };
        let _lock = match self.rmp.lock(pfn, span, self.cpu(cx)) {
            Ok(lock) => Some(lock),
            Err(Conflict::InUse) if self.is_off(mutants::R08) => None,
            Err(Conflict::Entry | Conflict::Region) if self.is_off(mutants::R06) => None,
            Err(conflict) => return Err(rmpupdate_conflict(conflict)),
        };
        let _updating = match span {
            Span::Entry if self.config.contention => match self.rmp.lock_updating(pfn) {
                Err(_) if self.is_off(mutants::R06) => None,
                updating => Some(updating.map_err(rmpupdate_conflict)?),
            },
            _ => None,
        };

        let old = self.rmp.entry(pfn);
        // R18: without it, a page changes hands while the firmware writes it (SNP-INV-022).
        if old.immutable && !self.is_off(mutants::R18) {
            return Err(RmpFail::Permission);
        }
        self.check_overlap(pfn, new.page_size, &old)?;
        self.contend(cx, first, pages);
        if !is_2m && self.rmp.is_2m(pfn) {
            self.split_unvalidated(pfn);
        }
        self.commit(pfn, new);
        self.broadcast(first, pages);
        Ok(())
    }

    /// Whether a page of this size can be here beside what is here.
    fn check_overlap(&self, pfn: Pfn, size: RmpSize, old: &RmpEntry) -> Result<(), RmpFail> {
        let overlaps = match size {
            RmpSize::Size4K => self.rmp.is_2m(pfn),
            RmpSize::Size2M => old.page_size == RmpSize::Size4K && self.rmp.any_assigned_in_region(pfn),
        };
        if overlaps && self.config.resize == ResizeRule::Overlap {
            return Err(RmpFail::Overlap);
        }
        // SNP-INV-022: also where only a tail is immutable, or the head of a page that would be split.
        let touched = if size == RmpSize::Size2M { pfn } else { head_of(pfn) };
        let all = size == RmpSize::Size2M || overlaps;
        if all && !self.is_off(mutants::R18) && (0..PAGES_PER_PMD).any(|i| self.rmp.is_immutable(touched + i)) {
            return Err(RmpFail::Permission);
        }
        Ok(())
    }

    /// What [`ResizeRule::ClearsValidated`] makes of a page of 2 MiB of which a part gets another owner.
    fn split_unvalidated(&self, pfn: Pfn) {
        let head = head_of(pfn);
        let page = self.rmp.entry(head);
        for i in 0..PAGES_PER_PMD {
            let gpa = page.gpa + (i << sim_kernel::PAGE_SHIFT);
            let part = RmpEntry { page_size: RmpSize::Size4K, gpa, validated: false, ..page };
            self.rmp.store(head + i, &part);
        }
    }

    fn commit(&self, pfn: Pfn, new: RmpUpdate) {
        let old = self.rmp.entry(pfn);
        let gpa = new.gpa.0 & ((1 << self.config.gpa_bits) - 1) & !(sim_kernel::PAGE_SIZE - 1);
        let mut entry = if new.assigned {
            RmpEntry {
                assigned: true,
                page_size: new.page_size,
                immutable: new.immutable,
                gpa: Gpa(gpa),
                asid: new.asid,
                ..RmpEntry::HYPERVISOR
            }
        } else {
            RmpEntry::HYPERVISOR
        };
        if entry.is_same_page(&old) {
            entry.validated = old.validated;
            entry.vmsa = old.vmsa;
            entry.perms = old.perms;
        } else if entry.assigned {
            entry.perms[0] = self.all_perms();
            entry.validated = old.validated && self.is_off(mutants::KEEPS_VALIDATED);
        }
        let size = if self.is_off(mutants::NO_TAILS) { RmpSize::Size4K } else { new.page_size };
        self.rmp.store_page(pfn, &entry, size);
        self.rmp.count_change(pfn);
    }

    /// Everything that VMPL0 may do.
    pub(super) fn all_perms(&self) -> VmplPerms {
        if self.config.supervisor_shadow_stack { VmplPerms::all() } else { VmplPerms::all() - VmplPerms::SSS }
    }
}
