//! INV-301 to INV-311: the invalidation protocol's counters, the bindings of files to slots, and the sets of slots.

use super::snapshot::{FileState, SlotState, Snapshot, SpaceState, ViewState, VmState};
use super::{Check, Holds, Invariant, Section, When, holds};
use crate::kvm::uapi::KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS;
use crate::kvm::uapi::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEMORY_ATTRIBUTE_PRIVATE};
use sim_kernel::PAGE_SHIFT;

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "INV-301",
        section: Section::Counters,
        text: "mmu_invalidate_in_progress is the number of invalidations that are open, never negative, 0 when nothing happens. Every start \
               has exactly one end. mn_active_invalidate_count is the number of notifier pairs that are open.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_301),
        note: "",
    },
    Invariant {
        id: "INV-302",
        section: Section::Counters,
        text: "While an invalidation is open and mmu_lock is free, there is a range, and it is the hull of all ranges that were added since \
               none was open.",
        window: "mmu_lock held for writing",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_302),
        note: "",
    },
    Invariant {
        id: "INV-303",
        section: Section::Counters,
        text: "A file's binding of a page names a slot exactly if that slot names the file and covers the page. No page is bound twice, and no \
               binding names a slot that was freed.",
        window: "while invalidate_lock is held for writing, which is when bindings change; between release and the end of its slots' unbinding",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_303),
        note: "",
    },
    Invariant {
        id: "INV-304",
        section: Section::Counters,
        text: "A visible slot with guest_memfd has its file, unless that file was released.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_304),
        note: "At the step, when a fault asks for the file.",
    },
    Invariant {
        id: "INV-305",
        section: Section::Counters,
        text: "When setting attributes succeeds, every frame of the range has the value; when it fails, none has changed. The array holds \
               nothing but reserved entries and PRIVATE.",
        window: "",
        when: &[When::Operation, When::Point, When::Quiescence],
        check: Check::State(inv_305),
        note: "Values over everything. That all frames of a range have the value, of a large one the first 64, when the conversion ends.",
    },
    Invariant {
        id: "INV-306",
        section: Section::Counters,
        text: "A binding ends before its file does.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_306),
        note: "Releases before 7.2 have the mistake, and are not held to it at the step.",
    },
    Invariant {
        id: "INV-307",
        section: Section::Counters,
        text: "mmu_invalidate_seq grows by one at the end of an invalidation and at no other time.",
        window: "",
        when: &[When::Point, When::Quiescence],
        check: Check::State(inv_307),
        note: "Not at the step, where it would see a missing increment before that does any harm.",
    },
    Invariant {
        id: "INV-308",
        section: Section::Counters,
        text: "The two sets of an address space hold the same slots; slots of one address space do not overlap; numbers are unique; \
               nr_memslot_pages is the sum of their pages.",
        window: "while slots_lock is held",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_308),
        note: "",
    },
    Invariant {
        id: "INV-309",
        section: Section::Counters,
        text: "The generation of an address space only grows, is congruent to its number modulo the number of address spaces, and says \
               \"update in progress\" only while sets are being swapped.",
        window: "while slots_lock is held",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_309),
        note: "Not that it grows, which needs two moments.",
    },
    Invariant {
        id: "INV-310",
        section: Section::Counters,
        text: "A slot uses guest_memfd for shared memory too exactly if its file can be mapped. A slot with guest_memfd is neither \
               dirty-logged nor read-only.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_310),
        note: "",
    },
    Invariant {
        id: "INV-311",
        section: Section::Counters,
        text: "A zap removes every leaf that overlaps the range asked for, and none that does not.",
        window: "",
        when: &[],
        check: Check::AtStep,
        note: "Not by itself: INV-201 and INV-208 see a leaf that is left, and sim-mmu's tests run zaps against a flat map.",
    },
];

/// Slots that vCPUs see, stand-ins left out, with VM.
fn visible(shot: &Snapshot) -> impl Iterator<Item = (&VmState, &SlotState)> {
    let spaces = shot.vms.iter().flat_map(|vm| vm.spaces.iter().map(move |space| (vm, space)));
    spaces.flat_map(|(vm, space)| space.active.iter().map(move |slot| (vm, slot))).filter(|(_, slot)| !slot.invalid)
}

