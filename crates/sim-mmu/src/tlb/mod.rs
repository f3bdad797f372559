//! The TLB of one logical processor: combined and guest-physical mappings of all sizes, paging-structure caches, tags, and what invalidates
//! what (Intel SDM vol. 3, 5.10 and 30.4; AMD64 APM vol. 2, 5.5 and 15.16).
//!
//! It retains: an entry stays until it is invalidated, or another needs its place. So whatever software forgets to flush is seen,
//! as the data of a frame that is no longer mapped.
//!
//! Only its own processor looks things up, fills and flushes; a remote flush asks that processor. A fill and an invalidation by
//! instruction are scheduling points (`tlb`); a hit is none, since nobody else can have changed what it finds, and the access that follows
//! is one.
//!
//! Simplified: one level, four ways, oldest entry first; no linear mappings without stage 2; instructions and data share it.

mod acceleration;
mod cache;
mod context;
mod entry;
mod invalidate;
mod structures;

pub use context::{ContextKey, TlbTag};
pub use invalidate::Structures;

pub(crate) use acceleration::Privilege;
pub(crate) use entry::Entry;
pub(crate) use invalidate::Target;

use crate::addr::{Gfn, Gpa, Level};
use crate::guest_paging::{Gva, Pcid, Stage1Rights};
use crate::spte::Access;
use crate::walker::{GuestLeaf, GuestStart, Stage2Leaf, Stage2Rights, Stage2Start, Stage2Tag, WalkCaches};
use acceleration::Acceleration;
use cache::SetAssociative;
use context::Contexts;
use sim_kernel::sched::ObjId;
use sim_kernel::{Cx, PAGE_SHIFT, Pfn};
use std::fmt;
use structures::StructureCaches;

/// Sizes: powers of two, or 0 for "not there".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlbConfig {
    /// Sets of four combined mappings.
    pub combined_sets: usize,
    /// Sets of four guest-physical mappings.
    pub physical_sets: usize,
    /// Slots of each level's cache of guest tables.
    pub guest_structure_slots: usize,
    /// Slots of each level's cache of stage-2 tables.
    pub stage2_structure_slots: usize,
    /// Slots of the acceleration TLB.
    pub acceleration_slots: usize,
    /// A cached entry that does not allow an access makes the processor walk, as AMD's does, instead of refuse it.
    pub rewalks_before_fault: bool,
}

impl TlbConfig {
    /// As large as a big core's: 2048 entries, 1024 more for guest-physical mappings.
    pub const LARGE: TlbConfig = TlbConfig {
        combined_sets: 512,
        physical_sets: 256,
        guest_structure_slots: 256,
        stage2_structure_slots: 256,
        acceleration_slots: 1024,
        rewalks_before_fault: false,
    };
    /// For programs that touch few pages and are run a hundred thousand times.
    pub const SMALL: TlbConfig = TlbConfig {
        combined_sets: 16,
        physical_sets: 8,
        guest_structure_slots: 8,
        stage2_structure_slots: 8,
        acceleration_slots: 16,
        rewalks_before_fault: false,
    };
    /// Nothing is cached: every access walks.
    pub const NONE: TlbConfig = TlbConfig {
        combined_sets: 0,
        physical_sets: 0,
        guest_structure_slots: 0,
        stage2_structure_slots: 0,
        acceleration_slots: 0,
        rewalks_before_fault: false,
    };
}

impl Default for TlbConfig {
    fn default() -> TlbConfig {
        TlbConfig::LARGE
    }
}

/// The stamps and contexts that look-ups use now.
#[derive(Clone, Copy, Default)]
struct Loaded {
    linear: usize,
    global: usize,
    /// Combined mappings: this PCID's, and global ones. 0xffff_ffff matches nothing.
    combined: [u32; 2],
    guest_structures: u32,
    physical_mappings: u32,
    stage2_structures: u32,
}

/// A stamp that is never given.
const NO_STAMP: u32 = u32::MAX;

/// What look-ups and fills are tagged with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tags {
    pub(crate) tag: TlbTag,
    pub(crate) pcid: Pcid,
    pub(crate) stage2: Stage2Tag,
    /// Guest-physical mappings are tagged with `tag` too.
    pub(crate) tags_physical: bool,
    /// CR4.PGE: global entries hit.
    pub(crate) global_pages: bool,
}

/// The caches of one logical processor.
pub struct Tlb {
    object: ObjId,
    config: TlbConfig,
    contexts: Contexts,
    combined: SetAssociative,
    physical: SetAssociative,
    guest_structures: StructureCaches,
    stage2_structures: StructureCaches,
    acceleration: Acceleration,
    tags: Tags,
    loaded: Loaded,
}

