//! What processors do: accesses of the host and of guests through their stage 2 and TLBs, and the aborts that they take to EL2.
//!
//! An access is one step: translation, filling the TLB, and the bytes. It is announced on the bytes, or on the guest's address as long as nothing is mapped there.
//!
//! Simplified: an access is of one aligned word, and of the physical address that stage 1 gave; devices read as zero.

use super::machine::Pkvm;
use super::pgtable::Root;
use super::pte::S2Level;
use super::tlb::{Entries, TlbEntry};
use super::trace::TraceEvent;
use super::types::{CpuId, Pa, Prot};
use crate::AccessKind;
use sim_kernel::mm::phys::WORDS_PER_PAGE;
use sim_kernel::sched::Access;
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::Gpa;

/// An access of one aligned word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// A load.
    Read,
    /// A store of this value.
    Write(u64),
    /// An instruction fetch.
    Fetch,
}

impl Touch {
    /// What it does.
    pub const fn kind(self) -> AccessKind {
        match self {
            Touch::Read => AccessKind::Read,
            Touch::Write(_) => AccessKind::Write,
            Touch::Fetch => AccessKind::Fetch,
        }
    }

    const fn needs(self) -> Prot {
        match self {
            Touch::Read => Prot::R,
            Touch::Write(_) => Prot::W,
            Touch::Fetch => Prot::X,
        }
    }
}

/// Class of a stage-2 abort (the fault status in ESR_EL2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AbortKind {
    /// No valid descriptor.
    Translation,
    /// One whose access flag is clear.
    AccessFlag,
    /// One that does not permit it.
    Permission,
}

/// A guest's access left the guest: what the host reads in ESR_EL2 and HPFAR_EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestAbort {
    /// Where.
    pub ipa: Gpa,
    /// Why.
    pub kind: AbortKind,
    /// Level of the descriptor that ended the walk.
    pub level: S2Level,
    /// What the access was to do.
    pub access: AccessKind,
}

/// Why a guest did not do what it wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestStop {
    /// An abort, for the host to handle.
    Abort(GuestAbort),
    /// No vCPU is loaded on the processor.
    NoVcpu,
}

/// An abort that EL2 injects into the host: with S1PTW set, which no abort of the host's own stage 1 has at EL1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostAbort {
    /// The page is somebody else's.
    Injected,
    /// There is no such physical address.
    AddressSize,
    /// The host's mapping of devices is not executable.
    Permission,
}

/// How the walk of a page ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Walked {
    Hit(TlbEntry),
    Fault(AbortKind, S2Level),
}

impl Pkvm {
    fn translate(&self, cached: Option<TlbEntry>, root: &Root, page: Pfn) -> Walked {
        if let Some(entry) = cached {
            return Walked::Hit(entry);
        }
        let Ok((slot, pte)) = root.leaf(&self.phys, page) else {
            return Walked::Fault(AbortKind::Translation, root.start);
        };
        if !pte.is_leaf(slot.level) {
            return Walked::Fault(AbortKind::Translation, slot.level);
        }
        if !pte.is_young() {
            return Walked::Fault(AbortKind::AccessFlag, slot.level);
        }
        let pfn = Pfn(pte.pfn().0 + (page.0 - slot.first.0));
        Walked::Hit(TlbEntry { pfn, pte, level: slot.level })
    }

    fn cached(entries: &Entries, cpu: CpuId, root: &Root, page: Pfn) -> Option<TlbEntry> {
        entries.get(&(cpu, root.vmid, page)).copied()
    }

    /// The bytes of an access, as part of a step.
    fn perform(&self, pfn: Pfn, word: usize, touch: Touch) -> u64 {
        if self.config.region(pfn).is_none() || !self.phys.has_frame(pfn) {
            return 0;
        }
        if let Touch::Write(value) = touch {
            self.phys.poke_u64(pfn, word, value);
        }
        self.phys.peek_u64(pfn, word)
    }

