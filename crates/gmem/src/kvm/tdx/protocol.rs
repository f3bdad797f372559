//! Numbers that a TD and its host say to each other by TDG.VP.VMCALL (Guest-Host Communication Interface). Both sides use them.

/// Leaves of TDG.VP.VMCALL.
pub mod leaf {
    /// HLT, by its exit reason.
    pub const HLT: u64 = 12;
    /// An access to a port, by its exit reason.
    pub const IO: u64 = 30;
    /// An access to a device, by the exit reason of an EPT violation.
    pub const MMIO: u64 = 48;
    /// GetTdVmCallInfo.
    pub const GET_TD_VM_CALL_INFO: u64 = 0x10000;
    /// MapGPA.
    pub const MAP_GPA: u64 = 0x10001;
    /// GetQuote.
    pub const GET_QUOTE: u64 = 0x10002;
    /// ReportFatalError.
    pub const REPORT_FATAL_ERROR: u64 = 0x10003;
    /// SetupEventNotifyInterrupt.
    pub const SETUP_EVENT_NOTIFY_INTERRUPT: u64 = 0x10004;
}

/// What R10 says.
pub mod status {
    /// TDVMCALL_STATUS_SUCCESS.
    pub const SUCCESS: u64 = 0;
    /// TDVMCALL_STATUS_RETRY.
    pub const RETRY: u64 = 1;
    /// TDVMCALL_STATUS_INVALID_OPERAND.
    pub const INVALID_OPERAND: u64 = 1 << 63;
    /// TDVMCALL_STATUS_ALIGN_ERROR.
    pub const ALIGN_ERROR: u64 = 1 << 63 | 2;
    /// TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED.
    pub const SUBFUNC_UNSUPPORTED: u64 = 1 << 63 | 3;
}
