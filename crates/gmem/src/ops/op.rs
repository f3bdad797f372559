//! [`Op`]: one operation of a trace or a scenario. Field names are those of the recordings.
//!
//! Simplified: flags, modes and capability numbers are plain numbers, because programs also pass invalid ones; their
//! symbolic names for people live in [`table`](super::table).

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::{Advice, FdRef, HvaRef, Name, PkvmOp, Prot, ProtectedOp, SnpOp, TdxOp};

/// One operation. What each one does is said once, in [`table::OPS`](super::table::OPS), and checked against this enum by
/// a test.
///
/// ```
/// use gmem::ops::Op;
/// let op: Op = serde_json::from_str(r#"{"op": "close", "fd": "g1"}"#).unwrap();
/// assert_eq!(op, Op::Close { fd: "g1".into() });
/// assert_eq!(op.name(), "close");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", remote = "Self")]
#[allow(missing_docs, reason = "operations and arguments are described by `table::OPS`, in one place")]
pub enum Op {
    CreateVm {
        vm: Name,
        r#type: u64,
    },
    CreateVcpu {
        vm: Name,
        vcpu: Name,
        index: u64,
        #[serde(default, skip_serializing_if = "is_false")]
        paging: bool,
    },
    CheckExtension {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vm: Option<Name>,
        cap: u64,
    },
    EnableCap {
        vm: Name,
        cap: u64,
        arg: u64,
    },
    CreateGuestMemfd {
        vm: Name,
        fd: Name,
        size: u64,
        flags: u64,
    },
    MemfdCreate {
        fd: Name,
        size: u64,
        flags: u64,
    },
    SetUserMemoryRegion {
        vm: Name,
        slot: u64,
        flags: u64,
        gpa: u64,
        size: u64,
        hva: HvaRef,
    },
    #[serde(rename = "set_user_memory_region2")]
    SetUserMemoryRegion2 {
        vm: Name,
        slot: u64,
        flags: u64,
        gpa: u64,
        size: u64,
        hva: HvaRef,
        guest_memfd: FdRef,
        guest_memfd_offset: u64,
    },
    SetMemoryAttributes {
        vm: Name,
        gpa: u64,
        size: u64,
        attributes: u64,
        flags: u64,
    },
    PreFaultMemory {
        vcpu: Name,
        gpa: u64,
        size: u64,
        flags: u64,
    },
    GetDirtyLog {
        vm: Name,
        slot: u64,
        npages: u64,
    },
    ClearDirtyLog {
        vm: Name,
        slot: u64,
        first: u64,
        npages: u64,
        dirty: Vec<u64>,
    },
    Fallocate {
        fd: Name,
        mode: u64,
        offset: i64,
        len: i64,
    },
    Ftruncate {
        fd: Name,
        size: i64,
    },
    Fstat {
        fd: Name,
    },
    Pread {
        fd: Name,
        offset: i64,
        len: i64,
    },
    Pwrite {
        fd: Name,
        offset: i64,
        len: i64,
    },
    Lseek {
        fd: Name,
        offset: i64,
        whence: u64,
    },
    Dup {
        fd: Name,
        r#as: Name,
    },
    Close {
        fd: Name,
    },
    Mmap {
        map: Name,
        fd: Option<Name>,
        len: u64,
        prot: Prot,
        shared: bool,
        offset: u64,
        align: u64,
    },
    Munmap {
        map: Name,
        offset: u64,
        len: u64,
    },
    Mprotect {
        map: Name,
        offset: u64,
        len: u64,
        prot: Prot,
    },
    Madvise {
        map: Name,
        offset: u64,
        len: u64,
        advice: Advice,
    },
    Mincore {
        map: Name,
        offset: u64,
        len: u64,
    },
    Mlock {
        map: Name,
        offset: u64,
        len: u64,
    },
    PageIdleMark {
        map: Name,
        offset: u64,
        len: u64,
    },
    PageIdleRead {
        map: Name,
        offset: u64,
        len: u64,
    },
    NxHugePageRecovery {
        vm: Name,
        ratio: u64,
    },
    HostRead {
        map: Name,
        offset: u64,
    },
    HostWrite {
        map: Name,
        offset: u64,
        value: u64,
    },
    #[serde(rename = "host_read64")]
    HostRead64 {
        map: Name,
        offset: u64,
    },
    #[serde(rename = "host_write64")]
    HostWrite64 {
        map: Name,
        offset: u64,
        value: u64,
    },
    #[serde(rename = "host_fill64")]
    HostFill64 {
        map: Name,
        offset: u64,
        len: u64,
        value: u64,
    },
    GuestRead {
        vcpu: Name,
        gpa: u64,
    },
    GuestWrite {
        vcpu: Name,
        gpa: u64,
        value: u64,
    },
    GuestRmw {
        vcpu: Name,
        gpa: u64,
        value: u64,
    },
    GuestHypercall {
        vcpu: Name,
        nr: u64,
        args: Vec<u64>,
        reply: u64,
    },
    GuestPaged(GuestPaged),
    /// Those of VMs with SEV-SNP, under their own names.
    #[serde(skip)]
    Snp(SnpOp),
    /// Those of TDs.
    #[serde(skip)]
    Tdx(TdxOp),
    /// Those that are the same for every kind of protected VM.
    #[serde(skip)]
    Protected(ProtectedOp),
    /// Those of guests of pKVM.
    #[serde(skip)]
    Pkvm(PkvmOp),
}

