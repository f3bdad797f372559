//! INV-401 to INV-407: what may not be used any more.

use super::snapshot::{FileState, Snapshot};
use super::{Check, Holds, Invariant, Section, When, holds};

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "INV-401",
        section: Section::Lifetime,
        text: "Nobody uses a slot that was freed.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_401),
        note: "At each use: a freed slot is marked.",
    },
    Invariant {
        id: "INV-402",
        section: Section::Lifetime,
        text: "Nobody uses a VM's view of a guest_memfd that was freed.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_402),
        note: "At each use: a freed view is marked.",
    },
    Invariant {
        id: "INV-403",
        section: Section::Lifetime,
        text: "A file and its view live while a descriptor or a mapping refers to them.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_403),
        note: "At the step that releases, that nobody maps the file.",
    },
    Invariant {
        id: "INV-404",
        section: Section::Lifetime,
        text: "Nobody walks a node of an index tree that was freed.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "Nodes that were freed are marked, and readers that walk node by node (`XaFlags::FINE_GRAINED`) look. In the model of KVM a look-up is one step, so none can meet one.",
    },
    Invariant {
        id: "INV-405",
        section: Section::Lifetime,
        text: "A VM lives while a guest_memfd, a vCPU or a VM descriptor refers to it.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_405),
        note: "",
    },
    Invariant {
        id: "INV-406",
        section: Section::Lifetime,
        text: "A file that a slot names has not been freed; it may wait for its release.",
        window: "",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_406),
        note: "",
    },
    Invariant {
        id: "INV-407",
        section: Section::Lifetime,
        text: "When a VM is destroyed, no slot names a file, no invalidation is open, and its files have no bindings.",
        window: "a notifier pair that was cut off when KVM stopped listening",
        when: &[When::Step, When::Point, When::Quiescence],
        check: Check::State(inv_407),
        note: "",
    },
];

/// No visible slot was freed.
pub fn inv_401(shot: &Snapshot) -> Holds {
    let live = shot.vms.iter().filter(|vm| !vm.destroyed);
    for slot in live.flat_map(|vm| &vm.spaces).flat_map(|space| &space.active) {
        holds!(!slot.freed, "slot {:?} is visible and was freed", slot.id);
    }
    Ok(())
}

/// No file lists a view that was freed.
pub fn inv_402(shot: &Snapshot) -> Holds {
    for inode in &shot.inodes {
        // The list is emptied by the release, which goes on a little afterwards.
        let freed = inode.views.iter().any(|view| view.freed);
        holds!(!freed, "file {} lists a view that was freed", inode.id);
    }
    Ok(())
}

/// What is mapped has a view.
pub fn inv_403(shot: &Snapshot) -> Holds {
    for inode in shot.inodes.iter().filter(|inode| inode.mapped == Some(true)) {
        holds!(inode.views.iter().any(|view| !view.freed), "file {} is mapped and has no view any more", inode.id);
    }
    Ok(())
}

/// The VM of a view lives.
pub fn inv_405(shot: &Snapshot) -> Holds {
    for inode in &shot.inodes {
        let of_dead = inode.views.iter().any(|view| view.vm.is_none_or(|vm| shot.vms[vm].destroyed));
        holds!(!of_dead, "file {} has a view of a VM that was destroyed", inode.id);
    }
    Ok(())
}

/// The file that a slot names lives.
pub fn inv_406(shot: &Snapshot) -> Holds {
    for slot in shot.vms.iter().flat_map(|vm| &vm.spaces).flat_map(|space| &space.active) {
        holds!(slot.file != Some(FileState::Freed), "slot {:?} names a file that was freed", slot.id);
    }
    Ok(())
}

/// A destroyed VM has left nothing behind.
pub fn inv_407(shot: &Snapshot) -> Holds {
    for (number, vm) in shot.vms.iter().enumerate().filter(|(_, vm)| vm.destroyed) {
        holds!(vm.in_progress == 0, "a VM died with {} invalidations open", vm.in_progress);
        let slots = vm.spaces.iter().map(|space| space.active.len()).sum::<usize>();
        holds!(slots == 0 && vm.leafs.is_empty(), "a VM died with {slots} slots and {} leafs", vm.leafs.len());
        let views = shot.inodes.iter().flat_map(|inode| &inode.views).filter(|view| view.vm == Some(number));
        let bound: usize = views.map(|view| view.bindings.len()).sum();
        holds!(bound == 0, "a VM died, and its files have {bound} bindings");
    }
    Ok(())
}
