//! The contents oracle: whether what guest and VMM read is what some order of the writes allows.
//!
//! It knows only operations, when they began and ended, and what they answered; it never looks into the simulator. From those it follows which
//! memory an address may have meant, and which values a word of that memory may have had: a read may return a value whose write began before the
//! read ended, unless something else was certainly written after that write and before the read. Clearing (a punched hole, dropped or new anonymous
//! memory) is a write of zero to a range. So lost and second clearing, lost writes, stale data and data from the wrong memory are found, and what
//! some order allows is never called wrong.
//!
//! A finding has the id of the invariant that it looks like. Simplified: accesses that are not to aligned words, and files that are changed by other
//! means than mappings and holes, may leave anything; so does everything after something that the oracle cannot follow.

use super::layout::{Area, Change, Layouts, Memory, Seen, Slot};
use crate::kvm::uapi::{
    FALLOC_FL_PUNCH_HOLE, GUEST_MEMFD_FLAG_MMAP, KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_VM_TYPE_ARM_PROTECTED, KVM_X86_SNP_VM, KVM_X86_TDX_VM,
};
use crate::ops::{Answer, Detail, Exit, FdRef, HvaRef, Name, Op, SnpOp};
use std::collections::{BTreeMap, BTreeSet};

const PAGE: u64 = 4096;
const WORD: u64 = 4;

/// A word of memory.
type Place = (Memory, u64);

/// A write or a clearing.
#[derive(Clone, Copy, Debug)]
struct Write {
    /// When it began and ended, in beginnings and ends of operations.
    from: u64,
    /// `u64::MAX` while it goes on.
    to: u64,
    /// `None`: any value.
    value: Option<u32>,
    /// It certainly took place, and there.
    certain: bool,
}

/// What an operation does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write(Option<u32>),
}

/// Who accesses, and where.
#[derive(Clone, Copy, Debug)]
enum Target {
    Guest { vm: usize, gpa: u64 },
    Host { hva: u64 },
}

/// An operation that goes on.
#[derive(Debug, Default)]
struct Running {
    from: u64,
    access: Option<(Target, Access)>,
    /// How many bytes that touches.
    bytes: u64,
    /// The words that it may mean.
    places: BTreeSet<Place>,
    /// It may mean memory of which nothing is known.
    anything: bool,
    /// Its change of the layout.
    change: Option<u32>,
    /// What it writes or clears, in `writes`.
    write: Option<usize>,
}

/// An operation that was begun.
#[derive(Debug)]
#[must_use = "an operation that was begun ends"]
pub struct Ticket(u64);

#[derive(Clone, Copy, Debug)]
struct File {
    number: usize,
    mappable: bool,
}

/// What is known of the contents of memory.
#[derive(Debug, Default)]
pub struct Contents {
    now: u64,
    /// Something could not be followed: nothing is checked any more.
    blind: bool,
    made: usize,
    files: BTreeMap<Name, File>,
    vms: BTreeMap<Name, usize>,
    vcpus: BTreeMap<Name, usize>,
    layouts: Layouts,
    running: BTreeMap<u64, Running>,
    writes: Vec<Write>,
    /// Writes to each word.
    words: BTreeMap<Place, Vec<usize>>,
    /// Clearings: memory, first byte, first byte after it.
    clearings: Vec<(Memory, u64, u64, usize)>,
}

/// Whether a clearing that succeeds has cleared all that it names.
fn clears_certainly(op: &Op) -> bool {
    match op {
        Op::Madvise { advice, .. } => advice.name() == "dontneed",
        _ => true,
    }
}

