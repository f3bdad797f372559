//! Intel's page-modification log (SDM vol. 3, 30.3.6): the processor's half, and how KVM empties it (`vmx_flush_pml_buffer`).

use super::format::Problem;
use crate::addr::Gpa;
use sim_kernel::Cx;
use sim_kernel::sched::{Access, ObjId};

/// Entries of the log (`PML_LOG_NR_ENTRIES`).
pub const PML_ENTRIES: u16 = 512;

/// The log of one vCPU: a page of addresses, filled from the last entry to the first.
///
/// The page is part of this structure instead of a frame: only the vCPU's own task reads it, on every exit.
#[derive(Debug)]
pub struct Pml {
    object: ObjId,
    /// The next entry to fill. 0xffff after the first one was: the log is full.
    index: u16,
    entries: Vec<Gpa>,
}

impl Default for Pml {
    fn default() -> Pml {
        Pml { object: ObjId::NONE, index: PML_ENTRIES - 1, entries: Vec::new() }
    }
}

impl Pml {
    /// An empty log.
    pub fn new(cx: &Cx<'_>) -> Pml {
        Pml { object: cx.new_object("pml"), ..Pml::default() }
    }

    /// Whether nothing was recorded since the log was emptied.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The PML index of the VMCS.
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Records a page, rounded down to 4 KiB whatever the leaf's size.
    ///
    /// # Errors
    /// [`Problem::LogFull`] if there is no room: an exit before the access.
    pub(super) fn record(&mut self, cx: &Cx<'_>, gpa: Gpa) -> Result<(), Problem> {
        if self.index >= PML_ENTRIES {
            return Err(Problem::LogFull);
        }
        cx.point(Access::Store, self.object, u64::from(self.index));
        self.entries.push(gpa.gfn().gpa());
        self.index = self.index.wrapping_sub(1);
        Ok(())
    }

    /// Takes the last record back.
    pub(super) fn unrecord(&mut self) {
        self.entries.pop().expect("a record was just made");
        self.index = self.index.wrapping_add(1);
    }

    /// Empties the log, in the order of writing, and resets the index.
    pub fn drain(&mut self, cx: &Cx<'_>) -> impl Iterator<Item = Gpa> + '_ {
        cx.point_range(Access::Store, self.object, 0, u64::from(PML_ENTRIES));
        self.index = PML_ENTRIES - 1;
        self.entries.drain(..)
    }
}
