//! MMU-INV-001 to MMU-INV-062: the tables of stage 2, their entries, the vCPUs that use them, and what dirty logging relies on.
//!
//! Most are assertions in `sim-mmu`, at the step and over everything ([`TdpMmu::assert_consistent`](sim_mmu::TdpMmu::assert_consistent)).

use super::snapshot::{LeafState, SlotState, Snapshot, VmState};
use super::{Check, Holds, Invariant, Section, When, holds};
use crate::kvm::uapi::KVM_MEM_READONLY;
use sim_mmu::{Gfn, Level};

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "MMU-INV-001",
        section: Section::Tables,
        text: "An entry that points to a table points to one that covers the frames of the entry, one level below, in the same address space.",
        window: "",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "When a table is taken out, and over everything when an execution has ended.",
    },
    Invariant {
        id: "MMU-INV-002",
        section: Section::Tables,
        text: "Each table but a root hangs below exactly one entry.",
        window: "",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "As the one before.",
    },
    Invariant {
        id: "MMU-INV-003",
        section: Section::Tables,
        text: "No entry of a table that can be reached is frozen.",
        window: "while a hook changes the external tables",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "As the one before.",
    },
    Invariant {
        id: "MMU-INV-004",
        section: Section::Tables,
        text: "A table that is freed maps nothing.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "When the grace period has ended.",
    },
    Invariant {
        id: "MMU-INV-005",
        section: Section::Tables,
        text: "Nobody walks a table that was freed.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "At every step of a walk, the processor's too.",
    },
    Invariant {
        id: "MMU-INV-006",
        section: Section::Tables,
        text: "The statistics count the leafs that there are, by size, in all roots.",
        window: "",
        when: &[When::Quiescence],
        check: Check::State(mmu_inv_006),
        note: "Tables and roots in the same way, and the tables that wait for the recovery of huge pages, when an execution has ended.",
    },
    Invariant {
        id: "MMU-INV-007",
        section: Section::Tables,
        text: "Every frame that is a table can be reached. When a VM dies no root, table or leaf is left.",
        window: "until a grace period has ended",
        when: &[When::Step, When::Quiescence],
        check: Check::State(mmu_inv_007),
        note: "At the step that destroys the VM.",
    },
    Invariant {
        id: "MMU-INV-008",
        section: Section::Tables,
        text: "Each address space has at most one valid root; a root that is listed has a reference, a valid one the MMU's own.",
        window: "",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "When roots are made and put.",
    },
    Invariant {
        id: "MMU-INV-009",
        section: Section::Tables,
        text: "A root that waits to be taken apart is invalid.",
        window: "",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "MMU-INV-010",
        section: Section::Tables,
        text: "Hardware may write only where KVM allows it, KVM only where the host may.",
        window: "",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "For every entry that is written, and over everything.",
    },
    Invariant {
        id: "MMU-INV-011",
        section: Section::Tables,
        text: "Whether the host may write does not change from a mapping to its zap.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "MMU-INV-012",
        section: Section::Tables,
        text: "A leaf does not change its frame without having been zapped.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "MMU-INV-013",
        section: Section::Tables,
        text: "Every entry is in one of the known states.",
        window: "",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "MMU-INV-014",
        section: Section::Tables,
        text: "A leaf is aligned to its size on both sides and lies in one slot.",
        window: "",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "Slots when it is made.",
    },
    Invariant {
        id: "MMU-INV-015",
        section: Section::Tables,
        text: "No present entry has a reserved bit; only MMIO entries are misconfigured on purpose.",
        window: "",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "MMU-INV-016",
        section: Section::Tables,
        text: "Entries of EPT suppress #VE, unless they say MMIO.",
        window: "",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "MMU-INV-017",
        section: Section::Tables,
        text: "No huge leaf of a slot that is logged is writable.",
        window: "logs that begin with every page dirty, until the page's bit is cleared",
        when: &[When::Step, When::Quiescence],
        check: Check::State(mmu_inv_017),
        note: "At the step that makes one.",
    },
    Invariant {
        id: "MMU-INV-018",
        section: Section::Tables,
        text: "With the mitigation on, no huge leaf is executable.",
        window: "",
        when: &[When::Quiescence],
        check: Check::State(mmu_inv_018),
        note: "",
    },
    Invariant {
        id: "MMU-INV-019",
        section: Section::Tables,
        text: "What a slot says is read-only is writable in no entry.",
        window: "",
        when: &[When::Quiescence],
        check: Check::State(mmu_inv_019),
        note: "",
    },
    Invariant {
        id: "MMU-INV-020",
        section: Section::Tables,
        text: "An entry whose rights were put away is of a kind that the hardware sets no A bit in, has no right left and keeps one.",
        window: "",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "MMU-INV-023",
        section: Section::Tables,
        text: "Private memory is mapped in the mirror, if there is one, and shared memory is not.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "Without a mirror it is INV-208.",
    },
    Invariant {
        id: "MMU-INV-026",
        section: Section::Tables,
        text: "No frame is freed while a vCPU is in the guest whose TLB may lead to it.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "When a vCPU leaves the guest, of every frame that it has reached since its last flush of everything; where guests are watched, as in scenarios. Entries of stage 2 are INV-203.",
    },
    Invariant {
        id: "MMU-INV-031",
        section: Section::Tables,
        text: "A vCPU enters the guest with no way to a frame that was freed before its last flush.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "At the entry, as the one before.",
    },
    Invariant {
        id: "MMU-INV-033",
        section: Section::Tables,
        text: "Once all vCPUs were asked for something, each is outside the guest, or has been since.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "When whoever asked stops waiting.",
    },
    Invariant {
        id: "MMU-INV-034",
        section: Section::Tables,
        text: "A vCPU enters the guest with no request that it has not seen, unless it was kicked: then it leaves again, and is waited for.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "At the entry.",
    },
    Invariant {
        id: "MMU-INV-035",
        section: Section::Tables,
        text: "A vCPU enters the guest on no root that was declared invalid.",
        window: "while mmu_lock is held for writing: whoever declares roots invalid asks every vCPU to leave before releasing it",
        when: &[When::Step],
        check: Check::AtStep,
        note: "At the entry.",
    },
    Invariant {
        id: "MMU-INV-040",
        section: Section::Tables,
        text: "No write of a guest to a slot that is logged is lost: a call that returns after the write hands its page out. A page that can be written without being noticed is marked dirty.",
        window: "until every run of a vCPU has ended that had begun before the write",
        when: &[When::Step, When::Quiescence],
        check: Check::State(mmu_inv_040),
        note: "Writes by a record of them beside the machine, which knows nothing of entries and TLBs, where guests are watched: when a run of a vCPU ends, when a word is collected, and at the end. Over everything by the entries: where W is set, or D where that is logged, the mark is there.",
    },
    Invariant {
        id: "MMU-INV-041",
        section: Section::Tables,
        text: "A dirty bitmap has no bit beyond the end of its slot.",
        window: "",
        when: &[When::Quiescence],
        check: Check::State(mmu_inv_041),
        note: "",
    },
    Invariant {
        id: "MMU-INV-053",
        section: Section::Tables,
        text: "Nothing is written from what was read before mmu_lock was released.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "MMU-INV-055",
        section: Section::Tables,
        text: "An internal answer of the fault handler does not leave it.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "MMU-INV-060",
        section: Section::Tables,
        text: "A mirror changes in order: frozen, changed outside, written; or cleared, then removed outside under mmu_lock held for writing. Its leafs are small.",
        window: "",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "The other side of it, that both agree, is asserted by hooks of the tests, and of TDs it is TDX-INV-015.",
    },
    Invariant {
        id: "MMU-INV-062",
        section: Section::Tables,
        text: "Each table of a mirror but its root has one page of the external tables, which is freed once.",
        window: "",
        when: &[When::Step, When::Quiescence],
        check: Check::AtStep,
        note: "",
    },
];

