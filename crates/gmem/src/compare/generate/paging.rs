//! Guests with page tables: a slot of tables and pages, entries of all kinds in them, and accesses that walk them.

use super::{Generator, PAGE};
use crate::ops::{FdRef, GuestPaged, HvaRef, Name, Op, PagedAccess, Prot};
use rand::RngExt;

/// Pages of the slot; the first ones are tables.
const PAGES: u64 = 64;
const TABLES: u64 = 8;
/// P, R/W, U/S.
const OPEN: u64 = 7;
/// PS.
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// `out 0x80, al`: a page that begins with it can be jumped to.
const DONE: u64 = 0x80e6;

/// The guest's tables: a slot of their own, on memory of the host.
#[derive(Clone, Debug)]
pub(super) struct GuestTables {
    map: Name,
    gpa: u64,
}

impl Generator {
    /// A slot with tables for the first vCPU.
    pub(super) fn guest_tables(&mut self) {
        let map = self.new_name("m");
        // Far from where other slots are put, and where no large page can begin: what is jumped to must be a page that begins with code.
        let gpa = 0x4004_0000;
        self.made.memory += PAGES * PAGE;
        self.ops.push(Op::Mmap {
            map: map.clone(),
            fd: None,
            len: PAGES * PAGE,
            prot: Prot::READ | Prot::WRITE,
            shared: false,
            offset: 0,
            align: PAGE,
        });
        self.ops.push(Op::SetUserMemoryRegion2 {
            vm: "vm0".into(),
            slot: 29,
            flags: 0,
            gpa,
            size: PAGES * PAGE,
            hva: HvaRef::Map { map: map.clone(), offset: 0 },
            guest_memfd: FdRef::Raw(-1),
            guest_memfd_offset: 0,
        });
        self.ops.push(Op::HostFill64 {
            map: map.clone(),
            offset: TABLES * PAGE,
            len: (PAGES - TABLES) * PAGE,
            value: DONE,
        });
        self.tables = Some(GuestTables { map, gpa });
        // One chain of tables that leads somewhere.
        for level in 0..3 {
            self.entry(level, 0, OPEN, level + 1);
        }
        for index in 0..4 {
            let (bits, page) = (self.bits(), self.rng.random_range(TABLES..PAGES));
            self.entry(3, index, bits, page);
        }
    }

    /// Writes entry `index` of table `table`: a page of the slot, and bits.
    fn entry(&mut self, table: u64, index: u64, bits: u64, page: u64) {
        let Some(GuestTables { map, gpa }) = self.tables.clone() else { return };
        let (offset, value) = (table * PAGE + index * 8, (gpa + page * PAGE) | bits);
        self.ops.push(Op::HostWrite64 { map, offset, value });
    }

    /// Bits of an entry: mostly such that it can be used.
    fn bits(&mut self) -> u64 {
        let open = if self.chance(6) { self.rng.random_range(0..8) } else { OPEN };
        let no_execute = if self.chance(6) { NO_EXECUTE } else { 0 };
        let large = if self.chance(12) { LARGE } else { 0 };
        // Reserved, accessed, dirty, global, ignored.
        let rest = if self.chance(8) { self.pick(&[1 << 45, 1 << 51, 1 << 5, 1 << 6, 1 << 8, 1 << 58]) } else { 0 };
        open | no_execute | large | rest
    }

    /// An access by the tables, or a change of them, or a look at them.
    pub(super) fn paged_step(&mut self) {
        let Some(GuestTables { map, gpa }) = self.tables.clone() else { return };
        let (table, index) = (self.rng.random_range(0..TABLES), self.rng.random_range(0..4));
        match self.rng.random_range(0..10) {
            0..2 => {
                // The lowest tables lead to pages, the others to tables.
                let pages = if table < 3 { 0..TABLES } else { TABLES..PAGES };
                let (bits, page) = (self.bits(), self.rng.random_range(pages));
                self.entry(table, index, bits, page);
            }
            2..4 => self.ops.push(Op::HostRead64 { map, offset: table * PAGE + index * 8 }),
            _ => {
                let mut gva = (self.rng.random_range(0..2) << 39) | (self.rng.random_range(0..2) << 30);
                gva |= self.rng.random_range(0..2) << 21 | self.rng.random_range(0..4) << 12;
                gva |= if self.chance(2) { 0 } else { self.rng.random_range(0..511) * 8 };
                if self.chance(12) {
                    gva = self.edge();
                }
                let kinds = [PagedAccess::Read, PagedAccess::Write, PagedAccess::ReadModifyWrite, PagedAccess::Execute];
                let access = self.pick(&kinds);
                match access {
                    PagedAccess::Read => {}
                    PagedAccess::Write | PagedAccess::ReadModifyWrite => gva |= 8,
                    PagedAccess::Execute => gva &= !(PAGE - 1),
                }
                let op = Op::GuestPaged(GuestPaged {
                    vcpu: "c0".into(),
                    root_map: map,
                    root_offset: 0,
                    cr3: gpa,
                    cpl: self.pick(&[0, 3]),
                    access,
                    gva,
                    value: self.rng.random(),
                    wp: !self.chance(3),
                    smep: self.chance(3),
                    smap: self.chance(3),
                    nxe: !self.chance(3),
                    ac: self.chance(3),
                });
                self.ops.push(op);
            }
        }
    }
}
