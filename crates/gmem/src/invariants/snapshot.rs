//! A picture of a whole host as plain data: what the checks of the registry look at.
//!
//! Taken without scheduling points at any moment between two steps. What somebody is changing at that moment is marked as such, and where the
//! data lie inside a lock that is held they are missing; the windows of the invariants are stated in these marks.
//!
//! Left out: contents of pages, programs and registers of vCPUs, areas of processes.

use crate::kvm::guest_memfd::{GmemFile, GmemInode};
use crate::kvm::host::{Existing, Host};
use crate::kvm::lpage_info::LARGE_LEVELS;
use crate::kvm::memslots::{Memslot, MemslotSet, SlotId};
use crate::kvm::vm::Vm;
use sim_kernel::mm::{FrameFlags, MappedPage, PhysMem};
use sim_kernel::sched::HeldLock;
use sim_kernel::{Hva, Pfn, Pgoff};
use sim_mmu::{Gfn, GfnRange, Level, MMIO_SPTE_GEN_MASK};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A host at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// No operation is under way: every window is closed.
    pub quiescent: bool,
    /// Locks and read sections that are held.
    pub held: Vec<HeldLock>,
    /// The VMs, in the order in which they were made.
    pub vms: Vec<VmState>,
    /// The guest_memfds.
    pub inodes: Vec<InodeState>,
    /// The processes.
    pub processes: Vec<ProcessState>,
    /// References that protected guests of pKVM hold to pages of guest_memfds.
    pub lent: BTreeMap<Pfn, u32>,
    /// Every frame that something above names.
    pub frames: BTreeMap<Pfn, FrameState>,
}

/// A frame of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameState {
    /// References.
    pub refcount: u32,
    /// Process page-table entries that name it.
    pub mapcount: u32,
    /// Stage-2 entries that do.
    pub sptes: u32,
    /// Number of the page cache that it is in.
    pub mapping: Option<u32>,
    /// Its index there.
    pub index: Pgoff,
    /// Its state bits.
    pub flags: FrameFlags,
    /// Nobody has written it since it was allocated.
    pub undefined: bool,
}

/// A guest_memfd's memory.
#[derive(Clone, Debug)]
pub struct InodeState {
    /// Number of its page cache.
    pub id: u32,
    /// Bytes.
    pub size: u64,
    /// The host may map it.
    pub mappable: bool,
    /// Somebody holds `invalidate_lock` for writing.
    pub changing: bool,
    /// Pages whose failure is being handled.
    pub failing: Vec<Pfn>,
    /// The page cache, ascending.
    pub pages: BTreeMap<Pgoff, Pfn>,
    /// Some process maps it; unknown while that changes.
    pub mapped: Option<bool>,
    /// The views of VMs that are listed.
    pub views: Vec<ViewState>,
    /// What is wrong with the page cache's tree.
    pub malformed: Vec<String>,
}

/// One VM's view of a guest_memfd.
#[derive(Clone, Debug)]
pub struct ViewState {
    /// Place of the VM in [`Snapshot::vms`].
    pub vm: Option<usize>,
    /// It was freed.
    pub freed: bool,
    /// Page ranges, first to last, with the slot's handle.
    pub bindings: Vec<(Pgoff, Pgoff, u32)>,
    /// The slots that it knows, by handle: geometry, whether freed, whether it lost its file to a release.
    pub slots: BTreeMap<u32, SlotState>,
    /// What is wrong with the bindings' tree.
    pub malformed: Vec<String>,
}

