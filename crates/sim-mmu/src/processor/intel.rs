//! INVEPT and INVVPID (Intel SDM vol. 3, 30.4.3 and chapter 32), and what VM entries and exits flush without VPIDs.

use super::Processor;
use crate::guest_paging::Gva;
use crate::tlb::{ContextKey, Structures, Target, TlbTag};
use crate::walker::{Ept, Eptp, Stage2Tag};
use sim_kernel::{Cx, PAGE_SHIFT, Pfn};

/// The types of INVEPT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InveptType {
    /// 1: one EPTP, of which bits 51:12 count.
    Single(Eptp),
    /// 2: all.
    All,
}

/// The types of INVVPID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InvvpidType {
    /// 0: one address of one VPID, of all PCIDs and EPTPs.
    Address(TlbTag, Gva),
    /// 1: one VPID.
    Single(TlbTag),
    /// 2: all VPIDs but 0.
    All,
    /// 3: one VPID, global pages excepted.
    SingleRetainingGlobals(TlbTag),
}

/// VMfailValid with an instruction error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmFail(pub u32);

impl VmFail {
    /// "Invalid operand to INVEPT/INVVPID".
    pub const INVALID_OPERAND: VmFail = VmFail(28);
}

impl Processor<Ept> {
    /// INVEPT: guest-physical and combined mappings and the structures of both stages, whatever their VPID and PCID.
    pub fn invept(&mut self, cx: &Cx<'_>, kind: InveptType) {
        let root = match kind {
            InveptType::Single(eptp) => Some(Stage2Tag(Some(Pfn(eptp.0 >> PAGE_SHIFT & ((1 << 40) - 1))))),
            InveptType::All => None,
        };
        self.tlb.flush(cx, |key| {
            let is_meant = root.is_none_or(|root| root == key.stage2());
            if is_meant { Target::Flush } else { Target::Keep }
        });
    }

    /// INVVPID: combined mappings and guest structures. Guest-physical mappings stay.
    ///
    /// # Errors
    /// Instruction error 28 for VPID 0 and for a non-canonical address.
    pub fn invvpid(&mut self, cx: &Cx<'_>, kind: InvvpidType) -> Result<(), VmFail> {
        let (tag, retains_globals) = match kind {
            InvvpidType::Address(TlbTag(0), _)
            | InvvpidType::Single(TlbTag(0))
            | InvvpidType::SingleRetainingGlobals(TlbTag(0)) => return Err(VmFail::INVALID_OPERAND),
            InvvpidType::Address(_, gva) if !self.mode.is_canonical(gva) => return Err(VmFail::INVALID_OPERAND),
            InvvpidType::Address(tag, gva) => {
                self.tlb.flush_address(cx, gva, Structures::OfAddress, |key| key.tag() == Some(tag));
                return Ok(());
            }
            InvvpidType::Single(tag) => (Some(tag), false),
            InvvpidType::SingleRetainingGlobals(tag) => (Some(tag), true),
            InvvpidType::All => (None, false),
        };
        self.tlb.flush(cx, |key| {
            let of = match *key {
                ContextKey::Linear(of, ..) => of,
                ContextKey::Global(of, _) if !retains_globals => of,
                ContextKey::Global(..) | ContextKey::Physical(..) => return Target::Keep,
            };
            let is_meant = tag.map_or(of != TlbTag(0), |tag| tag == of);
            if is_meant { Target::Flush } else { Target::Keep }
        });
        Ok(())
    }

    /// A VM entry or exit while VPIDs are off: what is tagged with VPID 0 goes, except guest-physical mappings.
    pub fn vm_transition_without_vpid(&mut self, cx: &Cx<'_>) {
        self.tlb.flush(cx, |key| match *key {
            ContextKey::Linear(TlbTag(0), ..) | ContextKey::Global(TlbTag(0), _) => Target::Flush,
            _ => Target::Keep,
        });
    }

    /// The guest has read the #VE information area: another #VE may come.
    pub fn clear_ve_information(&mut self) {
        self.format.ve_busy = false;
    }
}
