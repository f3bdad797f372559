//! Which huge mappings a slot allows (`struct kvm_lpage_info`): per 2 MiB and 1 GiB block a count of reasons against one, and a flag
//! for mixed memory attributes; one more where a TD accepts small pages only.
//!
//! Simplified: a slot whose guest and host addresses are not congruent disallows a whole level, which is kept as one flag instead of
//! a count in every block.

use super::attributes::MemoryAttributes;
use super::host::{Charge, Host};
use bytemuck::allocation::zeroed_slice_box;
use sim_kernel::{Cx, Errno, Hva, PAGE_SHIFT};
use sim_mmu::{Gfn, GfnRange, Level};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// `KVM_LPAGE_MIXED_FLAG`: the block's pages differ in their attributes.
pub const KVM_LPAGE_MIXED_FLAG: u32 = 1 << 31;

/// `KVM_LPAGE_GUEST_INHIBIT_FLAG`: a guest has accepted a part of the block, and the rest will be accepted in parts, too.
pub const KVM_LPAGE_GUEST_INHIBIT_FLAG: u32 = 1 << 30;

/// The levels above 4 KiB that KVM tracks.
pub const LARGE_LEVELS: [Level; 2] = [Level::L2M, Level::L1G];

/// Blocks of one level.
#[derive(Debug)]
struct Blocks {
    /// Guest and host address are not congruent modulo the block size.
    incongruent: bool,
    /// Count of reasons and [`KVM_LPAGE_MIXED_FLAG`], one word for every absolute block that the slot touches.
    words: Box<[AtomicU32]>,
}

/// Hugepage metadata of a slot.
#[derive(Debug)]
pub struct LpageInfo {
    base: Gfn,
    /// The memory that the kernel would need for it.
    _charge: Charge,
    levels: [Blocks; 2],
}

impl LpageInfo {
    /// Bytes that the kernel would allocate for a slot of this geometry.
    fn bytes(range: GfnRange) -> u64 {
        LARGE_LEVELS.iter().map(|&level| block_count(range, level) * 4).sum()
    }

