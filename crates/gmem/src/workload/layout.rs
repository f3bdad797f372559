//! Where things are in the guest's memory. What is launched is where OVMF has it; below [`LOW_END`] the firmware has accepted everything.

use sim_kernel::PAGE_SIZE;
use sim_mmu::Gpa;
use std::ops::Range;

/// vCPUs for which there is room.
pub(super) const VCPUS_MAX: u32 = 8;
/// A block of lazy acceptance.
pub(super) const BLOCK: u64 = 4 << 20;
/// The end of the buffers below, and the beginning of the SWIOTLB.
pub(super) const LOW_END: u64 = 32 << 20;
/// The smallest guest: the buffers, a SWIOTLB, and something to accept.
pub(super) const MEMORY_MIN: u64 = 40 << 20;
/// The largest: the table of unaccepted memory is in launched pages.
pub(super) const MEMORY_MAX: u64 = 32 << 30;

/// The firmware's code, in a slot of its own below 4 GiB; or above memory, where there is more than that.
pub(super) fn firmware(memory: u64) -> Range<Gpa> {
    let end = if memory <= 3 << 30 { Gpa(4 << 30) } else { Gpa(1 << 40) };
    Gpa(end.0 - (4 << 20))..end
}

/// Zero pages of the launch, by address and number.
pub(super) const ZERO: [(Gpa, u64); 4] =
    [(Gpa(0x80_0000), 9), (Gpa(0x80_a000), 3), (Gpa(0x80_f000), 1), (Gpa(0x81_1000), 15)];
pub(super) const SECRETS: Gpa = Gpa(0x80_d000);
pub(super) const CPUID: Gpa = Gpa(0x80_e000);
/// The page with the hashes of kernel and command line.
pub(super) const HASHES: Gpa = Gpa(0x81_0000);
/// From the first page that is launched to behind the last; the page between the first two blocks is launched too, as an unmeasured one.
pub(super) const LAUNCHED: Range<Gpa> = Gpa(0x80_0000)..Gpa(0x82_0000);
/// The page that is left out above.
pub(super) const UNMEASURED: Gpa = Gpa(0x80_9000);

/// A page that the kernel tries RMPADJUST on.
pub(super) const SCRATCH: Gpa = Gpa(0x80_0000);
/// The GHCB of the firmware.
pub(super) const FIRMWARE_GHCB: Gpa = Gpa(0x80_b000);
/// The table of unaccepted memory.
pub(super) const UNACCEPTED: Gpa = Gpa(0x81_1000);
/// A word for each vCPU: 1 when it is ready.
pub(super) fn ready(vcpu: u32) -> Gpa {
    Gpa(0x81_f000 + 8 * u64::from(vcpu))
}

/// A word for each vCPU of a TD, at which it waits in the firmware.
pub(super) fn mailbox(vcpu: u32) -> Gpa {
    Gpa(0x81_f800 + 8 * u64::from(vcpu))
}

/// Pages of a vCPU.
fn of_vcpu(vcpu: u32, page: u64) -> Gpa {
    Gpa(0x100_0000 + 0x1_0000 * u64::from(vcpu) + page * PAGE_SIZE)
}

pub(super) fn ghcb(vcpu: u32) -> Gpa {
    of_vcpu(vcpu, 0)
}

/// Doorbell and clock, which are shared as well.
pub(super) fn shared(vcpu: u32) -> Range<Gpa> {
    of_vcpu(vcpu, 1)..of_vcpu(vcpu, 3)
}

/// Two pages, of which the second is the VMSA.
pub(super) fn vmsa_pair(vcpu: u32) -> Gpa {
    of_vcpu(vcpu, 4)
}

/// Bounce buffers of the firmware, 32 KiB.
pub(super) const BOUNCE: Gpa = Gpa(0x110_0000);

/// 1 MiB of each vCPU for coherent DMA.
pub(super) fn dma(vcpu: u32) -> Gpa {
    Gpa(0x120_0000 + 0x10_0000 * u64::from(vcpu))
}

/// What the firmware accepts: all up to `end` but what was launched.
pub(super) fn firmware_accepts(end: u64) -> [Range<Gpa>; 2] {
    [Gpa(0)..LAUNCHED.start, LAUNCHED.end..Gpa(end)]
}
