//! Other processors of the guest (`wakeup_cpu_via_vmgexit`, `snp_cleanup_vmsa`): a VMSA is an accepted page on which RMPADJUST has put a flag.

use super::cpu::{Ends, Insn, Place};
use super::ghcb::{Kernel, Request};
use crate::kvm::sev::protocol::ap::{ApCreation, ApRequest};
use crate::kvm::sev::protocol::ghcb::exit;
use crate::kvm::sev::protocol::msr::TermReason;
use sim_coco::snp::vmsa::offset::SEV_FEATURES;
use sim_coco::snp::{RmpAdjust, Vmpl, VmplPerms};
use sim_kernel::{PAGE_SIZE, PMD_SIZE};
use sim_mmu::Gpa;

/// A page that is to be a VMSA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vmsa(Gpa);

impl Vmsa {
    /// `snp_alloc_vmsa_page`: the second of two pages, which is never at the head of 2 MiB.
    ///
    /// # Panics
    /// If the first is not at an even page.
    pub fn in_pair(first: Gpa) -> Vmsa {
        assert!(first.0.is_multiple_of(2 * PAGE_SIZE), "{first:?} is no pair of pages");
        let second = first + PAGE_SIZE;
        assert!(!second.0.is_multiple_of(PMD_SIZE), "SN-189: a VMSA at the head of 2 MiB");
        Vmsa(second)
    }

    /// Where it is.
    pub fn gpa(self) -> Gpa {
        self.0
    }
}

/// What became of a VMSA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApStopped {
    /// It is an ordinary page again.
    Freed,
    /// It is still a VMSA, and is never used again.
    Leaked,
}

fn vmsa_flag(vmsa: bool) -> RmpAdjust {
    RmpAdjust::new(Vmpl::new(1).expect("there are four"), VmplPerms::empty(), vmsa)
}

impl Kernel {
    /// Whether the kernel is at VMPL0: only there RMPADJUST may give VMPL1 a right. The page is any that the kernel has accepted.
    ///
    /// # Errors
    /// The guest ends if it is not.
    pub async fn check_vmpl0(&self, scratch: Gpa) -> Ends<()> {
        let rdx = RmpAdjust::new(Vmpl::new(1).expect("there are four"), VmplPerms::R, false);
        if self.cpu.run(Insn::Rmpadjust { gpa: scratch, rdx }).await? == 0 {
            return Ok(());
        }
        Err(self.cpu.terminate(TermReason::NotVmpl0).await)
    }

    /// Starts a processor: fills its VMSA in, makes it one, and asks for it.
    ///
    /// # Errors
    /// The guest ends if the GHCB is not set up, or its request is refused.
    pub async fn start_ap(&self, apic_id: u32, vmsa: Vmsa, features: u64) -> Ends<bool> {
        let mut page = vec![0; PAGE_SIZE as usize / 8];
        page[SEV_FEATURES / 8] = features;
        self.cpu.run(Insn::Copy(Place::private(vmsa.0), page)).await?;
        if self.cpu.run(Insn::Rmpadjust { gpa: vmsa.0, rdx: vmsa_flag(true) }).await? != 0 {
            return Ok(false);
        }
        let request = ApRequest::Create { vmsa: vmsa.0, on_init: false };
        self.ap_creation(ApCreation { apic_id, request }, features).await
    }

    /// Stops a processor. It is asked for first, which waits until the processor has left the guest; then the page stops being a VMSA.
    ///
    /// # Errors
    /// As [`Kernel::start_ap`].
    pub async fn stop_ap(&self, apic_id: u32, vmsa: Vmsa, features: u64) -> Ends<ApStopped> {
        self.ap_creation(ApCreation { apic_id, request: ApRequest::Destroy }, features).await?;
        let cleared = self.cpu.run(Insn::Rmpadjust { gpa: vmsa.0, rdx: vmsa_flag(false) }).await? == 0;
        Ok(if cleared { ApStopped::Freed } else { ApStopped::Leaked })
    }

    async fn ap_creation(&self, creation: ApCreation, features: u64) -> Ends<bool> {
        let Some(ghcb) = self.ghcb else { return Err(self.cpu.terminate(TermReason::Unspecified).await) };
        let (info_1, info_2) = creation.to_fields();
        let request = Request { code: exit::AP_CREATION, info_1, info_2, rax: Some(features), ..Request::default() };
        Ok(self.hv_call(ghcb, request).await?.is_ok())
    }
}
