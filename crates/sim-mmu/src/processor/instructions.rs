//! INVLPG and INVPCID, which both vendors have and guests use. They reach only the current VPID or ASID.

use super::Processor;
use crate::guest_paging::{Cr4, GuestFault, Gva, Pcid};
use crate::tlb::{ContextKey, Structures, Target};
use crate::walker::Stage2Format;
use sim_kernel::Cx;

/// The types of INVPCID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InvpcidType {
    /// 0: one address of one PCID, global pages excepted.
    Address(Pcid, Gva),
    /// 1: one PCID, global pages excepted.
    Single(Pcid),
    /// 2: all PCIDs and global pages.
    All,
    /// 3: all PCIDs, global pages excepted.
    AllRetainingGlobals,
}

impl<F: Stage2Format> Processor<F> {
    /// INVLPG: the address in the current PCID and among global pages, and all paging structures of the PCID.
    pub fn invlpg(&mut self, cx: &Cx<'_>, gva: Gva) {
        if !self.mode.is_canonical(gva) {
            return;
        }
        let (tag, current) = (self.state.tag, self.state.registers.cr3.pcid(self.state.registers.cr4));
        self.tlb.flush_address(cx, gva, Structures::All, |key| match *key {
            ContextKey::Linear(of, pcid, _) => of == tag && pcid == current,
            ContextKey::Global(of, _) => of == tag,
            ContextKey::Physical(..) => false,
        });
    }

    /// INVPCID.
    ///
    /// # Errors
    /// #GP for a non-canonical address, a PCID of more than 12 bits, or any but 0 while PCIDs are off.
    pub fn invpcid(&mut self, cx: &Cx<'_>, kind: InvpcidType) -> Result<(), GuestFault> {
        if let InvpcidType::Address(pcid, _) | InvpcidType::Single(pcid) = kind {
            let most = if self.state.registers.cr4.contains(Cr4::PCIDE) { 0xfff } else { 0 };
            if pcid.0 > most {
                return Err(GuestFault::GeneralProtection);
            }
        }
        let tag = self.state.tag;
        let flush_if = |condition| if condition { Target::Flush } else { Target::Keep };
        match kind {
            InvpcidType::Address(_, gva) if !self.mode.is_canonical(gva) => return Err(GuestFault::GeneralProtection),
            InvpcidType::Address(pcid, gva) => {
                self.tlb.flush_address(
                    cx,
                    gva,
                    Structures::OfAddress,
                    |key| matches!(*key, ContextKey::Linear(of, its, _) if of == tag && its == pcid),
                );
            }
            InvpcidType::Single(pcid) => self
                .tlb
                .flush(cx, |key| flush_if(matches!(*key, ContextKey::Linear(of, its, _) if of == tag && its == pcid))),
            InvpcidType::All => self.flush_guest(cx),
            InvpcidType::AllRetainingGlobals => {
                self.tlb.flush(cx, |key| flush_if(matches!(*key, ContextKey::Linear(of, ..) if of == tag)));
            }
        }
        Ok(())
    }
}