/// Leafs below valid roots with their slots, while nothing is under way.
fn settled(shot: &Snapshot) -> impl Iterator<Item = (&VmState, &LeafState, &SlotState)> {
    let vms = shot.vms.iter().filter(|_| shot.quiescent);
    vms.flat_map(|vm| vm.live_leafs().filter_map(move |(leaf, slot)| Some((vm, leaf, slot?))))
}

/// The statistics count what there is.
pub fn mmu_inv_006(shot: &Snapshot) -> Holds {
    for vm in shot.vms.iter().filter(|_| shot.quiescent) {
        let mut found = [0; 3];
        for leaf in &vm.leafs {
            found[usize::from(leaf.level.number()) - 1] += 1;
        }
        holds!(found == vm.pages, "there are {found:?} leafs of the three sizes, and {:?} were counted", vm.pages);
    }
    Ok(())
}

/// No table is lost.
pub fn mmu_inv_007(shot: &Snapshot) -> Holds {
    for vm in shot.vms.iter().filter(|_| shot.quiescent) {
        holds!(vm.table_frames == vm.tables, "{} frames are tables, {} can be reached", vm.table_frames, vm.tables);
    }
    Ok(())
}

/// Huge leafs of logged slots are not writable.
pub fn mmu_inv_017(shot: &Snapshot) -> Holds {
    for (vm, leaf, slot) in settled(shot) {
        let wrong = leaf.level > Level::L4K && leaf.writable && slot.dirty.is_some() && !vm.initially_set;
        holds!(
            !wrong,
            "{:?} is mapped as a writable {:?} in slot {:?}, which is logged",
            leaf.gfn,
            leaf.level,
            slot.id
        );
    }
    Ok(())
}

