//! A TD as the module keeps it: what is in its TDR and its TDCS.

use super::lock::Lock;
use super::measurement::Measurement;
use super::params::TdParams;
use super::types::{Gpaw, Hkid};
use sim_kernel::Pfn;
use sim_mmu::Level;

/// Which page of TDCS is the root of the Secure EPT.
pub(super) const SEPT_ROOT: usize = 3;
/// Which page of TDCS holds MSR bitmaps, and begins as all ones.
pub(super) const MSR_BITMAPS: usize = 2;

/// How far a TD is between its creation and the release of its key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Lifecycle {
    /// TD_HKID_ASSIGNED.
    HkidAssigned = 0,
    /// TD_KEYS_CONFIGURED: it can be used.
    KeysConfigured = 1,
    /// TD_BLOCKED: no vCPU can run any more.
    Blocked = 2,
    /// TD_TEARDOWN: its pages can be reclaimed.
    Teardown = 3,
}

/// What may be done with a TD whose keys are configured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "each is the state that its name says")]
#[repr(u8)]
pub enum OpState {
    Uninitialized = 0,
    Initialized = 1,
    Runnable = 2,
    LiveExport = 3,
    PausedExport = 4,
    PostExport = 5,
    MemoryImport = 6,
    StateImport = 7,
    PostImport = 8,
    LiveImport = 9,
    FailedImport = 10,
}

impl OpState {
    /// All of them.
    pub const ALL: [OpState; 11] = [
        OpState::Uninitialized,
        OpState::Initialized,
        OpState::Runnable,
        OpState::LiveExport,
        OpState::PausedExport,
        OpState::PostExport,
        OpState::MemoryImport,
        OpState::StateImport,
        OpState::PostImport,
        OpState::LiveImport,
        OpState::FailedImport,
    ];

    /// Whether vCPUs may run, so that TLBs have to be tracked.
    pub const fn tracks(self) -> bool {
        matches!(self, OpState::Runnable | OpState::LiveExport | OpState::LiveImport)
    }

    /// Whether a removed page leaves REMOVED instead of FREE.
    pub const fn is_import(self) -> bool {
        matches!(
            self,
            OpState::MemoryImport
                | OpState::StateImport
                | OpState::PostImport
                | OpState::LiveImport
                | OpState::FailedImport
        )
    }
}

bitflags::bitflags! {
    /// ATTRIBUTES of a TD, those that have a meaning here.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct TdAttributes: u64 {
        /// The host may read and write its memory.
        const DEBUG = 1 << 0;
        /// An access to a page that was not accepted exits instead of raising `#VE`.
        const SEPT_VE_DISABLE = 1 << 28;
        /// It may be migrated.
        const MIGRATABLE = 1 << 29;
        /// Supervisor protection keys.
        const PKS = 1 << 30;
        /// Key locker.
        const KL = 1 << 31;
        /// Performance counters.
        const PERFMON = 1 << 63;
        const _ = !0;
    }
}

/// The epochs of a TD's TLBs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Epoch {
    /// TD_EPOCH.
    pub epoch: u64,
    /// vCPUs in the TD that entered in an even epoch, and in an odd one.
    pub refcount: [u32; 2],
}

impl Epoch {
    fn parity(epoch: u64) -> usize {
        (epoch & 1) as usize
    }

    /// A vCPU is about to enter: the epoch in which it does.
    pub(super) fn enter(&mut self) -> u64 {
        self.refcount[Self::parity(self.epoch)] += 1;
        self.epoch
    }

    /// A vCPU that entered in that epoch has left.
    pub(super) fn leave(&mut self, entered: u64) {
        let count = &mut self.refcount[Self::parity(entered)];
        *count = count.checked_sub(1).expect("TDX-INV-009: more vCPUs left an epoch than entered in it");
    }

    /// TRACK: the next epoch, unless a vCPU of the epoch before this one is still inside.
    pub(super) fn advance(&mut self, waits: bool) -> Result<(), ()> {
        if waits && self.refcount[Self::parity(self.epoch + 1)] != 0 {
            return Err(());
        }
        self.epoch += 1;
        Ok(())
    }