/// A VM.
#[derive(Clone, Debug)]
pub struct VmState {
    /// It was destroyed.
    pub destroyed: bool,
    /// It has private memory.
    pub private: bool,
    /// `slots_lock` is held.
    pub slots_changing: bool,
    /// `mmu_lock` is held for writing.
    pub zapping: bool,
    /// `mmu_invalidate_in_progress`.
    pub in_progress: u64,
    /// Invalidations that were begun and not ended.
    pub open: u64,
    /// `mmu_invalidate_seq`.
    pub seq: u64,
    /// Invalidations that were ended.
    pub ended: u64,
    /// `mmu_invalidate_range_start` and `_end`.
    pub range: Option<GfnRange>,
    /// The hull of what was added since none was open.
    pub hull: Option<GfnRange>,
    /// `mn_active_invalidate_count`.
    pub mn_active: u64,
    /// Notifier pairs that opened an invalidation.
    pub mn_open: u64,
    /// `nr_memslot_pages`; unknown while `slots_lock` is held.
    pub nr_memslot_pages: Option<u64>,
    /// The address spaces.
    pub spaces: Vec<SpaceState>,
    /// Memory attributes other than 0, ascending; the first [`VmState::ATTRIBUTES_MAX`].
    pub attributes: BTreeMap<Gfn, u64>,
    /// What is wrong with the attributes' tree.
    pub malformed: Vec<String>,
    /// Present leafs.
    pub leafs: Vec<LeafState>,
    /// How many leafs of 4 KiB, 2 MiB and 1 GiB the MMU has counted.
    pub pages: [u64; 3],
    /// Tables of stage 2 that can be reached, roots included.
    pub tables: u64,
    /// Frames that are tables of stage 2.
    pub table_frames: u64,
    /// Writes are logged by D bits, not by write protection.
    pub logs_dirty_bits: bool,
    /// Logs begin with every page dirty.
    pub initially_set: bool,
    /// No huge page may be executable.
    pub nx_huge_pages: bool,
    /// MMIO entries.
    pub mmio: Vec<MmioState>,
    /// Place of the VMM in [`Snapshot::processes`].
    pub process: Option<usize>,
}

/// An address space: its two sets of slots.
#[derive(Clone, Debug, Default)]
pub struct SpaceState {
    /// Generation of the active set.
    pub generation: u64,
    /// The active set, by number.
    pub active: Vec<SlotState>,
    /// The other one.
    pub inactive: Vec<SlotState>,
}

/// A memory slot.
#[derive(Clone, Debug)]
pub struct SlotState {
    /// Number.
    pub id: SlotId,
    /// Number under which bindings name it.
    pub handle: u32,
    /// Frames.
    pub gfns: GfnRange,
    /// Where the VMM's memory for it begins.
    pub hva: Hva,
    /// Flags, internal ones included.
    pub flags: u32,
    /// It has guest_memfd.
    pub gmem: bool,
    /// It uses guest_memfd for shared memory too.
    pub gmem_only: bool,
    /// It is the stand-in of a slot that is deleted or moved.
    pub invalid: bool,
    /// It was freed.
    pub freed: bool,
    /// It is on its way out and its zap has ended.
    pub zapped: bool,
    /// Its file was released.
    pub released: bool,
    /// The file that it names.
    pub file: Option<FileState>,
    /// First page of the binding.
    pub pgoff: Pgoff,
    /// Blocks that lie entirely in the slot.
    pub blocks: Vec<BlockState>,
    /// The words of its dirty bitmap, if it is logged.
    pub dirty: Option<Vec<u64>>,
}

/// The file that a slot names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// It was freed.
    Freed,
    /// A guest_memfd with this page cache.
    Of(u32),
}

/// A 2 MiB or 1 GiB block of a slot.
#[derive(Clone, Copy, Debug)]
pub struct BlockState {
    /// Size.
    pub level: Level,
    /// First frame.
    pub start: Gfn,
    /// MIXED.
    pub mixed: bool,
    /// MIXED or any other reason against a huge page.
    pub disallowed: bool,
    /// Its attributes really differ.
    pub differs: bool,
}

/// A present leaf of stage 2.
#[derive(Clone, Copy, Debug)]
pub struct LeafState {
    /// Address space.
    pub as_id: u16,
    /// The root is invalid.
    pub invalid_root: bool,
    /// First guest frame.
    pub gfn: Gfn,
    /// Size.
    pub level: Level,
    /// First host frame.
    pub pfn: Pfn,
    /// The attribute of the first frame is PRIVATE.
    pub private: bool,
    /// The attributes of its frames differ.
    pub differs: bool,
    /// W is set.
    pub writable: bool,
    /// D is set.
    pub dirty: bool,
    /// M is set, or H: W may be set without asking anybody, or the host may write.
    pub may_write: bool,
    /// Fetches are permitted.
    pub executable: bool,
}

/// An MMIO entry of stage 2.
#[derive(Clone, Copy, Debug)]
pub struct MmioState {
    /// Address space.
    pub as_id: u16,
    /// The root is invalid.
    pub invalid_root: bool,
    /// Guest frame.
    pub gfn: Gfn,
    /// The bits of the generation that it remembers.
    pub generation: u64,
}

