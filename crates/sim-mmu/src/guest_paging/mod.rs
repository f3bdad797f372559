//! Guest paging, gva to gpa: entry formats, permissions and page-fault codes of long mode (Intel SDM vol. 3, chapter 5; AMD64 APM
//! vol. 2, chapter 5). The walk itself, which goes through stage 2 at every step, is in [`crate::walker`].
//!
//! Left out: 32-bit and PAE paging, LAM, HLAT, shadow stacks and SGX (their error-code bits have names and are never set), supervisor
//! protection keys.

mod entry;
mod fault;
mod permission;
mod registers;

pub use entry::{Encryption, GpteMasks, GuestFormat, Stage1Rights, gpte};
pub(crate) use entry::{bits, long_mode_reserved};
pub use fault::{GuestFault, PageFault, PageFaultCode};
pub use permission::{AccessMode, Permissions};
pub use registers::{
    Cr0, Cr3, Cr4, Efer, FiveLevel, FourLevel, GuestMode, PagingMode, PagingOff, PagingRegisters, Pcid, Pkru,
    UnsupportedPaging,
};

sim_kernel::address_type! {
    /// Guest virtual (linear) address, in bytes.
    pub struct Gva;
}

impl Gva {
    /// The first byte of the 4 KiB page.
    #[inline]
    pub const fn page(self) -> Gva {
        Gva(self.0 & !(sim_kernel::PAGE_SIZE - 1))
    }

    /// The byte within its 4 KiB page.
    #[inline]
    pub const fn offset(self) -> u64 {
        self.0 & (sim_kernel::PAGE_SIZE - 1)
    }

    /// Index of the entry for this address in a table of `level`.
    #[inline]
    pub const fn index(self, level: crate::Level) -> usize {
        crate::Gfn(self.0 >> sim_kernel::PAGE_SHIFT).index(level)
    }
}