/// The view of a VM through which a slot is bound.
fn view_of<'s>(
    shot: &'s Snapshot,
    vm: &VmState,
    slot: &SlotState,
) -> Option<(&'s super::snapshot::InodeState, &'s ViewState)> {
    let FileState::Of(id) = slot.file? else { return None };
    let inode = shot.inodes.iter().find(|inode| inode.id == id)?;
    let number = shot.vms.iter().position(|other| std::ptr::eq(other, vm))?;
    inode.views.iter().find(|view| view.vm == Some(number)).map(|view| (inode, view))
}

/// Invalidations and notifier pairs are counted.
pub fn inv_301(shot: &Snapshot) -> Holds {
    for vm in &shot.vms {
        let (count, open) = (vm.in_progress, vm.open);
        // Inside mmu_lock the words change one after the other.
        holds!(vm.zapping || count == open, "mmu_invalidate_in_progress is {count}, {open} invalidations are open");
        holds!(vm.mn_open <= vm.open, "{} notifiers hold an invalidation, {open} are open", vm.mn_open);
        let pairs = vm.mn_active;
        holds!(vm.destroyed || vm.mn_open <= pairs, "{pairs} notifier pairs are counted, {} are open", vm.mn_open);
        let idle = (count, vm.mn_open, if vm.destroyed { 0 } else { pairs }) == (0, 0, 0);
        holds!(
            !shot.quiescent || idle,
            "{count} invalidations and {pairs} notifier pairs are open while nothing happens"
        );
    }
    Ok(())
}

/// The range is the hull.
pub fn inv_302(shot: &Snapshot) -> Holds {
    for vm in shot.vms.iter().filter(|vm| vm.open > 0 && !vm.zapping) {
        holds!(vm.range.is_some() && vm.range == vm.hull, "the range is {:?}, what was added {:?}", vm.range, vm.hull);
    }
    Ok(())
}

/// Bindings and slots name each other.
pub fn inv_303(shot: &Snapshot) -> Holds {
    for inode in &shot.inodes {
        for view in &inode.views {
            let vm = view.vm.map(|vm| &shot.vms[vm]);
            for &(first, last, handle) in &view.bindings {
                let Some(slot) = view.slots.get(&handle) else {
                    return Err(format!(
                        "pages {first:?} to {last:?} of file {} are bound to an unknown slot",
                        inode.id
                    ));
                };
                holds!(
                    !slot.freed,
                    "pages {first:?} to {last:?} of file {} are bound to slot {:?}, which was freed",
                    inode.id,
                    slot.id
                );
                let inside = first >= slot.pgoff && last.0 < slot.pgoff.0 + slot.npages();
                holds!(
                    inside,
                    "pages {first:?} to {last:?} of file {} are bound to slot {:?}, which does not cover them",
                    inode.id,
                    slot.id
                );
                let mine = slot.file == Some(FileState::Of(inode.id)) || slot.released;
                let window = inode.changing || vm.is_some_and(|vm| vm.slots_changing);
                holds!(mine || window, "file {} is bound to slot {:?}, which names {:?}", inode.id, slot.id, slot.file);
            }
        }
    }
    for (vm, slot) in visible(shot).filter(|(vm, _)| !vm.slots_changing) {
        let Some((inode, view)) = view_of(shot, vm, slot).filter(|(inode, _)| !inode.changing) else { continue };
        let mine = view.bindings.iter().filter(|(_, _, handle)| *handle == slot.handle);
        let bound: u64 = mine.map(|(first, last, _)| last.0 - first.0 + 1).sum();
        holds!(
            bound == slot.npages(),
            "{bound} of {} pages of slot {:?} are bound in file {}",
            slot.npages(),
            slot.id,
            inode.id
        );
    }
    Ok(())
}

