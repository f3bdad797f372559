//! VMs: counters, slots, vCPUs and what their processors have cached.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Moment;
use super::map::size;
use crate::kvm::guest_memfd::GmemFile;
use crate::kvm::memslots::Memslot;
use crate::kvm::uapi::{
    KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
};
use crate::kvm::vcpu::Request;
use crate::record::names::Kind;
use crate::record::store::{Store, Value};
use crate::record::table::Table;

/// Name and value of the counters of a VM.
pub(super) fn counters(moment: &mut Moment<'_>, store: &mut Store) {
    let many = moment.vms.len() > 1;
    for (number, vm) in &moment.vms {
        let invalidate = &vm.mmu().invalidate;
        let range = match invalidate.range() {
            Some(range) if invalidate.in_progress() > 0 => match range.end.0 {
                u64::MAX => Value::Text(format!("from {:#x}", range.start.0)),
                end => Value::Range(range.start.0, end.saturating_sub(1)),
            },
            _ => Value::Word("none"),
        };
        let generation = vm.memslots().peek_active(0, |set| set.generation);
        let slots = generation & !KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS;
        let swapping = generation != slots;
        let pages = vm.mmu().pages();
        let rows: [(&'static str, Value); 9] = [
            ("mmu_invalidate_seq", Value::Number(invalidate.peek_seq())),
            ("mmu_invalidate_in_progress", Value::Number(invalidate.in_progress())),
            ("mmu_invalidate_range", range),
            ("mn_active_invalidate_count", Value::Number(vm.mn_active_invalidate_count.load(Ordering::SeqCst))),
            (
                "memslot generation",
                if swapping { Value::Text(format!("{slots}, update in progress")) } else { Value::Number(slots) },
            ),
            ("users_count", Value::Number(vm.users.peek())),
            ("leafs of 4 KiB", Value::Number(pages.leafs[0])),
            ("leafs of 2 MiB", Value::Number(pages.leafs[1])),
            ("frames that are tables", Value::Number(vm.mmu().table_frames())),
        ];
        for (at, (name, value)) in rows.into_iter().enumerate() {
            let name = if many { Value::Of(Kind::Vm, *number, format!(" {name}")) } else { Value::Word(name) };
            store.row(Table::COUNTERS, [*number, at as u64, 0, 0], (0, 0), [name, value]);
        }
    }
}

pub(super) fn slots(moment: &mut Moment<'_>, store: &mut Store) {
    for (number, vm) in &moment.vms {
        for as_id in 0..vm.address_spaces() {
            let slots: Vec<Arc<Memslot>> = vm.memslots().peek_active(as_id, |set| set.iter().cloned().collect());
            for slot in slots {
                let space = if as_id == 0 { String::new() } else { format!(" (address space {as_id})") };
                let flags = [
                    (slot.is_invalid(), "INVALID"),
                    (slot.flags & KVM_MEM_LOG_DIRTY_PAGES != 0, "LOG_DIRTY_PAGES"),
                    (slot.flags & KVM_MEM_READONLY != 0, "READONLY"),
                    (slot.flags & KVM_MEM_GUEST_MEMFD != 0, "GUEST_MEMFD"),
                    (slot.is_gmem_only(), "GMEM_ONLY"),
                ];
                let flags: Vec<&str> = flags.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| *name).collect();
                let file = match slot.gmem.peek_file().map(|file| file.upgrade()) {
                    None => Value::Empty,
                    Some(None) => Value::Word("freed"),
                    Some(Some(file)) => match file.downcast::<GmemFile>() {
                        Some(view) => {
                            let id = u64::from(view.inode().mapping().id());
                            Value::Of(Kind::File, id, format!("[{:#x}..]", slot.gmem.pgoff.0))
                        }
                        None => Value::Word("not a guest_memfd"),
                    },
                };
                let (first, end) = (slot.gfns().start.0, slot.gfns().end.0);
                store.row(
                    Table::SLOTS,
                    [*number, u64::from(as_id), u64::from(slot.id.0 as u32), 0],
                    (first, end),
                    [
                        Value::Of(Kind::Vm, *number, format!(" slot {}{space}", slot.id.0)),
                        Value::Range(first, end - 1),
                        Value::Text(flags.join(" ")),
                        file,
                    ],
                );
            }
        }
    }
}

/// Requests and the names that KVM has for them.
const REQUESTS: [(Request, &str); 5] = [
    (Request::TlbFlush, "TLB_FLUSH"),
    (Request::FreeObsoleteRoots, "MMU_FREE_OBSOLETE_ROOTS"),
    (Request::TlbFlushCurrent, "TLB_FLUSH_CURRENT"),
    (Request::TlbFlushGuest, "TLB_FLUSH_GUEST"),
    (Request::UpdateCpuDirtyLogging, "UPDATE_CPU_DIRTY_LOGGING"),
];

pub(super) fn vcpus(moment: &mut Moment<'_>, store: &mut Store) {
    for at in 0..moment.vms.len() {
        let (number, vm) = moment.vms[at].clone();
        for vcpu in vm.all_vcpus() {
            let name = Value::Named(Kind::Vcpu, number << 32 | vcpu.id());
            let shown = vcpu.shown();
            let requests = vcpu.peek_requests();
            let asked = REQUESTS.iter().filter(|(request, _)| requests & *request as u64 != 0);
            let asked: Vec<&str> = asked.map(|(_, name)| *name).collect();
            let root = shown.root.map_or(Value::Word("none"), |table| Value::Hex(table.0));
            store.row(
                Table::VCPUS,
                [number, vcpu.id(), 0, 0],
                (0, 0),
                [name.clone(), Value::Word(vcpu.peek_mode()), Value::Text(asked.join(" ")), root],
            );
            for entry in &shown.tlb {
                let right = if entry.writable { "read-write" } else { "read-only" };
                let kind = if entry.combined { "" } else { ", guest-physical" };
                let frame = moment.frame(entry.pfn);
                let pages = (entry.gfn.0, entry.gfn.0 + entry.level.span());
                store.row(
                    Table::TLB,
                    [
                        number << 32 | vcpu.id(),
                        u64::from(!entry.combined),
                        entry.address.0,
                        u64::from(entry.level.number()),
                    ],
                    pages,
                    [
                        name.clone(),
                        Value::Hex(entry.address.0),
                        Value::Hex(entry.gfn.0),
                        Value::Text(frame),
                        Value::Text(format!("{}, {right}{kind}", size(entry.level))),
                    ],
                );
            }
        }
    }
}
