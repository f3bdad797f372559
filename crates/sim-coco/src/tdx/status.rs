//! Completion status of SEAMCALL and TDCALL leaves: what RAX holds, in parts and as a number.

use super::sept::{EntryDetails, SeptState};
use std::fmt;

macro_rules! status_names {
    ($($(#[$meta:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Class and name of a status: bits 63:32 of RAX.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[allow(missing_docs, reason = "each is named as Intel names it")]
        pub enum StatusName {
            $($(#[$meta])* $name,)*
        }

        impl StatusName {
            /// All of them.
            pub const ALL: &'static [StatusName] = &[$(StatusName::$name,)*];

            /// The number, with details 0.
            pub const fn code(self) -> u64 {
                match self {
                    $(StatusName::$name => ($code as u64) << 32,)*
                }
            }

            /// The name without `TDX_`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(StatusName::$name => $text,)*
                }
            }
        }
    };
}

status_names! {
    Success = 0x0000_0000, "SUCCESS";
    NonRecoverableVcpu = 0x4000_0001, "NON_RECOVERABLE_VCPU";
    NonRecoverableTd = 0x6000_0002, "NON_RECOVERABLE_TD";
    InterruptedResumable = 0x8000_0003, "INTERRUPTED_RESUMABLE";
    InterruptedRestartable = 0x8000_0004, "INTERRUPTED_RESTARTABLE";
    NonRecoverableTdNonAccessible = 0x6000_0005, "NON_RECOVERABLE_TD_NON_ACCESSIBLE";
    OperandInvalid = 0xc000_0100, "OPERAND_INVALID";
    OperandAddrRangeError = 0xc000_0101, "OPERAND_ADDR_RANGE_ERROR";
    OperandBusy = 0x8000_0200, "OPERAND_BUSY";
    PreviousTlbEpochBusy = 0x8000_0201, "PREVIOUS_TLB_EPOCH_BUSY";
    SysBusy = 0x8000_0202, "SYS_BUSY";
    RndNoEntropy = 0x8000_0203, "RND_NO_ENTROPY";
    OperandBusyHostPriority = 0x8000_0204, "OPERAND_BUSY_HOST_PRIORITY";
    HostPriorityBusyTimeout = 0x9000_0205, "HOST_PRIORITY_BUSY_TIMEOUT";
    PageMetadataIncorrect = 0xc000_0300, "PAGE_METADATA_INCORRECT";
    PageNotFree = 0xc000_0303, "PAGE_NOT_FREE";
    HpaRangeNotFree = 0xc000_0304, "HPA_RANGE_NOT_FREE";
    NoPamtPagePair = 0xc000_0305, "NO_PAMT_PAGE_PAIR";
    PamtPageNotEmpty = 0xc000_0306, "PAMT_PAGE_NOT_EMPTY";
    MissingPamtPagePair = 0x8000_0308, "MISSING_PAMT_PAGE_PAIR";
    TdAssociatedPagesExist = 0xc000_0400, "TD_ASSOCIATED_PAGES_EXIST";
    SysInitNotPending = 0xc000_0500, "SYS_INIT_NOT_PENDING";
    SysNotReady = 0xc000_0505, "SYS_NOT_READY";
    SysShutdown = 0xc000_0506, "SYS_SHUTDOWN";
    SysKeyConfigNotPending = 0xc000_0507, "SYS_KEY_CONFIG_NOT_PENDING";
    SysConfigNotPending = 0xc000_050c, "SYS_CONFIG_NOT_PENDING";
    TdFatal = 0xe000_0604, "TD_FATAL";
    TdNonDebug = 0xc000_0605, "TD_NON_DEBUG";
    TdcsNotAllocated = 0xc000_0606, "TDCS_NOT_ALLOCATED";
    LifecycleStateIncorrect = 0xc000_0607, "LIFECYCLE_STATE_INCORRECT";
    OpStateIncorrect = 0xc000_0608, "OP_STATE_INCORRECT";
    NoVcpus = 0xc000_0609, "NO_VCPUS";
    TdcxNumIncorrect = 0xc000_0610, "TDCX_NUM_INCORRECT";
    X2apicIdNotUnique = 0xc000_0621, "X2APIC_ID_NOT_UNIQUE";
    VcpuStateIncorrect = 0xc000_0700, "VCPU_STATE_INCORRECT";
    VcpuAssociated = 0x8000_0701, "VCPU_ASSOCIATED";
    VcpuNotAssociated = 0x8000_0702, "VCPU_NOT_ASSOCIATED";
    NoValidVeInfo = 0xc000_0704, "NO_VALID_VE_INFO";
    MaxVcpusExceeded = 0xc000_0705, "MAX_VCPUS_EXCEEDED";
    KeyGenerationFailed = 0x8000_0800, "KEY_GENERATION_FAILED";
    TdKeysNotConfigured = 0x8000_0810, "TD_KEYS_NOT_CONFIGURED";
    KeyConfigured = 0x0000_0815, "KEY_CONFIGURED";
    WbcacheNotComplete = 0x8000_0817, "WBCACHE_NOT_COMPLETE";
    HkidNotFree = 0xc000_0820, "HKID_NOT_FREE";
    NoHkidReadyToWbcache = 0x0000_0821, "NO_HKID_READY_TO_WBCACHE";
    WbcacheResumeError = 0xc000_0823, "WBCACHE_RESUME_ERROR";
    FlushvpNotDone = 0x8000_0824, "FLUSHVP_NOT_DONE";
    TdmrAlreadyInitialized = 0x0000_0a03, "TDMR_ALREADY_INITIALIZED";
    EptWalkFailed = 0xc000_0b00, "EPT_WALK_FAILED";
    EptEntryNotPresent = 0xc000_0b03, "EPT_ENTRY_NOT_PRESENT";
    GpaRangeNotBlocked = 0xc000_0b06, "GPA_RANGE_NOT_BLOCKED";
    GpaRangeAlreadyBlocked = 0x0000_0b07, "GPA_RANGE_ALREADY_BLOCKED";
    TlbTrackingNotDone = 0xc000_0b08, "TLB_TRACKING_NOT_DONE";
    EptInvalidPromoteConditions = 0xc000_0b09, "EPT_INVALID_PROMOTE_CONDITIONS";
    PageAlreadyAccepted = 0x0000_0b0a, "PAGE_ALREADY_ACCEPTED";
    PageSizeMismatch = 0xc000_0b0b, "PAGE_SIZE_MISMATCH";
    EptEntryStateIncorrect = 0xc000_0b0d, "EPT_ENTRY_STATE_INCORRECT";
    EptPageNotFree = 0xc000_0b0e, "EPT_PAGE_NOT_FREE";
}

/// What a status is about: bits 31:0 of RAX where they name an operand.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperandId(pub u32);

#[allow(missing_docs, reason = "each is the operand that its name says")]
impl OperandId {
    pub const RAX: OperandId = OperandId(0);
    pub const RCX: OperandId = OperandId(1);
    pub const RDX: OperandId = OperandId(2);
    pub const R8: OperandId = OperandId(8);
    pub const R9: OperandId = OperandId(9);
    pub const R10: OperandId = OperandId(10);
    pub const ATTRIBUTES: OperandId = OperandId(64);
    pub const XFAM: OperandId = OperandId(65);
    pub const EXEC_CONTROLS: OperandId = OperandId(66);
    pub const EPTP_CONTROLS: OperandId = OperandId(67);
    pub const MAX_VCPUS: OperandId = OperandId(68);
    pub const TSC_FREQUENCY: OperandId = OperandId(70);
    pub const NUM_L2_VMS: OperandId = OperandId(71);
    pub const TDR: OperandId = OperandId(128);
    pub const SEPT_TREE: OperandId = OperandId(146);
    pub const RTMR: OperandId = OperandId(168);
    pub const TD_EPOCH: OperandId = OperandId(169);
    pub const OP_STATE: OperandId = OperandId(172);
    pub const KOT: OperandId = OperandId(186);
    pub const KET: OperandId = OperandId(187);
    pub const WBCACHE: OperandId = OperandId(188);
}

impl fmt::Debug for OperandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operand {}", self.0)
    }
}

