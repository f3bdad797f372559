//! Writes to control registers, with what they invalidate (Intel SDM vol. 3, 5.10.4.1; AMD64 APM vol. 2, 5.5.3) and what they refuse.
//!
//! Intercepts are whoever runs the guest's to decide: these are the writes that the processor performs.

use super::Processor;
use crate::guest_paging::{Cr0, Cr3, Cr4, Efer, GuestFault, PagingMode, Pkru};
use crate::tlb::{ContextKey, Target};
use crate::walker::Stage2Format;
use sim_kernel::Cx;

const GP: GuestFault = GuestFault::GeneralProtection;

impl<F: Stage2Format> Processor<F> {
    /// MOV to CR3, the 64 bits of the source.
    ///
    /// # Errors
    /// #GP for reserved bits.
    pub fn mov_to_cr3(&mut self, cx: &Cx<'_>, source: u64) -> Result<(), GuestFault> {
        let cr4 = self.state.registers.cr4;
        let has_pcids = cr4.contains(Cr4::PCIDE);
        let keeps = has_pcids && source & Cr3::NO_FLUSH != 0;
        let value = if has_pcids { source & !Cr3::NO_FLUSH } else { source };
        if self.guest.masks.is_bad_cr3(value) {
            return Err(GP);
        }
        self.state.registers.cr3 = Cr3(value);
        let (tag, new) = (self.state.tag, Cr3(value).pcid(cr4));
        if !keeps {
            self.tlb.flush(cx, |key| match *key {
                // Without PCIDs there is only PCID 0.
                ContextKey::Linear(of, pcid, _) if of == tag && (pcid == new || !has_pcids) => Target::Flush,
                _ => Target::Keep,
            });
        }
        self.load(self.mode);
        Ok(())
    }

    /// MOV to CR4.
    ///
    /// # Errors
    /// #GP for changes that long mode forbids, and for enabling PCIDs with a PCID in CR3 or outside long mode.
    pub fn mov_to_cr4(&mut self, cx: &Cx<'_>, new: Cr4) -> Result<(), GuestFault> {
        let registers = self.state.registers;
        let (old, long_mode) = (registers.cr4, registers.efer.contains(Efer::LMA));
        let (gained, changed) = (new - old, new ^ old);
        if long_mode && (changed.contains(Cr4::LA57) || !new.contains(Cr4::PAE)) {
            return Err(GP);
        }
        if gained.contains(Cr4::PCIDE) && (!long_mode || registers.cr3.0 & 0xfff != 0) {
            return Err(GP);
        }
        let tag = self.state.tag;
        let pcid = registers.cr3.pcid(old);
        self.state.registers.cr4 = new;
        let mode = self.state.registers.mode().map_err(|_| {
            self.state.registers.cr4 = old;
            GP
        })?;
        if changed.contains(Cr4::PGE) || (old - new).contains(Cr4::PCIDE) {
            self.flush_guest(cx);
        } else if changed.contains(Cr4::PAE) || gained.contains(Cr4::SMEP) {
            self.tlb.flush(cx, |key| match *key {
                ContextKey::Linear(of, current, _) if of == tag && current == pcid => Target::Flush,
                ContextKey::Global(of, _) if of == tag => Target::Flush,
                _ => Target::Keep,
            });
        }
        self.load(mode);
        Ok(())
    }

    /// MOV to CR0.
    ///
    /// # Errors
    /// #GP for switching paging off while PCIDs are on, and if the result is paging that is not modelled.
    pub fn mov_to_cr0(&mut self, cx: &Cx<'_>, new: Cr0) -> Result<(), GuestFault> {
        if !new.contains(Cr0::PG) && self.state.registers.cr4.contains(Cr4::PCIDE) {
            return Err(GP);
        }
        let old = std::mem::replace(&mut self.state.registers.cr0, new);
        let mode = self.state.registers.mode().map_err(|_| {
            self.state.registers.cr0 = old;
            GP
        })?;
        if (old - new).contains(Cr0::PG) {
            self.flush_guest(cx);
        }
        self.load(mode);
        Ok(())
    }

    /// Sets EFER.NXE. Nothing is flushed: entries remember what their bit 63 said.
    pub fn set_no_execute_enable(&mut self, on: bool) {
        self.state.registers.efer.set(Efer::NXE, on);
        self.load(self.mode);
    }

    /// WRPKRU.
    pub fn write_pkru(&mut self, pkru: Pkru) {
        self.state.registers.pkru = pkru;
        self.load(self.mode);
    }

    /// The privilege changes: CPL, and EFLAGS.AC. Both of the acceleration TLB's contents stay.
    pub fn set_privilege(&mut self, cpl: u8, ac: bool) {
        let registers = &mut self.state.registers;
        let rules_change = registers.ac != ac;
        (registers.cpl, registers.ac) = (cpl, ac);
        if rules_change {
            self.guest.permissions = crate::guest_paging::Permissions::new(&self.state.registers);
        }
        self.set_access_mode();
    }

    /// The mode that the registers select.
    pub const fn paging_mode(&self) -> PagingMode {
        self.mode
    }

    /// Everything of the guest's identifier that a gva leads to, global or not.
    pub(super) fn flush_guest(&mut self, cx: &Cx<'_>) {
        let tag = self.state.tag;
        self.tlb.flush(cx, |key| match *key {
            ContextKey::Linear(of, ..) | ContextKey::Global(of, _) if of == tag => Target::Flush,
            _ => Target::Keep,
        });
    }
}