impl Tlb {
    /// An empty TLB; nothing is allocated before the first fill.
    ///
    /// # Panics
    /// If a size is neither 0 nor a power of two.
    pub fn new(cx: &Cx<'_>, config: TlbConfig) -> Tlb {
        let TlbConfig {
            combined_sets,
            physical_sets,
            guest_structure_slots,
            stage2_structure_slots,
            acceleration_slots,
            rewalks_before_fault: _,
        } = config;
        for size in [combined_sets, physical_sets, guest_structure_slots, stage2_structure_slots, acceleration_slots] {
            assert!(size == 0 || size.is_power_of_two(), "a TLB of {size} entries");
        }
        // Without an entry behind it, the acceleration TLB has nothing to repeat.
        let acceleration_slots = if combined_sets == 0 { 0 } else { acceleration_slots };
        let stage2 = Stage2Tag(None);
        let tags = Tags { tag: TlbTag(0), pcid: Pcid(0), stage2, tags_physical: false, global_pages: false };
        let mut tlb = Tlb {
            object: cx.new_object("tlb"),
            config,
            contexts: Contexts::default(),
            combined: SetAssociative::new(combined_sets),
            physical: SetAssociative::new(physical_sets),
            guest_structures: StructureCaches::new(guest_structure_slots),
            stage2_structures: StructureCaches::new(stage2_structure_slots),
            acceleration: Acceleration::new(acceleration_slots),
            tags,
            loaded: Loaded::default(),
        };
        tlb.load(tags);
        tlb
    }

    /// The sizes.
    pub fn config(&self) -> &TlbConfig {
        &self.config
    }

    /// Look-ups and fills are tagged with these from now on. Nothing is lost, except what accelerates.
    pub(crate) fn load(&mut self, tags: Tags) {
        self.tags = tags;
        self.acceleration.flush();
        self.reload();
    }

    pub(crate) fn set_privilege(&mut self, privilege: Privilege) {
        self.acceleration.set_privilege(privilege);
    }

    /// Finds the stamps of the loaded contexts after any of them may have changed.
    fn reload(&mut self) {
        let Tags { tag, pcid, stage2, tags_physical, global_pages } = self.tags;
        let keys = [
            ContextKey::Linear(tag, pcid, stage2),
            ContextKey::Global(tag, stage2),
            ContextKey::Physical(tags_physical.then_some(tag), stage2),
        ];
        let mut found = [0; 3];
        for (key, position) in keys.into_iter().zip(&mut found) {
            match self.contexts.intern(key) {
                Ok(interned) => *position = interned,
                Err(context::Exhausted) => return self.sweep_all(),
            }
        }
        let [linear, global, physical] = found;
        let stamp = |position: usize| self.contexts.get(position);
        self.loaded = Loaded {
            linear,
            global,
            combined: [stamp(linear).translations, if global_pages { stamp(global).translations } else { NO_STAMP }],
            guest_structures: stamp(linear).structures,
            physical_mappings: stamp(physical).translations,
            stage2_structures: stamp(physical).structures,
        };
    }

    /// Everything goes, and stamps start anew: what happens when they are used up.
    fn sweep_all(&mut self) {
        self.combined.clear();
        self.physical.clear();
        self.guest_structures.clear();
        self.stage2_structures.clear();
        self.acceleration.flush();
        self.contexts.restart();
        self.reload();
    }

    /// The frame for an access by the loaded privilege, if the acceleration TLB has it.
    #[inline(always)]
    pub(crate) fn accelerated(&self, gva: Gva, access: Access) -> Option<(Pfn, bool)> {
        self.acceleration.lookup(gva, access)
    }

    /// The combined mapping of a gva.
    #[inline]
    pub(crate) fn lookup(&self, gva: Gva) -> Option<Entry> {
        self.combined.lookup(gva.0 >> PAGE_SHIFT, self.loaded.combined).copied()
    }

    /// Keeps a translation. A scheduling point.
    #[inline(always)]
    pub(crate) fn fill(&mut self, cx: &Cx<'_>, gva: Gva, leaf: &GuestLeaf) -> Entry {
        cx.point(sim_kernel::sched::Access::Store, self.object, 0);
        let global = leaf.global && self.tags.global_pages;
        let stamp = self.loaded.combined[usize::from(global)];
        let entry = Entry::combined(gva.0 >> PAGE_SHIFT, leaf, stamp);
        if entry.is_fragment() {
            let position = if global { self.loaded.global } else { self.loaded.linear };
            self.contexts.get_mut(position).is_fractured = true;
        }
        if let Some(old) = self.combined.insert(entry) {
            self.acceleration.remove_entry(&old);
        }
        entry
    }

    /// Whether there is an acceleration TLB.
    #[inline]
    pub(crate) fn is_accelerated(&self) -> bool {
        self.acceleration.is_on()
    }

    /// Repeats an entry that is in the TLB for one page.
    #[inline]
    pub(crate) fn accelerate(&mut self, gva: Gva, entry: &Entry, allowed: [bool; 3]) {
        self.acceleration.fill(gva, entry.pfn(gva.0 >> PAGE_SHIFT), entry.is_private(), allowed);
    }

