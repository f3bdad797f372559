//! The checks that the RMP adds to an access, after its translations have succeeded: who is checked, in which order, and how a
//! failure is told.
//!
//! | actor | access | checks | failure |
//! |---|---|---|---|
//! | host | read, fetch | none | |
//! | host | write, walk of its tables | owned by the hypervisor | `#PF`, bit 31 |
//! | guest without SNP | read, fetch | none | |
//! | guest without SNP | write, walk | owned by the hypervisor | NPF, bit 31 |
//! | SNP guest, shared | read | none | |
//! | SNP guest, shared | write | owned by the hypervisor | NPF, bit 31, not 34 |
//! | SNP guest, private | any | covered, owner, address, mutable, size, not busy | NPF, bits 31 and 34 |
//! | | | then validated | `#VC` in the guest |
//! | | | then the permissions of its VMPL | NPF, bits 31, 34 and 36 |
//! | device | write | owned by the hypervisor | dropped |
//!
//! Nested accesses are user accesses, so bit 2 of an NPF's error code is always set. Nothing here announces a scheduling point: a check is part of the
//! step that accesses.

use super::entry::RmpEntry;
use super::fail::{GuestFault, HostFault, NpfError, PfError};
use super::guest::{GuestCpu, GuestKind, SnpAccess};
use super::machine::Snp;
use super::memory::KeyPath;
use super::mutants;
use super::types::{Asid, RmpSize, VmplPerms, head_of};
use crate::AccessKind;
use sim_kernel::{Mutant, PAGE_SIZE, Pfn};
use sim_mmu::{Gpa, Level};

/// What the host does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostSnpAccess {
    /// The frame.
    pub pfn: Pfn,
    /// Level of the host's mapping.
    pub level: Level,
    /// What it does; of a table, a write sets accessed or dirty bits.
    pub kind: AccessKind,
    /// At CPL 3.
    pub user: bool,
    /// The access is to a table of the host.
    pub walk: bool,
}

impl HostSnpAccess {
    /// A kernel's access through a mapping of 4 KiB.
    pub const fn kernel(kind: AccessKind, pfn: Pfn) -> HostSnpAccess {
        HostSnpAccess { pfn, level: Level::L4K, kind, user: false, walk: false }
    }
}

/// Which of the private checks failed first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refusal {
    /// Before the page counts as the guest's: an NPF.
    Rmp,
    NotValidated,
    Vmpl,
}

impl Snp {
    /// Whether the hypervisor owns the page, or all of the region around it if the mapping is larger than 4 KiB (1 GiB is checked as 2 MiB). `rule` is
    /// the row of the table that asks.
    fn is_hv_owned(&self, pfn: Pfn, level: Level, rule: Mutant) -> bool {
        if self.is_off(rule) {
            return true;
        }
        if level == Level::L4K { !self.rmp.is_assigned(pfn) } else { !self.rmp.any_assigned_in_region(pfn) }
    }

    /// Checks a host access.
    ///
    /// # Errors
    /// A `#PF` with bit 31.
    #[inline]
    pub fn check_host(&self, access: &HostSnpAccess) -> Result<(), HostFault> {
        let is_checked = access.walk || access.kind == AccessKind::Write;
        if !is_checked || !self.is_enabled() || self.may_host_write(access) {
            return Ok(());
        }
        let mut error = PfError::RMP | PfError::P;
        error.set(PfError::W, access.kind == AccessKind::Write);
        error.set(PfError::U, access.user);
        Err(HostFault { error })
    }

    fn may_host_write(&self, access: &HostSnpAccess) -> bool {
        let busy = self.config.host_write_faults_on_busy && self.rmp.is_busy(access.pfn);
        let erratum =
            self.config.erratum_2m_vmsa && access.level > Level::L4K && self.rmp.is_in_use(head_of(access.pfn));
        let rule = if access.walk { mutants::HV_OWNED_WALK } else { mutants::HV_OWNED };
        self.is_hv_owned(access.pfn, access.level, rule) && !busy && !erratum
    }

    /// Checks a device's access: `false` means that a write is dropped and the IOMMU logs a fault.
    pub fn check_dma(&self, pfn: Pfn, kind: AccessKind) -> bool {
        let is_checked = self.config.checks_dma && self.is_enabled() && kind == AccessKind::Write;
        !is_checked || self.is_hv_owned(pfn, Level::L4K, mutants::HV_OWNED_DMA)
    }

