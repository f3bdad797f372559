//! INVLPGA, and TLB_CONTROL of a VMCB (AMD64 APM vol. 2, 15.16).

use super::Processor;
use crate::guest_paging::Gva;
use crate::tlb::{ContextKey, Structures, Target, TlbTag};
use crate::walker::Npt;
use sim_kernel::Cx;

/// What VMRUN flushes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TlbControl {
    /// Nothing.
    DoNothing = 0,
    /// All ASIDs.
    FlushAllAsid = 1,
    /// This guest's ASID.
    FlushAsid = 3,
    /// This guest's ASID, global pages excepted.
    FlushAsidLocal = 7,
}

impl Processor<Npt> {
    /// INVLPGA: what translates an address in an ASID. Nested translations are reached by no address.
    pub fn invlpga(&mut self, cx: &Cx<'_>, gva: Gva, asid: TlbTag) {
        if self.mode.is_canonical(gva) {
            self.tlb.flush_address(cx, gva, Structures::OfAddress, |key| key.tag() == Some(asid));
        }
    }

    /// The flush that VMRUN makes, of the ASID that is about to run.
    pub fn tlb_control(&mut self, cx: &Cx<'_>, control: TlbControl) {
        let asid = Some(self.state.tag);
        match control {
            TlbControl::DoNothing => {}
            TlbControl::FlushAllAsid => self.tlb.flush(cx, |_| Target::Flush),
            TlbControl::FlushAsid => {
                self.tlb.flush(cx, |key| if key.tag() == asid { Target::Flush } else { Target::Keep });
            }
            TlbControl::FlushAsidLocal => self.tlb.flush(cx, |key| match *key {
                ContextKey::Linear(..) | ContextKey::Physical(..) if key.tag() == asid => Target::Flush,
                _ => Target::Keep,
            }),
        }
    }
}