/// A completion status: what RAX holds when a leaf returns.
///
/// ```
/// use sim_coco::tdx::{OperandId, Status, StatusName};
/// let status = Status::of(StatusName::OperandBusy, OperandId::SEPT_TREE);
/// assert_eq!(status.raw(), 0x8000_0200_0000_0092);
/// assert!(status.is_error());
/// assert_eq!(Status::from_raw(status.raw()), Some(status));
/// assert!(!Status::from(StatusName::GpaRangeAlreadyBlocked).is_error());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status {
    /// Class and name.
    pub name: StatusName,
    /// Bits 31:0: an operand, a level, or an exit reason; 0 where there is nothing to say.
    pub details: u32,
}

impl Status {
    /// About an operand.
    pub const fn of(name: StatusName, operand: OperandId) -> Status {
        Status { name, details: operand.0 }
    }

    /// The status that RAX holds, if there is such a name.
    pub fn from_raw(rax: u64) -> Option<Status> {
        let details = rax as u32;
        let name = *StatusName::ALL.iter().find(|name| name.code() == rax - u64::from(details))?;
        Some(Status { name, details })
    }

    /// What RAX holds.
    pub const fn raw(self) -> u64 {
        self.name.code() | self.details as u64
    }

    /// Bit 63: whether it is an error. Others that are not success inform.
    pub const fn is_error(self) -> bool {
        self.name.code() >> 63 != 0
    }