    /// Metadata of a new slot: blocks that the slot covers only partly allow no huge mapping.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(host: &Arc<Host>, range: GfnRange, userspace_addr: Hva) -> Result<LpageInfo, Errno> {
        let charge = host.charge(LpageInfo::bytes(range))?;
        let levels = LARGE_LEVELS.map(|level| {
            let mask = level.span() - 1;
            let words: Box<[AtomicU32]> = zeroed_slice_box(block_count(range, level) as usize);
            if range.start.0 & mask != 0 {
                words[0].fetch_add(1, Ordering::Relaxed);
            }
            if range.end.0 & mask != 0 {
                words[words.len() - 1].fetch_add(1, Ordering::Relaxed);
            }
            let incongruent = (range.start.0 ^ (userspace_addr.0 >> PAGE_SHIFT)) & mask != 0;
            Blocks { incongruent, words }
        });
        Ok(LpageInfo { base: range.start, _charge: charge, levels })
    }

    /// No metadata, for a slot that is bound before it has any.
    pub(crate) fn none(host: &Arc<Host>) -> LpageInfo {
        let charge = host.charge(0).expect("nothing is always left");
        LpageInfo {
            base: Gfn(0),
            _charge: charge,
            levels: [0, 1].map(|_| Blocks { incongruent: false, words: Box::default() }),
        }
    }

    /// Whether there is no metadata yet.
    pub(crate) fn is_none(&self) -> bool {
        self.levels[0].words.is_empty()
    }

    fn word(&self, gfn: Gfn, level: Level) -> &AtomicU32 {
        let index = (gfn.0 / level.span()).checked_sub(self.base.0 / level.span());
        let word = index.and_then(|index| self.levels[level_index(level)].words.get(index as usize));
        word.unwrap_or_else(|| panic!("INV-209: the slot has no hugepage metadata for {gfn:?}"))
    }

    /// Whether something speaks against a mapping of this level at `gfn`.
    pub fn is_disallowed(&self, gfn: Gfn, level: Level) -> bool {
        self.levels[level_index(level)].incongruent || self.word(gfn, level).load(Ordering::Relaxed) != 0
    }

    /// Whether the block's attributes differ.
    pub fn is_mixed(&self, gfn: Gfn, level: Level) -> bool {
        self.word(gfn, level).load(Ordering::Relaxed) & KVM_LPAGE_MIXED_FLAG != 0
    }

    /// `hugepage_test_guest_inhibit`: whether the guest wants no mapping of this level here.
    pub fn is_guest_inhibited(&self, gfn: Gfn, level: Level) -> bool {
        self.word(gfn, level).load(Ordering::Relaxed) & KVM_LPAGE_GUEST_INHIBIT_FLAG != 0
    }

    /// `hugepage_set_guest_inhibit`: it stays so as long as the slot is there. The caller holds `mmu_lock` for writing.
    pub fn set_guest_inhibit(&self, gfn: Gfn, level: Level) {
        self.word(gfn, level).fetch_or(KVM_LPAGE_GUEST_INHIBIT_FLAG, Ordering::Relaxed);
    }

    /// Says whether the block's attributes differ. The caller holds `mmu_lock` for writing, or the slot is not visible yet.
    pub fn set_mixed(&self, gfn: Gfn, level: Level, mixed: Mixed) {
        let word = self.word(gfn, level);
        let old = word.load(Ordering::Relaxed);
        let new = match mixed {
            Mixed::Yes => old | KVM_LPAGE_MIXED_FLAG,
            Mixed::No => old & !KVM_LPAGE_MIXED_FLAG,
        };
        word.store(new, Ordering::Relaxed);
    }

    /// Classifies every block that lies entirely in the slot from the attributes as they are: for a new slot.
    pub fn init_mixed(&self, cx: &Cx<'_>, range: GfnRange, attributes: &MemoryAttributes) {
        for level in LARGE_LEVELS {
            let span = level.span();
            let mut start = range.start.0.next_multiple_of(span);
            while start + span <= range.end.0 {
                // Nothing is mixed before the next gfn that has an attribute.
                match attributes.next_present(Gfn(start), range.end) {
                    Some(gfn) => start = start.max(gfn.0 / span * span),
                    None => break,
                }
                if start + span > range.end.0 {
                    break;
                }
                let value = attributes.peek(Gfn(start));
                self.set_mixed(Gfn(start), level, self.classify(cx, Gfn(start), level, value, attributes));
                start += span;
            }
        }
    }

    /// Whether the block at `start`, which lies entirely in the slot, has attribute `value` everywhere.
    pub fn classify(&self, cx: &Cx<'_>, start: Gfn, level: Level, value: u64, attributes: &MemoryAttributes) -> Mixed {
        let uniform = match level {
            Level::L2M => attributes.peek_all_equal(cx, GfnRange::with_len(start, level.span()), value),
            // The 2 MiB blocks were classified just before.
            _ => (0..level.span() / Level::L2M.span()).all(|i| {
                let block = start + i * Level::L2M.span();
                !self.is_mixed(block, Level::L2M) && attributes.peek(block) == value
            }),
        };
        if uniform { Mixed::No } else { Mixed::Yes }
    }
}

/// Whether the attributes within a block differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mixed {
    /// They do.
    Yes,
    /// All pages have the same.
    No,
}

fn level_index(level: Level) -> usize {
    match level {
        Level::L2M => 0,
        Level::L1G => 1,
        other => panic!("no hugepage metadata for {other:?}"),
    }
}

/// Absolute blocks that the range touches.
fn block_count(range: GfnRange, level: Level) -> u64 {
    if range.start >= range.end {
        return 0;
    }
    (range.end.0 - 1) / level.span() - range.start.0 / level.span() + 1
}
