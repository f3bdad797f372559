//! A naive guest_memfd: flat maps and no concurrency, to hold the simulator against, one operation after the other.
//!
//! One VM of type `KVM_X86_SW_PROTECTED_VM`, one guest_memfd, one anonymous mapping. An attribute is a frame in a set, a slot a row of a table, a
//! page a number in a map. There are no tables, no translations and no locks, so whatever the simulator's do must not show.
//!
//! Simplified: it answers where the answer follows from these maps; of what it does not know (accesses through addresses that map nothing) it
//! says nothing, and they change nothing.

use crate::kvm::uapi::KVM_MEMORY_EXIT_FLAG_PRIVATE;
use crate::ops::{Answer, Detail, Errno, Exit, FdRef, HvaRef, Name, Op, Signal};
use crate::scenario::parse_line;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: u64 = 4096;
/// Pages of the anonymous mapping.
const MAP_PAGES: u64 = 16;

/// Names of the operations that the reference understands.
pub const OPS: &[&str] = &[
    "set_memory_attributes",
    "fallocate",
    "guest_read",
    "guest_write",
    "host_read",
    "host_write",
    "set_user_memory_region",
    "set_user_memory_region2",
];

#[derive(Clone, Debug)]
struct Slot {
    gfn: u64,
    pages: u64,
    /// Name of the mapping and page in it.
    hva: (Name, u64),
    /// Page of the file that it is bound to.
    file: Option<u64>,
}

/// What there is.
#[derive(Clone, Debug)]
pub struct Reference {
    file_pages: u64,
    private: BTreeSet<u64>,
    slots: BTreeMap<u64, Slot>,
    /// The first word of each page that the file has.
    file: BTreeMap<u64, u64>,
    /// The first word of each page of the mapping that was written.
    map: BTreeMap<u64, u64>,
}

impl Reference {
    /// A file of so many pages, and nothing in any slot.
    pub fn new(file_pages: u64) -> Reference {
        Reference {
            file_pages,
            private: Default::default(),
            slots: Default::default(),
            file: Default::default(),
            map: Default::default(),
        }
    }

    /// What makes a simulated machine like it.
    pub fn set_up(&self) -> Vec<Op> {
        [
            "create_vm vm0 sw_protected".to_string(),
            "create_vcpu vm0 c0 0".to_string(),
            "create_vcpu vm0 c1 1".to_string(),
            format!("create_guest_memfd vm0 g0 size={}", self.file_pages * PAGE),
            format!("mmap m0 len={}", MAP_PAGES * PAGE),
        ]
        .map(|line| parse_line(&line).expect("the set-up is in the language").op)
        .into()
    }

    /// Any operation as one that the reference understands in full: slots without flags of their own, bound to the file that there is.
    pub fn plain(mut op: Op) -> Op {
        match &mut op {
            Op::SetUserMemoryRegion { flags, .. } => *flags = 0,
            Op::SetUserMemoryRegion2 { flags, guest_memfd, .. } => {
                *flags = 4;
                *guest_memfd = FdRef::Name("g0".into());
            }
            Op::GuestWrite { value, .. } | Op::HostWrite { value, .. } => *value &= 0xffff_ffff,
            _ => {}
        }
        op
    }

    /// Performs an operation; the answer that it must have, if that is known.
    pub fn execute(&mut self, op: &Op) -> Option<Answer> {
        match op {
            Op::SetMemoryAttributes { gpa, size, attributes, .. } => {
                for gfn in gpa / PAGE..(gpa + size) / PAGE {
                    if *attributes == 0 {
                        self.private.remove(&gfn)
                    } else {
                        self.private.insert(gfn)
                    };
                }
                Some(Answer::OK)
            }
            Op::Fallocate { fd, mode, offset, len } => Some(self.fallocate(fd, *mode, *offset as u64, *len as u64)),
            Op::HostRead { map, offset } => Some(if *map == Name::from("m0") {
                let value = self.map.get(&(offset / PAGE)).copied().unwrap_or(0);
                Answer::Ok { value: 0, detail: Detail::Value(value) }
            } else {
                Answer::Signal(Signal::SEGV)
            }),
            Op::HostWrite { map, offset, value } => Some(if *map == Name::from("m0") {
                self.map.insert(offset / PAGE, *value);
                Answer::OK
            } else {
                Answer::Signal(Signal::SEGV)
            }),
            Op::GuestRead { gpa, .. } => self.guest(*gpa, None),
            Op::GuestWrite { gpa, value, .. } => self.guest(*gpa, Some(*value)),
            Op::SetUserMemoryRegion { slot, gpa, size, hva, .. } => Some(self.region(*slot, *gpa, *size, hva, None)),
            Op::SetUserMemoryRegion2 { slot, gpa, size, hva, guest_memfd_offset, .. } => {
                Some(self.region(*slot, *gpa, *size, hva, Some(guest_memfd_offset / PAGE)))
            }
            _ => None,
        }
    }

