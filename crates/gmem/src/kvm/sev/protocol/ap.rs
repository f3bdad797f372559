//! Creation and destruction of vCPUs by the guest (`sev_snp_ap_creation`): which requests are taken.
//!
//! KVM does not look whether the page holds a VMSA: VMRUN does.

use super::ghcb::{Malformed, Snapshot};
use sim_kernel::{PAGE_SIZE, PMD_SIZE};
use sim_mmu::Gpa;

/// What a guest wants of another of its vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApRequest {
    /// It starts with this VMSA, at once or at its next INIT.
    Create {
        /// The page.
        vmsa: Gpa,
        /// Not before the next INIT.
        on_init: bool,
    },
    /// It stops.
    Destroy,
}

/// A request, and for whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApCreation {
    /// The vCPU.
    pub apic_id: u32,
    /// What becomes of it.
    pub request: ApRequest,
}

impl ApRequest {
    /// `SVM_VMGEXIT_AP_CREATE_ON_INIT`.
    pub const CREATE_ON_INIT: u32 = 0;
    /// `SVM_VMGEXIT_AP_CREATE`.
    pub const CREATE: u32 = 1;
    /// `SVM_VMGEXIT_AP_DESTROY`.
    pub const DESTROY: u32 = 2;

    /// Whether the vCPU is told at once.
    pub const fn is_immediate(self) -> bool {
        !matches!(self, ApRequest::Create { on_init: true, .. })
    }
}

/// What the request is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApRules {
    /// `sev_features` of the VM.
    pub vmsa_features: u64,
    /// The end of guest-physical memory.
    pub end: Gpa,
    /// Whether a page at the head of 2 MiB is refused, because of the erratum of Zen 3 and Zen 4.
    pub refuses_2m_aligned: bool,
}

impl ApCreation {
    /// The request of an event that [`Snapshot::check`] let through, if there is such a vCPU. A VMPL in bits 19:16 makes the request an unknown one.
    ///
    /// # Errors
    /// [`Malformed::InvalidInput`].
    pub fn check(ghcb: &Snapshot, rules: &ApRules, exists: impl FnOnce(u32) -> bool) -> Result<ApCreation, Malformed> {
        let (request, apic_id) = (ghcb.exit_info_1 as u32, (ghcb.exit_info_1 >> 32) as u32);
        if !exists(apic_id) {
            return Err(Malformed::InvalidInput);
        }
        let request = match request {
            ApRequest::DESTROY => ApRequest::Destroy,
            ApRequest::CREATE | ApRequest::CREATE_ON_INIT => {
                let vmsa = Gpa(ghcb.exit_info_2);
                let is_page = vmsa.0.is_multiple_of(PAGE_SIZE) && vmsa < rules.end;
                let is_safe = !vmsa.0.is_multiple_of(PMD_SIZE) || !rules.refuses_2m_aligned;
                if ghcb.rax != rules.vmsa_features || !is_page || !is_safe {
                    return Err(Malformed::InvalidInput);
                }
                ApRequest::Create { vmsa, on_init: request == ApRequest::CREATE_ON_INIT }
            }
            _ => return Err(Malformed::InvalidInput),
        };
        Ok(ApCreation { apic_id, request })
    }

    /// SW_EXITINFO1 and SW_EXITINFO2 of the request.
    pub const fn to_fields(self) -> (u64, u64) {
        let (request, vmsa) = match self.request {
            ApRequest::Create { vmsa, on_init: true } => (ApRequest::CREATE_ON_INIT, vmsa.0),
            ApRequest::Create { vmsa, on_init: false } => (ApRequest::CREATE, vmsa.0),
            ApRequest::Destroy => (ApRequest::DESTROY, 0),
        };
        ((self.apic_id as u64) << 32 | request as u64, vmsa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: ApRules = ApRules { vmsa_features: 1, end: Gpa(1 << 46), refuses_2m_aligned: true };
    const VMSA: Gpa = Gpa(0x20_1000);

    fn check(exit_info_1: u64, exit_info_2: u64, rax: u64) -> Result<ApCreation, Malformed> {
        let ghcb = Snapshot { exit_info_1, exit_info_2, rax, ..Snapshot::default() };
        ApCreation::check(&ghcb, &RULES, |id| id < 4)
    }

    #[test]
    fn sn_160_a_good_request_is_taken() {
        for on_init in [false, true] {
            let creation = ApCreation { apic_id: 3, request: ApRequest::Create { vmsa: VMSA, on_init } };
            let (info_1, info_2) = creation.to_fields();
            assert_eq!(check(info_1, info_2, 1), Ok(creation));
            assert_eq!(creation.request.is_immediate(), !on_init);
        }
    }

    #[test]
    fn sn_160_wrong_features_pages_vcpus_and_requests_are_not() {
        let create = 1 << 32 | u64::from(ApRequest::CREATE);
        let cases = [
            ("features", create, VMSA.0, 5),
            ("misaligned", create, VMSA.0 + 8, 1),
            ("2 MiB aligned", create, 0x20_0000, 1),
            ("beyond memory", create, RULES.end.0 + 0x1000, 1),
            ("no page", create, u64::MAX, 1),
            ("no such vCPU", 9 << 32 | 1, VMSA.0, 1),
            ("no such request", 1 << 32 | 3, VMSA.0, 1),
            ("from VMPL 1", create | 1 << 16, VMSA.0, 1),
            ("2 MiB aligned, on INIT", 1 << 32, 0x20_0000, 1),
        ];
        for (what, info_1, info_2, rax) in cases {
            assert_eq!(check(info_1, info_2, rax), Err(Malformed::InvalidInput), "{what}");
        }
    }

    #[test]
    fn sn_161_destruction_needs_neither_page_nor_features() {
        let destroy = ApCreation { apic_id: 2, request: ApRequest::Destroy };
        assert_eq!(check(destroy.to_fields().0, 7, 99), Ok(destroy));
        assert!(destroy.request.is_immediate());
        assert_eq!(check(9 << 32 | 2, 0, 0), Err(Malformed::InvalidInput));
    }
}
