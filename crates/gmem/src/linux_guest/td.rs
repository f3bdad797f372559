//! What is TDX's own in the kernel: ACCEPT with its fall-back, MapGPA with its retries, and what becomes of a TD that has `#VE` about private memory
//! (`arch/x86/coco/tdx/tdx.c`, `tdx-shared.c`).
//!
//! No private mapping of the kernel ever leads to memory that is shared at the host, or that was not accepted: a page loses its private mapping *before* the
//! host is asked, and gets it back *after* it was accepted. The host need not do what it is asked; ACCEPT says whether it did.

use super::cpu::{Ends, Insn, TdFatal};
use super::ghcb::Kernel;
use crate::kvm::tdx::protocol::{leaf, status};
use sim_coco::tdx::TdAttributes;
use sim_kernel::PAGE_SIZE;
use sim_mmu::{Gpa, Level};
use std::ops::Range;

/// How often a MapGPA may come back without progress (`max_retries_per_page`).
const MAX_RETRIES: u32 = 3;

impl Kernel {
    /// `tdx_early_init`, as far as memory is concerned: where the shared bit is, and that accesses to memory which was not accepted leave the TD.
    ///
    /// # Errors
    /// The guest ends if they would raise `#VE`, and it cannot have that changed.
    pub async fn set_up_td(&mut self) -> Ends<()> {
        let width = self.cpu.run(Insn::TdVpInfo).await?;
        let attributes = self.cpu.run(Insn::ReadRax).await?;
        self.shared_bit = 1 << (width - 1);
        let has_it = attributes & TdAttributes::SEPT_VE_DISABLE.bits() != 0;
        // With FLEXIBLE_PENDING_VE it is the guest's own choice.
        if has_it || self.cpu.run(Insn::TdSetPendingVeDisable).await? == 0 {
            return Ok(());
        }
        Err(self.cpu.panic(TdFatal::SeptVe).await)
    }

    /// `tdx_map_gpa`. `false`: the host has refused, or answers nonsense.
    pub(super) async fn tdx_map_gpa(&self, range: Range<Gpa>, enc: bool) -> Ends<bool> {
        let shared = if enc { 0 } else { self.shared_bit };
        let (mut start, end, mut retries) = (range.start.0 | shared, range.end.0 | shared, 0);
        while retries < MAX_RETRIES {
            let call = Insn::TdVmCall { leaf: leaf::MAP_GPA, operands: [start, end - start, 0, 0] };
            match self.cpu.run(call).await? {
                status::RETRY => {}
                other => return Ok(other == status::SUCCESS),
            }
            // Where to go on: the host may say anything.
            let next = self.cpu.run(Insn::ReadRax).await?;
            if !(start..end).contains(&next) {
                return Ok(false);
            }
            retries = if next == start { retries + 1 } else { 0 };
            start = next;
        }
        Ok(false)
    }

    /// `tdx_accept_memory`: the largest page that fits first. `false`: a page was not accepted, whatever the module says instead, and also if it was before.
    pub(super) async fn tdx_accept_memory(&self, range: Range<Gpa>) -> Ends<bool> {
        let mut at = range.start;
        while at < range.end {
            let mut accepted = 0;
            for level in [Level::L1G, Level::L2M, Level::L4K] {
                let size = level.span() * PAGE_SIZE;
                let fits = at.0.is_multiple_of(size) && range.end.0 - at.0 >= size;
                if fits && self.cpu.run(Insn::TdAccept { gpa: at, level }).await? == 0 {
                    accepted = size;
                    break;
                }
            }
            if accepted == 0 {
                return Ok(false);
            }
            at = at + accepted;
        }
        Ok(true)
    }

    /// `tdx_enc_status_changed`.
    async fn tdx_enc_status_changed(&self, range: Range<Gpa>, enc: bool) -> Ends<bool> {
        Ok(self.tdx_map_gpa(range.clone(), enc).await? && (!enc || self.tdx_accept_memory(range).await?))
    }

    /// `set_memory_decrypted` of a TD: the mapping changes first.
    pub(super) async fn tdx_set_memory_decrypted(&self, range: Range<Gpa>) -> Ends<()> {
        self.cpu.run(Insn::SetEncrypted(range.clone(), false)).await?;
        if self.tdx_enc_status_changed(range, false).await? {
            return Ok(());
        }
        Err(self.cpu.panic(TdFatal::Convert).await)
    }

    /// `set_memory_encrypted` of a TD: the mapping changes last.
    pub(super) async fn tdx_set_memory_encrypted(&self, range: Range<Gpa>) -> Ends<()> {
        if self.tdx_enc_status_changed(range.clone(), true).await? {
            return self.cpu.run(Insn::SetEncrypted(range, true)).await.map(drop);
        }
        Err(self.cpu.panic(TdFatal::Convert).await)
    }

    /// `arch_accept_memory` of a TD: memory that was never shared, so that the host is not asked.
    pub(super) async fn tdx_arch_accept_memory(&self, range: Range<Gpa>) -> Ends<()> {
        if self.tdx_accept_memory(range).await? {
            return Ok(());
        }
        Err(self.cpu.panic(TdFatal::Accept).await)
    }
}