    /// Checks a guest's access and says through which key it goes.
    ///
    /// # Errors
    /// An NPF for the hypervisor, or a `#VC` for the guest.
    #[inline]
    pub fn check_guest(&self, cpu: &GuestCpu, access: &SnpAccess) -> Result<KeyPath, GuestFault> {
        let private = access.is_private(cpu);
        if private && cpu.kind == GuestKind::Snp {
            let path = if self.is_off(mutants::PLAIN) { KeyPath::Raw } else { KeyPath::Guest(cpu.asid) };
            return self.check_private(cpu, access).map(|()| path);
        }
        let is_checked = access.kind == AccessKind::Write || (access.walk && cpu.kind != GuestKind::Snp);
        let rule = if cpu.kind == GuestKind::Snp { mutants::HV_OWNED_SHARED } else { mutants::HV_OWNED_GUEST };
        if is_checked && self.is_enabled() && !self.is_hv_owned(access.pfn, access.level, rule) {
            return Err(npf(access, private, NpfError::RMP));
        }
        Ok(if private { KeyPath::Guest(cpu.asid) } else { KeyPath::Raw })
    }

    fn check_private(&self, cpu: &GuestCpu, access: &SnpAccess) -> Result<(), GuestFault> {
        if let Some(cached) = self.tlbs.lookup(cpu, access) {
            return self
                .refusal(&cached, cpu, access)
                .map_or(Ok(()), |refusal| Err(fault(refusal, &cached, cpu, access)));
        }
        let page = self.rmp.page(access.pfn);
        let same_size = (access.level > Level::L4K) == (page.page_size == RmpSize::Size2M);
        let size_matches = same_size || self.is_off(mutants::SIZE);
        let is_page = self.is_usable_by(cpu.asid, access.pfn, access.gpa, &page) && size_matches;
        let refusal = if is_page && !self.rmp.is_busy(access.pfn) {
            self.refusal(&page, cpu, access)
        } else {
            Some(Refusal::Rmp)
        };
        match refusal {
            None => {
                self.tlbs.fill(cpu, access, &page);
                Ok(())
            }
            Some(refusal) => Err(fault(refusal, &page, cpu, access)),
        }
    }

    /// COVERED, OWNER, REVMAP and MUTABLE.
    pub(super) fn is_usable_by(&self, asid: Asid, pfn: Pfn, gpa: Gpa, page: &RmpEntry) -> bool {
        self.rmp.covers(pfn)
            && page.assigned
            && (page.asid == asid || self.is_off(mutants::OWNER))
            && (page.gpa.0 == gpa.0 & !(PAGE_SIZE - 1) || self.is_off(mutants::REVMAP))
            && (!page.immutable || self.is_off(mutants::MUTABLE))
    }

    /// VALID, then VMPLOK.
    fn refusal(&self, page: &RmpEntry, cpu: &GuestCpu, access: &SnpAccess) -> Option<Refusal> {
        if !page.validated && !self.is_off(mutants::VALID) {
            Some(Refusal::NotValidated)
        } else if !vmpl_allows(page.perms[cpu.vmpl.index()], cpu, access) && !self.is_off(mutants::VMPL) {
            Some(Refusal::Vmpl)
        } else {
            None
        }
    }
}

/// Whether the permissions of the VMPL allow the access. A page that may be written and not read may not be accessed at all.
fn vmpl_allows(perms: VmplPerms, cpu: &GuestCpu, access: &SnpAccess) -> bool {
    if perms.contains(VmplPerms::W) && !perms.contains(VmplPerms::R) {
        return false;
    }
    let mut needed = match access.kind {
        AccessKind::Read => VmplPerms::R,
        AccessKind::Write => VmplPerms::R | VmplPerms::W,
        AccessKind::Fetch if cpu.cpl == 3 => VmplPerms::XU,
        AccessKind::Fetch => VmplPerms::XS,
    };
    needed.set(VmplPerms::SSS, access.shadow_stack && cpu.vmpl_sss && cpu.cpl != 3);
    perms.contains(needed)
}

fn fault(refusal: Refusal, page: &RmpEntry, cpu: &GuestCpu, access: &SnpAccess) -> GuestFault {
    match refusal {
        Refusal::Rmp => npf(access, true, NpfError::RMP),
        Refusal::NotValidated => GuestFault::NotValidated { cr2: access.gva },
        Refusal::Vmpl => {
            let mut bits = NpfError::RMP | NpfError::VMPL;
            bits.set(NpfError::SSS, cpu.vmpl_sss && page.perms[cpu.vmpl.index()].contains(VmplPerms::SSS));
            npf(access, true, bits)
        }
    }
}

/// An NPF of a translation that is present.
pub(super) fn npf(access: &SnpAccess, private: bool, bits: NpfError) -> GuestFault {
    let mut error = bits | NpfError::P | NpfError::U;
    error.set(NpfError::W, access.kind == AccessKind::Write);
    error.set(NpfError::ID, access.kind == AccessKind::Fetch);
    error.set(NpfError::SS, access.shadow_stack);
    error.set(if access.walk { NpfError::WALK } else { NpfError::FINAL }, true);
    error.set(NpfError::ENC, private);
    GuestFault::Npf { error, gpa: access.gpa }
}
