//! What the guest's processors do, phase by phase.

use super::layout;
use super::{Phase, Platform, Sizes};
use crate::linux_guest::{Ends, Insn, Kernel, Place, Unaccepted, Vmsa};
use sim_kernel::PAGE_SIZE;
use sim_mmu::Gpa;

/// The port at which the guest says which phase begins; the VMM counts by it.
pub(super) const PHASE_PORT: u16 = 0x80;
/// `sev_features` of the guest.
pub(super) const FEATURES: u64 = 1;

/// Numbers that look random, the same each time.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

fn table(sizes: &Sizes) -> Unaccepted {
    let unit_size = Unaccepted::UNIT;
    Unaccepted { phys_base: Gpa(0), unit_size, units: sizes.memory / unit_size, data: layout::UNACCEPTED }
}

async fn begins(kernel: &Kernel, phase: Phase) -> Ends<()> {
    kernel.cpu.run(Insn::Out { port: PHASE_PORT, value: phase as u32 }).await.map(drop)
}

/// The first processor.
pub(super) async fn boot_processor(mut kernel: Kernel, sizes: Sizes) -> Ends<()> {
    begins(&kernel, Phase::W3).await?;
    match sizes.platform {
        Platform::Snp => {
            kernel.negotiate().await?;
            kernel.check_vmpl0(layout::SCRATCH).await?;
            kernel.set_up_ghcb(layout::FIRMWARE_GHCB).await?;
        }
        Platform::Tdx => kernel.set_up_td().await?,
    }
    for range in layout::firmware_accepts(sizes.firmware_accept) {
        kernel.arch_accept_memory(range).await?;
    }
    if sizes.bounces > 0 {
        begins(&kernel, Phase::W4).await?;
        firmware_dma(&kernel, sizes.bounces).await?;
    }
    if sizes.platform == Platform::Snp {
        begins(&kernel, Phase::W5).await?;
    }
    let table = table(&sizes);
    kernel.init_unaccepted(&table, sizes.firmware_accept / table.unit_size).await?;
    kernel.unaccepted = Some(table);
    if sizes.platform == Platform::Snp {
        kernel.set_up_ghcb(layout::ghcb(0)).await?;
        kernel.set_memory_decrypted(layout::shared(0)).await?;
    }
    for vcpu in 1..sizes.vcpus {
        start_processor(&kernel, &sizes, vcpu).await?;
    }
    for vcpu in 1..sizes.vcpus {
        kernel.cpu.run(Insn::SpinWhile { gpa: layout::ready(vcpu), value: 0 }).await?;
    }
    begins(&kernel, Phase::W6).await?;
    let swiotlb = Gpa(layout::LOW_END)..Gpa(layout::LOW_END + sizes.swiotlb());
    kernel.accept_memory(swiotlb.clone()).await?;
    kernel.set_memory_decrypted(swiotlb.clone()).await?;
    kernel.cpu.run(Insn::Release(layout::ready(0), 1)).await?;
    if sizes.lazy_blocks > 0 {
        begins(&kernel, Phase::W7).await?;
    }
    lazy_acceptance(&kernel, &sizes, 0).await?;
    if sizes.conversions > 0 {
        begins(&kernel, Phase::W8).await?;
    }
    run_time(&kernel, &sizes, 0).await?;
    for vcpu in 1..sizes.vcpus {
        kernel.cpu.run(Insn::SpinWhile { gpa: layout::ready(vcpu), value: 1 }).await?;
    }
    if sizes.kexec {
        begins(&kernel, Phase::W9).await?;
        leave(kernel, &sizes, swiotlb).await?;
    }
    Ok(())
}

/// By its VMSA; or by the firmware's mailbox, at which all processors of a TD but the first wait.
async fn start_processor(kernel: &Kernel, sizes: &Sizes, vcpu: u32) -> Ends<()> {
    match sizes.platform {
        Platform::Snp => {
            let vmsa = Vmsa::in_pair(layout::vmsa_pair(vcpu));
            kernel.start_ap(vcpu, vmsa, FEATURES).await.map(drop)
        }
        Platform::Tdx => kernel.cpu.run(Insn::Release(layout::mailbox(vcpu), 1)).await.map(drop),
    }
}

