//! INV-201 to INV-213: what the guest reaches through stage 2, and the host through its own page tables.

use super::snapshot::{LeafState, SlotState, Snapshot, VmState};
use super::{Check, Holds, Invariant, Section, When, holds};
use sim_kernel::mm::FrameFlags;
use sim_mmu::Level;

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "INV-201",
        section: Section::Translations,
        text: "A stage-2 leaf of guest_memfd names the page that the file has at that index now. A page leaves the cache only after it was \
               zapped, while an invalidation keeps faults away.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_201),
        note: "",
    },
    Invariant {
        id: "INV-202",
        section: Section::Translations,
        text: "What a vCPU's TLB holds is also in stage 2, or a flush is on its way to that vCPU and whoever zapped still holds mmu_lock.",
        window: "zapped and not yet flushed, with mmu_lock held for writing",
        when: &[When::Step],
        check: Check::AtStep,
        note: "A zap returns the flush that it owes, and dropping it undone fails. A flush that is missing shows in what guests then read and write through their TLBs: INV-203, INV-201. That a request to all vCPUs was seen when it returns is MMU-INV-033.",
    },
    Invariant {
        id: "INV-203",
        section: Section::Translations,
        text: "No stage-2 entry, TLB entry or process page-table entry ever names a free frame.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_203),
        note: "Frames count the stage-2 and process page-table entries that name them.",
    },
    Invariant {
        id: "INV-204",
        section: Section::Translations,
        text: "Nothing is mapped where there is no slot, nor where a slot is on its way out once its zap has ended.",
        window: "from the deletion's publication of the stand-in to the end of its zap",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_204),
        note: "",
    },
    Invariant {
        id: "INV-205",
        section: Section::Translations,
        text: "Nothing is mapped into a root that was declared invalid.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "INV-206",
        section: Section::Translations,
        text: "Where a fault finds a leaf that already permits its access, that leaf names the frame that the fault found.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "INV-207",
        section: Section::Translations,
        text: "An MMIO entry of the current generation lies outside all slots.",
        window: "while slots are being swapped, when no entry is of the current generation",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_207),
        note: "At the step that believes the entry.",
    },
    Invariant {
        id: "INV-208",
        section: Section::Translations,
        text: "In a VM with private memory, a leaf is backed by guest_memfd exactly where the attribute says private; a private frame of a \
               slot without guest_memfd has no leaf at all.",
        window: "slots that use guest_memfd for everything; between the stores of a conversion its frames have no leaf and either attribute",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_208),
        note: "As nothing of a converting range is mapped while its attributes change, the check needs no window.",
    },
    Invariant {
        id: "INV-209",
        section: Section::Translations,
        text: "A block that lies entirely in a slot is marked MIXED exactly if its attributes differ. No huge leaf covers a block with a \
               reason against it, nor frames of different attributes.",
        window: "from the opening of a conversion's invalidation to the release of mmu_lock after its end",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_209),
        note: "Huge leafs at the step that makes them, without a window; MIXED only over everything.",
    },
    Invariant {
        id: "INV-210",
        section: Section::Translations,
        text: "A leaf that is backed by the VMM's memory names the frame that the VMM's page table names.",
        window: "between start and end of a notifier whose range covers it",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_210),
        note: "Not while somebody holds page_table_lock.",
    },
    Invariant {
        id: "INV-211",
        section: Section::Translations,
        text: "Once a memory failure has been handled, nothing maps the broken page, and nothing maps it again.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_211),
        note: "",
    },
    Invariant {
        id: "INV-212",
        section: Section::Translations,
        text: "No process page table names a page that has left the page cache of its file.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_212),
        note: "",
    },
    Invariant {
        id: "INV-213",
        section: Section::Translations,
        text: "A huge leaf of guest_memfd lies in a large folio; in a huge leaf, guest and host frame are congruent.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_213),
        note: "Congruence is also MMU-INV-014.",
    },
];

/// Leafs below valid roots, with VM and slot.
fn leafs(shot: &Snapshot) -> impl Iterator<Item = (&VmState, &LeafState, Option<&SlotState>)> {
    shot.vms.iter().flat_map(|vm| vm.live_leafs().map(move |(leaf, slot)| (vm, leaf, slot)))
}

