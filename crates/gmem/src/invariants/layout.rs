//! Which memory an address may mean: what mappings, slots and attributes say, as far as operations and their answers tell.
//!
//! An operation that changes this takes effect at some moment between its beginning and its end. So there is a set of layouts that may be, and an
//! access may go wherever one of them says that was possible while it ran. For the contents oracle only; the simulator is not asked.

use std::collections::BTreeMap;

/// Guest page of the code that vCPUs of the language run, in a slot that no operation made.
const CODE_GPA: u64 = 0xf000_0000;
/// Layouts that are followed at once.
const MOST: usize = 64;

/// A piece of memory: a file, or the anonymous memory of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Memory {
    /// The file with this number; addresses are offsets.
    File(usize),
    /// Private anonymous memory; addresses are the process's.
    Anonymous,
}

/// What stands behind an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing.
    Nothing,
    /// Memory of which nothing is known.
    Unknown,
    /// This byte.
    At(Memory, u64),
}

/// What an area of the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    Anonymous,
    File { file: usize, offset: u64 },
    Unknown,
}

/// A memory slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) gpa: u64,
    pub(super) size: u64,
    pub(super) hva: u64,
    /// File and offset.
    pub(super) gmem: Option<(usize, u64)>,
    /// The file serves shared accesses too.
    pub(super) gmem_only: bool,
}

/// What an operation does to a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Map { start: u64, end: u64, area: Area },
    Unmap { start: u64, end: u64 },
    Slot { vm: usize, number: u64, slot: Option<Slot> },
    Attributes { vm: usize, start: u64, end: u64, private: bool },
}

/// Mappings, slots and attributes at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Later ones hide earlier ones; `None` is a hole.
    areas: Vec<(u64, u64, Option<Area>)>,
    slots: BTreeMap<(usize, u64), Slot>,
    /// Later ones hide earlier ones.
    attributes: Vec<(usize, u64, u64, bool)>,
}

impl Layout {
    fn apply(&mut self, change: &Change) {
        match *change {
            Change::Map { start, end, area } => self.areas.push((start, end, Some(area))),
            Change::Unmap { start, end } => self.areas.push((start, end, None)),
            Change::Slot { vm, number, slot: Some(slot) } => _ = self.slots.insert((vm, number), slot),
            Change::Slot { vm, number, slot: None } => _ = self.slots.remove(&(vm, number)),
            Change::Attributes { vm, start, end, private } => {
                let hidden = |old: &(usize, u64, u64, bool)| old.0 == vm && start <= old.1 && old.2 <= end;
                self.attributes.retain(|old| !hidden(old));
                self.attributes.push((vm, start, end, private));
            }
        }
    }

    /// What the process has at an address.
    pub(super) fn host(&self, hva: u64) -> Seen {
        match self.areas.iter().rev().find(|(start, end, _)| (*start..*end).contains(&hva)) {
            Some((_, _, Some(Area::Anonymous))) => Seen::At(Memory::Anonymous, hva),
            Some((start, _, Some(Area::File { file, offset }))) => Seen::At(Memory::File(*file), offset + hva - start),
            Some((_, _, Some(Area::Unknown))) => Seen::Unknown,
            Some((_, _, None)) | None => Seen::Nothing,
        }
    }

    /// What a guest has at an address.
    pub(super) fn guest(&self, vm: usize, gpa: u64) -> Seen {
        if gpa & !0xfff == CODE_GPA {
            return Seen::Unknown;
        }
        // Address space 0 only: no vCPU of the language is in SMM.
        let mut slots = self.slots.range((vm, 0)..(vm, 1 << 16)).map(|(_, slot)| slot);
        let Some(slot) = slots.rfind(|slot| gpa.wrapping_sub(slot.gpa) < slot.size) else {
            return Seen::Nothing;
        };
        let inside = gpa - slot.gpa;
        let set = self.attributes.iter().rev().find(|(of, start, end, _)| *of == vm && (*start..*end).contains(&gpa));
        let private = set.is_some_and(|set| set.3);
        match slot.gmem {
            Some((file, offset)) if private || slot.gmem_only => Seen::At(Memory::File(file), offset + inside),
            None if private => Seen::Nothing,
            _ => self.host(slot.hva.wrapping_add(inside)),
        }
    }
}

/// The layouts that may be now.
#[derive(Debug)]
pub(super) struct Layouts {
    /// With the changes under way that have taken effect in each, one bit each.
    possible: Vec<(u64, Layout)>,
    under_way: BTreeMap<u32, Change>,
}

impl Default for Layouts {
    fn default() -> Layouts {
        Layouts { possible: vec![(0, Layout::default())], under_way: BTreeMap::new() }
    }
}

impl Layouts {
    pub(super) fn possible(&self) -> impl Iterator<Item = &Layout> {
        self.possible.iter().map(|(_, layout)| layout)
    }

    /// A change is under way from now on; its number, or nothing if there are too many to follow.
    pub(super) fn begin(&mut self, change: Change) -> Option<u32> {
        let number = (0..64).find(|n| !self.under_way.contains_key(n))?;
        self.under_way.insert(number, change);
        let mut at = 0;
        while at < self.possible.len() {
            for (&n, change) in &self.under_way {
                let (done, layout) = &self.possible[at];
                if done & 1 << n == 0 {
                    let mut next = (done | 1 << n, layout.clone());
                    next.1.apply(change);
                    if !self.possible.contains(&next) {
                        self.possible.push(next);
                    }
                }
            }
            at += 1;
            if self.possible.len() > MOST {
                return None;
            }
        }
        Some(number)
    }

    /// A change has taken effect, or never did.
    pub(super) fn end(&mut self, number: u32, took_effect: bool) {
        self.under_way.remove(&number);
        self.possible.retain(|(done, _)| (done & 1 << number != 0) == took_effect);
        let mut left: Vec<(u64, Layout)> = Vec::new();
        for (done, layout) in std::mem::take(&mut self.possible) {
            let merged = (done & !(1 << number), layout);
            if !left.contains(&merged) {
                left.push(merged);
            }
        }
        self.possible = left;
    }

    /// A change that was not foreseen has taken effect.
    pub(super) fn apply(&mut self, change: &Change) {
        self.possible.iter_mut().for_each(|(_, layout)| layout.apply(change));
    }
}
