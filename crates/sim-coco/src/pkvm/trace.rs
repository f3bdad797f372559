//! What the hypervisor did, in order, for a checker of Arm's stage-2 discipline: descriptors written, TLB maintenance and barriers, tables that begin and
//! end, locks, changes of ownership. One JSON object a line; docs/pkvm.md has the format.
//!
//! Nothing here is a mechanism of the hypervisor. Recording is off unless [`PkvmConfig::trace`](super::PkvmConfig::trace) asks for it.

use super::pte::{Pte, S2Level};
use super::types::{CpuId, Pa, PageState, Vmid};
use sim_kernel::Pfn;
use std::fmt;

/// TLB maintenance by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tlbi {
    /// `TLBI IPAS2E1IS` and `TLBI VMALLE1IS`: the translation of an address, and the walk to it, on all processors.
    Ipa {
        /// The address.
        ipa: Pa,
        /// Level of the leaf that translates it: the hint (TTL), with which nothing else goes. Without it, whatever translates the address.
        level: Option<S2Level>,
    },
    /// The same on this processor only (`IPAS2E1`, non-shareable).
    IpaLocal {
        /// The address.
        ipa: Pa,
        /// As in [`Tlbi::Ipa`].
        level: Option<S2Level>,
    },
    /// `TLBI RIPAS2E1IS` and `TLBI VMALLE1IS`: translations of a range, on all processors.
    Range {
        /// First address.
        ipa: Pa,
        /// Pages.
        pages: u64,
    },
    /// `TLBI VMALLS12E1IS`: everything of the VMID, on all processors.
    Vmid,
    /// `TLBI VMALLS12E1`, non-shareable: everything of the VMID on this processor.
    VmidLocal,
}

/// One thing that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TraceEvent {
    /// A call of the host or a guest begins, or another reason to be at EL2.
    Enter {
        /// Its name.
        call: &'static str,
    },
    /// It ends.
    Exit {
        /// Its name.
        call: &'static str,
        /// 0, or a value, or a negative error number.
        ret: i64,
    },
    /// A lock was taken.
    Lock {
        /// Class: `vm_table`, `host`, `hyp`, `vm`.
        class: &'static str,
        /// Which VM's, of `vm`.
        vmid: Option<Vmid>,
    },
    /// A lock is released.
    Unlock {
        /// As in [`TraceEvent::Lock`].
        class: &'static str,
        /// Which VM's.
        vmid: Option<Vmid>,
    },
    /// Translation of a VMID starts at these frames, which are zero.
    Root {
        /// Whose.
        vmid: Vmid,
        /// First frame.
        pfn: Pfn,
        /// Frames, concatenated.
        pages: u64,
        /// Level of the root.
        level: S2Level,
    },
    /// No translation of the VMID will start again.
    RootGone {
        /// Whose.
        vmid: Vmid,
    },
    /// A zeroed frame is about to be linked as a table.
    Table {
        /// In whose tree.
        vmid: Vmid,
        /// The frame.
        pfn: Pfn,
        /// Its level.
        level: S2Level,
    },
    /// A frame is no table any more.
    TableGone {
        /// In whose tree it was.
        vmid: Vmid,
        /// The frame.
        pfn: Pfn,
    },
    /// A descriptor was written.
    Pte {
        /// In whose tree.
        vmid: Vmid,
        /// Where it lies.
        at: Pa,
        /// Its level.
        level: S2Level,
        /// First address that it translates.
        ipa: Pa,
        /// What was there.
        old: Pte,
        /// What is there now.
        new: Pte,
    },
    /// TLB maintenance was issued.
    Tlbi {
        /// Whose translations.
        vmid: Vmid,
        /// Which.
        op: Tlbi,
    },
    /// `DSB`: what this processor wrote is seen by walks, and its maintenance is complete, and so are accesses by the old translations.
    Dsb,
    /// State of a page in the hypervisor's array.
    State {
        /// `host` or `hyp`.
        component: &'static str,
        /// The page.
        pfn: Pfn,
        /// Before.
        from: PageState,
        /// Now.
        to: PageState,
    },
    /// A page was mapped at EL2, or unmapped.
    El2Map {
        /// The page.
        pfn: Pfn,
        /// Whether it is mapped now.
        mapped: bool,
    },
    /// A page was cleared, and cleaned to the point of coherency.
    Zero {
        /// The page.
        pfn: Pfn,
    },
}

/// An event, and where it happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceRecord {
    /// The processor.
    pub cpu: CpuId,
    /// What.
    pub event: TraceEvent,
}

