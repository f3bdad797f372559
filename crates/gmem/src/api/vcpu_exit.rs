//! Why a vCPU stopped, with the names of `kvm-ioctls` (`kvm_run.exit_reason`).

/// A hypercall that user space handles (`KVM_EXIT_HYPERCALL`).
///
/// ```
/// use gmem::HypercallExit;
/// use gmem::uapi::KVM_HC_MAP_GPA_RANGE;
/// fn refuse(exit: HypercallExit<'_>) {
///     if exit.nr == KVM_HC_MAP_GPA_RANGE {
///         *exit.ret = u64::MAX;
///     }
/// }
/// let mut rax = 0;
/// refuse(HypercallExit { nr: KVM_HC_MAP_GPA_RANGE, args: [0x1000, 1, 0, 0, 0, 0], ret: &mut rax, longmode: 1 });
/// assert_eq!(rax, u64::MAX);
/// ```
#[derive(Debug)]
pub struct HypercallExit<'a> {
    /// Number of the hypercall.
    pub nr: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// What the guest gets in `rax` when the vCPU runs again.
    pub ret: &'a mut u64,
    /// 1 if the guest was in 64-bit mode.
    pub longmode: u32,
}

/// Why [`VcpuFd::run`](super::VcpuFd::run) came back. The exits that the simulator has, with the names of `kvm-ioctls`.
///
/// ```
/// use gmem::VcpuExit;
/// let exit = VcpuExit::MemoryFault { flags: 8, gpa: 0x1000, size: 4096 };
/// assert!(matches!(exit, VcpuExit::MemoryFault { gpa: 0x1000, .. }));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum VcpuExit<'a> {
    /// The guest reads where no memory is. Fill the slice before the vCPU runs again.
    MmioRead(u64, &'a mut [u8]),
    /// The guest writes where no memory is, or to a read-only slot.
    MmioWrite(u64, &'a [u8]),
    /// The guest reads from a port. Fill the slice before the vCPU runs again.
    IoIn(u16, &'a mut [u8]),
    /// The guest writes to a port.
    IoOut(u16, &'a [u8]),
    /// A hypercall that user space handles.
    Hypercall(HypercallExit<'a>),
    /// The program ended.
    Hlt,
    /// The guest shut down: an exception that could not be delivered.
    Shutdown,
    /// A signal, with a successful ioctl. As in Linux a signal is `Err(EINTR)`, so this does not occur.
    Intr,
    /// KVM could not go on; [`VcpuFd::exit_info`](super::VcpuFd::exit_info) has the suberror.
    InternalError,
    /// An access that user space has to resolve: convert the page, or give up. The only exit whose ioctl fails, with `EFAULT` or
    /// `EHWPOISON`; [`VcpuFd::last_errno`](super::VcpuFd::last_errno) tells which.
    MemoryFault {
        /// `KVM_MEMORY_EXIT_FLAG_PRIVATE` if the access was private.
        flags: u64,
        /// First byte of the page.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// Something happened to the whole guest: the type, and the event's data.
    SystemEvent(u32, &'a [u64]),
    /// The processor did not enter the guest: the reason, and the processor's number, which is always 0.
    FailEntry(u64, u32),
    /// The ioctl succeeded without saying why.
    Unknown,
    /// An exit reason that has no variant.
    Unsupported(u32),
}
