//! The host's memory: what processes map, and the frames that anything names.

use sim_kernel::mm::FrameFlags;

use super::Moment;
use crate::record::names::Kind;
use crate::record::store::{Store, Value};
use crate::record::table::{ROWS_MAX, Table};

pub(super) fn host_mappings(moment: &mut Moment<'_>, store: &mut Store) {
    for (process, pages) in (0_u64..).zip(moment.mapped) {
        for page in pages.values().take(ROWS_MAX) {
            moment.frames.push(page.pfn);
            let stamp = [page.pfn.0, u64::from(page.writable), u64::from(page.zero), 0];
            store.row_by(Table::HOST, [process, page.hva.0, 0, 0], (0, 0), stamp, || {
                let zero = if page.zero { ", the zero page" } else { "" };
                let right = if page.writable { "read-write" } else { "read-only" };
                [Value::Hva(page.hva.0), Value::Hex(page.pfn.0), Value::Text(format!("{right}{zero}"))]
            });
        }
    }
}

pub(super) fn frames(moment: &mut Moment<'_>, store: &mut Store) {
    let phys = moment.phys;
    let mut frames = std::mem::take(&mut moment.frames);
    frames.sort_unstable();
    frames.dedup();
    for pfn in frames.into_iter().take(2 * ROWS_MAX) {
        let flags = phys.flags(pfn);
        let allocated = phys.is_allocated(pfn);
        let file = phys.mapping(pfn).map_or(0, |file| 1 + u64::from(file));
        let (references, host, stage2) = (phys.refcount(pfn), phys.mapcount(pfn), phys.spte_count(pfn));
        let stamp = [
            flags.bits(),
            u64::from(references) << 32 | u64::from(host),
            u64::from(stage2) << 32 | file,
            if file == 0 { 0 } else { phys.index(pfn).0 << 1 } | u64::from(allocated),
        ];
        store.row_by(Table::FRAMES, [pfn.0, 0, 0, 0], (0, 0), stamp, || {
            let state = if !allocated {
                Value::Word("free")
            } else if flags.contains(FrameFlags::RESERVED) {
                Value::Word("reserved")
            } else if flags.contains(FrameFlags::HWPOISON) {
                Value::Word("broken")
            } else if let Some(file) = phys.mapping(pfn) {
                Value::Of(Kind::File, u64::from(file), format!("[{:#x}]", phys.index(pfn).0))
            } else if flags.contains(FrameFlags::TABLE) {
                Value::Word("page table")
            } else {
                Value::Word("in use")
            };
            let count = |count: u32| if allocated { Value::Number(u64::from(count)) } else { Value::Empty };
            [Value::Hex(pfn.0), count(references), count(host), Value::Number(u64::from(stage2)), state]
        });
    }
}