    /// Whether no vCPU can use a translation any more that was blocked in `bepoch`.
    pub fn is_tracked(&self, bepoch: u64) -> bool {
        // Bit 63 says that the page is being migrated.
        if bepoch >> 63 != 0 {
            return false;
        }
        if bepoch + 1 == self.epoch {
            return self.refcount[Self::parity(bepoch)] == 0;
        }
        bepoch + 1 < self.epoch
    }
}

/// A TD.
#[derive(Debug)]
pub(super) struct Td {
    pub(super) hkid: Hkid,
    pub(super) lifecycle: Lifecycle,
    pub(super) fatal: bool,
    /// Packages whose key is configured.
    pub(super) packages: u64,
    /// Pages of TDCS, by index.
    pub(super) tdcx: Vec<Pfn>,
    /// Pages of 4 KiB that it owns beside its TDR.
    pub(super) chldcnt: u64,
    pub(super) op_state: OpState,
    pub(super) op_state_lock: Lock,
    pub(super) tree_lock: Lock,
    pub(super) epoch_lock: Lock,
    pub(super) rtmr_lock: Lock,
    pub(super) epoch: Epoch,
    pub(super) num_vcpus: u32,
    pub(super) num_assoc: u32,
    pub(super) params: TdParams,
    pub(super) measurement: Measurement,
    /// The same of the leaves that were carried out, whether or not they were measured: for TDX-INV-013.
    pub(super) carried_out: Measurement,
    /// NOTIFY_ENABLES bit 0: the guest wants to hear of zero-stepping.
    pub(super) notify_zero_step: bool,
}

impl Td {
    pub(super) fn new(hkid: Hkid) -> Td {
        Td {
            hkid,
            lifecycle: Lifecycle::HkidAssigned,
            fatal: false,
            packages: 0,
            tdcx: Vec::new(),
            chldcnt: 0,
            op_state: OpState::Uninitialized,
            op_state_lock: Lock::default(),
            tree_lock: Lock::default(),
            epoch_lock: Lock::default(),
            rtmr_lock: Lock::default(),
            epoch: Epoch::default(),
            num_vcpus: 0,
            num_assoc: 0,
            params: TdParams::default(),
            measurement: Measurement::new(),
            carried_out: Measurement::new(),
            notify_zero_step: false,
        }
    }

    /// Only forward (TDX-INV-012).
    pub(super) fn set_lifecycle(&mut self, to: Lifecycle) {
        assert!(to > self.lifecycle, "TDX-INV-012: lifecycle from {:?} to {to:?}", self.lifecycle);
        self.lifecycle = to;
    }

    pub(super) fn gpaw(&self) -> Gpaw {
        self.params.gpaw()
    }

    /// The level of the root's entries.
    pub(super) fn root_level(&self) -> Level {
        self.params.root_level()
    }

    pub(super) fn attributes(&self) -> TdAttributes {
        TdAttributes::from_bits_retain(self.params.attributes)
    }
}

/// What the module knows of a TD: for checkers, and for what a VMM can read of it anyhow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TdInfo {
    /// Its HKID, also after that was freed.
    pub hkid: Hkid,
    /// How far it is.
    pub lifecycle: Lifecycle,
    /// Whether it consumed poison.
    pub fatal: bool,
    /// What may be done with it.
    pub op_state: OpState,
    /// Pages that it owns.
    pub chldcnt: u64,
    /// Epochs.
    pub epoch: Epoch,
    /// vCPUs that were initialised.
    pub num_vcpus: u32,
    /// vCPUs that are associated with a processor.
    pub num_assoc_vcpus: u32,
    /// MRTD, once it is final.
    pub mrtd: Option<[u8; 48]>,
    /// The run-time measurement registers.
    pub rtmr: [[u8; 48]; 4],
    /// Where the shared bit is.
    pub gpaw: Gpaw,
}

impl Td {
    pub(super) fn info(&self) -> TdInfo {
        TdInfo {
            hkid: self.hkid,
            lifecycle: self.lifecycle,
            fatal: self.fatal,
            op_state: self.op_state,
            chldcnt: self.chldcnt,
            epoch: self.epoch,
            num_vcpus: self.num_vcpus,
            num_assoc_vcpus: self.num_assoc,
            mrtd: self.measurement.mrtd(),
            rtmr: *self.measurement.rtmr(),
            gpaw: self.gpaw(),
        }
    }
}
