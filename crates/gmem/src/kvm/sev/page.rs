//! A request as a guest writes it into its GHCB.

use super::protocol::ghcb::{ValidBitmap, offset};
use sim_kernel::PAGE_SIZE;
use sim_mmu::Gpa;

/// A request by the GHCB, in version 2 of the protocol.
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
    /// The page with the request, and these words in the shared buffer.
    ///
    /// # Panics
    /// If there are more words than the buffer has room for.
    pub fn page(&self, buffer: &[u64]) -> Box<[u8]> {
        let mut page = vec![0; PAGE_SIZE as usize].into_boxed_slice();
        let mut valid = ValidBitmap::default();
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
            valid.set(offset);
        }
        put(offset::VALID_BITMAP, valid.0[0]);
        put(offset::VALID_BITMAP + 8, valid.0[1]);
        for (at, word) in (offset::SHARED_BUFFER..offset::SHARED_BUFFER_END).step_by(8).zip(buffer) {
            put(at, *word);
        }
        assert!(buffer.len() as u64 * 8 <= super::protocol::ghcb::SHARED_BUFFER_BYTES, "the buffer is full");
        page[offset::PROTOCOL_VERSION as usize] = 2;
        page
    }
}
