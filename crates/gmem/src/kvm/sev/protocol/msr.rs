//! The MSR protocol: requests that fit into the GHCB MSR (C001_0130), for when there is no GHCB. The lowest 12 bits say which; 0 is the address of a GHCB.

use sim_mmu::Gpa;

/// The bits that say which request or response it is (`GHCB_MSR_INFO_MASK`).
pub const INFO_MASK: u64 = 0xfff;
/// A guest frame, in bits 51:12.
pub const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;
/// All bits above the info (`GHCB_MSR_GPA_VALUE_MASK`): the address of a GHCB that is registered, and all of them if none is preferred (`GHCB_MSR_PREF_GPA_NONE`).
const VALUE_MASK: u64 = !INFO_MASK;
/// Of a register's number and what lies beneath it, in requests for CPUID.
const LOW_MASK: u32 = !(INFO_MASK as u32);
/// An error, in the response to a page-state change.
const PSC_ERROR: u64 = 1 << 63;
/// SNP and the creation of APs (`GHCB_HV_FT_SUPPORTED`).
pub const HV_FEATURES: u64 = 0b11;

/// `SNP_PAGE_STATE_*`, and the operations of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PageOp {
    /// The guest wants the page to be its own.
    Private = 1,
    /// The guest wants to share the page.
    Shared = 2,
}

impl PageOp {
    /// The operation with this number, if KVM does anything about it.
    pub const fn of(number: u8) -> Option<PageOp> {
        match number {
            1 => Some(PageOp::Private),
            2 => Some(PageOp::Shared),
            _ => None,
        }
    }
}

/// Why a guest ends: sets of `GHCB_MSR_TERM_REQ`, and the codes that Linux uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TermReason {
    /// Set 0, code 0.
    Unspecified,
    /// Set 0, code 1: the versions of the protocol do not meet.
    Protocol,
    /// Set 0, code 2: no SNP among the hypervisor's features.
    SnpUnsupported,
    /// Set 1, code 0: the GHCB was not registered.
    Register,
    /// Set 1, code 1: a page-state change failed.
    Psc,
    /// Set 1, code 2: PVALIDATE failed, or had nothing to do.
    Pvalidate,
    /// Set 1, code 3: not at VMPL0.
    NotVmpl0,
}

impl TermReason {
    /// Set and code.
    pub const fn numbers(self) -> (u64, u64) {
        match self {
            TermReason::Unspecified => (0, 0),
            TermReason::Protocol => (0, 1),
            TermReason::SnpUnsupported => (0, 2),
            TermReason::Register => (1, 0),
            TermReason::Psc => (1, 1),
            TermReason::Pvalidate => (1, 2),
            TermReason::NotVmpl0 => (1, 3),
        }
    }

    /// The reason with these numbers.
    pub fn of(set: u64, code: u64) -> Option<TermReason> {
        use TermReason::*;
        let all = [Unspecified, Protocol, SnpUnsupported, Register, Psc, Pvalidate, NotVmpl0];
        all.into_iter().find(|reason| reason.numbers() == (set, code))
    }
}

/// What a guest asks by the MSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MsrRequest {
    /// 0x002: versions of the protocol, place of the C-bit.
    SevInfo,
    /// 0x004: a register of CPUID.
    Cpuid {
        /// EAX: which function.
        function: u32,
        /// Bits 31:12; the upper two say which register is asked for.
        low: u32,
    },
    /// 0x010: the GHCB that the hypervisor would like.
    PreferredGpa,
    /// 0x012: the GHCB that will be used.
    Register(Gpa),
    /// 0x014: another state of one page; the operation as it stands there.
    Psc {
        /// The page.
        gpa: Gpa,
        /// Bits 55:52.
        op: u8,
    },
    /// 0x080: features.
    HvFeatures,
    /// 0x100: the end.
    Terminate {
        /// Bits 15:12.
        set: u8,
        /// Bits 23:16.
        code: u8,
    },
}

