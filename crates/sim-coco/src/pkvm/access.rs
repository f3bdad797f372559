//! What processors do: accesses of the host and of guests through their stage 2 and TLBs, and the aborts that they take to EL2.
//!
//! An access is one step: translation, filling the TLB, and the bytes. The host's is announced on the bytes. Before a guest's there is a step that only looks where the address leads,
//! announced on the address; if it leads nowhere, that was the access.
//!
//! Simplified: an access is of one aligned word, and of the physical address that stage 1 gave; devices read as zero.

use super::el2::Dead;
use super::machine::Pkvm;
use super::pgtable::Root;
use super::pte::S2Level;
use super::tlb::{Entries, TlbEntry};
use super::types::{CpuId, Pa, Prot};
use super::vm::HypVcpu;
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
}

/// The permission that an access needs.
const fn needs(access: AccessKind) -> Prot {
    match access {
        AccessKind::Read => Prot::R,
        AccessKind::Write => Prot::W,
        AccessKind::Fetch => Prot::X,
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
    /// EL2 panicked: nothing runs any more ([`Pkvm::panicked`]).
    Dead,
}

impl From<Dead> for GuestStop {
    fn from(_: Dead) -> GuestStop {
        GuestStop::Dead
    }
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
    /// EL2 panicked: nothing runs any more ([`Pkvm::panicked`]).
    Dead,
}

impl From<Dead> for HostAbort {
    fn from(_: Dead) -> HostAbort {
        HostAbort::Dead
    }
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
    fn point_word(&self, cx: &Cx<'_>, pfn: Pfn, word: usize, kind: AccessKind) {
        let access = if kind == AccessKind::Write { Access::Store } else { Access::Load };
        let index = pfn.0.saturating_mul(WORDS_PER_PAGE as u64).saturating_add(word as u64);
        cx.point_range(access, self.phys.object(), index, 1);
    }

    /// The frame that an access of the guest of the loaded vCPU goes to, as a part of a step that the caller has announced; the processor remembers the translation.
    ///
    /// # Errors
    /// The abort with which the access leaves the guest.
    pub fn guest_probe(&self, cpu: CpuId, ipa: Gpa, kind: AccessKind) -> Result<Pfn, GuestStop> {
        let vcpu = self.loaded(cpu).ok_or(GuestStop::NoVcpu)?;
        self.guest_translation(&mut self.tlbs.access(), cpu, &vcpu, ipa, kind)
    }

    fn guest_translation(
        &self,
        entries: &mut Entries,
        cpu: CpuId,
        vcpu: &HypVcpu,
        ipa: Gpa,
        access: AccessKind,
    ) -> Result<Pfn, GuestStop> {
        let (root, page) = (&vcpu.vm.root, Pfn(ipa.gfn().0));
        let (kind, level) = match self.translate(Pkvm::cached(entries, cpu, root, page), root, page) {
            Walked::Hit(entry) if entry.pte.prot().contains(needs(access)) => {
                entries.insert((cpu, root.vmid, page), entry);
                return Ok(entry.pfn);
            }
            // By a translation that is older than the descriptor, too: then the host finds nothing to do but to drop it.
            Walked::Hit(entry) => (AbortKind::Permission, entry.level),
            Walked::Fault(kind, level) => (kind, level),
        };
        let abort = GuestAbort { ipa, kind, level, access };
        *vcpu.fault.lock() = Some(abort);
        Err(GuestStop::Abort(abort))
    }

    /// The guest of the loaded vCPU accesses memory; the value that is there afterwards.
    ///
    /// # Errors
    /// The abort with which it leaves the guest.
    #[track_caller]
    pub fn guest_access(&self, cx: &Cx<'_>, cpu: CpuId, ipa: Gpa, touch: Touch) -> Result<u64, GuestStop> {
        self.guest_step(cx, cpu, ipa, touch.kind(), |pfn, word| self.perform(pfn, word, touch))
    }

    /// The guest of the loaded vCPU replaces the aligned word at an address by a function of it, in one step: a store of less than a word, or an atomic instruction. Returns what
    /// was there.
    ///
    /// # Errors
    /// The abort with which it leaves the guest.
    #[track_caller]
    pub fn guest_modify(
        &self,
        cx: &Cx<'_>,
        cpu: CpuId,
        ipa: Gpa,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, GuestStop> {
        self.guest_step(cx, cpu, ipa, AccessKind::Write, |pfn, word| {
            let old = self.perform(pfn, word, Touch::Read);
            self.perform(pfn, word, Touch::Write(change(old)));
            old
        })
    }

    #[track_caller]
    fn guest_step(
        &self,
        cx: &Cx<'_>,
        cpu: CpuId,
        ipa: Gpa,
        kind: AccessKind,
        perform: impl FnOnce(Pfn, usize) -> u64,
    ) -> Result<u64, GuestStop> {
        self.alive()?;
        let vcpu = self.loaded(cpu).ok_or(GuestStop::NoVcpu)?;
        let (root, page, word) = (&vcpu.vm.root, Pfn(ipa.gfn().0), Pa(ipa.0).word());
        loop {
            cx.point_range(Access::Load, vcpu.vm.object, page.0, 1);
            let seen = self.translate(self.tlbs.lookup(cpu, root.vmid, page), root, page);
            if let Walked::Hit(entry) = seen {
                self.point_word(cx, entry.pfn, word, kind);
            }
            let mut entries = self.tlbs.access();
            // What was announced is another access by now.
            if self.translate(Pkvm::cached(&entries, cpu, root, page), root, page) != seen {
                continue;
            }
            let pfn = self.guest_translation(&mut entries, cpu, &vcpu, ipa, kind)?;
            return Ok(perform(pfn, word));
        }
    }

    /// Whether an access of the host goes through, as a part of a step that the caller has announced; the processor remembers the translation. If it does not, EL2 is next
    /// ([`Pkvm::host_mem_abort`]), and then the access is tried again.
    ///
    /// # Errors
    /// The class of the abort.
    pub fn host_probe(&self, cpu: CpuId, pa: Pa, access: AccessKind) -> Result<(), AbortKind> {
        self.host_translation(&mut self.tlbs.access(), cpu, pa.pfn(), access)
    }

    fn host_translation(
        &self,
        entries: &mut Entries,
        cpu: CpuId,
        pfn: Pfn,
        access: AccessKind,
    ) -> Result<(), AbortKind> {
        if !self.cpus.lock().get(cpu.0 as usize).is_some_and(|cpu| cpu.finalized) {
            return Ok(());
        }
        let root = &self.host_root;
        match self.translate(Pkvm::cached(entries, cpu, root, pfn), root, pfn) {
            Walked::Hit(entry) if entry.pte.prot().contains(needs(access)) => {
                entries.insert((cpu, root.vmid, pfn), entry);
                Ok(())
            }
            Walked::Hit(_) => Err(AbortKind::Permission),
            Walked::Fault(kind, _) => Err(kind),
        }
    }

    /// EL2 handles an abort of the host (`handle_host_mem_abort`): fills the host's stage 2, or sees that somebody did. That it has no table left is the end of the machine; it has, with
    /// one of [`PkvmConfig::mmio_tables`](super::PkvmConfig::mmio_tables).
    ///
    /// # Errors
    /// What it injects instead.
    ///
    /// # Panics
    /// If there is no such processor.
    #[track_caller]
    pub fn host_mem_abort(&self, cx: &Cx<'_>, cpu: CpuId, pa: Pa) -> Result<(), HostAbort> {
        let handled = self.enter(cx, cpu, "host_mem_abort", |el2| {
            let filled = el2.host_idmap(pa.pfn());
            if !matches!(filled, Ok(()) | Err(Errno::EEXIST | Errno::EPERM | Errno::ERANGE)) {
                el2.warn("an abort of the host cannot be handled");
            }
            filled.map(|()| 0)
        })?;
        match handled {
            Ok(_) | Err(Errno::EEXIST) => Ok(()),
            Err(Errno::ERANGE) => Err(HostAbort::AddressSize),
            Err(_) => Err(HostAbort::Injected),
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
        let (pfn, word) = (pa.pfn(), pa.word());
        self.alive()?;
        loop {
            self.point_word(cx, pfn, word, touch.kind());
            let mut entries = self.tlbs.access();
            match self.host_translation(&mut entries, cpu, pfn, touch.kind()) {
                Ok(()) => return Ok(self.perform(pfn, word, touch)),
                Err(AbortKind::Permission) => return Err(HostAbort::Permission),
                Err(_) => drop(entries),
            }
            self.host_mem_abort(cx, cpu, pa)?;
        }
    }

    /// A device accesses memory: nothing of this stands in its way (a known gap).
    #[track_caller]
    pub fn device_access(&self, cx: &Cx<'_>, pa: Pa, touch: Touch) -> u64 {
        self.point_word(cx, pa.pfn(), pa.word(), touch.kind());
        self.perform(pa.pfn(), pa.word(), touch)
    }
}
