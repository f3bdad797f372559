//! Leaving for another kernel (`snp_kexec_begin`, `snp_kexec_finish`): other processors are stopped, what is shared becomes private, and the GHCBs come last,
//! because without them only the MSR is left.

use super::ap::Vmsa;
use super::cpu::{Ends, Insn};
use super::ghcb::Kernel;
use crate::kvm::sev::protocol::msr::PageOp;
use sim_kernel::PAGE_SIZE;
use sim_mmu::Gpa;
use std::ops::Range;

impl Kernel {
    /// Everything back to private. `aps` are the other processors with their VMSAs, `shared` is what is shared beside the GHCBs.
    ///
    /// # Errors
    /// The guest ends if a page cannot be made private.
    pub async fn kexec(
        &mut self,
        aps: &[(u32, Vmsa)],
        shared: &[Range<Gpa>],
        ghcbs: &[Gpa],
        features: u64,
    ) -> Ends<()> {
        for (apic_id, vmsa) in aps {
            self.stop_ap(*apic_id, *vmsa, features).await?;
        }
        for range in shared {
            self.set_memory_encrypted(range.clone()).await?;
        }
        // From here on through the MSR.
        self.ghcb = None;
        for ghcb in ghcbs {
            let page = *ghcb..*ghcb + PAGE_SIZE;
            self.cpu.run(Insn::SetEncrypted(page.clone(), true)).await?;
            self.set_pages_state(page, PageOp::Private).await?;
        }
        Ok(())
    }
}