/// Visible slots have their files.
pub fn inv_304(shot: &Snapshot) -> Holds {
    for (_, slot) in visible(shot).filter(|(_, slot)| slot.gmem && !slot.released) {
        holds!(slot.file.is_some(), "slot {:?} is visible and has no file, though none was released", slot.id);
    }
    Ok(())
}

/// Attributes have known values.
pub fn inv_305(shot: &Snapshot) -> Holds {
    for (gfn, value) in shot.vms.iter().flat_map(|vm| &vm.attributes) {
        holds!(*value == KVM_MEMORY_ATTRIBUTE_PRIVATE, "{gfn:?} has attributes {value:#x}");
    }
    Ok(())
}

/// Bindings end before their files.
pub fn inv_306(shot: &Snapshot) -> Holds {
    for inode in &shot.inodes {
        let end = inode.size >> PAGE_SHIFT;
        for (first, last, _) in inode.views.iter().flat_map(|view| &view.bindings) {
            holds!(last.0 < end, "pages {first:?} to {last:?} of file {} are bound; it ends at {end:#x}", inode.id);
        }
    }
    Ok(())
}

/// The sequence counts ends.
pub fn inv_307(shot: &Snapshot) -> Holds {
    for vm in shot.vms.iter().filter(|vm| !vm.zapping) {
        holds!(vm.seq == vm.ended, "mmu_invalidate_seq is {} after {} invalidations have ended", vm.seq, vm.ended);
    }
    Ok(())
}

/// The two sets agree, slots do not overlap, pages are counted.
pub fn inv_308(shot: &Snapshot) -> Holds {
    for vm in shot.vms.iter().filter(|vm| !vm.destroyed) {
        for SpaceState { active, inactive, .. } in &vm.spaces {
            for (n, slot) in active.iter().enumerate() {
                let twin = active[..n].iter().find(|other| other.id == slot.id || other.gfns.intersects(&slot.gfns));
                holds!(twin.is_none(), "slots {:?} and {:?} have one number, or overlap", slot.id, twin.map(|t| t.id));
                holds!(vm.slots_changing || !slot.invalid, "the stand-in of slot {:?} is left", slot.id);
            }
            let names =
                |set: &[SlotState]| set.iter().map(|slot| (slot.id, slot.handle, slot.gfns.start)).collect::<Vec<_>>();
            holds!(vm.slots_changing || names(active) == names(inactive), "the two sets of an address space differ");
        }
        let pages: u64 = vm.spaces.iter().flat_map(|space| &space.active).map(SlotState::npages).sum();
        let counted = vm.nr_memslot_pages.unwrap_or(pages);
        holds!(counted == pages, "nr_memslot_pages is {counted}, the slots have {pages}");
    }
    Ok(())
}

/// Generations belong to their address spaces.
pub fn inv_309(shot: &Snapshot) -> Holds {
    for vm in &shot.vms {
        for (as_id, space) in vm.spaces.iter().enumerate() {
            let generation = space.generation & !KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS;
            let updating = generation != space.generation;
            holds!(
                vm.slots_changing || !updating,
                "an update of address space {as_id} is in progress, but nobody makes it"
            );
            let fits = generation % vm.spaces.len() as u64 == as_id as u64;
            holds!(fits, "address space {as_id} has generation {generation}");
        }
    }
    Ok(())
}

/// GMEM_ONLY follows from the file; guest_memfd excludes logging and read-only.
pub fn inv_310(shot: &Snapshot) -> Holds {
    for (vm, slot) in visible(shot) {
        let other = slot.flags & (KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY) != 0;
        holds!(!(slot.gmem && other), "slot {:?} has guest_memfd and flags {:#x}", slot.id, slot.flags);
        holds!(slot.gmem || slot.file.is_none(), "slot {:?} has no guest_memfd, but a file", slot.id);
        let Some((inode, _)) = view_of(shot, vm, slot) else { continue };
        let right = slot.gmem_only == inode.mappable;
        holds!(
            right,
            "slot {:?} uses guest_memfd for shared memory: {}; its file can be mapped: {}",
            slot.id,
            slot.gmem_only,
            inode.mappable
        );
    }
    Ok(())
}
