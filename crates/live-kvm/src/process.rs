//! [`Process`]: this process as the trace's: its `/dev/kvm`, and what its vCPUs' code pages are.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use crate::guest::{Code, GuestMode};
use crate::{Result, access};

/// Why a call has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The kernel's error number.
    Errno(i32),
    /// The access raised this signal.
    Signal(i32),
    /// The call was not made; why, in words.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Errno(code) => write!(f, "{}", std::io::Error::from_raw_os_error(*code)),
            Failure::Signal(number) => write!(f, "signal {number}"),
            Failure::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

/// The fields of `struct stat` that traces have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's st_ fields of that name")]
pub struct Stat {
    pub size: u64,
    pub blocks: u64,
    pub blksize: u64,
    pub mode: u64,
    pub nlink: u64,
}

/// The process in which a trace runs. Descriptors are plain numbers, as in a trace; -1 is none.
pub struct Process {
    pub(crate) kvm: OwnedFd,
    /// Most bytes that one call may make the kernel allocate.
    pub(crate) memory_max: u64,
    pub(crate) mode: GuestMode,
    /// KVM has no two-dimensional paging.
    pub(crate) shadow_paging: bool,
    /// The code page of a VM, by descriptors of the VM and of its vCPUs.
    pub(crate) codes: BTreeMap<i32, Rc<Code>>,
    pub(crate) vcpu_mmap_size: usize,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("kvm", &self.kvm).field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Process {
    /// Opens `device`, usually `/dev/kvm`, and catches the faults of accesses from now on. `mode` says how vCPUs run their
    /// programs, `memory_max` how many bytes one call may take.
    ///
    /// # Errors
    /// If the device cannot be opened, or is no KVM of API version 12.
    pub fn open(device: &Path, mode: GuestMode, memory_max: u64) -> std::io::Result<Process> {
        let kvm: OwnedFd = std::fs::OpenOptions::new().read(true).write(true).open(device)?.into();
        let fd = kvm.as_raw_fd();
        let not_kvm =
            |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("{}: {what}", device.display()));
        match crate::ioctl::with_number(fd, crate::ioctl::KVM_GET_API_VERSION, 0) {
            Ok(12) => {}
            Ok(other) => return Err(not_kvm(&format!("KVM's API version is {other}; 12 is known"))),
            Err(_) => return Err(not_kvm("no KVM")),
        }
        let vcpu_mmap_size = crate::ioctl::with_number(fd, crate::ioctl::KVM_GET_VCPU_MMAP_SIZE, 0)
            .map_err(|failure| not_kvm(&failure.to_string()))? as usize;
        access::catch_faults();
        let shadow_paging = two_dimensional_paging().is_none();
        Ok(Process { kvm, memory_max, mode, shadow_paging, codes: BTreeMap::new(), vcpu_mmap_size })
    }

    /// The descriptor of `/dev/kvm`.
    pub fn kvm(&self) -> i32 {
        self.kvm.as_raw_fd()
    }

    /// Fails if `bytes` is more than a call may take.
    pub(crate) fn affordable(&self, what: &str, bytes: u64) -> Result<()> {
        if bytes <= self.memory_max {
            return Ok(());
        }
        Err(Failure::Refused(format!(
            "{what}: not done, because it may take {bytes} bytes and this recorder takes {} at most",
            self.memory_max
        )))
    }
}

/// Which two-dimensional paging KVM uses here, `ept` or `npt`, if any: what the parameters of its modules say.
pub fn two_dimensional_paging() -> Option<&'static str> {
    match () {
        () if module_parameter("kvm_intel", "ept") == Some(true) => Some("ept"),
        () if module_parameter("kvm_amd", "npt") == Some(true) => Some("npt"),
        () => None,
    }
}

/// What a parameter of a kernel module says that is on or off, if there is such a one.
pub fn module_parameter(module: &str, parameter: &str) -> Option<bool> {
    let text = std::fs::read_to_string(format!("/sys/module/{module}/parameters/{parameter}")).ok()?;
    Some(matches!(text.trim(), "Y" | "1"))
}

/// The result of a system call that says -1 on failure.
pub(crate) fn check(result: i64) -> Result<u64> {
    if result == -1 { Err(last_errno()) } else { Ok(result as u64) }
}

pub(crate) fn last_errno() -> Failure {
    Failure::Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}
