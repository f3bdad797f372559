//! The host's memory: what processes map, and the frames that anything names.

use sim_kernel::mm::FrameFlags;

use super::Moment;
use crate::record::names::Kind;
use crate::record::store::{Store, Value};
use crate::record::table::{ROWS_MAX, Table};

pub(super) fn host_mappings(moment: &mut Moment<'_>, store: &mut Store) {
    for (process, pages) in (0_u64..).zip(moment.mapped) {
        for page in pages.values().take(ROWS_MAX) {
            moment.frames.insert(page.pfn, ());
            let zero = if page.zero { ", the zero page" } else { "" };
            let right = if page.writable { "read-write" } else { "read-only" };
            store.row(
                Table::HOST,
                [process, page.hva.0, 0, 0],
                (0, 0),
                [Value::Hva(page.hva.0), Value::Hex(page.pfn.0), Value::Text(format!("{right}{zero}"))],
            );
        }
    }
}

pub(super) fn frames(moment: &mut Moment<'_>, store: &mut Store) {
    let phys = moment.phys;
    for pfn in std::mem::take(&mut moment.frames).into_keys().take(2 * ROWS_MAX) {
        let flags = phys.flags(pfn);
        let allocated = phys.is_allocated(pfn);
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
        store.row(
            Table::FRAMES,
            [pfn.0, 0, 0, 0],
            (0, 0),
            [
                Value::Hex(pfn.0),
                count(phys.refcount(pfn)),
                count(phys.mapcount(pfn)),
                Value::Number(u64::from(phys.spte_count(pfn))),
                state,
            ],
        );
    }
}