    /// Bits 47:40.
    pub const fn class(self) -> u8 {
        (self.name.code() >> 40) as u8
    }
}

impl From<StatusName> for Status {
    fn from(name: StatusName) -> Status {
        Status { name, details: 0 }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{}", self.name.name(), self.details)
    }
}

/// A SEAMCALL that did not succeed: the status, and the registers with details.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{status:?}")]
pub struct SeamFail {
    /// RAX.
    pub status: Status,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// R8, which only PHYMEM.PAGE.RECLAIM fills.
    pub r8: u64,
}

impl SeamFail {
    /// Without details.
    pub const fn new(name: StatusName, operand: OperandId) -> SeamFail {
        SeamFail { status: Status::of(name, operand), rcx: 0, rdx: 0, r8: 0 }
    }

    /// Without an operand, and without details.
    pub const fn bare(name: StatusName) -> SeamFail {
        SeamFail { status: Status { name, details: 0 }, rcx: 0, rdx: 0, r8: 0 }
    }

    /// About RCX, with what stands in an entry of the Secure EPT.
    pub const fn entry(name: StatusName, details: EntryDetails) -> SeamFail {
        SeamFail { status: Status::of(name, OperandId::RCX), rcx: details.rcx, rdx: details.rdx, r8: 0 }
    }

    /// The name of the status.
    pub const fn name(&self) -> StatusName {
        self.status.name
    }

    /// Whether it is OPERAND_BUSY, whatever the operand: to be tried again. PREVIOUS_TLB_EPOCH_BUSY is another.
    pub fn is_operand_busy(&self) -> bool {
        self.name() == StatusName::OperandBusy
    }

    /// The state in RDX, where that has entry details.
    pub fn entry_state(&self) -> Option<SeptState> {
        SeptState::from_public((self.rdx >> 8) as u8)
    }
}

impl From<StatusName> for SeamFail {
    fn from(name: StatusName) -> SeamFail {
        SeamFail::bare(name)
    }
}

/// What a SEAMCALL answers.
pub type Seamcall<T> = Result<T, SeamFail>;
