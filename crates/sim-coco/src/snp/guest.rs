//! A guest's processor as the checks see it, and its accesses after both translations.

use super::types::{Asid, Gva, Vmpl};
use crate::AccessKind;
use sim_kernel::Pfn;
use sim_mmu::{Gpa, Level};

/// What kind of guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestKind {
    /// Neither encrypted nor protected: ASIDs only name TLB entries.
    Plain,
    /// SEV or SEV-ES: encrypted with the key of its ASID, not protected by the RMP.
    Sev,
    /// SEV-SNP (SNP active in SEV_FEATURES).
    Snp,
}

/// The state of a virtual processor that decides what it may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestCpu {
    /// Number of the virtual processor on the host: whose cached translations are meant.
    pub vcpu: u32,
    /// What it runs in.
    pub kind: GuestKind,
    /// ASID in its VMCB.
    pub asid: Asid,
    /// VMPL in its VMSA.
    pub vmpl: Vmpl,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// Virtual top of memory, if SEV_FEATURES enables it: addresses below are private, whatever the tables say.
    pub vtom: Option<Gpa>,
    /// SEV_FEATURES.VmplSSS: supervisor shadow stacks are restricted by VMPL.
    pub vmpl_sss: bool,
}

impl GuestCpu {
    /// A virtual processor of an SNP guest in its kernel at VMPL0.
    pub const fn snp(vcpu: u32, asid: Asid) -> GuestCpu {
        GuestCpu { vcpu, kind: GuestKind::Snp, asid, vmpl: Vmpl::ZERO, cpl: 0, vtom: None, vmpl_sss: false }
    }

    /// The same at another VMPL.
    #[must_use]
    pub const fn at_vmpl(self, vmpl: Vmpl) -> GuestCpu {
        GuestCpu { vmpl, ..self }
    }

    /// The same at another CPL.
    #[must_use]
    pub const fn at_cpl(self, cpl: u8) -> GuestCpu {
        GuestCpu { cpl, ..self }
    }
}

/// An access of a guest whose translations succeeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnpAccess {
    /// Virtual address.
    pub gva: Gva,
    /// Guest physical address, without the C-bit.
    pub gpa: Gpa,
    /// Frame that the nested tables gave for `gpa`.
    pub pfn: Pfn,
    /// Level of the nested leaf.
    pub level: Level,
    /// What it does; of a table, a write sets accessed or dirty bits.
    pub kind: AccessKind,
    /// The C-bit of the guest's leaf. Fetches and tables are private without it.
    pub c_bit: bool,
    /// The access is to a table of the guest, not to what it translates.
    pub walk: bool,
    /// A shadow-stack access.
    pub shadow_stack: bool,
}

impl SnpAccess {
    /// A private access through a nested leaf of 4 KiB, at the virtual address that equals the physical one.
    pub const fn private(kind: AccessKind, gpa: Gpa, pfn: Pfn) -> SnpAccess {
        SnpAccess { gva: Gva(gpa.0), gpa, pfn, level: Level::L4K, kind, c_bit: true, walk: false, shadow_stack: false }
    }

    /// The same through a leaf without the C-bit.
    #[must_use]
    pub const fn shared(self) -> SnpAccess {
        SnpAccess { c_bit: false, ..self }
    }

    /// The same through a nested leaf of this level.
    #[must_use]
    pub const fn at_level(self, level: Level) -> SnpAccess {
        SnpAccess { level, ..self }
    }

    /// The same to a table of the guest.
    #[must_use]
    pub const fn of_table(self) -> SnpAccess {
        SnpAccess { walk: true, ..self }
    }

    /// Whether the access is private (effective C-bit). With vTOM the leaf's bit must be 0, which the guest's walk checks as a reserved bit.
    pub fn is_private(&self, cpu: &GuestCpu) -> bool {
        match cpu.kind {
            GuestKind::Plain => false,
            GuestKind::Sev => self.c_bit || self.walk || self.kind == AccessKind::Fetch,
            GuestKind::Snp if self.walk || self.kind == AccessKind::Fetch => true,
            GuestKind::Snp => cpu.vtom.map_or(self.c_bit, |top| self.gpa < top),
        }
    }
}

/// The operand of PVALIDATE, RMPADJUST and RMPQUERY, after the paging checks of a 1-byte read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageOperand {
    /// The address in RAX.
    pub gva: Gva,
    /// What it translates to.
    pub gpa: Gpa,
    /// The frame that the nested tables gave.
    pub pfn: Pfn,
    /// The size in RCX as it stands there: 0 is 4 KiB, 1 is 2 MiB, anything else is refused.
    pub size: u64,
}

impl PageOperand {
    /// A 4 KiB page at the virtual address that equals the physical one.
    pub const fn page(gpa: Gpa, pfn: Pfn) -> PageOperand {
        PageOperand { gva: Gva(gpa.0), gpa, pfn, size: 0 }
    }

    /// The same as a page of 2 MiB.
    #[must_use]
    pub const fn huge(self) -> PageOperand {
        PageOperand { size: 1, ..self }
    }
}
