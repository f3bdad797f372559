//! The guest's side of the GHCB protocol: what it writes into the page, and into the MSR.

use super::ghcb::offset;
use super::psc::PscEntry;
use sim_kernel::PAGE_SIZE;
use sim_mmu::Gpa;

pub use super::msr::info::PSC_RESP;
pub use super::msr::{psc_request, term_request};

/// `SNP_PAGE_STATE_PRIVATE`, as page-state changes have it.
pub const PRIVATE: u64 = super::msr::PAGE_STATE_PRIVATE;
/// Offset of SW_EXITINFO1.
pub const SW_EXITINFO1: u64 = offset::SW_EXITINFO1;
/// Offset of SW_EXITINFO2.
pub const SW_EXITINFO2: u64 = offset::SW_EXITINFO2;
/// Offset of the shared buffer.
pub const SHARED_BUFFER: u64 = offset::SHARED_BUFFER;

/// An entry of a list of pages.
pub fn psc_entry(gpa: Gpa, op: u64, is_2m: bool) -> u64 {
    PscEntry { cur_page: 0, gfn: gpa.gfn().0, op, is_2m }.to_word()
}

/// A request by the GHCB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// SW_EXITCODE.
    pub code: u64,
    /// SW_EXITINFO1.
    pub info1: u64,
    /// SW_EXITINFO2.
    pub info2: u64,
    /// RAX.
    pub rax: u64,
    /// SW_SCRATCH, if the request has one.
    pub scratch: Option<Gpa>,
}

impl Request {
    /// The GHCB with the request, and these words in the shared buffer.
    ///
    /// # Panics
    /// If there are more words than the buffer has room for.
    pub fn page(&self, buffer: &[u64]) -> Box<[u8]> {
        let mut page = vec![0; PAGE_SIZE as usize].into_boxed_slice();
        let mut valid = 0_u128;
        let mut put = |offset: u64, word: u64| {
            page[offset as usize..offset as usize + 8].copy_from_slice(&word.to_le_bytes());
        };
        let scratch = self.scratch.map(|gpa| (offset::SW_SCRATCH, gpa.0));
        let fields = [
            (offset::SW_EXITCODE, self.code),
            (offset::SW_EXITINFO1, self.info1),
            (offset::SW_EXITINFO2, self.info2),
            (offset::RAX, self.rax),
            (offset::RBX, 0),
        ];
        for (offset, word) in fields.into_iter().chain(scratch) {
            put(offset, word);
            valid |= 1 << (offset / 8);
        }
        put(offset::VALID_BITMAP, valid as u64);
        put(offset::VALID_BITMAP + 8, (valid >> 64) as u64);
        // Protocol version 2, usage 0.
        put(offset::VERSION_AND_USAGE, 2 << 16);
        for (i, word) in (0..).zip(buffer) {
            assert!(offset::SHARED_BUFFER + 8 * i < offset::VERSION_AND_USAGE - 8, "the buffer is full");
            put(offset::SHARED_BUFFER + 8 * i, *word);
        }
        page
    }
}