    /// What the acceleration TLB has for the loaded privilege: page, access, frame, private. For checks.
    pub(crate) fn accelerated_entries(&self) -> impl Iterator<Item = (Gva, Access, Pfn, bool)> + '_ {
        self.acceleration.current()
    }

    /// The translations that are cached for the loaded tags, in the order of the storage: for reports.
    pub fn translations(&self) -> Vec<CachedTranslation> {
        let Loaded { combined, physical_mappings, .. } = self.loaded;
        let show = |entry: &Entry, is_combined: bool| CachedTranslation {
            combined: is_combined,
            address: Gva(entry.page() << PAGE_SHIFT),
            gfn: entry.gfn(entry.page()),
            pfn: entry.pfn(entry.page()),
            level: entry.level(),
            writable: entry.stage2().contains(Stage2Rights::WRITE) && (!is_combined || entry.stage1().is_writable()),
        };
        let linear =
            self.combined.iter().filter(|entry| combined.contains(&entry.stamp)).map(|entry| show(entry, true));
        let physical = self.physical.iter().filter(|entry| entry.stamp == physical_mappings);
        linear.chain(physical.map(|entry| show(entry, false))).collect()
    }

    /// What is cached for the loaded tags.
    pub fn contents(&self) -> TlbContents {
        let Loaded { combined, guest_structures, physical_mappings, stage2_structures, .. } = self.loaded;
        let mut contents = TlbContents {
            guest_structures: self.guest_structures.count(guest_structures),
            stage2_structures: self.stage2_structures.count(stage2_structures),
            ..TlbContents::default()
        };
        for entry in self.combined.iter().filter(|entry| combined.contains(&entry.stamp)) {
            contents.combined += 1;
            contents.global += usize::from(entry.is_global());
            contents.fragments += usize::from(entry.is_fragment());
        }
        contents.guest_physical = self.physical.iter().filter(|entry| entry.stamp == physical_mappings).count();
        contents
    }
}

/// One translation that is cached, for reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CachedTranslation {
    /// From a linear address through both stages, or only from a guest-physical one.
    pub combined: bool,
    /// First page of the mapping: its linear or its guest-physical address.
    pub address: Gva,
    /// The guest frame of that page.
    pub gfn: Gfn,
    /// Its host frame.
    pub pfn: Pfn,
    /// Size.
    pub level: Level,
    /// Both stages permit writes.
    pub writable: bool,
}

/// How much is cached for one set of tags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TlbContents {
    /// Combined mappings, global ones among them.
    pub combined: usize,
    /// Of those, global ones.
    pub global: usize,
    /// Of those, parts of larger guest pages.
    pub fragments: usize,
    /// Guest-physical mappings.
    pub guest_physical: usize,
    /// Guest tables in paging-structure caches.
    pub guest_structures: usize,
    /// Stage-2 tables in paging-structure caches.
    pub stage2_structures: usize,
}

impl Acceleration {
    /// An entry of the architectural TLB went: so does what repeats it.
    #[inline]
    fn remove_entry(&mut self, entry: &Entry) {
        if entry.level() == Level::L4K {
            self.remove(Gva(entry.page() << PAGE_SHIFT));
        } else {
            self.flush();
        }
    }
}

impl WalkCaches for Tlb {
    #[inline]
    fn guest_physical(&self, gpa: Gpa) -> Option<Stage2Leaf> {
        let page = gpa.gfn().0;
        let stamp = self.loaded.physical_mappings;
        self.physical.lookup(page, [stamp, stamp]).map(|entry| entry.stage2_leaf(page))
    }

    #[inline]
    fn stage2_start(&self, gpa: Gpa) -> Option<Stage2Start> {
        let (level, found) = self.stage2_structures.lookup(gpa.gfn().0, self.loaded.stage2_structures)?;
        let rights = Stage2Rights::from_bits_retain(found.rights);
        Some(Stage2Start { table: found.table, level: Level::from_number(level)?, rights })
    }

    #[inline]
    fn guest_start(&self, gva: Gva) -> Option<GuestStart> {
        let (level, found) = self.guest_structures.lookup(gva.0 >> PAGE_SHIFT, self.loaded.guest_structures)?;
        let level = Level::from_number(level)?;
        Some(GuestStart { table: found.table, gfn: Gfn(found.gfn), level, rights: Stage1Rights(found.rights) })
    }

    #[inline]
    fn fill_guest_physical(&mut self, gpa: Gpa, leaf: &Stage2Leaf) {
        if self.config.physical_sets != 0 {
            let entry = Entry::guest_physical(gpa.gfn().0, leaf, self.loaded.physical_mappings);
            self.physical.insert(entry);
        }
    }

    #[inline]
    fn fill_stage2_start(&mut self, gpa: Gpa, start: &Stage2Start) {
        let stamp = self.loaded.stage2_structures;
        let level = start.level.number();
        self.stage2_structures.insert(gpa.gfn().0, level, start.table, 0, start.rights.bits(), stamp);
    }

    #[inline]
    fn fill_guest_start(&mut self, gva: Gva, start: &GuestStart) {
        let GuestStart { table, gfn, level, rights } = *start;
        let stamp = self.loaded.guest_structures;
        self.guest_structures.insert(gva.0 >> PAGE_SHIFT, level.number(), table, gfn.0, rights.0, stamp);
    }
}

impl fmt::Debug for Tlb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tlb").field("config", &self.config).field("contents", &self.contents()).finish_non_exhaustive()
    }
}