impl Contents {
    /// An operation begins. `map` says where a mapping's name stands for.
    pub fn begin(&mut self, op: &Op, map: impl Fn(&Name) -> u64) -> Ticket {
        self.now += 1;
        let number = self.now;
        let mut running = Running { from: number, ..Running::default() };
        if self.blind {
            self.running.insert(number, running);
            return Ticket(number);
        }
        running.access = self.access(op, &map);
        running.bytes = if matches!(op, Op::HostWrite64 { .. } | Op::HostFill64 { .. }) { 2 * WORD } else { WORD };
        if let Some((_, Access::Write(value))) = running.access {
            running.write = Some(self.write(value));
        }
        self.running.insert(number, running);
        if let Some(change) = self.change(op, &map) {
            let change = self.layouts.begin(change);
            self.blind |= change.is_none();
            self.running.get_mut(&number).expect("just begun").change = change;
        }
        if let Some((memory, start, end)) = self.clearing(op, &map) {
            let write = self.write(Some(0));
            self.clearings.push((memory, start, end, write));
            self.running.get_mut(&number).expect("just begun").write = Some(write);
        }
        match op {
            // Other ways to change a file: what it holds is not followed.
            Op::Ftruncate { fd, .. } | Op::Pwrite { fd, .. } => self.taint(fd),
            Op::Fallocate { fd, mode, .. } if mode & !3 != 0 => self.taint(fd),
            // It sets bits in tables, and what it writes lies where they say.
            Op::GuestPaged(_) => self.blind = true,
            // The VMM changes attributes and files in the middle of it.
            Op::Protected(_) | Op::Snp(SnpOp::GuestConvert { .. } | SnpOp::GuestWriteShared { .. }) => {
                self.blind = true
            }
            // One word in each of many pages.
            Op::HostFill64 { len, .. } => self.blind |= *len > PAGE,
            _ => {}
        }
        self.widen();
        Ticket(number)
    }

    /// The operation has ended with this answer.
    ///
    /// # Errors
    /// What is wrong with a value that it read, beginning with the id of an invariant.
    pub fn end(&mut self, ticket: Ticket, op: &Op, answer: &Answer, map: impl Fn(&Name) -> u64) -> Result<(), String> {
        self.now += 1;
        let running = self.running.remove(&ticket.0).expect("an operation ends once");
        let (done, value) = match answer {
            Answer::Ok { detail: Detail::Value(value), .. } => (true, Some(*value as u32)),
            Answer::Ok { .. } => (true, None),
            Answer::Exit { errno: None, exit: Exit::Hlt { value } } => (true, value.map(|value| value as u32)),
            _ => (false, None),
        };
        if self.blind {
            return Ok(());
        }
        if let Some(change) = running.change {
            self.layouts.end(change, done);
        }
        self.blind |= done && self.binds_a_stranger(op);
        if done {
            self.name(op, &map, running.from);
        }
        self.widen();
        let Some((_, access)) = running.access else {
            if let Some(write) = running.write {
                self.writes[write].to = self.now;
                self.writes[write].certain = done && clears_certainly(op);
            }
            return Ok(());
        };
        // An access that went where nothing is known to be: what it wrote may be anywhere.
        self.blind |= done && running.places.is_empty() && !running.anything;
        if let Some(write) = running.write {
            self.writes[write].to = self.now;
            self.writes[write].certain = done && !running.anything && running.places.len() == 1;
        }
        match (access, value) {
            (Access::Read, Some(value)) if done && !self.blind && !running.anything => self.judge(&running, value),
            _ => Ok(()),
        }
    }

    fn write(&mut self, value: Option<u32>) -> usize {
        self.writes.push(Write { from: self.now, to: u64::MAX, value, certain: false });
        self.writes.len() - 1
    }