/// Huge leafs are not executable.
pub fn mmu_inv_018(shot: &Snapshot) -> Holds {
    for (vm, leaf, _) in settled(shot) {
        let wrong = vm.nx_huge_pages && leaf.level > Level::L4K && leaf.executable;
        holds!(!wrong, "{:?} is mapped as an executable {:?}", leaf.gfn, leaf.level);
    }
    Ok(())
}

/// Read-only slots are mapped read-only.
pub fn mmu_inv_019(shot: &Snapshot) -> Holds {
    for (_, leaf, slot) in settled(shot) {
        let wrong = slot.flags & KVM_MEM_READONLY != 0 && (leaf.writable || leaf.may_write);
        holds!(!wrong, "{:?} may be written, in slot {:?}, which is read-only", leaf.gfn, slot.id);
    }
    Ok(())
}

/// What can be written unnoticed is marked.
pub fn mmu_inv_040(shot: &Snapshot) -> Holds {
    for (vm, leaf, slot) in settled(shot) {
        if !leaf.writable || vm.logs_dirty_bits && !leaf.dirty {
            continue;
        }
        let mut frames = (leaf.gfn.0..leaf.gfn.0 + leaf.level.span()).map(Gfn);
        let clean = frames.find(|gfn| slot.gfns.contains(*gfn) && slot.is_dirty(*gfn) == Some(false));
        holds!(clean.is_none(), "{clean:?} can be written unnoticed and is not marked dirty in slot {:?}", slot.id);
    }
    Ok(())
}

/// Bitmaps end where their slots do.
pub fn mmu_inv_041(shot: &Snapshot) -> Holds {
    for slot in shot.vms.iter().flat_map(|vm| &vm.spaces).flat_map(|space| &space.active) {
        let words = slot.dirty.iter().flatten().enumerate();
        let last = words.filter(|(_, word)| **word != 0).last();
        let end = last.map_or(0, |(i, word)| i as u64 * 64 + 64 - u64::from(word.leading_zeros()));
        holds!(end <= slot.npages(), "page {end} of slot {:?} is dirty, which has {} pages", slot.id, slot.npages());
    }
    Ok(())
}
