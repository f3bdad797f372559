//! Recordings of guests with paging on a real Linux 7.3.4, as far as the processor decides: what each access comes to (exception, error code and
//! CR2, MMIO, or the value that was read), and what A and D bits the tables have when the VMM reads them back.
//!
//! Stage 2 is as KVM would have filled it: everything in the memory slot is mapped, the rest is not. Private and shared memory of a page are two frames.
//! Changes of stage 2 are KVM's and not compared here.

use serde_json::Value;
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Pfn};
use sim_mmu::guest_paging::{Cr0, Cr3, Cr4, Efer, Encryption, GuestFault, GuestFormat, PagingRegisters};
use sim_mmu::processor::{GuestState, Processor};
use sim_mmu::tlb::{TlbConfig, TlbTag};
use sim_mmu::walker::{MmuFault, Npt, Stage2, Stage2Root, WalkMemory};
use sim_mmu::{Access, Gpa, Gva, Level};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// `KVM_MEMORY_ATTRIBUTE_PRIVATE`.
const PRIVATE: u64 = 1 << 3;
/// Guest frames of the slot with the guest's code, descriptors and the tables that map them.
const CODE: u64 = 0xf_0000;
const CODE_PAGES: u64 = 8;
/// Where private frames begin.
const PRIVATE_FRAMES: u64 = 1 << 30;

/// Guest memory, and stage 2 as a function: a table's frame number is the part of the gfn that leads to it.
#[derive(Default)]
struct Memory {
    words: RefCell<BTreeMap<(u64, usize), u64>>,
    slot: std::ops::Range<u64>,
    private: BTreeSet<u64>,
}

impl Memory {
    fn get(&self, frame: u64, index: usize) -> u64 {
        self.words.borrow().get(&(frame, index)).copied().unwrap_or(0)
    }

    fn set(&self, frame: u64, index: usize, value: u64) {
        self.words.borrow_mut().insert((frame, index), value);
    }

    fn frame(&self, gfn: u64) -> Option<u64> {
        if (CODE..CODE + CODE_PAGES).contains(&gfn) {
            return Some(gfn);
        }
        let private = if self.private.contains(&gfn) { PRIVATE_FRAMES } else { 0 };
        self.slot.contains(&gfn).then_some(gfn + private)
    }
}

impl WalkMemory for Memory {
    fn stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, level: Level, index: usize) -> u64 {
        let reached = table.0 << 9 | index as u64;
        if level != Level::L4K {
            return 0x27 | reached << 12;
        }
        self.frame(reached).map_or(0, |frame| 0x67 | frame << 12)
    }

    fn update_stage2_entry(&self, _cx: &Cx<'_>, _table: Pfn, _index: usize, _old: u64, _new: u64) -> Result<(), u64> {
        panic!("every bit is set already")
    }

    fn guest_entry(&self, _cx: &Cx<'_>, table: Pfn, entry: Gpa) -> u64 {
        let index = (entry.offset() / 8) as usize;
        self.get(table.0, index)
    }

    fn update_guest_entry(&self, _cx: &Cx<'_>, table: Pfn, entry: Gpa, old: u64, new: u64) -> Result<(), u64> {
        let index = (entry.offset() / 8) as usize;
        assert_eq!(self.get(table.0, index), old);
        self.set(table.0, index, new);
        Ok(())
    }
}

/// A recording's VM.
struct Vm {
    memory: Memory,
    /// Guest address of the mapping's first byte.
    base: u64,
}

fn number(op: &Value, name: &str) -> u64 {
    op[name].as_u64().unwrap_or_else(|| panic!("{name} of {op}"))
}

impl Vm {
    /// The tables that the first vCPU's slot has: five supervisor pages, and the code once more for the user.
    fn new() -> Vm {
        let vm = Vm { memory: Memory::default(), base: 0 };
        let [pdpt, pd, pt] = [CODE + 5, CODE + 6, CODE + 7];
        vm.memory.set(pdpt, 0, 7 | pd << 12);
        vm.memory.set(pd, 0, 7 | pt << 12);
        (0..5).for_each(|page| vm.memory.set(pt, page as usize, 3 | (CODE + page) << 12));
        vm.memory.set(pt, 16, 7 | CODE << 12);
        vm
    }

    /// Frame and word of the VMM's mapping, which is the shared memory.
    fn host(&self, op: &Value) -> (u64, usize) {
        let gpa = self.base + number(op, "offset");
        (gpa >> 12, (gpa & 0xfff) as usize / 8)
    }