    #[track_caller]
    fn point_word(&self, cx: &Cx<'_>, pfn: Pfn, word: usize, touch: Touch) {
        let access = if matches!(touch, Touch::Write(_)) { Access::Store } else { Access::Load };
        let index = pfn.0.saturating_mul(WORDS_PER_PAGE as u64).saturating_add(word as u64);
        cx.point_range(access, self.phys.object(), index, 1);
    }

    /// The guest of the loaded vCPU accesses memory; the value that is there afterwards.
    ///
    /// # Errors
    /// The abort with which it leaves the guest.
    ///
    /// # Panics
    /// If there is no such processor.
    #[track_caller]
    pub fn guest_access(&self, cx: &Cx<'_>, cpu: CpuId, ipa: Gpa, touch: Touch) -> Result<u64, GuestStop> {
        let vcpu = self.el2(cx, cpu).hv.loaded(cpu).ok_or(GuestStop::NoVcpu)?;
        let (root, page, word) = (&vcpu.vm.root, Pfn(ipa.gfn().0), Pa(ipa.0).word());
        loop {
            let seen = self.translate(self.tlbs.lookup(cpu, root.vmid, page), root, page);
            match seen {
                Walked::Hit(entry) => self.point_word(cx, entry.pfn, word, touch),
                Walked::Fault(..) => cx.point_range(Access::Load, vcpu.vm.object, page.0, 1),
            }
            let mut entries = self.tlbs.access();
            let walked = self.translate(Pkvm::cached(&entries, cpu, root, page), root, page);
            if walked != seen {
                continue;
            }
            let (kind, level) = match walked {
                Walked::Hit(entry) if entry.pte.prot().contains(touch.needs()) => {
                    entries.insert((cpu, root.vmid, page), entry);
                    return Ok(self.perform(entry.pfn, word, touch));
                }
                // By a translation that is older than the descriptor, too: then the host finds nothing to do but to drop it.
                Walked::Hit(entry) => (AbortKind::Permission, entry.level),
                Walked::Fault(kind, level) => (kind, level),
            };
            drop(entries);
            let abort = GuestAbort { ipa, kind, level, access: touch.kind() };
            *vcpu.fault.lock() = Some(abort);
            return Err(GuestStop::Abort(abort));
        }
    }

    /// The host accesses memory by its physical address; the value that is there afterwards. Faults in its stage 2 are handled at EL2, where they only need to be filled.
    ///
    /// # Errors
    /// What EL2 injects.
    ///
    /// # Panics
    /// If there is no such processor.
    #[track_caller]
    pub fn host_access(&self, cx: &Cx<'_>, cpu: CpuId, pa: Pa, touch: Touch) -> Result<u64, HostAbort> {
        let el2 = self.el2(cx, cpu);
        let (root, pfn, word) = (&self.host_root, pa.pfn(), pa.word());
        loop {
            self.point_word(cx, pfn, word, touch);
            if !self.cpus.lock()[cpu.0 as usize].finalized {
                return Ok(self.perform(pfn, word, touch));
            }
            let mut entries = self.tlbs.access();
            match self.translate(Pkvm::cached(&entries, cpu, root, pfn), root, pfn) {
                Walked::Hit(entry) if entry.pte.prot().contains(touch.needs()) => {
                    entries.insert((cpu, root.vmid, pfn), entry);
                    return Ok(self.perform(entry.pfn, word, touch));
                }
                Walked::Hit(_) => return Err(HostAbort::Permission),
                Walked::Fault(..) => drop(entries),
            }
            el2.record(TraceEvent::Enter { call: "host_mem_abort" });
            let handled = el2.host_idmap(pfn);
            let ret = handled.map_or_else(|error| -i64::from(error.number()), |()| 0);
            el2.record(TraceEvent::Exit { call: "host_mem_abort", ret });
            match handled {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(Errno::ERANGE) => return Err(HostAbort::AddressSize),
                Err(_) => return Err(HostAbort::Injected),
            }
        }
    }

    /// A device accesses memory: nothing of this stands in its way (a known gap).
    #[track_caller]
    pub fn device_access(&self, cx: &Cx<'_>, pa: Pa, touch: Touch) -> u64 {
        self.point_word(cx, pa.pfn(), pa.word(), touch);
        self.perform(pa.pfn(), pa.word(), touch)
    }
}
