//! KeyIDs: which are in use by a TD (the KeyID ownership table, KOT), and which packages may still have lines of one in their caches.

use super::config::TdxConfig;
use super::lock::Lock;
use super::types::Hkid;
use std::collections::BTreeMap;

/// State of an HKID. Free ones have no entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HkidState {
    /// The global one.
    Reserved,
    /// A TD has it.
    Assigned,
    /// No vCPU of the TD runs any more; these packages have not written back their caches since.
    Flushed {
        /// A bit for each.
        packages: u64,
    },
}

/// The table.
#[derive(Debug)]
pub(super) struct Kot {
    pub(super) lock: Lock,
    pub(super) entries: BTreeMap<Hkid, HkidState>,
    /// Packages that have not written back since the HKID's last TD was flushed, whatever became of the HKID: for TDX-INV-012.
    pub(super) unwritten: BTreeMap<Hkid, u64>,
}

impl Kot {
    pub(super) fn new(config: &TdxConfig) -> Kot {
        let entries = BTreeMap::from([(config.global_hkid(), HkidState::Reserved)]);
        Kot { lock: Lock::default(), entries, unwritten: BTreeMap::new() }
    }

    /// HKIDs whose lines this package may still have.
    pub(super) fn to_write_back(&self, package: u32) -> Vec<Hkid> {
        let waits =
            |state: &HkidState| matches!(state, HkidState::Flushed { packages } if packages >> package & 1 != 0);
        self.entries.iter().filter(|(_, state)| waits(state)).map(|(hkid, _)| *hkid).collect()
    }

    /// The package has written back.
    pub(super) fn written_back(&mut self, package: u32, hkids: &[Hkid]) {
        for hkid in hkids {
            if let Some(HkidState::Flushed { packages }) = self.entries.get_mut(hkid) {
                *packages &= !(1 << package);
            }
        }
    }
}

/// The write-back of a package's caches.
#[derive(Debug, Default)]
pub(super) struct Wbcache {
    pub(super) lock: Lock,
    /// HKIDs of a write-back that was interrupted.
    pub(super) interrupted: Option<Vec<Hkid>>,
}

impl super::Tdx {
    /// State of an HKID; `None` if it is free.
    pub fn peek_hkid(&self, hkid: Hkid) -> Option<HkidState> {
        self.state.lock().kot.entries.get(&hkid).copied()
    }
}