/// A leaf of guest_memfd names the page that the file has there.
pub fn inv_201(shot: &Snapshot) -> Holds {
    for (_, leaf, slot) in leafs(shot) {
        let LeafState { gfn, pfn, .. } = *leaf;
        let Some(slot) = slot.filter(|slot| !slot.invalid && slot.gmem) else { continue };
        let Some(inode) = shot.inode_of(pfn) else {
            let own = slot.gmem_only || leaf.private;
            holds!(!own, "{gfn:?} is mapped to {pfn:?}, which is in no page cache");
            continue;
        };
        // Through the VMM's mapping a guest may see another page of the file.
        if !slot.gmem_only && !leaf.private {
            continue;
        }
        let index = slot.gmem_index(gfn);
        let cached = inode.pages.get(&index).copied();
        holds!(cached == Some(pfn), "{gfn:?} is mapped to {pfn:?}, but file {} has {cached:?} at {index:?}", inode.id);
    }
    Ok(())
}

/// What is mapped is in use.
pub fn inv_203(shot: &Snapshot) -> Holds {
    let pages = shot.processes.iter().flat_map(|process| &process.pages).flat_map(|pages| pages.values());
    let by_processes = pages.map(|page| (format!("{:?}", page.hva), page.pfn));
    let by_guests = shot.vms.iter().flat_map(|vm| &vm.leafs).map(|leaf| (format!("{:?}", leaf.gfn), leaf.pfn));
    for (place, pfn) in by_processes.chain(by_guests) {
        let live = shot.frames.get(&pfn).is_some_and(|frame| frame.flags.contains(FrameFlags::ALLOCATED));
        holds!(live, "{place} is mapped to {pfn:?}, which is free");
    }
    Ok(())
}

/// Nothing is mapped outside slots, nor through one that was taken down.
pub fn inv_204(shot: &Snapshot) -> Holds {
    for (vm, leaf, slot) in leafs(shot) {
        let Some(slot) = slot else {
            return Err(format!("{:?} is mapped outside every slot", leaf.gfn));
        };
        let space = &vm.spaces[usize::from(leaf.as_id)];
        let old = space.inactive.iter().find(|old| old.id == slot.id);
        let down = slot.invalid && old.is_some_and(|old| old.zapped);
        holds!(!down, "{:?} is mapped although the zap of slot {:?}, which goes away, has ended", leaf.gfn, slot.id);
    }
    Ok(())
}

/// MMIO entries that are believed lie outside slots.
pub fn inv_207(shot: &Snapshot) -> Holds {
    for vm in &shot.vms {
        for entry in vm.mmio.iter().filter(|entry| !entry.invalid_root) {
            let current = vm.mmio_generation(entry.as_id) == Some(entry.generation);
            let slot = vm.slot(entry.as_id, entry.gfn).filter(|_| current).map(|slot| slot.id);
            holds!(
                slot.is_none(),
                "an MMIO entry of the current generation stands at {:?} in slot {slot:?}",
                entry.gfn
            );
        }
    }
    Ok(())
}

/// Private frames are backed by guest_memfd, and no others.
pub fn inv_208(shot: &Snapshot) -> Holds {
    for (vm, leaf, slot) in leafs(shot) {
        let Some(slot) = slot.filter(|slot| vm.private && !slot.gmem_only && !slot.invalid) else { continue };
        let private = leaf.private;
        holds!(
            slot.gmem || !private,
            "{:?} is private and mapped, but slot {:?} has no guest_memfd",
            leaf.gfn,
            slot.id
        );
        let gmem = shot.is_gmem(leaf.pfn);
        // A VMM may give a guest_memfd that it maps as its shared memory.
        holds!(gmem || !private, "{:?} is private, but not backed by guest_memfd", leaf.gfn);
        let own = gmem && shot.inode_of(leaf.pfn).map(|inode| inode.id) == slot_file(slot);
        holds!(private || !own, "{:?} is shared, but backed by the slot's guest_memfd", leaf.gfn);
    }
    Ok(())
}

