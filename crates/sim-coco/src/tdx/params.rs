//! TD_PARAMS: what MNG.INIT is given, and its checks.
//!
//! Simplified: values of CPUID are taken as they are (operand 69 is never refused), and there are no L2 VMs.

use super::config::TdxConfig;
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::td::TdAttributes;
use super::types::Gpaw;
use sim_mmu::Level;

/// Bytes of the structure, and its alignment.
pub const TD_PARAMS_BYTES: usize = 1024;

/// CONFIG_FLAGS bit 0: an address width of 52 bits.
pub const CONFIG_GPAW: u64 = 1 << 0;
/// CONFIG_FLAGS bit 1: the guest may choose what an access to a pending page comes to.
pub const CONFIG_FLEXIBLE_PENDING_VE: u64 = 1 << 1;
/// CONFIG_FLAGS bit 2: RBP is no register of TDVMCALL.
pub const CONFIG_NO_RBP_MOD: u64 = 1 << 2;

/// EPTP_CONTROLS of four levels: write-back, page-walk level 3.
pub const EPTP_4_LEVELS: u64 = 6 | 3 << 3;
/// EPTP_CONTROLS of five levels.
pub const EPTP_5_LEVELS: u64 = 6 | 4 << 3;

/// TD_PARAMS.
///
/// ```
/// use sim_coco::tdx::TdParams;
/// let params = TdParams { max_vcpus: 4, ..TdParams::default() };
/// assert_eq!(TdParams::from_bytes(&params.to_bytes()).0, params);
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TdParams {
    /// [`TdAttributes`], and bits that there are not.
    pub attributes: u64,
    /// Extended features.
    pub xfam: u64,
    /// vCPUs that it may have.
    pub max_vcpus: u16,
    /// L2 VMs: there are none here.
    pub num_l2_vms: u8,
    /// Memory type and levels of the Secure EPT.
    pub eptp_controls: u64,
    /// `CONFIG_...`.
    pub config_flags: u64,
    /// In 25 MHz.
    pub tsc_frequency: u16,
    /// Identity of non-owner-defined configuration.
    pub mrconfigid: [u8; 48],
    /// Identity of the owner.
    pub mrowner: [u8; 48],
    /// Identity of owner-defined configuration.
    pub mrownerconfig: [u8; 48],
}

impl Default for TdParams {
    fn default() -> TdParams {
        TdParams {
            attributes: TdAttributes::SEPT_VE_DISABLE.bits(),
            xfam: 3,
            max_vcpus: 1,
            num_l2_vms: 0,
            eptp_controls: EPTP_4_LEVELS,
            config_flags: 0,
            tsc_frequency: 100,
            mrconfigid: [0; 48],
            mrowner: [0; 48],
            mrownerconfig: [0; 48],
        }
    }
}

impl TdParams {
    /// As it lies in memory. CPUID values are 0.
    pub fn to_bytes(&self) -> [u8; TD_PARAMS_BYTES] {
        let mut bytes = [0; TD_PARAMS_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0x00, &self.attributes.to_le_bytes());
        put(0x08, &self.xfam.to_le_bytes());
        put(0x10, &self.max_vcpus.to_le_bytes());
        put(0x12, &[self.num_l2_vms]);
        put(0x18, &self.eptp_controls.to_le_bytes());
        put(0x20, &self.config_flags.to_le_bytes());
        put(0x28, &self.tsc_frequency.to_le_bytes());
        put(0x50, &self.mrconfigid);
        put(0x80, &self.mrowner);
        put(0xb0, &self.mrownerconfig);
        bytes
    }

    /// From memory; and whether all reserved fields are 0.
    pub fn from_bytes(bytes: &[u8; TD_PARAMS_BYTES]) -> (TdParams, bool) {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"));
        let digest_at = |at: usize| -> [u8; 48] { bytes[at..at + 48].try_into().expect("48 bytes") };
        let params = TdParams {
            attributes: u64_at(0),
            xfam: u64_at(0x08),
            max_vcpus: u16_at(0x10),
            num_l2_vms: bytes[0x12],
            eptp_controls: u64_at(0x18),
            config_flags: u64_at(0x20),
            tsc_frequency: u16_at(0x28),
            mrconfigid: digest_at(0x50),
            mrowner: digest_at(0x80),
            mrownerconfig: digest_at(0xb0),
        };
        let reserved = [0x13..0x18, 0x2a..0x50, 0xe0..0x100];
        let is_clean = reserved.into_iter().all(|range| bytes[range].iter().all(|byte| *byte == 0));
        (params, is_clean)
    }

    /// The page-walk level of EPTP_CONTROLS: 3 for four levels.
    pub const fn pwl(&self) -> u8 {
        (self.eptp_controls >> 3 & 7) as u8
    }

    /// Where the shared bit is.
    pub const fn gpaw(&self) -> Gpaw {
        if self.config_flags & CONFIG_GPAW != 0 { Gpaw::Bits52 } else { Gpaw::Bits48 }
    }

    /// The level of the entries in the root of the Secure EPT.
    pub const fn root_level(&self) -> Level {
        if self.pwl() == 4 { Level::L256T } else { Level::L512G }
    }

    fn has_legal_xfam(&self, config: &TdxConfig) -> bool {
        let bits = |mask: u64| self.xfam & mask;
        let all_or_none = |mask: u64| bits(mask) == 0 || bits(mask) == mask;
        bits(!config.xfam) == 0
            && bits(3) == 3
            && all_or_none(0xe0)
            && (bits(0xe0) == 0 || bits(4) != 0)
            && all_or_none(3 << 11)
            && all_or_none(3 << 17)
    }

    /// The checks of MNG.INIT, in its order. `num_tdcx`: pages of TDCS that there are.
    pub(super) fn check(&self, is_clean: bool, config: &TdxConfig, num_tdcx: usize) -> Seamcall<()> {
        let demand = |holds: bool, operand: OperandId| {
            if holds { Ok(()) } else { Err(SeamFail::new(StatusName::OperandInvalid, operand)) }
        };
        demand(self.attributes & !config.attributes == 0, OperandId::ATTRIBUTES)?;
        demand(self.has_legal_xfam(config), OperandId::XFAM)?;
        demand(self.max_vcpus != 0, OperandId::MAX_VCPUS)?;
        demand(u32::from(self.num_l2_vms) <= config.tdcs_pages.1 - config.tdcs_pages.0, OperandId::NUM_L2_VMS)?;
        if num_tdcx < config.tdcs_pages.0 as usize + usize::from(self.num_l2_vms) {
            return Err(StatusName::TdcsNotAllocated.into());
        }
        demand(is_clean, OperandId::RDX)?;
        let flags = CONFIG_GPAW | CONFIG_FLEXIBLE_PENDING_VE | CONFIG_NO_RBP_MOD;
        demand(self.config_flags & !flags == 0, OperandId::EXEC_CONTROLS)?;
        let pwl_is_legal = self.pwl() == 3 || self.pwl() == 4 && config.five_levels;
        let is_wb = self.eptp_controls & !(7 << 3) == 6;
        let width_is_legal = self.gpaw() == Gpaw::Bits48 || self.pwl() == 4;
        demand(is_wb && pwl_is_legal && width_is_legal, OperandId::EPTP_CONTROLS)?;
        demand((4..=400).contains(&self.tsc_frequency), OperandId::TSC_FREQUENCY)
    }
}
