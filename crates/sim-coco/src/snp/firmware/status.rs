//! Commands by their numbers, the guest states that each accepts, and the numbers of what they answer.

use super::context::GuestState;

/// A command of the SNP firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
#[expect(missing_docs, reason = "AMD's names")]
#[non_exhaustive]
pub enum Command {
    Init = 0x81,
    Shutdown = 0x82,
    PlatformStatus = 0x83,
    DfFlush = 0x84,
    Decommission = 0x90,
    Activate = 0x91,
    GuestStatus = 0x92,
    GctxCreate = 0x93,
    GuestRequest = 0x94,
    LaunchStart = 0xa0,
    LaunchUpdate = 0xa1,
    LaunchFinish = 0xa2,
    DbgDecrypt = 0xb0,
    DbgEncrypt = 0xb1,
    PageMove = 0xc2,
    PageSetState = 0xc6,
    PageReclaim = 0xc7,
    PageUnsmash = 0xc8,
}

impl Command {
    /// Every command.
    pub const ALL: [Command; 18] = [
        Command::Init,
        Command::Shutdown,
        Command::PlatformStatus,
        Command::DfFlush,
        Command::Decommission,
        Command::Activate,
        Command::GuestStatus,
        Command::GctxCreate,
        Command::GuestRequest,
        Command::LaunchStart,
        Command::LaunchUpdate,
        Command::LaunchFinish,
        Command::DbgDecrypt,
        Command::DbgEncrypt,
        Command::PageMove,
        Command::PageSetState,
        Command::PageReclaim,
        Command::PageUnsmash,
    ];

    /// Its name in AMD's specification.
    pub const fn name(self) -> &'static str {
        match self {
            Command::Init => "SNP_INIT",
            Command::Shutdown => "SNP_SHUTDOWN",
            Command::PlatformStatus => "SNP_PLATFORM_STATUS",
            Command::DfFlush => "SNP_DF_FLUSH",
            Command::Decommission => "SNP_DECOMMISSION",
            Command::Activate => "SNP_ACTIVATE",
            Command::GuestStatus => "SNP_GUEST_STATUS",
            Command::GctxCreate => "SNP_GCTX_CREATE",
            Command::GuestRequest => "SNP_GUEST_REQUEST",
            Command::LaunchStart => "SNP_LAUNCH_START",
            Command::LaunchUpdate => "SNP_LAUNCH_UPDATE",
            Command::LaunchFinish => "SNP_LAUNCH_FINISH",
            Command::DbgDecrypt => "SNP_DBG_DECRYPT",
            Command::DbgEncrypt => "SNP_DBG_ENCRYPT",
            Command::PageMove => "SNP_PAGE_MOVE",
            Command::PageSetState => "SNP_PAGE_SET_STATE",
            Command::PageReclaim => "SNP_PAGE_RECLAIM",
            Command::PageUnsmash => "SNP_PAGE_UNSMASH",
        }
    }

    /// Whether the command is for a platform that is initialised; INIT is for one that is not.
    pub(super) const fn needs_init(self) -> bool {
        !matches!(self, Command::Init)
    }

    /// Whether the command, which names a guest, accepts one in this state. Commands that name none accept any.
    pub const fn accepts(self, state: GuestState) -> bool {
        use GuestState::{Init, Launch, Running};
        match self {
            Command::LaunchStart => matches!(state, Init),
            Command::LaunchUpdate | Command::LaunchFinish => matches!(state, Launch),
            Command::Activate | Command::PageMove | Command::DbgDecrypt | Command::DbgEncrypt => {
                matches!(state, Launch | Running)
            }
            Command::GuestRequest => matches!(state, Running),
            _ => true,
        }
    }
}

/// What a command answers instead of success.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u32)]
#[non_exhaustive]
#[expect(missing_docs, reason = "AMD's names")]
pub enum FwStatus {
    #[error("INVALID_PLATFORM_STATE")]
    InvalidPlatformState = 0x01,
    #[error("INVALID_GUEST_STATE")]
    InvalidGuestState = 0x02,
    #[error("INVALID_CONFIG")]
    InvalidConfig = 0x03,
    #[error("INVALID_LEN")]
    InvalidLen = 0x04,
    #[error("POLICY_FAILURE")]
    PolicyFailure = 0x07,
    #[error("INACTIVE")]
    Inactive = 0x08,
    #[error("INVALID_ADDRESS")]
    InvalidAddress = 0x09,
    #[error("BAD_SIGNATURE")]
    BadSignature = 0x0a,
    #[error("BAD_MEASUREMENT")]
    BadMeasurement = 0x0b,
    #[error("ASID_OWNED")]
    AsidOwned = 0x0c,
    #[error("INVALID_ASID")]
    InvalidAsid = 0x0d,
    #[error("WBINVD_REQUIRED")]
    WbinvdRequired = 0x0e,
    #[error("DFFLUSH_REQUIRED")]
    DfflushRequired = 0x0f,
    #[error("INVALID_GUEST")]
    InvalidGuest = 0x10,
    #[error("INVALID_COMMAND")]
    InvalidCommand = 0x11,
    #[error("ACTIVE")]
    Active = 0x12,
    #[error("UNSUPPORTED")]
    Unsupported = 0x15,
    #[error("INVALID_PARAM")]
    InvalidParam = 0x16,
    #[error("RESOURCE_LIMIT")]
    ResourceLimit = 0x17,
    #[error("INVALID_PAGE_SIZE")]
    InvalidPageSize = 0x19,
    #[error("INVALID_PAGE_STATE")]
    InvalidPageState = 0x1a,
    #[error("INVALID_MDATA_ENTRY")]
    InvalidMdataEntry = 0x1b,
    #[error("INVALID_PAGE_OWNER")]
    InvalidPageOwner = 0x1c,
    #[error("AEAD_OFLOW")]
    AeadOflow = 0x1d,
    #[error("RMP_INIT_REQUIRED")]
    RmpInitRequired = 0x20,
}

impl FwStatus {
    /// The number.
    pub const fn code(self) -> u32 {
        self as u32
    }
}

/// How a command fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PspFail {
    /// It answers that it failed.
    #[error("the firmware answers {0}")]
    Status(#[from] FwStatus),
    /// It does not answer, and is not asked again.
    #[error("the firmware does not answer")]
    NoAnswer,
    /// It did not answer before.
    #[error("the firmware is dead")]
    Dead,
}
