//! SEV-SNP: the entries of the RMP that say a frame is not the hypervisor's.

use sim_coco::snp::PageState;
use sim_kernel::{PAGE_SHIFT, Pfn};

use super::Moment;
use crate::record::store::{Store, Value};
use crate::record::table::{ROWS_MAX, Table};

/// Frames of a region that the RMP lists as written.
const REGION: u64 = 512;

pub(super) fn rmp(moment: &mut Moment<'_>, store: &mut Store) {
    let Some(sev) = &moment.sev else { return };
    let rmp = sev.snp().rmp();
    let regions = rmp.written_regions();
    let frames = regions.iter().flat_map(|head| (0..REGION).map(|at| Pfn(head.0 + at)));
    let assigned: Vec<Pfn> = frames.filter(|pfn| rmp.is_assigned(*pfn)).take(ROWS_MAX).collect();
    for pfn in assigned {
        let page = rmp.page(pfn);
        let state =
            rmp.state(pfn).map_or_else(|| "none that there is".to_string(), |state: PageState| format!("{state:?}"));
        let of_guest = page.asid.0 != 0;
        let gpa = if of_guest { Value::Hex(page.gpa.0) } else { Value::Empty };
        let owner = if of_guest { Value::Text(format!("ASID {}", page.asid.0)) } else { Value::Word("firmware") };
        let gfn = page.gpa.0 >> PAGE_SHIFT;
        moment.frames.push(pfn);
        store.row(
            Table::RMP,
            [pfn.0, 0, 0, 0],
            if of_guest { (gfn, gfn + 1) } else { (0, 0) },
            [
                Value::Hex(pfn.0),
                Value::Text(state),
                owner,
                gpa,
                Value::Word(if page.validated { "validated" } else { "not validated" }),
            ],
        );
    }
}