/// The arguments of `guest_paged`. As of all operations, [`table::OPS`](super::table::OPS) says what they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "arguments are described by `table::OPS`, in one place")]
pub struct GuestPaged {
    pub vcpu: Name,
    pub root_map: Name,
    pub root_offset: u64,
    pub cr3: u64,
    pub cpl: u64,
    pub access: PagedAccess,
    pub gva: u64,
    pub value: u64,
    pub wp: bool,
    pub smep: bool,
    pub smap: bool,
    pub nxe: bool,
    pub ac: bool,
}

/// What `guest_paged` does with its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PagedAccess {
    /// `mov rbx, [gva]`.
    #[serde(rename = "r")]
    Read,
    /// `mov [gva], rbx`.
    #[serde(rename = "w")]
    Write,
    /// `lock add [gva], rbx`.
    #[serde(rename = "rmw")]
    ReadModifyWrite,
    /// `jmp gva`.
    #[serde(rename = "x")]
    Execute,
}

impl PagedAccess {
    /// The words of recordings and scenarios.
    pub const WORDS: &'static [&'static str] = &["r", "w", "rmw", "x"];
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

// Families are no level of their own in a file. With `remote`, what serde derives are functions of `Op`, for the operations of no family.

impl Serialize for Op {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Op::Snp(op) => op.serialize(serializer),
            Op::Tdx(op) => op.serialize(serializer),
            Op::Protected(op) => op.serialize(serializer),
            Op::Pkvm(op) => op.serialize(serializer),
            op => Op::serialize(op, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Op {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Op, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Op::deserialize(&value)
            .or_else(|error| SnpOp::deserialize(&value).map(Op::Snp).map_err(|_| error))
            .or_else(|error| TdxOp::deserialize(&value).map(Op::Tdx).map_err(|_| error))
            .or_else(|error| ProtectedOp::deserialize(&value).map(Op::Protected).map_err(|_| error))
            .or_else(|error| PkvmOp::deserialize(&value).map(Op::Pkvm).map_err(|_| error))
            .map_err(D::Error::custom)
    }
}

impl Op {
    /// The operation's name in traces and scenarios.
    pub fn name(&self) -> &'static str {
        match self {
            Op::CreateVm { .. } => "create_vm",
            Op::CreateVcpu { .. } => "create_vcpu",
            Op::CheckExtension { .. } => "check_extension",
            Op::EnableCap { .. } => "enable_cap",
            Op::CreateGuestMemfd { .. } => "create_guest_memfd",
            Op::MemfdCreate { .. } => "memfd_create",
            Op::SetUserMemoryRegion { .. } => "set_user_memory_region",
            Op::SetUserMemoryRegion2 { .. } => "set_user_memory_region2",
            Op::SetMemoryAttributes { .. } => "set_memory_attributes",
            Op::PreFaultMemory { .. } => "pre_fault_memory",
            Op::GetDirtyLog { .. } => "get_dirty_log",
            Op::ClearDirtyLog { .. } => "clear_dirty_log",
            Op::Fallocate { .. } => "fallocate",
            Op::Ftruncate { .. } => "ftruncate",
            Op::Fstat { .. } => "fstat",
            Op::Pread { .. } => "pread",
            Op::Pwrite { .. } => "pwrite",
            Op::Lseek { .. } => "lseek",
            Op::Dup { .. } => "dup",
            Op::Close { .. } => "close",
            Op::Mmap { .. } => "mmap",
            Op::Munmap { .. } => "munmap",
            Op::Mprotect { .. } => "mprotect",
            Op::Madvise { .. } => "madvise",
            Op::Mincore { .. } => "mincore",
            Op::Mlock { .. } => "mlock",
            Op::PageIdleMark { .. } => "page_idle_mark",
            Op::PageIdleRead { .. } => "page_idle_read",
            Op::NxHugePageRecovery { .. } => "nx_huge_page_recovery",
            Op::HostRead { .. } => "host_read",
            Op::HostWrite { .. } => "host_write",
            Op::HostRead64 { .. } => "host_read64",
            Op::HostWrite64 { .. } => "host_write64",
            Op::HostFill64 { .. } => "host_fill64",
            Op::GuestRead { .. } => "guest_read",
            Op::GuestWrite { .. } => "guest_write",
            Op::GuestRmw { .. } => "guest_rmw",
            Op::GuestHypercall { .. } => "guest_hypercall",
            Op::GuestPaged(_) => "guest_paged",
            Op::Snp(op) => op.name(),
            Op::Tdx(op) => op.name(),
            Op::Protected(op) => op.name(),
            Op::Pkvm(op) => op.name(),
        }
    }
}
