//! A mapping of the process: the VMM's own view of guest memory.

use super::{RawFd, Result};
use crate::kvm::process::{Mapped, Process, Sharing};
use sim_kernel::mm::{Advice, Prot, Signal};
use sim_kernel::{Cx, Hva, PAGE_SIZE, PMD_SIZE};
use std::sync::Arc;

/// Memory that a process has mapped. A number, not a guard: dropping it leaves the memory mapped until the process exits.
///
/// Offsets are added to the first address as a pointer would be: one past the end reaches whatever the process has there.
///
/// ```
/// use gmem::{Machine, MachineConfig, Mapping, Prot, Sharing, Signal};
/// Machine::new(MachineConfig::default()).run(|cx, process| {
///     let memory = Mapping::anonymous(cx, process, 0x2000, Prot::READ | Prot::WRITE, Sharing::Private).unwrap();
///     memory.write_u32(cx, 0x1000, 7).unwrap();
///     assert_eq!(memory.read_u32(cx, 0x1000), Ok(7));
///     memory.mprotect(cx, 0x1000, 0x1000, Prot::READ).unwrap();
///     assert_eq!(memory.write_u32(cx, 0x1000, 8), Err(Signal::Sigsegv));
///     memory.unmap(cx).unwrap();
/// });
/// ```
#[derive(Debug)]
pub struct Mapping {
    process: Arc<Process>,
    addr: Hva,
    len: u64,
}

impl Mapping {
    /// `mmap(2)` of anonymous memory. As in Linux, whole huge pages are aligned to one.
    ///
    /// # Errors
    /// `EINVAL` for length 0; `ENOMEM`.
    pub fn anonymous(cx: &Cx<'_>, process: &Arc<Process>, len: u64, prot: Prot, sharing: Sharing) -> Result<Mapping> {
        // __get_unmapped_area: thp_get_unmapped_area_vmflags for anonymous memory whose length is a multiple of PMD_SIZE.
        let align = if len.is_multiple_of(PMD_SIZE) { PMD_SIZE } else { PAGE_SIZE };
        let addr = process.mmap(cx, len, prot, sharing, Mapped::Anonymous, align)?;
        Ok(Mapping { process: Arc::clone(process), addr, len })
    }

    /// `mmap(2)` of a file, from `offset` on.
    ///
    /// # Errors
    /// `EINVAL` for an offset that is not page-aligned and for length 0; `EBADF`; `EOVERFLOW`; what the file answers; `ENOMEM`.
    pub fn file(
        cx: &Cx<'_>,
        process: &Arc<Process>,
        fd: RawFd,
        len: u64,
        prot: Prot,
        sharing: Sharing,
        offset: u64,
    ) -> Result<Mapping> {
        Mapping::file_aligned(cx, process, fd, len, prot, sharing, offset, PAGE_SIZE)
    }

    /// As [`Mapping::file`], at a multiple of `align`: what a VMM does with a larger mapping first and `MAP_FIXED` then.
    ///
    /// # Errors
    /// As [`Mapping::file`].
    #[expect(clippy::too_many_arguments, reason = "those of mmap(2), and who calls")]
    pub fn file_aligned(
        cx: &Cx<'_>,
        process: &Arc<Process>,
        fd: RawFd,
        len: u64,
        prot: Prot,
        sharing: Sharing,
        offset: u64,
        align: u64,
    ) -> Result<Mapping> {
        let addr = process.mmap(cx, len, prot, sharing, Mapped::File { fd, offset }, align)?;
        Ok(Mapping { process: Arc::clone(process), addr, len })
    }

    /// The first byte, as `userspace_addr` of a memory slot takes it with `.0`.
    pub fn addr(&self) -> Hva {
        self.addr
    }

    /// Bytes that were asked for.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no byte is mapped: never, because `mmap` refuses that.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, offset: u64) -> Hva {
        Hva(self.addr.0.wrapping_add(offset))
    }

    /// The process loads a 32-bit word.
    ///
    /// # Errors
    /// The signal that it gets instead.
    pub fn read_u32(&self, cx: &Cx<'_>, offset: u64) -> std::result::Result<u32, Signal> {
        self.process.read_u32(cx, self.at(offset))
    }

    /// The process stores a 32-bit word.
    ///
    /// # Errors
    /// The signal that it gets instead.
    pub fn write_u32(&self, cx: &Cx<'_>, offset: u64, value: u32) -> std::result::Result<(), Signal> {
        self.process.write_u32(cx, self.at(offset), value)
    }

    /// The process loads a 64-bit word.
    ///
    /// # Errors
    /// The signal that it gets instead.
    pub fn read_u64(&self, cx: &Cx<'_>, offset: u64) -> std::result::Result<u64, Signal> {
        self.process.mm().read_u64(cx, self.at(offset))
    }

    /// The process stores a 64-bit word.
    ///
    /// # Errors
    /// The signal that it gets instead; of a word across two pages the first part may have been stored.
    pub fn write_u64(&self, cx: &Cx<'_>, offset: u64, value: u64) -> std::result::Result<(), Signal> {
        self.process.mm().write_u64(cx, self.at(offset), value)
    }

    /// `madvise(2)` on part of the mapping.
    ///
    /// # Errors
    /// `EINVAL`, `ENOMEM`, `EACCES`, `EFAULT`, as the advice has it.
    pub fn madvise(&self, cx: &Cx<'_>, offset: u64, len: u64, advice: Advice) -> Result<()> {
        self.process.madvise(cx, self.at(offset), len, advice)
    }

    /// `mprotect(2)` on part of the mapping.
    ///
    /// # Errors
    /// `EINVAL` for an offset that is not page-aligned; `ENOMEM` if part is not mapped; `EACCES`.
    pub fn mprotect(&self, cx: &Cx<'_>, offset: u64, len: u64, prot: Prot) -> Result<()> {
        self.process.mprotect(cx, self.at(offset), len, prot)
    }

    /// `munmap(2)` of the whole.
    ///
    /// # Errors
    /// None for a mapping that `mmap` returned.
    pub fn unmap(self, cx: &Cx<'_>) -> Result<()> {
        self.process.munmap(cx, self.addr, self.len)
    }
}
