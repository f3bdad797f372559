//! VMRUN and what the processor writes by itself: the pages of a virtual processor are checked when it is entered, and in use until it leaves.

use super::guest::GuestKind;
use super::machine::{CpuId, Snp};
use super::memory::KeyPath;
use super::types::{Asid, Spa, Vmpl};
use super::vmsa::{SevFeatures, offset};
use sim_kernel::sched::Access;
use sim_kernel::{Cx, Pfn};

/// `#GP(0)` of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("#GP(0)")]
pub struct Gp0;

/// Why a guest is not entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VmrunFail {
    /// `#GP(0)`: the VMCB's page is assigned, or there is no host save area.
    #[error("#GP(0)")]
    Gp0,
    /// VMEXIT_INVALID: a page that the VMCB names is not what it must be.
    #[error("VMEXIT_INVALID")]
    Invalid,
}

/// What VMRUN is given: the VMCB, and what stands in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vmrun {
    /// The processor.
    pub cpu: CpuId,
    /// The VMCB's page.
    pub vmcb: Spa,
    /// What runs.
    pub kind: GuestKind,
    /// Its ASID.
    pub asid: Asid,
    /// The page of its register state, for SEV-ES and SNP.
    pub vmsa: Option<Spa>,
    /// The backing page of its interrupt controller. The tables beside it are only read, and not checked.
    pub avic_backing: Option<Spa>,
    /// ALLOWED_SEV_FEATURES: the VMSA may have no others. `None` if the VMCB does not say, and then any are allowed.
    pub allowed_sev_features: Option<SevFeatures>,
}

/// A virtual processor in guest mode: RMP operations on its pages fail until [`Snp::vmexit`].
#[derive(Debug)]
#[must_use = "the pages stay in use until vmexit"]
pub struct InGuest {
    pages: Vec<Pfn>,
    vmpl: Vmpl,
}

impl InGuest {
    /// The level that the VMSA says, and that the guest runs at.
    pub fn vmpl(&self) -> Vmpl {
        self.vmpl
    }
}

impl Drop for InGuest {
    fn drop(&mut self) {
        assert!(
            self.pages.is_empty() || std::thread::panicking(),
            "SNP-INV-021: a vCPU that never left the guest was forgotten"
        );
    }
}

impl Snp {
    /// VMRUN: checks the pages and marks them as in use. The VMCB carries no guest address of the VMSA, so its reverse map counts as right (OP-4).
    ///
    /// # Errors
    /// In the order of the checks: `#GP(0)`, VMEXIT_INVALID. A VMSA that another vCPU runs with is invalid, and so is one whose SEV_FEATURES are not those of
    /// an SNP guest, or of none, or not allowed, or whose VMPL there is not.
    #[track_caller]
    pub fn vmrun(&self, cx: &Cx<'_>, vmrun: &Vmrun) -> Result<InGuest, VmrunFail> {
        let pages: Vec<Pfn> =
            [Some(vmrun.vmcb), vmrun.vmsa, vmrun.avic_backing].into_iter().flatten().map(Spa::pfn).collect();
        let first = *pages.iter().min().expect("there is a VMCB");
        let last = *pages.iter().max().expect("there is a VMCB");
        // One step looks at all of them: announced on what lies between, too.
        self.point(cx, Access::Rmw, first, last - first + 1);
        let hsave = self.cpus.lock().hsave_pa.get(&vmrun.cpu).copied();
        if hsave.is_none_or(|page| page == Spa(0)) {
            return Err(VmrunFail::Gp0);
        }
        if self.is_enabled() {
            if self.rmp.is_assigned(vmrun.vmcb.pfn()) {
                return Err(VmrunFail::Gp0);
            }
            if vmrun.avic_backing.is_some_and(|page| self.rmp.is_assigned(page.pfn())) {
                return Err(VmrunFail::Invalid);
            }
        }
        let vmsa_is_valid = match (vmrun.kind, vmrun.vmsa) {
            (GuestKind::Snp, Some(vmsa)) => self.is_enabled() && self.is_vmsa(vmrun.asid, vmsa),
            (GuestKind::Snp, None) => false,
            (_, Some(vmsa)) => !self.is_enabled() || !self.rmp.is_assigned(vmsa.pfn()),
            (_, None) => true,
        };
        if !vmsa_is_valid {
            return Err(VmrunFail::Invalid);
        }
        let vmpl = match vmrun.vmsa {
            Some(vmsa) => self.load_vmsa(vmrun, vmsa).ok_or(VmrunFail::Invalid)?,
            None => Vmpl::ZERO,
        };
        let covered: Vec<Pfn> = pages.into_iter().filter(|pfn| self.rmp.covers(*pfn)).collect();
        for pfn in &covered {
            self.rmp.begin_use(*pfn);
        }
        Ok(InGuest { pages: covered, vmpl })
    }

    /// Covered, owned by the guest, mutable, a VMSA, and nobody's at the moment. Whether it is validated is not asked.
    fn is_vmsa(&self, asid: Asid, vmsa: Spa) -> bool {
        let pfn = vmsa.pfn();
        let page = self.rmp.page(pfn);
        self.rmp.covers(pfn)
            && page.assigned
            && page.asid == asid
            && !page.immutable
            && page.vmsa
            && !self.rmp.is_in_use(pfn)
            && !self.rmp.is_busy(pfn)
    }

    /// What the VMSA holds, read with the guest's key: the level, if the features are those of a guest of this kind.
    fn load_vmsa(&self, vmrun: &Vmrun, vmsa: Spa) -> Option<Vmpl> {
        let read = |offset: usize, bytes: &mut [u8]| {
            self.memory.read(KeyPath::Guest(vmrun.asid), vmsa.pfn(), offset, bytes);
        };
        let (mut features, mut vmpl) = ([0; 8], [0]);
        read(offset::SEV_FEATURES, &mut features);
        read(offset::VMPL, &mut vmpl);
        let features = SevFeatures::from_bits_retain(u64::from_le_bytes(features));
        let is_snp = features.contains(SevFeatures::SNP_ACTIVE);
        let are_allowed = vmrun.allowed_sev_features.is_none_or(|allowed| allowed.contains(features));
        Vmpl::new(vmpl[0]).filter(|_| is_snp == (vmrun.kind == GuestKind::Snp) && are_allowed)
    }

    /// `#VMEXIT`: the pages are free again.
    #[track_caller]
    pub fn vmexit(&self, cx: &Cx<'_>, mut guest: InGuest) {
        let pages = std::mem::take(&mut guest.pages);
        if let (Some(first), Some(last)) = (pages.iter().min(), pages.iter().max()) {
            self.point(cx, Access::Rmw, *first, *last - *first + 1);
        }
        for pfn in pages {
            self.rmp.end_use(pfn);
        }
    }

    /// VMSAVE by the host, to this page.
    ///
    /// # Errors
    /// `#GP(0)` if it is assigned.
    #[track_caller]
    pub fn vmsave(&self, cx: &Cx<'_>, page: Spa) -> Result<(), Gp0> {
        self.point(cx, Access::Rmw, page.pfn(), 1);
        if self.is_enabled() && self.rmp.is_assigned(page.pfn()) { Err(Gp0) } else { Ok(()) }
    }
}
