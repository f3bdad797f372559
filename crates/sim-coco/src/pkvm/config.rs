//! What the machine is made of: memory regions, address sizes, processors.

use sim_kernel::Pfn;

/// A region of physical memory as the kernel hands it to the hypervisor at boot (`struct memblock_region`, `hyp_memory[]`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemRegion {
    /// First frame.
    pub start: Pfn,
    /// First frame behind it.
    pub end: Pfn,
    /// Not in the kernel's linear map (`MEMBLOCK_NOMAP`): memory, but nobody may donate or share it.
    pub nomap: bool,
}

/// A machine with pKVM.
#[derive(Clone, Debug)]
pub struct PkvmConfig {
    /// Memory, ascending and apart; what lies in none counts as devices ("MMIO").
    pub regions: Vec<MemRegion>,
    /// Physical processors.
    pub cpus: u32,
    /// Bits of an intermediate physical address of guests, 32 to 48.
    pub guest_bits: u32,
    /// Bits of a physical address, 32 to 48; the host's stage 2 covers them.
    pub host_bits: u32,
    /// Tables in the pool of the host's stage 2 beyond what all memory needs in pages: for devices. Without any, an abort of the host far from memory may find none, which is the end
    /// of the machine.
    pub mmio_tables: u32,
    /// Whether stage-2 writes, TLB maintenance and changes of ownership are recorded ([`Pkvm::trace`](super::Pkvm::trace)).
    pub trace: bool,
}

impl PkvmConfig {
    /// One region of so many frames from 0, one processor for each vCPU that runs at once, 40-bit addresses.
    pub fn new(memory_pages: u64) -> PkvmConfig {
        PkvmConfig {
            regions: vec![MemRegion { start: Pfn(0), end: Pfn(memory_pages), nomap: false }],
            cpus: 4,
            guest_bits: 40,
            host_bits: 40,
            mmio_tables: 8,
            trace: false,
        }
    }

    /// The region that contains a frame (`find_mem_range`).
    pub(super) fn region(&self, pfn: Pfn) -> Option<&MemRegion> {
        let at = self.regions.partition_point(|region| region.end <= pfn);
        self.regions.get(at).filter(|region| region.start <= pfn)
    }

    /// Frames around `pfn` that are all memory, or all not: a lazily made block must not leave them.
    pub(super) fn span(&self, pfn: Pfn) -> std::ops::Range<Pfn> {
        match self.region(pfn) {
            Some(region) => region.start..region.end,
            None => {
                let next = self.regions.partition_point(|region| region.end <= pfn);
                let start = next.checked_sub(1).map_or(Pfn(0), |before| self.regions[before].end);
                start..self.regions.get(next).map_or(Pfn(u64::MAX), |region| region.start)
            }
        }
    }

    /// Tables that mapping all memory in pages takes, and those for devices.
    pub(super) fn host_tables(&self) -> u64 {
        let below = |span: u64| {
            let tables = |region: &MemRegion| (region.end.0.div_ceil(span)) - region.start.0 / span;
            self.regions.iter().map(tables).sum::<u64>()
        };
        below(1 << 9) + below(1 << 18) + below(1 << 27) + u64::from(self.mmio_tables)
    }

    /// # Panics
    /// If the parts do not fit together.
    pub(super) fn check(&self) {
        for bits in [self.guest_bits, self.host_bits] {
            assert!((32..=48).contains(&bits), "addresses of {bits} bits; 32 to 48 are possible");
        }
        assert!((1..=64).contains(&self.cpus), "{} processors; a machine has 1 to 64", self.cpus);
        let end = Pfn(1 << (self.host_bits - 12));
        for (i, region) in self.regions.iter().enumerate() {
            assert!(region.start < region.end && region.end <= end, "{region:?} is empty or not addressable");
            assert!(i == 0 || self.regions[i - 1].end <= region.start, "{region:?} is not above the one before it");
        }
    }
}