/// What a process maps.
#[derive(Clone, Debug, Default)]
pub struct ProcessState {
    /// Small pages by address; unknown while its page table changes.
    pub pages: Option<BTreeMap<Hva, MappedPage>>,
    /// Frames behind the leafs of its VMs that are not from guest_memfd, by address; unknown while its page table changes.
    pub behind_leafs: Option<BTreeMap<Hva, Option<Pfn>>>,
}

impl VmState {
    /// Attributes that are listed.
    pub const ATTRIBUTES_MAX: usize = 4096;

    /// The visible slot that covers a frame.
    pub fn slot(&self, as_id: u16, gfn: Gfn) -> Option<&SlotState> {
        self.spaces.get(usize::from(as_id))?.active.iter().find(|slot| slot.gfns.contains(gfn))
    }

    /// Leafs below valid roots with their slots.
    pub fn live_leafs(&self) -> impl Iterator<Item = (&LeafState, Option<&SlotState>)> {
        let live = self.leafs.iter().filter(|leaf| !leaf.invalid_root);
        live.map(|leaf| (leaf, self.slot(leaf.as_id, leaf.gfn)))
    }

    /// The generation of an address space as MMIO entries remember it; nothing during an update.
    pub fn mmio_generation(&self, as_id: u16) -> Option<u64> {
        let generation = self.spaces.get(usize::from(as_id))?.generation;
        (generation >> 63 == 0).then_some(generation & MMIO_SPTE_GEN_MASK)
    }
}

impl SlotState {
    /// Whether a frame of the slot is marked dirty; `None` if nothing is logged.
    pub fn is_dirty(&self, gfn: Gfn) -> Option<bool> {
        let page = gfn.0 - self.gfns.start.0;
        let words = self.dirty.as_ref()?;
        Some(words.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 != 0))
    }

    /// The page of the file behind a frame of the slot.
    pub fn gmem_index(&self, gfn: Gfn) -> Pgoff {
        Pgoff(gfn.0 - self.gfns.start.0 + self.pgoff.0)
    }

    /// The host address behind a frame of the slot.
    pub fn hva_of(&self, gfn: Gfn) -> Hva {
        self.hva + ((gfn.0 - self.gfns.start.0) << sim_kernel::PAGE_SHIFT)
    }

    /// Pages.
    pub fn npages(&self) -> u64 {
        self.gfns.len()
    }
}

impl Snapshot {
    /// The host as it is now. `held` is what tasks hold, empty when none exists; then nothing is under way.
    pub fn of(host: &Host, quiescent: bool, held: Vec<HeldLock>) -> Snapshot {
        let Existing { vms, inodes, mms } = host.existing();
        let mut shot = Snapshot { quiescent, held, ..Snapshot::default() };
        shot.vms = vms.iter().map(vm_state).collect();
        shot.inodes = inodes.iter().map(|inode| inode_state(inode, &vms)).collect();
        for (vm, state) in vms.iter().zip(&mut shot.vms) {
            state.process = mms.iter().position(|mm| Arc::ptr_eq(mm, &vm.mm));
        }
        shot.processes = mms
            .iter()
            .map(|mm| {
                let pages = mm.peek_small_pages();
                ProcessState {
                    pages: pages.map(|pages| pages.into_iter().map(|page| (page.hva, page)).collect()),
                    behind_leafs: Some(BTreeMap::new()),
                }
            })
            .collect();
        for pkvm in vms.iter().filter_map(|vm| vm.pkvm()).filter(|pkvm| pkvm.is_protected()) {
            for mapping in pkvm.mappings().into_iter().filter(|mapping| mapping.gmem && !mapping.taken) {
                *shot.lent.entry(mapping.pfn).or_insert(0) += 1;
            }
        }
        shot.look_behind_leafs(&mms);
        shot.collect_frames(&host.phys);
        shot
    }

    /// Whether a frame is in the page cache of a guest_memfd.
    pub fn is_gmem(&self, pfn: Pfn) -> bool {
        self.inode_of(pfn).is_some()
    }

    /// Whether a frame is one of a large folio.
    pub fn is_large(&self, pfn: Pfn) -> bool {
        self.frames.get(&pfn).is_some_and(|frame| frame.flags.contains(FrameFlags::LARGE))
    }

