//! The cipher of the memory controller: a permutation of 16 bytes that depends on a key and on the address, without nonce or tag.
//!
//! XEX over AES-128 with two keys: `E = AES_k(p ^ T) ^ T`, `T = AES_t(address / 16)`. AMD does not publish its tweak; what the model keeps is which ciphertexts
//! are equal: those of the same key, address and plaintext, and no others.

use aes::Aes128;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use std::fmt;

/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = 16;

/// Number of a 16-byte block of memory: system physical address / 16.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockNumber(pub u64);

/// A guest's key (VEK).
#[derive(Clone)]
pub struct MemoryKey {
    data: Aes128,
    tweak: Aes128,
}

impl MemoryKey {
    /// A key from 32 bytes.
    ///
    /// ```
    /// use sim_coco::snp::{BlockNumber, MemoryKey};
    /// let key = MemoryKey::new(&[7; 32]);
    /// let ciphertext = key.encrypt(BlockNumber(3), [0; 16]);
    /// assert_eq!(key.decrypt(BlockNumber(3), ciphertext), [0; 16]);
    /// assert_ne!(key.encrypt(BlockNumber(4), [0; 16]), ciphertext);
    /// ```
    pub fn new(bytes: &[u8; 32]) -> MemoryKey {
        let half = |range: std::ops::Range<usize>| {
            let half: [u8; 16] = bytes[range].try_into().expect("16 bytes");
            Aes128::new(&half.into())
        };
        MemoryKey { data: half(0..16), tweak: half(16..32) }
    }

    fn mask(&self, block: BlockNumber) -> [u8; BLOCK_BYTES] {
        let mut tweak = u128::from(block.0).to_le_bytes().into();
        self.tweak.encrypt_block(&mut tweak);
        tweak.into()
    }

    /// What lies in memory when this is written at the block.
    pub fn encrypt(&self, block: BlockNumber, plaintext: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
        let mask = self.mask(block);
        let mut data = xor(plaintext, mask).into();
        self.data.encrypt_block(&mut data);
        xor(data.into(), mask)
    }

    /// What is read when this lies in memory at the block.
    pub fn decrypt(&self, block: BlockNumber, raw: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
        let mask = self.mask(block);
        let mut data = xor(raw, mask).into();
        self.data.decrypt_block(&mut data);
        xor(data.into(), mask)
    }
}

fn xor(a: [u8; BLOCK_BYTES], b: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
    (u128::from_ne_bytes(a) ^ u128::from_ne_bytes(b)).to_ne_bytes()
}

impl fmt::Debug for MemoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryKey")
    }
}
