//! A guest that does nothing but convert 2 MiB: what `gmem bench` measures.

use super::Sizes;
use super::layout;
use super::vmm::Vmm;
use crate::api::VcpuFd;
use crate::kvm::process::Process;
use crate::kvm::sev::protocol::msr::PageOp;
use crate::linux_guest::{Kernel, Program};
use sim_kernel::{Cx, PMD_SIZE};
use sim_mmu::Gpa;
use std::ops::Range;
use std::sync::Arc;

/// What is converted.
const BUFFER: Range<Gpa> = Gpa(layout::LOW_END)..Gpa(layout::LOW_END + PMD_SIZE);

/// A guest of one vCPU that has accepted 2 MiB.
pub struct Conversions {
    vmm: Vmm,
    vcpu: VcpuFd,
}

impl std::fmt::Debug for Conversions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversions").finish_non_exhaustive()
    }
}

impl Conversions {
    /// Launches and boots it.
    ///
    /// # Panics
    /// If the machine has no SNP or too little memory.
    pub fn new(cx: &Cx<'_>, process: &Arc<Process>) -> Conversions {
        let sizes = Sizes::boot(1, layout::MEMORY_MIN);
        let program = |_| {
            Program::new(async |cpu| {
                let mut kernel = Kernel::new(cpu);
                kernel.negotiate().await?;
                kernel.set_up_ghcb(layout::FIRMWARE_GHCB).await?;
                kernel.set_pages_state(BUFFER, PageOp::Private).await
            })
        };
        let (vmm, mut vcpus) =
            Vmm::launch(cx, process, &sizes, program).expect("a guest of these sizes can be launched");
        let conversions = Conversions { vmm, vcpu: vcpus.remove(0) };
        conversions.run(cx);
        conversions
    }

    /// All of it to shared, and back; with large entries, or with small ones.
    ///
    /// # Panics
    /// If the guest does not come to its end.
    pub fn there_and_back(&self, cx: &Cx<'_>, large: bool) {
        self.vcpu.vcpu().set_kernel(
            cx,
            Program::new(async move |cpu| {
                let kernel = Kernel { ghcb: Some(layout::FIRMWARE_GHCB), ..Kernel::new(cpu) };
                for op in [PageOp::Shared, PageOp::Private] {
                    if large {
                        kernel.set_pages_state(BUFFER, op).await?;
                    } else {
                        kernel.set_vmalloc_pages_state(BUFFER, op).await?;
                    }
                }
                Ok(())
            }),
        );
        self.run(cx);
    }

    fn run(&self, cx: &Cx<'_>) {
        self.vmm.vcpu_thread(cx, &self.vcpu);
        let outcome = self.vcpu.vcpu().kernel_outcome(cx);
        assert_eq!(outcome, Some(Ok(())), "{:?}", self.vmm.problems());
    }
}