    /// What each page of the file must read as, through a slot that shows all of it; a page that is not there reads as zero.
    pub fn file_contents(&self) -> Vec<u64> {
        (0..self.file_pages).map(|page| self.file.get(&page).copied().unwrap_or(0)).collect()
    }

    /// The slots that exist.
    pub fn slots(&self) -> Vec<u64> {
        self.slots.keys().copied().collect()
    }

    fn fallocate(&mut self, fd: &Name, mode: u64, offset: u64, len: u64) -> Answer {
        let pages = offset / PAGE..(offset + len) / PAGE;
        match mode {
            _ if *fd != Name::from("g0") => errno("EBADF"),
            3 => {
                self.file.retain(|page, _| !pages.contains(page));
                Answer::OK
            }
            1 if pages.end > self.file_pages => errno("EINVAL"),
            1 => {
                pages.for_each(|page| _ = self.file.entry(page).or_insert(0));
                Answer::OK
            }
            _ => errno("EOPNOTSUPP"),
        }
    }

    fn guest(&mut self, gpa: u64, write: Option<u64>) -> Option<Answer> {
        let gfn = gpa / PAGE;
        let is_private = self.private.contains(&gfn);
        let slot = self.slots.values().find(|slot| (slot.gfn..slot.gfn + slot.pages).contains(&gfn));
        let (pages, page) = match (is_private, slot) {
            (true, Some(Slot { gfn: base, file: Some(first), .. })) => (&mut self.file, first + gfn - base),
            (true, _) => {
                let exit = Exit::MemoryFault { flags: KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa, size: PAGE };
                return Some(Answer::Exit { errno: Errno::from_name("EFAULT"), exit });
            }
            (false, Some(slot)) if slot.hva.0 == Name::from("m0") => (&mut self.map, slot.hva.1 + gfn - slot.gfn),
            (false, Some(_)) => return None,
            (false, None) => return Some(Answer::exit(Exit::Mmio { gpa, len: 4, write: write.is_some() })),
        };
        let word = pages.entry(page).or_insert(0);
        let value = match write {
            Some(value) => {
                *word = value;
                None
            }
            None => Some(*word),
        };
        Some(Answer::exit(Exit::Hlt { value }))
    }

    fn region(&mut self, id: u64, gpa: u64, size: u64, hva: &HvaRef, file: Option<u64>) -> Answer {
        if size == 0 {
            return if self.slots.remove(&id).is_some() { Answer::OK } else { errno("EINVAL") };
        }
        let HvaRef::Map { map, offset } = hva else { return errno("EINVAL") };
        // What has no name has address 0, whatever it is called.
        let map = if *map == Name::from("m0") { map.clone() } else { Name::from("nothing") };
        let new = Slot { gfn: gpa / PAGE, pages: size / PAGE, hva: (map, offset / PAGE), file };
        if let Some(old) = self.slots.get(&id) {
            // Slots with a guest_memfd are never changed; others only move.
            if file.is_some() || old.file.is_some() || (old.pages, &old.hva) != (new.pages, &new.hva) {
                return errno("EINVAL");
            }
        }
        let mut others = self.slots.iter().filter(|(other, _)| **other != id).map(|(_, slot)| slot);
        if others.clone().any(|slot| overlap((slot.gfn, slot.pages), (new.gfn, new.pages))) {
            return errno("EEXIST");
        }
        if let Some(first) = file {
            if first + new.pages > self.file_pages {
                return errno("EINVAL");
            }
            if others.any(|slot| slot.file.is_some_and(|at| overlap((at, slot.pages), (first, new.pages)))) {
                return errno("EEXIST");
            }
        }
        self.slots.insert(id, new);
        Answer::OK
    }
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

fn errno(name: &str) -> Answer {
    Answer::errno(Errno::from_name(name).expect("the language knows the error"))
}