    /// Adds to the accesses that go on what the layouts allow now.
    fn widen(&mut self) {
        for running in self.running.values_mut() {
            let Some((target, _)) = running.access else { continue };
            for layout in self.layouts.possible() {
                let seen = match target {
                    Target::Guest { vm, gpa } => layout.guest(vm, gpa),
                    Target::Host { hva } => layout.host(hva),
                };
                match seen {
                    Seen::Nothing => {}
                    Seen::Unknown => running.anything = true,
                    Seen::At(memory, byte) => {
                        // Not aligned, it touches one word more, or lies in two pages.
                        running.anything |= byte % WORD != 0;
                        for word in byte / WORD..=(byte + running.bytes - 1) / WORD {
                            let new = running.places.insert((memory, word));
                            if let Some(write) = running.write.filter(|_| new) {
                                self.words.entry((memory, word)).or_default().push(write);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Everything that was written to a word, the zero before everything included.
    fn history(&self, (memory, word): Place) -> impl Iterator<Item = Write> {
        let byte = word * WORD;
        let covers = move |c: &&(Memory, u64, u64, usize)| c.0 == memory && c.1 < byte + WORD && byte < c.2;
        let cleared = self.clearings.iter().filter(covers).map(|clearing| clearing.3);
        let written = self.words.get(&(memory, word)).into_iter().flatten().copied();
        let all = cleared.chain(written).map(|write| self.writes[write]);
        [Write { from: 0, to: 0, value: Some(0), certain: true }].into_iter().chain(all)
    }

    fn judge(&self, read: &Running, value: u32) -> Result<(), String> {
        let has = |write: &Write| write.value.is_none_or(|written| written == value);
        let hidden = |place: Place, write: &Write| {
            self.history(place).any(|later| later.certain && later.from > write.to && later.to < read.from)
        };
        let allowed = |&place: &Place| self.history(place).any(|write| has(&write) && !hidden(place, &write));
        if read.places.iter().any(allowed) {
            return Ok(());
        }
        let was_there = read.places.iter().any(|place| self.history(*place).skip(1).any(|write| has(&write)));
        let elsewhere = self.writes.iter().any(|write| write.value == Some(value));
        let rule = match value {
            _ if value & 0xffff_0000 == 0xbeef_0000 || value & 0xffff_0000 == 0xdead_0000 => {
                "INV-106: memory that nobody cleared is read"
            }
            0 => "INV-107: memory that was written reads as zero: the write was lost, or it was cleared again",
            _ if was_there => "INV-201: an old value is read that was overwritten or cleared before",
            _ if elsewhere => "INV-208: a value is read that was only written to other memory",
            _ => "INV-106: a value is read that nobody wrote",
        };
        let possible: BTreeSet<String> = read
            .places
            .iter()
            .flat_map(|place| self.history(*place).filter(|write| !hidden(*place, write)))
            .map(|write| write.value.map_or("anything".into(), |value| format!("{value:#x}")))
            .collect();
        let possible: Vec<String> = possible.into_iter().collect();
        Err(format!("{rule}: {value:#x} at {:?}, where the writes allow {}", read.places, possible.join(", ")))
    }

    fn access(&self, op: &Op, map: &impl Fn(&Name) -> u64) -> Option<(Target, Access)> {
        let guest = |vcpu: &Name, gpa: u64| self.vcpus.get(vcpu).map(|&vm| Target::Guest { vm, gpa });
        Some(match op {
            Op::GuestRead { vcpu, gpa } => (guest(vcpu, *gpa)?, Access::Read),
            Op::GuestWrite { vcpu, gpa, value } => (guest(vcpu, *gpa)?, Access::Write(Some(*value as u32))),
            Op::GuestRmw { vcpu, gpa, .. } => (guest(vcpu, *gpa)?, Access::Write(None)),
            Op::HostRead { map: at, offset } => (Target::Host { hva: map(at).wrapping_add(*offset) }, Access::Read),
            Op::HostWrite { map: at, offset, value } => {
                (Target::Host { hva: map(at).wrapping_add(*offset) }, Access::Write(Some(*value as u32)))
            }
            // Two words, of which each holds anything afterwards.
            Op::HostWrite64 { map: at, offset, .. } | Op::HostFill64 { map: at, offset, .. } => {
                (Target::Host { hva: map(at).wrapping_add(*offset) }, Access::Write(None))
            }
            _ => return None,
        })
    }

    fn change(&self, op: &Op, map: &impl Fn(&Name) -> u64) -> Option<Change> {
        let hva = |hva: &HvaRef| match hva {
            HvaRef::Map { map: at, offset } => map(at).wrapping_add(*offset),
            HvaRef::Raw(address) => *address,
        };
        let slot = |vm: &Name, number: u64, slot: Slot| {
            let vm = *self.vms.get(vm)?;
            Some(Change::Slot { vm, number, slot: (slot.size != 0).then_some(slot) })
        };
        match op {
            Op::SetUserMemoryRegion { vm, slot: number, gpa, size, hva: at, .. } => {
                let new = Slot { gpa: *gpa, size: *size, hva: hva(at), gmem: None, gmem_only: false };
                slot(vm, *number, new)
            }
            Op::SetUserMemoryRegion2 {
                vm,
                slot: number,
                flags,
                gpa,
                size,
                hva: at,
                guest_memfd,
                guest_memfd_offset,
            } => {
                let file = match guest_memfd {
                    FdRef::Name(name) if flags & u64::from(KVM_MEM_GUEST_MEMFD) != 0 => self.files.get(name),
                    _ => None,
                };
                let gmem = file.map(|file| (file.number, *guest_memfd_offset));
                let gmem_only = file.is_some_and(|file| file.mappable);
                slot(vm, *number, Slot { gpa: *gpa, size: *size, hva: hva(at), gmem, gmem_only })
            }
            Op::SetMemoryAttributes { vm, gpa, size, attributes, .. } => Some(Change::Attributes {
                vm: *self.vms.get(vm)?,
                start: *gpa,
                end: gpa.saturating_add(*size),
                private: attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0,
            }),
            Op::Munmap { map: at, offset, len } => {
                let start = map(at).wrapping_add(*offset);
                Some(Change::Unmap { start, end: start.saturating_add(len.next_multiple_of(PAGE)) })
            }
            _ => None,
        }
    }

    /// What an operation clears, if it does what it says.
    fn clearing(&self, op: &Op, map: &impl Fn(&Name) -> u64) -> Option<(Memory, u64, u64)> {
        match op {
            Op::Fallocate { fd, mode, offset, len } if mode & u64::from(FALLOC_FL_PUNCH_HOLE) != 0 => {
                let file = self.files.get(fd)?;
                let start = u64::try_from(*offset).ok()?;
                Some((Memory::File(file.number), start, start.saturating_add(u64::try_from(*len).ok()?)))
            }
            Op::Madvise { map: at, offset, len, advice } if ["dontneed", "free"].contains(&advice.name()) => {
                let start = map(at).wrapping_add(*offset);
                Some((Memory::Anonymous, start, start.saturating_add(len.next_multiple_of(PAGE))))
            }
            Op::Madvise { map: at, offset, len, advice } if advice.name() == "remove" => {
                let start = map(at).wrapping_add(*offset);
                // Of a range over several files, the first part at most is followed.
                let mut seen = self.layouts.possible().map(|layout| layout.host(start));
                match seen.next()? {
                    Seen::At(memory, byte) => Some((memory, byte, byte.saturating_add(len.next_multiple_of(PAGE)))),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// An operation was successful: names stand for what it made.
    fn name(&mut self, op: &Op, map: &impl Fn(&Name) -> u64, from: u64) {
        self.made += 1;
        let number = self.made;
        match op {
            // What its guest reads and writes goes through keys, and depends on what it has accepted.
            Op::CreateVm { r#type: KVM_X86_SNP_VM | KVM_X86_TDX_VM, .. } => self.blind = true,
            // Its pages stay its own whatever becomes of the mapping that they came from.
            Op::CreateVm { r#type, .. } if r#type & KVM_VM_TYPE_ARM_PROTECTED != 0 => self.blind = true,
            Op::CreateVm { vm, .. } => _ = self.vms.insert(vm.clone(), number),
            Op::CreateVcpu { vm, vcpu, .. } => {
                if let Some(&vm) = self.vms.get(vm) {
                    self.vcpus.insert(vcpu.clone(), vm);
                }
            }
            Op::CreateGuestMemfd { fd, flags, .. } => {
                self.files.insert(fd.clone(), File { number, mappable: flags & GUEST_MEMFD_FLAG_MMAP != 0 });
            }
            Op::MemfdCreate { fd, .. } => _ = self.files.insert(fd.clone(), File { number, mappable: false }),
            Op::Dup { fd, r#as } => {
                for names in [&mut self.vms, &mut self.vcpus] {
                    if let Some(&same) = names.get(fd) {
                        names.insert(r#as.clone(), same);
                    }
                }
                if let Some(&same) = self.files.get(fd) {
                    self.files.insert(r#as.clone(), same);
                }
            }
            Op::Mmap { map: name, fd, len, shared, offset, .. } => {
                let file = fd.as_ref().map(|fd| self.files.get(fd));
                let area = match (file, shared) {
                    (None, false) => Area::Anonymous,
                    (Some(Some(file)), true) => Area::File { file: file.number, offset: *offset },
                    _ => Area::Unknown,
                };
                let (start, end) = (map(name), map(name).saturating_add(len.next_multiple_of(PAGE)));
                self.layouts.apply(&Change::Map { start, end, area });
                self.writes.push(Write { from, to: self.now, value: Some(0), certain: true });
                self.clearings.push((Memory::Anonymous, start, end, self.writes.len() - 1));
            }
            _ => {}
        }
    }

    /// Whether an operation gives a slot a guest_memfd that has no name here.
    fn binds_a_stranger(&self, op: &Op) -> bool {
        let Op::SetUserMemoryRegion2 { flags, guest_memfd, size, .. } = op else { return false };
        let known = matches!(guest_memfd, FdRef::Name(name) if self.files.contains_key(name));
        flags & u64::from(KVM_MEM_GUEST_MEMFD) != 0 && *size != 0 && !known
    }

    /// Any word of the file may hold anything, from now on.
    fn taint(&mut self, fd: &Name) {
        if let Some(file) = self.files.get(fd) {
            let memory = Memory::File(file.number);
            self.writes.push(Write { from: 0, to: u64::MAX, value: None, certain: false });
            self.clearings.push((memory, 0, u64::MAX, self.writes.len() - 1));
        }
    }
}