    fn run(&mut self, cx: &Cx<'_>, op: &Value, place: &str) {
        let range = |op: &Value, from: u64| from >> 12..(from + number(op, "len")) >> 12;
        match op["op"].as_str().expect("an operation has a name") {
            "set_user_memory_region2" => {
                self.base = number(op, "gpa") - number(&op["hva"], "offset");
                self.memory.slot = number(op, "gpa") >> 12..(number(op, "gpa") + number(op, "size")) >> 12;
            }
            "set_memory_attributes" => {
                for gfn in number(op, "gpa") >> 12..(number(op, "gpa") + number(op, "size")) >> 12 {
                    if number(op, "attributes") & PRIVATE != 0 {
                        self.memory.private.insert(gfn);
                    } else {
                        self.memory.private.remove(&gfn);
                    }
                }
            }
            "host_fill64" => {
                for gfn in range(op, self.base + number(op, "offset")) {
                    self.memory.set(gfn, 0, number(op, "value"));
                }
            }
            "madvise" if op["advice"] == "dontneed" => {
                let gone = range(op, self.base + number(op, "offset"));
                self.memory.words.borrow_mut().retain(|(frame, _), _| !gone.contains(frame));
            }
            "host_write64" => {
                let (frame, index) = self.host(op);
                self.memory.set(frame, index, number(op, "value"));
            }
            "host_read64" => {
                let (frame, index) = self.host(op);
                assert_eq!(self.memory.get(frame, index), number(&op["ret"], "value"), "{place}: {op}");
            }
            "guest_paged" => {
                let found = self.access(cx, op);
                let mut expected = op["ret"].clone();
                if let Value::Object(fields) = &mut expected {
                    fields
                        .remove("value")
                        .filter(|_| op["access"] == "r")
                        .map(|value| fields.insert("value".into(), value));
                }
                assert_eq!(found, expected, "{place}: {op}");
            }
            _ => {}
        }
    }

    fn access(&mut self, cx: &Cx<'_>, op: &Value) -> Value {
        let flag = |name: &str| op[name].as_bool().unwrap_or_else(|| panic!("{name} of {op}"));
        let mut registers = PagingRegisters {
            cr0: Cr0::PG,
            cr3: Cr3(number(op, "cr3")),
            cr4: Cr4::PAE,
            efer: Efer::LMA,
            cpl: number(op, "cpl") as u8,
            ac: flag("ac"),
            ..PagingRegisters::default()
        };
        registers.cr0.set(Cr0::WP, flag("wp"));
        registers.cr4.set(Cr4::SMEP, flag("smep"));
        registers.cr4.set(Cr4::SMAP, flag("smap"));
        registers.efer.set(Efer::NXE, flag("nxe"));
        // The VMM's entry for the guest's code.
        let root = (self.base + number(op, "root_offset")) >> 12;
        self.memory.set(root, 256, 7 | (CODE + 5) << 12);
        let stage2 = Stage2::new(Stage2Root { table: Pfn(0), level: Level::L512G });
        let encryption = Encryption::None;
        let format = GuestFormat { maxphyaddr: 40, has_1g_pages: true, upper_global_reserved: true, encryption };
        let state = GuestState { registers, tag: TlbTag(1), stage2 };
        let mut processor = Processor::new(cx, Npt::new(48, true), format, TlbConfig::NONE, state).unwrap();
        let kind = match op["access"].as_str().expect("an access has a kind") {
            "r" => Access::Read,
            "w" | "rmw" => Access::Write,
            "x" => Access::Exec,
            other => panic!("access {other}"),
        };
        // The instruction is fetched first.
        let code = Gva(0xffff_8000_0000_0000 + if registers.cpl == 3 { 0x1_0000 } else { 0 });
        processor.translate(cx, &self.memory, code, Access::Exec).expect("the guest's code is mapped");
        let gva = Gva(number(op, "gva"));
        match processor.translate(cx, &self.memory, gva, kind) {
            Ok(found) => {
                let (frame, index) = (found.pfn.0, found.offset as usize / 8);
                let old = self.memory.get(frame, index);
                match op["access"].as_str() {
                    Some("w") => self.memory.set(frame, index, number(op, "value")),
                    Some("rmw") => self.memory.set(frame, index, old.wrapping_add(number(op, "value"))),
                    Some("r") => return serde_json::json!({"exit": "done", "value": old}),
                    _ => {}
                }
                serde_json::json!({"exit": "done"})
            }
            Err(MmuFault::Guest(GuestFault::Page(fault))) => {
                let error = fault.code.bits();
                serde_json::json!({"exit": "exception", "vector": 14, "error": error, "cr2": fault.cr2.0})
            }
            Err(MmuFault::Guest(_)) => serde_json::json!({"exit": "exception", "vector": 13, "error": 0}),
            // KVM emulates a read-modify-write in two steps, of which the first is a read.
            Err(MmuFault::Stage2(fault)) => {
                serde_json::json!({"exit": "mmio", "gpa": fault.gpa.0, "len": 8, "write": op["access"] == "w"})
            }
        }
    }
}

/// Replays the recordings of a folder; returns how many accesses they have.
fn replay(folder: &Path) -> usize {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let mut accesses = 0;
    for name in names.iter().filter(|name| name.file_name().unwrap().to_string_lossy().starts_with("paging-")) {
        let text = std::fs::read_to_string(name).unwrap();
        Sim::sequential().solo(|cx| {
            let mut vm = Vm::new();
            for (number, line) in text.lines().enumerate().skip(1) {
                let op: Value = serde_json::from_str(line).unwrap();
                accesses += usize::from(op["op"] == "guest_paged");
                vm.run(cx, &op, &format!("{}:{}", name.display(), number + 1));
            }
        });
    }
    accesses
}

#[test]
fn the_kept_recordings_agree() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/traces-mmu");
    assert!(replay(&folder) > 50);
}

#[test]
fn all_recordings_beside_the_repository_agree() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces-mmu");
    if folder.is_dir() {
        assert!(replay(&folder) > 900);
    }
}
