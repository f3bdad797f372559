//! TDX: what the module keeps of TDs and their vCPUs, the Secure EPT beside KVM's mirror of it, and the metadata of the frames that the module has.
//!
//! The module's state is looked at under its own lock, which no task holds across a step: nothing here is ever older than the step.

use std::collections::BTreeMap;

use sim_coco::tdx::{PageSize, SeptEntry, SeptState, Tdx};
use sim_kernel::Pfn;
use sim_mmu::{Gfn, Level, Spte};

use super::map::{size, span};
use super::{Moment, frame, stage2};
use crate::record::names::Kind;
use crate::record::store::{Store, Value};
use crate::record::table::{ROWS_MAX, Table};

/// Keys of translations: above the numbers of vCPUs, which have those of other VMs.
const PROCESSOR: u64 = 1 << 63;

/// A TD whose KeyID is assigned, and its vCPUs.
struct Td {
    number: u64,
    tdr: Pfn,
    /// By the frame of the TDVPR.
    vcpus: BTreeMap<Pfn, u64>,
}

/// What a place in the trees has: its level, the entry of the Secure EPT, and the mirror's.
type Place = (Level, Option<SeptEntry>, Option<Spte>);

/// TDs, the epochs, and what processors remember.
pub(super) fn tds(moment: &mut Moment<'_>, store: &mut Store) {
    let Some(tdx) = moment.tdx.clone() else { return };
    let module = tdx.tdx();
    let tds = known(moment);
    for td in &tds {
        let Some(info) = module.peek_td(td.tdr) else { continue };
        let fatal = if info.fatal { ", fatal" } else { "" };
        let [even, odd] = info.epoch.refcount;
        store.row(
            Table::TD,
            [td.number, 0, 0, 0],
            (0, 0),
            [
                Value::Named(Kind::Vm, td.number),
                Value::Text(format!("{:?}, {:?}{fatal}", info.lifecycle, info.op_state)),
                Value::Text(format!("HKID {}", info.hkid.0)),
                Value::Number(info.epoch.epoch),
                Value::Text(format!("even {even}, odd {odd}")),
            ],
        );
        for (tdvpr, id) in &td.vcpus {
            let Some(vp) = module.peek_vp(*tdvpr) else { continue };
            store.row(
                Table::TD,
                [td.number, 1 + id, 0, 0],
                (0, 0),
                [
                    Value::Named(Kind::Vcpu, td.number << 32 | id),
                    Value::Text(format!("{:?}", vp.state)),
                    vp.assoc.map_or(Value::Word("no processor"), |lp| Value::Text(format!("processor {}", lp.0))),
                    Value::Number(vp.vcpu_epoch),
                    Value::Empty,
                ],
            );
        }
    }
    for (lp, hkid, gfn, entry) in module.peek_tlbs().into_iter().take(ROWS_MAX) {
        let td = tds.iter().find(|td| module.peek_td(td.tdr).is_some_and(|info| info.hkid == hkid));
        let who = match td {
            Some(td) => Value::Of(Kind::Vm, td.number, format!(" on processor {}", lp.0)),
            None => Value::Text(format!("HKID {} on processor {}", hkid.0, lp.0)),
        };
        let shared_bit = td.and_then(|td| module.peek_td(td.tdr)).map_or(0, |info| 1 << info.gpaw.shared_bit());
        let frame = Gfn(gfn.0 & !(shared_bit >> sim_kernel::PAGE_SHIFT));
        let right = if entry.writable { "read-write" } else { "read-only" };
        let kind = if entry.shared { "shared" } else { "private" };
        let backing = moment.frame(entry.pfn);
        store.row(
            Table::TLB,
            [PROCESSOR | u64::from(lp.0), u64::from(hkid.0), gfn.0, u64::from(entry.level.number())],
            (frame.0, frame.0 + entry.level.span()),
            [
                who,
                Value::Hex(gfn.0 << sim_kernel::PAGE_SHIFT),
                Value::Hex(frame.0),
                Value::Text(backing),
                Value::Text(format!("{}, {right}, {kind}", size(entry.level))),
            ],
        );
    }
}