/// One JSON object, without a newline.
impl fmt::Display for TraceRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{\"cpu\":{}", self.cpu.0)?;
        let lock = |f: &mut fmt::Formatter<'_>, event, class: &str, vmid: Option<Vmid>| {
            write!(f, ",\"event\":\"{event}\",\"lock\":\"{class}\"")?;
            vmid.map_or(Ok(()), |vmid| write!(f, ",\"vmid\":{}", vmid.0))
        };
        match self.event {
            TraceEvent::Enter { call } => write!(f, ",\"event\":\"enter\",\"call\":\"{call}\"")?,
            TraceEvent::Exit { call, ret } => write!(f, ",\"event\":\"exit\",\"call\":\"{call}\",\"ret\":{ret}")?,
            TraceEvent::Lock { class, vmid } => lock(f, "lock", class, vmid)?,
            TraceEvent::Unlock { class, vmid } => lock(f, "unlock", class, vmid)?,
            TraceEvent::Root { vmid, pfn, pages, level } => write!(
                f,
                ",\"event\":\"root\",\"vmid\":{},\"page\":\"{}\",\"pages\":{pages},\"level\":{}",
                vmid.0,
                Pa::of(pfn),
                level.0
            )?,
            TraceEvent::RootGone { vmid } => write!(f, ",\"event\":\"root-gone\",\"vmid\":{}", vmid.0)?,
            TraceEvent::Table { vmid, pfn, level } => write!(
                f,
                ",\"event\":\"table\",\"vmid\":{},\"page\":\"{}\",\"level\":{}",
                vmid.0,
                Pa::of(pfn),
                level.0
            )?,
            TraceEvent::TableGone { vmid, pfn } => {
                write!(f, ",\"event\":\"table-gone\",\"vmid\":{},\"page\":\"{}\"", vmid.0, Pa::of(pfn))?;
            }
            TraceEvent::Pte { vmid, at, level, ipa, old, new } => write!(
                f,
                ",\"event\":\"pte\",\"vmid\":{},\"at\":\"{at}\",\"level\":{},\"ipa\":\"{ipa}\",\"old\":\"{:#x}\",\"new\":\"{:#x}\"",
                vmid.0, level.0, old.0, new.0
            )?,
            TraceEvent::Tlbi { vmid, op } => {
                let name = match op {
                    Tlbi::Ipa { .. } => "ipas2e1is",
                    Tlbi::IpaLocal { .. } => "ipas2e1",
                    Tlbi::Range { .. } => "ripas2e1is",
                    Tlbi::Vmid => "vmalls12e1is",
                    Tlbi::VmidLocal => "vmalls12e1",
                };
                write!(f, ",\"event\":\"tlbi\",\"op\":\"{name}\",\"vmid\":{}", vmid.0)?;
                match op {
                    Tlbi::Ipa { ipa, level } | Tlbi::IpaLocal { ipa, level } => {
                        write!(f, ",\"ipa\":\"{ipa}\"")?;
                        level.map_or(Ok(()), |level| write!(f, ",\"level\":{}", level.0))?;
                    }
                    Tlbi::Range { ipa, pages } => write!(f, ",\"ipa\":\"{ipa}\",\"pages\":{pages}")?,
                    Tlbi::Vmid | Tlbi::VmidLocal => {}
                }
            }
            TraceEvent::Dsb => write!(f, ",\"event\":\"dsb\"")?,
            TraceEvent::State { component, pfn, from, to } => write!(
                f,
                ",\"event\":\"state\",\"component\":\"{component}\",\"page\":\"{}\",\"from\":\"{}\",\"to\":\"{}\"",
                Pa::of(pfn),
                from.name(),
                to.name()
            )?,
            TraceEvent::El2Map { pfn, mapped } => {
                write!(f, ",\"event\":\"el2-map\",\"page\":\"{}\",\"mapped\":{mapped}", Pa::of(pfn))?;
            }
            TraceEvent::Zero { pfn } => write!(f, ",\"event\":\"zero\",\"page\":\"{}\"", Pa::of(pfn))?,
        }
        f.write_str("}")
    }
}

/// Where records go.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    records: Option<parking_lot::Mutex<Vec<TraceRecord>>>,
}

impl Recorder {
    pub(super) fn new(on: bool) -> Recorder {
        Recorder { records: on.then(Default::default) }
    }

    #[inline]
    pub(super) fn record(&self, cpu: CpuId, event: TraceEvent) {
        if let Some(records) = &self.records {
            records.lock().push(TraceRecord { cpu, event });
        }
    }

    pub(super) fn records(&self) -> Vec<TraceRecord> {
        self.records.as_ref().map(|records| records.lock().clone()).unwrap_or_default()
    }
}

impl super::Pkvm {
    /// Everything recorded so far, in order; nothing without [`PkvmConfig::trace`](super::PkvmConfig::trace).
    pub fn trace(&self) -> Vec<TraceRecord> {
        self.recorder.records()
    }

    /// The same as JSON Lines.
    pub fn trace_jsonl(&self) -> String {
        self.trace().iter().map(|record| format!("{record}\n")).collect()
    }
}