    /// The guest_memfd whose page cache a frame says it is in.
    pub fn inode_of(&self, pfn: Pfn) -> Option<&InodeState> {
        let mapping = self.frames.get(&pfn)?.mapping?;
        self.inodes.iter().find(|inode| inode.id == mapping)
    }

    fn look_behind_leafs(&mut self, mms: &[Arc<sim_kernel::mm::Mm>]) {
        for vm in &self.vms {
            let Some(process) = vm.process else { continue };
            for (leaf, slot) in vm.live_leafs() {
                let Some(slot) = slot else { continue };
                let hva = slot.hva_of(leaf.gfn);
                match mms[process].peek_pfn(hva) {
                    Some(pfn) => {
                        if let Some(behind) = &mut self.processes[process].behind_leafs {
                            behind.insert(hva, pfn);
                        }
                    }
                    None => self.processes[process].behind_leafs = None,
                }
            }
        }
    }

    fn collect_frames(&mut self, phys: &PhysMem) {
        let leafs = self.vms.iter().flat_map(|vm| &vm.leafs).map(|leaf| leaf.pfn);
        let cached = self.inodes.iter().flat_map(|inode| inode.pages.values().copied());
        let mapped = self.processes.iter().flat_map(|process| &process.pages).flat_map(|pages| pages.values());
        let failing = self.inodes.iter().flat_map(|inode| inode.failing.iter().copied());
        let named: Vec<Pfn> = leafs.chain(cached).chain(mapped.map(|page| page.pfn)).chain(failing).collect();
        for pfn in named {
            self.frames.entry(pfn).or_insert_with(|| FrameState {
                refcount: phys.refcount(pfn),
                mapcount: phys.mapcount(pfn),
                sptes: phys.spte_count(pfn),
                mapping: phys.mapping(pfn),
                index: phys.index(pfn),
                flags: phys.flags(pfn),
                undefined: phys.is_undefined(pfn),
            });
        }
    }
}

fn texts(violations: Vec<sim_kernel::xarray::XaViolation>) -> Vec<String> {
    violations.iter().map(ToString::to_string).collect()
}

fn vm_state(vm: &Arc<Vm>) -> VmState {
    let invalidate = &vm.mmu.invalidate;
    let masks = vm.mmu.masks();
    let mut state = VmState {
        destroyed: vm.is_destroyed(),
        private: vm.has_private_mem(),
        slots_changing: vm.slots_lock.try_peek(|_| ()).is_none(),
        zapping: vm.mmu.mmu_lock.is_write_locked(),
        in_progress: invalidate.in_progress(),
        open: invalidate.open(),
        seq: invalidate.peek_seq(),
        ended: invalidate.ended(),
        range: invalidate.range(),
        hull: invalidate.hull(),
        mn_active: vm.mn_active_invalidate_count.load(std::sync::atomic::Ordering::SeqCst),
        mn_open: vm.mn_open.lock().len() as u64,
        nr_memslot_pages: vm.slots_lock.try_peek(|slots| slots.nr_memslot_pages),
        spaces: (0..vm.address_spaces()).map(|as_id| space_state(vm, as_id)).collect(),
        attributes: BTreeMap::new(),
        malformed: texts(vm.attributes.check()),
        leafs: Vec::new(),
        pages: vm.mmu.pages().leafs,
        tables: vm.mmu.pages().tables + vm.mmu.pages().roots,
        table_frames: vm.mmu.table_frames(),
        logs_dirty_bits: vm.mmu.config().pml,
        initially_set: vm.dirty_log_initially_set(),
        nx_huge_pages: vm.mmu.config().nx_huge_pages,
        mmio: Vec::new(),
        process: None,
    };
    let mut from = Gfn(0);
    while state.attributes.len() < VmState::ATTRIBUTES_MAX
        && let Some(gfn) = vm.attributes.next_present(from, Gfn(u64::MAX))
    {
        state.attributes.insert(gfn, vm.attributes.peek(gfn));
        from = gfn + 1;
    }
    vm.mmu.for_each_leaf(|leaf| {
        let sim_mmu::LeafInfo { as_id, invalid_root, gfn, level, spte, .. } = leaf;
        let (private, differs) = (vm.attributes.is_private(gfn), differs(vm, gfn.block(level)));
        state.leafs.push(LeafState {
            as_id,
            invalid_root,
            gfn,
            level,
            pfn: spte.pfn(),
            private,
            differs,
            writable: spte.is_writable(),
            dirty: spte.has(masks.dirty),
            may_write: spte.has(masks.mmu_writable) || spte.has(masks.host_writable),
            executable: masks.is_access_allowed(spte, sim_mmu::Access::Exec),
        });
    });
    vm.mmu.for_each_mmio(|leaf| {
        let sim_mmu::LeafInfo { as_id, invalid_root, gfn, spte, .. } = leaf;
        state.mmio.push(MmioState { as_id, invalid_root, gfn, generation: masks.mmio_generation(spte) });
    });
    state
}

