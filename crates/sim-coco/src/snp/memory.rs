//! Memory behind keys: what lies in DRAM is ciphertext or plain bytes, and what is read depends on the key that it is read through.
//!
//! The bytes are those of [`PhysMem`]; a key is chosen by ASID. Reading through the wrong key, or through none, gives bytes that are always the same
//! and mean nothing; writing through the wrong one leaves such bytes for the right one. Nothing here is checked, and nothing announces a scheduling
//! point: this is the bus, and an access is part of the caller's step.

use super::cipher::{BLOCK_BYTES, BlockNumber, MemoryKey};
use super::types::Asid;
use sim_kernel::mm::PhysMem;
use sim_kernel::{PAGE_SIZE, Pfn};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Blocks of a page.
const BLOCKS_PER_PAGE: usize = PAGE_SIZE as usize / BLOCK_BYTES;
/// Locks over the blocks: a block is two words of the host.
const STRIPES: usize = 64;

/// The bytes of a page.
pub type PageBytes = [u8; PAGE_SIZE as usize];

/// The key that an access goes through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyPath {
    /// None: what lies in memory.
    Raw,
    /// That of the guest with this ASID.
    Guest(Asid),
}

/// Frames with contents, and keys.
pub struct EncryptedMemory {
    phys: Arc<PhysMem>,
    keys: parking_lot::RwLock<BTreeMap<Asid, Arc<MemoryKey>>>,
    /// Of an ASID whose key was destroyed, or never loaded.
    no_key: Arc<MemoryKey>,
    stripes: [parking_lot::Mutex<()>; STRIPES],
}

impl EncryptedMemory {
    pub(super) fn new(phys: Arc<PhysMem>) -> EncryptedMemory {
        EncryptedMemory {
            phys,
            keys: Default::default(),
            no_key: Arc::new(MemoryKey::new(&[0; 32])),
            stripes: [const { parking_lot::Mutex::new(()) }; STRIPES],
        }
    }

    /// The frames.
    pub fn phys(&self) -> &Arc<PhysMem> {
        &self.phys
    }

    pub(super) fn load_key(&self, asid: Asid, key: MemoryKey) {
        self.keys.write().insert(asid, Arc::new(key));
    }

    pub(super) fn destroy_key(&self, asid: Asid) {
        self.keys.write().remove(&asid);
    }

    /// ASIDs that have a key.
    pub(super) fn loaded_keys(&self) -> BTreeSet<Asid> {
        self.keys.read().keys().copied().collect()
    }

    fn key(&self, path: KeyPath) -> Option<Arc<MemoryKey>> {
        match path {
            KeyPath::Raw => None,
            KeyPath::Guest(asid) => Some(Arc::clone(self.keys.read().get(&asid).unwrap_or(&self.no_key))),
        }
    }

    fn raw_block(&self, pfn: Pfn, block: usize) -> [u8; BLOCK_BYTES] {
        let word = |i: usize| u128::from(self.phys.peek_u64(pfn, block * 2 + i));
        (word(0) | word(1) << 64).to_le_bytes()
    }

    fn set_raw_block(&self, pfn: Pfn, block: usize, bytes: [u8; BLOCK_BYTES]) {
        let words = u128::from_le_bytes(bytes);
        self.phys.poke_u64(pfn, block * 2, words as u64);
        self.phys.poke_u64(pfn, block * 2 + 1, (words >> 64) as u64);
    }

    fn number(pfn: Pfn, block: usize) -> BlockNumber {
        BlockNumber(pfn.0 * BLOCKS_PER_PAGE as u64 + block as u64)
    }

    fn read_block(&self, key: Option<&MemoryKey>, pfn: Pfn, block: usize) -> [u8; BLOCK_BYTES] {
        let _stripe = self.stripes[block % STRIPES].lock();
        let raw = self.raw_block(pfn, block);
        key.map_or(raw, |key| key.decrypt(Self::number(pfn, block), raw))
    }

    fn change_block(
        &self,
        key: Option<&MemoryKey>,
        pfn: Pfn,
        block: usize,
        change: impl FnOnce(&mut [u8; BLOCK_BYTES]),
    ) {
        let _stripe = self.stripes[block % STRIPES].lock();
        let raw = self.raw_block(pfn, block);
        let number = Self::number(pfn, block);
        let mut bytes = key.map_or(raw, |key| key.decrypt(number, raw));
        change(&mut bytes);
        self.set_raw_block(pfn, block, key.map_or(bytes, |key| key.encrypt(number, bytes)));
    }

    /// The blocks of `bytes` bytes from `offset` on: number, and which bytes of the block are which of the caller's.
    fn blocks(offset: usize, bytes: usize) -> impl Iterator<Item = (usize, std::ops::Range<usize>, usize)> {
        assert!(offset + bytes <= PAGE_SIZE as usize, "{bytes} bytes at {offset:#x} of a page");
        let end = offset + bytes;
        (offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)).map(move |block| {
            let start = block * BLOCK_BYTES;
            let range = offset.max(start) - start..end.min(start + BLOCK_BYTES) - start;
            let at = start + range.start - offset;
            (block, range, at)
        })
    }

    /// Reads within a page.
    ///
    /// # Panics
    /// If the bytes are not all in the page, or nobody ever had the frame.
    pub fn read(&self, path: KeyPath, pfn: Pfn, offset: usize, bytes: &mut [u8]) {
        let key = self.key(path);
        for (block, range, at) in Self::blocks(offset, bytes.len()) {
            let data = self.read_block(key.as_deref(), pfn, block);
            bytes[at..at + range.len()].copy_from_slice(&data[range]);
        }
    }

    /// Writes within a page.
    ///
    /// # Panics
    /// As [`EncryptedMemory::read`].
    pub fn write(&self, path: KeyPath, pfn: Pfn, offset: usize, bytes: &[u8]) {
        let key = self.key(path);
        for (block, range, at) in Self::blocks(offset, bytes.len()) {
            let data = &bytes[at..at + range.len()];
            self.change_block(key.as_deref(), pfn, block, |block| block[range].copy_from_slice(data));
        }
    }

    /// All bytes of a page.
    pub fn read_page(&self, path: KeyPath, pfn: Pfn) -> Box<PageBytes> {
        let mut page = Box::new([0; PAGE_SIZE as usize]);
        self.read(path, pfn, 0, &mut page[..]);
        page
    }

    /// Replaces all bytes of a page.
    pub fn write_page(&self, path: KeyPath, pfn: Pfn, page: &PageBytes) {
        self.write(path, pfn, 0, page);
    }

    /// Reads a page through a key that is not the ASID's.
    pub(super) fn read_page_with(&self, key: &MemoryKey, pfn: Pfn) -> Box<PageBytes> {
        let mut page = Box::new([0; PAGE_SIZE as usize]);
        for (block, bytes) in page.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            bytes.copy_from_slice(&self.read_block(Some(key), pfn, block));
        }
        page
    }

    /// Writes a page through a key that is not the ASID's.
    pub(super) fn write_page_with(&self, key: &MemoryKey, pfn: Pfn, page: &PageBytes) {
        for (block, bytes) in page.chunks_exact(BLOCK_BYTES).enumerate() {
            self.change_block(Some(key), pfn, block, |block| block.copy_from_slice(bytes));
        }
    }
}

impl fmt::Debug for EncryptedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptedMemory").field("keys", &self.keys.read().len()).finish_non_exhaustive()
    }
}
