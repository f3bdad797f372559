//! The secrets page: the keys of a guest's messages to the firmware.

use super::super::memory::PageBytes;
use super::context::Gctx;

/// Version of the page's layout.
const VERSION: u32 = 3;
/// Where the keys begin.
const VMPCK_OFFSET: usize = 0x20;

/// The page that the firmware puts into a guest's memory.
pub fn secrets_page(guest: &Gctx) -> Box<PageBytes> {
    let mut page: Box<PageBytes> = Box::new([0; 4096]);
    page[..4].copy_from_slice(&VERSION.to_le_bytes());
    page[4] = u8::from(guest.imi_en);
    page[0x10..0x20].copy_from_slice(&guest.gosvw);
    for (i, key) in guest.vmpck.iter().enumerate() {
        page[VMPCK_OFFSET + i * 32..][..32].copy_from_slice(key);
    }
    page
}
