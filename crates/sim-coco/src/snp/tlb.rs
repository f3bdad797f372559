//! What guests' processors remember of RMP checks beside a translation.
//!
//! RMPUPDATE and PSMASH drop these everywhere before they complete; PVALIDATE and RMPADJUST drop nothing, so that a guest may go on with what it
//! has itself rescinded until it flushes. Off by default: then every access is checked anew (OP-20).

use super::entry::RmpEntry;
use super::guest::{GuestCpu, SnpAccess};
use super::types::{Asid, Vmpl};
use sim_kernel::Pfn;
use sim_mmu::{Gfn, Level};
use std::collections::BTreeMap;

/// Whose translation of what.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Tag {
    vcpu: u32,
    asid: Asid,
    vmpl: Vmpl,
    gfn: Gfn,
}

#[derive(Clone, Copy, Debug)]
struct Cached {
    pfn: Pfn,
    level: Level,
    page: RmpEntry,
}

/// The caches of all virtual processors.
#[derive(Debug)]
pub(super) struct GuestTlbs {
    entries: Option<parking_lot::Mutex<BTreeMap<Tag, Cached>>>,
}

impl GuestTlbs {
    pub(super) fn new(on: bool) -> GuestTlbs {
        GuestTlbs { entries: on.then(Default::default) }
    }

    fn tag(cpu: &GuestCpu, access: &SnpAccess) -> Tag {
        Tag { vcpu: cpu.vcpu, asid: cpu.asid, vmpl: cpu.vmpl, gfn: access.gpa.gfn() }
    }

    /// What the RMP said when this translation was made, if it still is the same one.
    #[inline]
    pub(super) fn lookup(&self, cpu: &GuestCpu, access: &SnpAccess) -> Option<RmpEntry> {
        let entries = self.entries.as_ref()?.lock();
        let cached = entries.get(&Self::tag(cpu, access))?;
        (cached.pfn == access.pfn && cached.level == access.level).then_some(cached.page)
    }

    #[inline]
    pub(super) fn fill(&self, cpu: &GuestCpu, access: &SnpAccess, page: &RmpEntry) {
        if let Some(entries) = &self.entries {
            let cached = Cached { pfn: access.pfn, level: access.level, page: *page };
            entries.lock().insert(Self::tag(cpu, access), cached);
        }
    }

    pub(super) fn invalidate(&self, first: Pfn, pages: u64) {
        if let Some(entries) = &self.entries {
            entries.lock().retain(|_, cached| !(first..first + pages).contains(&cached.pfn));
        }
    }

    pub(super) fn flush(&self, vcpu: u32) {
        if let Some(entries) = &self.entries {
            entries.lock().retain(|tag, _| tag.vcpu != vcpu);
        }
    }
}

impl super::Snp {
    /// A virtual processor's translations are flushed: by its guest, or because the hypervisor asks for it at VMRUN.
    pub fn flush_guest_tlb(&self, vcpu: u32) {
        self.tlbs.flush(vcpu);
    }
}