/// Any other.
pub(super) async fn other_processor(mut kernel: Kernel, vcpu: u32, sizes: Sizes) -> Ends<()> {
    match sizes.platform {
        Platform::Snp => {
            kernel.set_up_ghcb(layout::ghcb(vcpu)).await?;
            kernel.set_memory_decrypted(layout::shared(vcpu)).await?;
        }
        Platform::Tdx => {
            kernel.set_up_td().await?;
            kernel.cpu.run(Insn::SpinWhile { gpa: layout::mailbox(vcpu), value: 0 }).await?;
        }
    }
    kernel.unaccepted = Some(table(&sizes));
    kernel.cpu.run(Insn::Release(layout::ready(vcpu), 1)).await?;
    kernel.cpu.run(Insn::SpinWhile { gpa: layout::ready(0), value: 0 }).await?;
    lazy_acceptance(&kernel, &sizes, vcpu).await?;
    run_time(&kernel, &sizes, vcpu).await?;
    kernel.cpu.run(Insn::Release(layout::ready(vcpu), 2)).await.map(drop)
}

/// W4.
async fn firmware_dma(kernel: &Kernel, cycles: u32) -> Ends<()> {
    let mut sizes = Lcg(4);
    for cycle in 0..cycles {
        let buffer = layout::BOUNCE..layout::BOUNCE + (1 + sizes.below(8)) * PAGE_SIZE;
        kernel.set_memory_decrypted(buffer.clone()).await?;
        kernel.cpu.write(Place::shared(buffer.start), u64::from(cycle)).await?;
        kernel.set_memory_encrypted(buffer.clone()).await?;
        kernel.cpu.write(Place::private(buffer.start), u64::from(cycle)).await?;
    }
    Ok(())
}

/// W7: blocks in turns, so that the guard unit of one is the first unit of another's.
async fn lazy_acceptance(kernel: &Kernel, sizes: &Sizes, vcpu: u32) -> Ends<()> {
    let start = sizes.firmware_accept.max(layout::LOW_END + sizes.swiotlb()).next_multiple_of(layout::BLOCK);
    let blocks = (sizes.memory.saturating_sub(start)) / layout::BLOCK;
    let mine = (u64::from(vcpu)..blocks).step_by(sizes.vcpus as usize).take(sizes.lazy_blocks as usize);
    for block in mine {
        let first = Gpa(start + block * layout::BLOCK);
        kernel.accept_memory(first..first + layout::BLOCK).await?;
        kernel.cpu.write(Place::private(first), block).await?;
    }
    Ok(())
}

/// W8.
async fn run_time(kernel: &Kernel, sizes: &Sizes, vcpu: u32) -> Ends<()> {
    let mut random = Lcg(8 + u64::from(vcpu));
    for i in 0..sizes.conversions {
        let pages = 1 << random.below(5);
        let first = layout::dma(vcpu) + random.below(256 - pages) * PAGE_SIZE;
        let buffer = first..first + pages * PAGE_SIZE;
        kernel.set_memory_decrypted(buffer.clone()).await?;
        kernel.cpu.write(Place::shared(first), u64::from(i)).await?;
        kernel.set_memory_encrypted(buffer).await?;
        kernel.cpu.write(Place::private(first), u64::from(i)).await?;
    }
    Ok(())
}

/// W9.
async fn leave(mut kernel: Kernel, sizes: &Sizes, swiotlb: std::ops::Range<Gpa>) -> Ends<()> {
    if sizes.platform == Platform::Tdx {
        return kernel.set_memory_encrypted(swiotlb).await;
    }
    let aps: Vec<_> = (1..sizes.vcpus).map(|vcpu| (vcpu, Vmsa::in_pair(layout::vmsa_pair(vcpu)))).collect();
    let mut shared: Vec<_> = (0..sizes.vcpus).map(layout::shared).collect();
    shared.push(swiotlb);
    let ghcbs: Vec<_> = std::iter::once(layout::FIRMWARE_GHCB).chain((0..sizes.vcpus).map(layout::ghcb)).collect();
    kernel.kexec(&aps, &shared, &ghcbs, FEATURES).await
}