impl MsrRequest {
    /// What the value asks for; `None` is left in the MSR as it is, and the guest notices that there is no response.
    pub const fn decode(msr: u64) -> Option<MsrRequest> {
        Some(match msr & INFO_MASK {
            0x002 => MsrRequest::SevInfo,
            0x004 => MsrRequest::Cpuid { function: (msr >> 32) as u32, low: msr as u32 & LOW_MASK },
            0x010 => MsrRequest::PreferredGpa,
            0x012 => MsrRequest::Register(Gpa(msr & VALUE_MASK)),
            0x014 => MsrRequest::Psc { gpa: Gpa(msr & FRAME_MASK), op: (msr >> 52 & 0xf) as u8 },
            0x080 => MsrRequest::HvFeatures,
            0x100 => MsrRequest::Terminate { set: (msr >> 12 & 0xf) as u8, code: (msr >> 16) as u8 },
            _ => return None,
        })
    }

    /// The value that asks for it.
    pub const fn encode(self) -> u64 {
        match self {
            MsrRequest::SevInfo => 0x002,
            MsrRequest::Cpuid { function, low } => (function as u64) << 32 | (low & LOW_MASK) as u64 | 0x004,
            MsrRequest::PreferredGpa => 0x010,
            MsrRequest::Register(gpa) => gpa.0 & VALUE_MASK | 0x012,
            MsrRequest::Psc { gpa, op } => gpa.0 & FRAME_MASK | (op as u64 & 0xf) << 52 | 0x014,
            MsrRequest::HvFeatures => 0x080,
            MsrRequest::Terminate { set, code } => (set as u64 & 0xf) << 12 | (code as u64) << 16 | 0x100,
        }
    }

    /// The request to end for this reason.
    pub const fn terminate(reason: TermReason) -> MsrRequest {
        let (set, code) = reason.numbers();
        MsrRequest::Terminate { set: set as u8, code: code as u8 }
    }
}

/// What KVM leaves in the MSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MsrResponse {
    /// 0x001.
    SevInfo {
        /// The newest version.
        max: u16,
        /// The oldest.
        min: u16,
        /// The bit of a guest's leaf that makes it private.
        c_bit: u8,
    },
    /// 0x005: a register of CPUID.
    Cpuid {
        /// What is in it.
        value: u32,
        /// Bits 31:12, as in the request.
        low: u32,
    },
    /// 0x011: none preferred.
    NoPreferredGpa,
    /// 0x013: which one was registered.
    Registered(Gpa),
    /// 0x015: whether the page's state was changed.
    Psc {
        /// It was not.
        failed: bool,
    },
    /// 0x081.
    HvFeatures(u64),
}

impl MsrResponse {
    /// The value of the MSR.
    pub const fn encode(self) -> u64 {
        match self {
            MsrResponse::SevInfo { max, min, c_bit } => {
                (max as u64) << 48 | (min as u64) << 32 | (c_bit as u64) << 24 | 0x001
            }
            MsrResponse::Cpuid { value, low } => (value as u64) << 32 | (low & LOW_MASK) as u64 | 0x005,
            MsrResponse::NoPreferredGpa => VALUE_MASK | 0x011,
            MsrResponse::Registered(gpa) => gpa.0 & VALUE_MASK | 0x013,
            MsrResponse::Psc { failed } => (if failed { PSC_ERROR } else { 0 }) | 0x015,
            MsrResponse::HvFeatures(features) => features << 12 | 0x081,
        }
    }

