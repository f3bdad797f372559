//! INV-101 to INV-111: the pages of a guest_memfd (`mm/filemap.c`, `virt/kvm/guest_memfd.c`).

use super::snapshot::{InodeState, Snapshot};
use super::{Check, Holds, Invariant, Section, When, holds};
use sim_kernel::mm::{FrameFlags, MappedPage};
use sim_kernel::{PAGE_SHIFT, Pfn, Pgoff};

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "INV-101",
        section: Section::PageCache,
        text: "A file has at most one page at each index. A page names its file and index exactly while it is in that file's page cache at \
               that index.",
        window: "a page that is being inserted names the file before it is found there; its inserter holds the folio lock",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_101),
        note: "",
    },
    Invariant {
        id: "INV-102",
        section: Section::PageCache,
        text: "Where guest and host both map the same page of a file, they map the same frame.",
        window: "",
        when: &[When::Point, When::Quiescence],
        check: Check::State(inv_102),
        note: "",
    },
    Invariant {
        id: "INV-103",
        section: Section::PageCache,
        text: "Every cached page lies below the end of its file. When a hole has been punched, none of the pages that were in it before is \
               still cached.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_103),
        note: "The hole is looked at when the punch ends, of a large one the first 64 pages. A page that came later may have an old one's frame: frames count how often they were allocated.",
    },
    Invariant {
        id: "INV-104",
        section: Section::PageCache,
        text: "A look-up returns a page that is locked, still belongs to the file, and has at least two references: the cache's and the \
               caller's.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "INV-105",
        section: Section::PageCache,
        text: "The reference count of a page is the sum of its holders: the page cache, each process page-table entry, each fault on its \
               way, each pin, each memory failure. It is free exactly at 0, and a free frame is neither locked nor mapped.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_105),
        note: "Pages of guest_memfd exactly while nothing happens; at any other time that the known holders are not more than the count. Pins outlive no call.",
    },
    Invariant {
        id: "INV-106",
        section: Section::PageCache,
        text: "A page that guest or host can reach has defined contents. A page that is read for the first time reads zero, unless somebody \
               wrote it.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_106),
        note: "At the step that maps it into a guest. That a first read gives zero is seen by the contents oracle of scenarios.",
    },
    Invariant {
        id: "INV-107",
        section: Section::PageCache,
        text: "A page is zeroed exactly once while it is cached, under its lock, before anybody can reach it; \"up to date\" never goes away \
               again.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "At the step that zeroes.",
    },
    Invariant {
        id: "INV-108",
        section: Section::PageCache,
        text: "Punching a hole removes the pages of its range and no others; the others keep frame and contents.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "At the end of a punch, of the pages beside the hole; contents by the contents oracle of scenarios.",
    },
    Invariant {
        id: "INV-109",
        section: Section::PageCache,
        text: "Allocating changes the contents of no page that exists, and never says that contents are defined.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_109),
        note: "Contents by the contents oracle of scenarios.",
    },
    Invariant {
        id: "INV-110",
        section: Section::PageCache,
        text: "Nobody gets a reference to a file whose count has been 0.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "INV-111",
        section: Section::PageCache,
        text: "A look-up through a slot only uses the file to which that slot was bound.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_111),
        note: "At the step, that the file is of the same VM. In the model no file object takes the place of another one, so a recycled pointer cannot be confused.",
    },
];

/// The cached pages of all files.
fn cached(shot: &Snapshot) -> impl Iterator<Item = (&InodeState, Pgoff, Pfn)> {
    shot.inodes.iter().flat_map(|inode| inode.pages.iter().map(move |(index, pfn)| (inode, *index, *pfn)))
}

/// The pages of files that processes map.
fn mapped_file_pages(shot: &Snapshot) -> impl Iterator<Item = &MappedPage> {
    let pages = shot.processes.iter().flat_map(|process| &process.pages).flat_map(|pages| pages.values());
    pages.filter(|page| !page.zero && !page.anonymous)
}

/// See [`ROWS`](self); so for the others.
pub fn inv_101(shot: &Snapshot) -> Holds {
    for (inode, index, pfn) in cached(shot) {
        let Some(frame) = shot.frames.get(&pfn) else { continue };
        let named = (frame.mapping, frame.index);
        holds!(
            named == (Some(inode.id), index),
            "{pfn:?} is cached at {index:?} of file {}, but names {named:?}",
            inode.id
        );
    }
    Ok(())
}

