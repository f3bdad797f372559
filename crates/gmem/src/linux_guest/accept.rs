//! Memory that nobody has accepted yet (`accept_memory`): a bitmap of units, of which the kernel accepts those that it is about to use.
//!
//! The bitmap is in the guest's memory, and so are its lock and the marks of units at which a processor is at work: another one that wants one of these units
//! waits until that is done, because a unit that is accepted twice ends the guest. A unit's bit goes only when it was accepted. Whoever accepts up to the end
//! of a unit accepts the next one too: loads of whole words may reach into it.
//!
//! Simplified: the marks are a bitmap, which in Linux is a list of ranges.

use super::cpu::{Ends, Insn, Place};
use super::ghcb::{CcVendor, Kernel};
use crate::kvm::sev::protocol::msr::PageOp;
use sim_kernel::{PAGE_SIZE, PMD_SIZE};
use sim_mmu::Gpa;
use std::ops::Range;

/// The table of unaccepted memory (`struct efi_unaccepted_memory`), as far as it never changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unaccepted {
    /// What the first bit stands for.
    pub phys_base: Gpa,
    /// Bytes of a unit.
    pub unit_size: u64,
    /// Units.
    pub units: u64,
    /// Accepted memory of the kernel: the lock, the bitmap, the marks.
    pub data: Gpa,
}

impl Unaccepted {
    /// The usual unit.
    pub const UNIT: u64 = PMD_SIZE;

    fn lock(&self) -> Gpa {
        self.data
    }

    fn words(&self) -> u64 {
        self.units.div_ceil(64)
    }

    /// The word with the bit of a unit in it: set as long as the unit is not accepted.
    pub fn bitmap_word(&self, unit: u64) -> Gpa {
        self.data + 8 * (1 + unit / 64)
    }

    fn mark_word(&self, unit: u64) -> Gpa {
        self.data + 8 * (1 + self.words() + unit / 64)
    }

    /// Bytes at `data`.
    pub fn data_bytes(&self) -> u64 {
        8 * (1 + 2 * self.words())
    }

    /// The units of a range that there are bits for, with the guard unit.
    fn units_of(&self, range: &Range<Gpa>) -> Range<u64> {
        let end = range.end.0.next_multiple_of(PAGE_SIZE);
        let start = (range.start.0 & !(PAGE_SIZE - 1)).max(self.phys_base.0);
        if end < self.phys_base.0 {
            return 0..0;
        }
        let (start, mut end) = (start - self.phys_base.0, end - self.phys_base.0);
        if end.is_multiple_of(self.unit_size) {
            end += self.unit_size;
        }
        start / self.unit_size..end.div_ceil(self.unit_size).min(self.units)
    }

    fn range_of(&self, units: &Range<u64>) -> Range<Gpa> {
        self.phys_base + units.start * self.unit_size..self.phys_base + units.end * self.unit_size
    }
}

const fn bit(unit: u64) -> u64 {
    1 << (unit % 64)
}

impl Kernel {
    /// The firmware's part: all units from `from` on are unaccepted.
    ///
    /// # Errors
    /// As [`Cpu::run`](super::Cpu::run).
    pub async fn init_unaccepted(&self, table: &Unaccepted, from: u64) -> Ends<()> {
        let mut words = vec![0; (table.data_bytes() / 8) as usize];
        for unit in from..table.units {
            words[(1 + unit / 64) as usize] |= bit(unit);
        }
        for (i, page) in words.chunks((PAGE_SIZE / 8) as usize).enumerate() {
            self.cpu.run(Insn::Copy(Place::private(table.data + i as u64 * PAGE_SIZE), page.to_vec())).await?;
        }
        Ok(())
    }

    /// `accept_memory`.
    ///
    /// # Errors
    /// The guest ends if a page cannot be accepted.
    pub async fn accept_memory(&self, range: Range<Gpa>) -> Ends<()> {
        let Some(table) = self.unaccepted else { return Ok(()) };
        let units = table.units_of(&range);
        if units.is_empty() {
            return Ok(());
        }
        loop {
            self.cpu.spin_lock(table.lock()).await?;
            let Some((word, value)) = self.marked(&table, &units).await? else { break };
            self.cpu.spin_unlock(table.lock()).await?;
            self.cpu.run(Insn::SpinWhile { gpa: word, value }).await?;
        }
        self.mark(&table, &units, true).await?;
        let mut at = units.start;
        while let Some(run) = self.unaccepted_run(&table, at..units.end).await? {
            self.cpu.spin_unlock(table.lock()).await?;
            self.arch_accept_memory(table.range_of(&run)).await?;
            self.cpu.spin_lock(table.lock()).await?;
            for unit in run.clone() {
                self.change(table.bitmap_word(unit), |word| word & !bit(unit)).await?;
            }
            at = run.end;
        }
        self.mark(&table, &units, false).await?;
        self.cpu.spin_unlock(table.lock()).await
    }

    /// `arch_accept_memory`.
    ///
    /// # Errors
    /// The guest ends if a page cannot be accepted.
    pub async fn arch_accept_memory(&self, range: Range<Gpa>) -> Ends<()> {
        match self.cc_vendor {
            CcVendor::Amd => self.set_pages_state(range, PageOp::Private).await,
            CcVendor::Intel => self.tdx_arch_accept_memory(range).await,
        }
    }

    /// `range_contains_unaccepted_memory`.
    ///
    /// # Errors
    /// As [`Cpu::run`](super::Cpu::run).
    pub async fn contains_unaccepted_memory(&self, range: Range<Gpa>) -> Ends<bool> {
        let Some(table) = self.unaccepted else { return Ok(false) };
        self.cpu.spin_lock(table.lock()).await?;
        let run = self.unaccepted_run(&table, table.units_of(&range)).await?;
        self.cpu.spin_unlock(table.lock()).await?;
        Ok(run.is_some())
    }

    /// A word of marks in which somebody else's unit is, if there is one.
    async fn marked(&self, table: &Unaccepted, units: &Range<u64>) -> Ends<Option<(Gpa, u64)>> {
        for unit in units.clone() {
            let word = table.mark_word(unit);
            let value = self.cpu.read(Place::private(word)).await?;
            if value & bit(unit) != 0 {
                return Ok(Some((word, value)));
            }
        }
        Ok(None)
    }

    async fn mark(&self, table: &Unaccepted, units: &Range<u64>, on: bool) -> Ends<()> {
        for unit in units.clone() {
            let change = |word: u64| if on { word | bit(unit) } else { word & !bit(unit) };
            let gpa = table.mark_word(unit);
            let word = self.cpu.read(Place::private(gpa)).await?;
            self.cpu.run(Insn::Release(gpa, change(word))).await?;
        }
        Ok(())
    }

    /// The first run of units that are not accepted.
    async fn unaccepted_run(&self, table: &Unaccepted, units: Range<u64>) -> Ends<Option<Range<u64>>> {
        let mut start = None;
        for unit in units.clone() {
            let is_set = self.cpu.read(Place::private(table.bitmap_word(unit))).await? & bit(unit) != 0;
            match (start, is_set) {
                (None, true) => start = Some(unit),
                (Some(start), false) => return Ok(Some(start..unit)),
                _ => {}
            }
        }
        Ok(start.map(|start| start..units.end))
    }

    async fn change(&self, gpa: Gpa, change: impl FnOnce(u64) -> u64) -> Ends<()> {
        let word = self.cpu.read(Place::private(gpa)).await?;
        self.cpu.write(Place::private(gpa), change(word)).await
    }
}