    /// What the value says, if it is a response.
    pub const fn decode(msr: u64) -> Option<MsrResponse> {
        Some(match msr & INFO_MASK {
            0x001 => {
                MsrResponse::SevInfo { max: (msr >> 48) as u16, min: (msr >> 32) as u16, c_bit: (msr >> 24) as u8 }
            }
            0x005 => MsrResponse::Cpuid { value: (msr >> 32) as u32, low: msr as u32 & LOW_MASK },
            0x011 => MsrResponse::NoPreferredGpa,
            0x013 => MsrResponse::Registered(Gpa(msr & VALUE_MASK)),
            // Linux takes anything in bits 63:32 for an error.
            0x015 => MsrResponse::Psc { failed: msr >> 32 != 0 },
            0x081 => MsrResponse::HvFeatures(msr >> 12),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sn_152_a_page_state_change_is_frame_and_operation() {
        let request = MsrRequest::Psc { gpa: Gpa(0x1234_5000), op: PageOp::Shared as u8 };
        assert_eq!(request.encode(), 0x0020_0000_1234_5014);
        assert_eq!(MsrRequest::decode(0x0030_0000_1234_5014), Some(MsrRequest::Psc { gpa: Gpa(0x1234_5000), op: 3 }));
        assert_eq!(PageOp::of(3), None);
        assert_eq!(MsrResponse::Psc { failed: true }.encode(), 1 << 63 | 0x015);
        assert_eq!(MsrResponse::Psc { failed: false }.encode(), 0x015);
    }

    #[test]
    fn sn_163_a_ghcb_may_be_registered_at_any_address() {
        let registered = MsrRequest::decode(0x0010_0000_0020_8012);
        assert_eq!(registered, Some(MsrRequest::Register(Gpa(0x0010_0000_0020_8000))));
        assert_eq!(MsrResponse::Registered(Gpa(0x0010_0000_0020_8000)).encode(), 0x0010_0000_0020_8013);
    }

    #[test]
    fn sn_163_a_register_of_cpuid_is_answered_in_place() {
        let request = MsrRequest::Cpuid { function: 0x8000_001f, low: 1 << 30 };
        assert_eq!(request.encode(), 0x8000_001f_4000_0004);
        assert_eq!(MsrRequest::decode(request.encode()), Some(request));
        assert_eq!(MsrResponse::Cpuid { value: 51, low: 1 << 30 }.encode(), 51 << 32 | 0x4000_0005);
    }

    /// 0x006, which parks a processor until it gets a SIPI, is a request that is not modelled.
    #[test]
    fn sn_163_what_is_not_known_is_no_request() {
        for info in [0x000, 0x001, 0x006, 0x016, 0x017, 0x099, 0xfff] {
            assert_eq!(MsrRequest::decode(0x1000 | info), None, "{info:#x}");
        }
    }

    #[test]
    fn sn_166_the_end_has_a_set_and_a_code() {
        assert_eq!(MsrRequest::terminate(TermReason::Unspecified).encode(), 0x100);
        assert_eq!(MsrRequest::terminate(TermReason::Psc).encode(), 0x1_1100);
        assert_eq!(MsrRequest::terminate(TermReason::Pvalidate).encode(), 0x2_1100);
        assert_eq!(TermReason::of(1, 2), Some(TermReason::Pvalidate));
        assert_eq!(TermReason::of(3, 0), None);
    }

    #[test]
    fn known_responses() {
        assert_eq!(MsrResponse::SevInfo { max: 2, min: 1, c_bit: 51 }.encode(), 0x0002_0001_3300_0001);
        assert_eq!(MsrResponse::NoPreferredGpa.encode(), 0xffff_ffff_ffff_f011);
        assert_eq!(MsrResponse::HvFeatures(HV_FEATURES).encode(), 0x3081);
    }

    proptest! {
        #[test]
        fn a_request_is_decoded_as_it_was_encoded(msr: u64) {
            if let Some(request) = MsrRequest::decode(msr) {
                prop_assert_eq!(MsrRequest::decode(request.encode()), Some(request));
            }
            if let Some(response) = MsrResponse::decode(msr) {
                prop_assert_eq!(MsrResponse::decode(response.encode()), Some(response));
            }
        }
    }
}
