//! A guest that does nothing but convert 2 MiB: what `gmem bench` measures.

use super::launch::launch;
use super::layout;
use super::vmm::Vmm;
use super::{Platform, Sizes};
use crate::api::VcpuFd;
use crate::kvm::process::Process;
use crate::kvm::sev::protocol::msr::PageOp;
use crate::linux_guest::{Ends, Kernel, Program};
use sim_kernel::{Cx, PAGE_SIZE, PMD_SIZE};
use sim_mmu::Gpa;
use std::ops::Range;
use std::sync::Arc;

/// What is converted.
const BUFFER: Range<Gpa> = Gpa(layout::LOW_END)..Gpa(layout::LOW_END + PMD_SIZE);

/// A guest of one vCPU that has accepted 2 MiB.
pub struct Conversions {
    vmm: Vmm,
    vcpu: VcpuFd,
    platform: Platform,
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
    /// If the machine has nothing of the kind, or too little memory.
    pub fn new(cx: &Cx<'_>, process: &Arc<Process>, platform: Platform) -> Conversions {
        let sizes = Sizes { platform, ..Sizes::boot(1, layout::MEMORY_MIN) };
        let program = |_| {
            Program::new(async move |cpu| {
                let mut kernel = platform.kernel(cpu);
                match platform {
                    Platform::Snp => {
                        kernel.negotiate().await?;
                        kernel.set_up_ghcb(layout::FIRMWARE_GHCB).await?;
                    }
                    Platform::Tdx => kernel.set_up_td().await?,
                }
                kernel.arch_accept_memory(BUFFER).await
            })
        };
        let (vmm, mut vcpus) = launch(cx, process, &sizes, program).expect("a guest of these sizes can be launched");
        let conversions = Conversions { vmm, vcpu: vcpus.remove(0), platform };
        conversions.run(cx);
        conversions
    }

    /// All of it to shared, and back; with large entries, or with small ones. (Of a TD: asked for as a whole, or page by page.)
    ///
    /// # Panics
    /// If the guest does not come to its end.
    pub fn there_and_back(&self, cx: &Cx<'_>, large: bool) {
        let platform = self.platform;
        self.vcpu.vcpu().set_kernel(
            cx,
            Program::new(async move |cpu| {
                if platform == Platform::Tdx {
                    return td_there_and_back(platform.kernel(cpu), large).await;
                }
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

/// MapGPA both ways, and ACCEPT.
async fn td_there_and_back(mut kernel: Kernel, large: bool) -> Ends<()> {
    kernel.set_up_td().await?;
    let step = if large { PMD_SIZE } else { PAGE_SIZE };
    for private in [false, true] {
        for start in (BUFFER.start.0..BUFFER.end.0).step_by(step as usize).map(Gpa) {
            let range = start..start + step;
            if private {
                kernel.set_memory_encrypted(range).await?;
            } else {
                kernel.set_memory_decrypted(range).await?;
            }
        }
    }
    Ok(())
}