fn slot_file(slot: &SlotState) -> Option<u32> {
    match slot.file {
        Some(super::snapshot::FileState::Of(id)) => Some(id),
        _ => None,
    }
}

/// MIXED says whether attributes differ; huge leafs are only where they may be.
pub fn inv_209(shot: &Snapshot) -> Holds {
    for vm in shot.vms.iter().filter(|vm| vm.private && !vm.destroyed) {
        for slot in vm.spaces.iter().flat_map(|space| &space.active).filter(|slot| !slot.invalid) {
            for block in slot.blocks.iter().filter(|_| !vm.slots_changing) {
                let truth = block.differs;
                let (start, level) = (block.start, block.level);
                holds!(
                    block.mixed == truth,
                    "the {level:?} block at {start:?} is marked {}",
                    if truth { "uniform" } else { "MIXED" }
                );
            }
        }
        for (leaf, slot) in vm.live_leafs().filter(|(leaf, _)| leaf.level != Level::L4K) {
            holds!(!leaf.differs, "the huge leaf at {:?} covers different attributes", leaf.gfn);
            let blocks = slot.into_iter().flat_map(|slot| &slot.blocks);
            let forbidden =
                blocks.filter(|block| (block.start, block.level) == (leaf.gfn, leaf.level)).any(|b| b.disallowed);
            holds!(!forbidden, "a huge leaf stands at {:?}, where the slot allows none", leaf.gfn);
        }
    }
    Ok(())
}

/// The guest's shared memory is the VMM's.
pub fn inv_210(shot: &Snapshot) -> Holds {
    for (vm, leaf, slot) in leafs(shot) {
        let Some(slot) = slot.filter(|slot| !slot.invalid && !slot.gmem_only && vm.mn_active == 0) else { continue };
        if leaf.private {
            continue;
        }
        let process = vm.process.and_then(|process| shot.processes[process].behind_leafs.as_ref());
        let Some(behind) = process.and_then(|behind| behind.get(&slot.hva_of(leaf.gfn))) else { continue };
        holds!(*behind == Some(leaf.pfn), "{:?} is mapped to {:?}, but the VMM has {behind:?}", leaf.gfn, leaf.pfn);
    }
    Ok(())
}

/// Broken pages are mapped nowhere.
pub fn inv_211(shot: &Snapshot) -> Holds {
    for (pfn, frame) in shot.frames.iter().filter(|(_, frame)| frame.flags.contains(FrameFlags::HWPOISON)) {
        if shot.inodes.iter().any(|inode| inode.failing.contains(pfn)) {
            continue;
        }
        let mapped = (frame.sptes, frame.mapcount);
        holds!(
            mapped == (0, 0),
            "{pfn:?} is broken, and mapped {} times by guests, {} times by processes",
            mapped.0,
            mapped.1
        );
    }
    Ok(())
}

/// What processes map of files is in the files' page caches.
pub fn inv_212(shot: &Snapshot) -> Holds {
    let pages = shot.processes.iter().flat_map(|process| &process.pages).flat_map(|pages| pages.values());
    for page in pages.filter(|page| !page.zero && !page.anonymous) {
        let cached = shot.frames.get(&page.pfn).is_some_and(|frame| frame.mapping.is_some());
        holds!(cached, "{:?} maps {:?}, which has left the page cache of its file", page.hva, page.pfn);
    }
    Ok(())
}

/// Huge leafs of guest_memfd are in large folios, which Linux does not have; all of them are congruent.
pub fn inv_213(shot: &Snapshot) -> Holds {
    for (_, leaf, slot) in leafs(shot) {
        let fits = leaf.level == Level::L4K || !shot.is_gmem(leaf.pfn) || slot.is_none() || shot.is_large(leaf.pfn);
        holds!(fits, "{:?} is a page of guest_memfd, mapped as {:?}", leaf.gfn, leaf.level);
        let span = leaf.level.span();
        let congruent = leaf.gfn.0 % span == 0 && leaf.pfn.0 % span == 0;
        holds!(congruent, "{:?} is mapped to {:?} as {:?}", leaf.gfn, leaf.pfn, leaf.level);
    }
    Ok(())
}