/// Whether the attributes of a range are not all the same.
fn differs(vm: &Vm, range: GfnRange) -> bool {
    vm.attributes.next_present(range.start, range.end).is_some()
        && (range.start.0..range.end.0).any(|gfn| vm.attributes.peek(Gfn(gfn)) != vm.attributes.peek(range.start))
}

fn space_state(vm: &Vm, as_id: u32) -> SpaceState {
    let slots = |set: &MemslotSet| set.iter().map(|slot| slot_state(slot, Some(vm))).collect();
    SpaceState {
        generation: vm.memslots.peek_active(as_id, |set| set.generation),
        active: vm.memslots.peek_active(as_id, slots),
        inactive: vm.memslots.peek_inactive(as_id, slots),
    }
}

/// The blocks only with the VM, where somebody looks at them.
fn slot_state(slot: &Memslot, vm: Option<&Vm>) -> SlotState {
    let file = slot.gmem.peek_file().map(|file| match file.upgrade() {
        None => FileState::Freed,
        Some(file) => FileState::Of(file.downcast::<GmemFile>().map_or(0, |view| view.inode().mapping().id())),
    });
    let mut blocks = Vec::new();
    let vm = vm.filter(|vm| vm.has_private_mem() && !slot.lpage_info.is_none());
    for (vm, level) in vm.into_iter().flat_map(|vm| LARGE_LEVELS.map(|level| (vm, level))) {
        let mut start = Gfn(slot.base_gfn.0.next_multiple_of(level.span()));
        while start.0 + level.span() <= slot.gfns().end.0 {
            let mixed = slot.lpage_info.is_mixed(start, level);
            let disallowed = slot.lpage_info.is_disallowed(start, level);
            blocks.push(BlockState { level, start, mixed, disallowed, differs: differs(vm, start.block(level)) });
            start = start + level.span();
        }
    }
    SlotState {
        id: slot.id,
        handle: slot.handle,
        gfns: slot.gfns(),
        hva: slot.userspace_addr,
        flags: slot.flags,
        gmem: slot.has_gmem(),
        gmem_only: slot.is_gmem_only(),
        invalid: slot.is_invalid(),
        freed: slot.is_freed(),
        zapped: slot.is_zapped(),
        released: slot.gmem.is_released(),
        file,
        pgoff: slot.gmem.pgoff,
        blocks,
        dirty: slot.dirty_bitmap.as_ref().map(|bitmap| (0..bitmap.len()).map(|i| bitmap.peek_word(i)).collect()),
    }
}

fn inode_state(inode: &Arc<GmemInode>, vms: &[Arc<Vm>]) -> InodeState {
    let mut pages = BTreeMap::new();
    inode.mapping().for_each_page(|index, pfn| {
        pages.insert(index, pfn);
    });
    let views = inode.views();
    InodeState {
        id: inode.mapping().id(),
        size: inode.size(),
        mappable: inode.is_mappable(),
        changing: inode.mapping().invalidate_lock.is_write_locked(),
        failing: inode.failing(),
        pages,
        mapped: inode.mapping().i_mmap().peek_is_mapped(),
        views: views.iter().map(|view| view_state(view, vms)).collect(),
        malformed: texts(inode.mapping().check()),
    }
}

fn view_state(view: &GmemFile, vms: &[Arc<Vm>]) -> ViewState {
    ViewState {
        vm: vms.iter().position(|vm| Arc::ptr_eq(vm, view.vm())),
        freed: view.is_freed(),
        bindings: view.peek_bindings(),
        slots: view.peek_slots().iter().map(|slot| (slot.handle, slot_state(slot, None))).collect(),
        malformed: texts(view.check_bindings()),
    }
}
