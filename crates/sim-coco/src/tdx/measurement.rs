//! What a TD is measured to be: MRTD while it is built, RTMRs afterwards. SHA-384 over records of 128 bytes.

use sha2::{Digest, Sha384};
use sim_mmu::Gpa;
use std::fmt;

/// Bytes that MR.EXTEND measures.
pub const EXTEND_BYTES: usize = 256;
const RECORD: usize = 128;

/// The digests of a TD.
///
/// ```
/// use sim_coco::tdx::Measurement;
/// use sim_mmu::Gpa;
/// let mut measurement = Measurement::new();
/// measurement.add_page(Gpa(0));
/// measurement.finish();
/// assert_eq!(measurement.mrtd().unwrap()[..4], [0x8f, 0x3e, 0x9a, 0x8a]);
/// ```
#[derive(Clone)]
pub struct Measurement {
    context: Sha384,
    mrtd: Option<[u8; 48]>,
    rtmr: [[u8; 48]; 4],
}

impl Measurement {
    /// Of a TD of which nothing is built yet.
    pub fn new() -> Measurement {
        Measurement { context: Sha384::new(), mrtd: None, rtmr: [[0; 48]; 4] }
    }

    fn absorb(&mut self, name: &[u8], gpa: Gpa) {
        let mut record = [0; RECORD];
        record[..name.len()].copy_from_slice(name);
        record[16..24].copy_from_slice(&gpa.0.to_le_bytes());
        self.context.update(record);
    }

    /// PAGE.ADD: that there is a page, and where, but not what is in it.
    pub fn add_page(&mut self, gpa: Gpa) {
        self.absorb(b"MEM.PAGE.ADD", gpa);
    }

    /// MR.EXTEND: what is in 256 bytes.
    pub fn extend(&mut self, gpa: Gpa, bytes: &[u8; EXTEND_BYTES]) {
        self.absorb(b"MR.EXTEND", gpa);
        self.context.update(bytes);
    }

    /// MR.FINALIZE: MRTD does not change any more (TDX-INV-013).
    ///
    /// # Panics
    /// If it is final already.
    pub fn finish(&mut self) {
        assert!(self.mrtd.is_none(), "TDX-INV-013: MRTD is final");
        self.mrtd = Some(self.context.clone().finalize().into());
    }

    /// MRTD, or what it would be if the TD were final now.
    pub fn so_far(&self) -> [u8; 48] {
        self.mrtd.unwrap_or_else(|| self.context.clone().finalize().into())
    }

    /// MRTD, once it is final.
    pub const fn mrtd(&self) -> Option<[u8; 48]> {
        self.mrtd
    }

    /// The run-time measurement registers.
    pub const fn rtmr(&self) -> &[[u8; 48]; 4] {
        &self.rtmr
    }

    /// TDG.MR.RTMR.EXTEND. `None` if there is no such register.
    pub fn extend_rtmr(&mut self, index: u64, data: &[u8; 48]) -> Option<()> {
        let rtmr = self.rtmr.get_mut(usize::try_from(index).ok()?)?;
        *rtmr = Sha384::new().chain_update(&rtmr[..]).chain_update(data).finalize().into();
        Some(())
    }
}

impl Default for Measurement {
    fn default() -> Measurement {
        Measurement::new()
    }
}

impl fmt::Debug for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What was absorbed so far, as the digest that it would give.
        f.debug_struct("Measurement")
            .field("so_far", &self.so_far())
            .field("mrtd", &self.mrtd)
            .field("rtmr", &self.rtmr)
            .finish()
    }
}