/// Entries of each Secure EPT that are not FREE, with what the mirror has for the same; and the metadata of frames.
pub(super) fn sept_and_pamt(moment: &mut Moment<'_>, store: &mut Store) {
    let Some(tdx) = moment.tdx.clone() else { return };
    let module = tdx.tdx();
    let mut gfns: BTreeMap<Pfn, (u64, u64)> = BTreeMap::new();
    for td in known(moment) {
        secure_ept(moment, store, module, &td, &mut gfns);
    }
    for (base, size, entry) in module.peek_used_pages().into_iter().take(ROWS_MAX) {
        moment.frames.push(base);
        let pages = gfns.get(&base).copied().unwrap_or((0, 0));
        let owner = entry.owner.map_or(u64::MAX, |tdr| tdr.0);
        let stamp = [entry.page_type as u64, size as u64, owner, entry.bepoch];
        store.row_by(Table::PAMT, [base.0, 0, 0, 0], pages, stamp, || {
            let owner = match entry.owner {
                Some(tdr) if tdr == base => Value::Word("itself"),
                Some(tdr) => Value::Text(format!("TDR {:#x}", tdr.0)),
                None => Value::Empty,
            };
            [
                Value::Hex(base.0),
                Value::Text(format!("PT_{:?}", entry.page_type).to_uppercase()),
                Value::Word(match size {
                    PageSize::Size4K => "4 KiB",
                    PageSize::Size2M => "2 MiB",
                    PageSize::Size1G => "1 GiB",
                }),
                owner,
                Value::Number(entry.bepoch),
            ]
        });
    }
}

/// The rows of one Secure EPT. `gfns` learns where its pages are.
fn secure_ept(moment: &mut Moment<'_>, store: &mut Store, module: &Tdx, td: &Td, gfns: &mut BTreeMap<Pfn, (u64, u64)>) {
    let vm = moment.vms.iter().find(|(number, _)| *number == td.number).expect("a TD is a VM").1.clone();
    let mut both: BTreeMap<(Gfn, u8), Place> = BTreeMap::new();
    let place = |gfn: Gfn, level: Level| (gfn, u8::MAX - level.number());
    for (gfn, level, entry) in module.peek_sept_entries(td.tdr).into_iter().take(ROWS_MAX) {
        both.insert(place(gfn, level), (level, Some(entry), None));
    }
    for root in vm.mmu().peek_roots().iter().filter(|root| root.is_mirror()) {
        vm.mmu().for_each_entry(root, |gfn, level, spte| {
            if both.len() < 2 * ROWS_MAX {
                both.entry(place(gfn, level)).or_insert((level, None, None)).2 = Some(spte);
            }
        });
    }
    for ((gfn, order), (level, entry, mirror)) in both {
        let pages = (gfn.0, gfn.0 + level.span());
        let leaf = entry.filter(|entry| entry.is_leaf()).map(|entry| entry.pfn_at(level));
        if let Some(pfn) = leaf {
            gfns.insert(pfn, pages);
        }
        let free = leaf.is_some_and(|pfn| moment.names(pfn));
        let mirror_free = mirror.is_some_and(|spte| stage2::names(moment, level, spte));
        let bits = [entry.is_some(), mirror.is_some(), free, mirror_free];
        let bits = bits.into_iter().fold(0, |bits, bit| bits << 1 | u64::from(bit));
        let stamp = [entry.map_or(0, |entry| entry.0), mirror.map_or(0, |spte| spte.0), bits, 0];
        store.row_by(Table::SEPT, [td.number, gfn.0, u64::from(order), 0], pages, stamp, || {
            let state = |entry: SeptEntry| {
                entry.state().map_or_else(|| "no state".to_string(), |state: SeptState| format!("{state:?}"))
            };
            let entry = match (entry, leaf) {
                (None, _) => "Free".to_string(),
                (Some(entry), Some(pfn)) => format!("{}, {} leaf, {}", state(entry), size(level), frame(pfn, free)),
                (Some(entry), None) => format!("{}, table {:#x}", state(entry), entry.pfn().0),
            };
            let mirror = mirror.map_or_else(
                || Value::Word("not present"),
                |spte| Value::Text(stage2::entry(&vm, level, spte, mirror_free)),
            );
            [
                Value::Named(Kind::Vm, td.number),
                Value::Text(span(gfn.0, level.span())),
                Value::Number(u64::from(level.number())),
                Value::Text(entry),
                mirror,
            ]
        });
    }
}

/// TDs that the module knows, with their vCPUs.
fn known(moment: &Moment<'_>) -> Vec<Td> {
    let tds = moment.vms.iter().filter_map(|(number, vm)| {
        let tdr = vm.tdx()?.tdr()?;
        let vcpus = vm.all_vcpus().iter().filter_map(|vcpu| Some((vcpu.tdx()?.tdvpr()?, vcpu.id()))).collect();
        Some(Td { number: *number, tdr, vcpus })
    });
    tds.collect()
}