/// Guest and host see one page: both see the cached one.
pub fn inv_102(shot: &Snapshot) -> Holds {
    for page in mapped_file_pages(shot) {
        let Some(inode) = shot.inode_of(page.pfn) else { continue };
        let index = shot.frames[&page.pfn].index;
        let cached = inode.pages.get(&index).copied();
        holds!(
            cached == Some(page.pfn),
            "{:?} maps {:?} for {index:?} of file {}, which has {cached:?}",
            page.hva,
            page.pfn,
            inode.id
        );
    }
    Ok(())
}

/// Every page lies below the end of the file.
pub fn inv_103(shot: &Snapshot) -> Holds {
    for (inode, index, pfn) in cached(shot) {
        let end = inode.size >> PAGE_SHIFT;
        holds!(index.0 < end, "{pfn:?} is cached at {index:?} of file {}, which ends at {end:#x}", inode.id);
    }
    Ok(())
}

/// Free frames are free; the others have at least the references that are known, and exactly those when nothing happens.
pub fn inv_105(shot: &Snapshot) -> Holds {
    for (&pfn, frame) in &shot.frames {
        let free = !frame.flags.contains(FrameFlags::ALLOCATED);
        holds!(
            free == (frame.refcount == 0),
            "{pfn:?} has {} references and is {}",
            frame.refcount,
            if free { "free" } else { "in use" }
        );
        let idle = !frame.flags.contains(FrameFlags::LOCKED) && frame.mapcount == 0;
        holds!(!free || idle, "{pfn:?} is free, and locked or mapped {} times", frame.mapcount);
        if frame.flags.contains(FrameFlags::RESERVED) || !shot.is_gmem(pfn) {
            continue;
        }
        let failed = u32::from(frame.flags.contains(FrameFlags::HWPOISON));
        let cached = u32::from(shot.inode_of(pfn).is_some_and(|inode| inode.pages.get(&frame.index) == Some(&pfn)));
        let lent = shot.lent.get(&pfn).copied().unwrap_or(0);
        let known = cached + frame.mapcount + failed + lent;
        holds!(frame.refcount >= known, "{pfn:?} has {} references, of which {known} are known", frame.refcount);
        let all = !shot.quiescent || frame.refcount == known;
        holds!(all, "{pfn:?} has {} references while nothing happens, of which {known} are known", frame.refcount);
    }
    Ok(())
}

/// What guest or host reach has defined contents.
pub fn inv_106(shot: &Snapshot) -> Holds {
    let leafs = shot.vms.iter().flat_map(|vm| &vm.leafs).map(|leaf| leaf.pfn);
    for pfn in leafs.chain(mapped_file_pages(shot).map(|page| page.pfn)).filter(|pfn| shot.is_gmem(*pfn)) {
        let frame = &shot.frames[&pfn];
        let defined = frame.flags.contains(FrameFlags::UPTODATE) && !frame.undefined;
        holds!(defined, "{pfn:?} can be reached, but its contents are undefined");
    }
    Ok(())
}

/// A page that says its contents are defined was written since it was allocated.
pub fn inv_109(shot: &Snapshot) -> Holds {
    for (inode, index, pfn) in cached(shot) {
        let frame = &shot.frames[&pfn];
        let lie = frame.flags.contains(FrameFlags::UPTODATE) && frame.undefined;
        holds!(!lie, "{pfn:?} at {index:?} of file {} is up to date, but nobody has written it", inode.id);
    }
    Ok(())
}

/// The file that a slot names is the one that knows the slot.
pub fn inv_111(shot: &Snapshot) -> Holds {
    for (vm_number, vm) in shot.vms.iter().enumerate().filter(|(_, vm)| !vm.slots_changing) {
        for slot in vm.spaces.iter().flat_map(|space| &space.active).filter(|slot| !slot.invalid) {
            let Some(super::snapshot::FileState::Of(id)) = slot.file else { continue };
            let inode = shot.inodes.iter().find(|inode| inode.id == id);
            let knows = |inode: &InodeState| {
                inode.views.iter().any(|view| view.vm == Some(vm_number) && view.slots.contains_key(&slot.handle))
            };
            let is_known = inode.is_some_and(|inode| inode.changing || knows(inode));
            holds!(is_known, "slot {:?} names file {id}, which does not know it", slot.id);
        }
    }
    Ok(())
}
