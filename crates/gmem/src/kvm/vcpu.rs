//! A vCPU (`struct kvm_vcpu`): its guest program, its requests, its place in or out of the guest.
//!
//! What the guest does in there is in `guest.rs`.
//!
//! A remote TLB flush sets a request and waits until the vCPU is out of the guest, no longer: the flush itself is the vCPU's, before it enters
//! again. Neither can miss the other: the vCPU stores its mode and then looks for requests, the other makes the request and then looks at the mode, each with a
//! barrier in between, which locked accesses are.

use super::cpu::Cpu;
use super::exception::Exception;
pub use super::guest::{CpuMode, DescriptorTable, GuestContext, GuestInsn, GuestRegs, SpecialRegisters};
use super::memslots::Memslot;
use super::mutants::{MODE_NO_FENCE, RC_09, WAIT_ONLY_IN_GUEST};
use super::pkvm::PkvmVcpu;
use super::sev::{SevEs, SevState};
use super::tdx::{TdxState, VcpuTdx};
use super::vm::{Vm, VmFile, anonymous_inode_stat};
use sim_kernel::fs::{File, FileOperations, RawFd, Stat};
use sim_kernel::sync::{Atomic64, Mutex, WaitQueue};
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::guest_paging::Encryption;
use sim_mmu::tlb::CachedTranslation;
use sim_mmu::{Gpa, Gva, RemoteFlush, Root};
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// `vcpu->mode`: outside, and every request will be seen before the next entry.
const OUTSIDE_GUEST_MODE: u64 = 0;
/// `vcpu->mode`: the guest runs.
const IN_GUEST_MODE: u64 = 1;
/// `vcpu->mode`: the guest was kicked and is on its way out.
const EXITING_GUEST_MODE: u64 = 2;

/// What another task asks of a vCPU (`KVM_REQ_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Request {
    /// `KVM_REQ_TLB_FLUSH`.
    TlbFlush = 1 << 0,
    /// `KVM_REQ_MMU_FREE_OBSOLETE_ROOTS`.
    FreeObsoleteRoots = 1 << 1,
    /// `KVM_REQ_TLB_FLUSH_CURRENT`.
    TlbFlushCurrent = 1 << 2,
    /// `KVM_REQ_TLB_FLUSH_GUEST`.
    TlbFlushGuest = 1 << 3,
    /// `KVM_REQ_UPDATE_CPU_DIRTY_LOGGING`: whether any slot is logged has changed, and with it whether the processor's log is on.
    UpdateCpuDirtyLogging = 1 << 4,
    /// `KVM_REQ_UPDATE_PROTECTED_GUEST_STATE`: another vCPU of an SNP guest gave this one a VMSA, or took it away.
    UpdateProtectedGuestState = 1 << 5,
    /// `KVM_REQ_VMSA_PAGE_RELOAD`: the page of the guest's own VMSA is being taken away.
    VmsaPageReload = 1 << 6,
    /// `KVM_REQ_VM_DEAD`: the VM is bugged.
    VmDead = 1 << 7,
}

/// Why KVM_RUN came back (`struct kvm_run`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum ExitInfo {
    /// `KVM_EXIT_UNKNOWN`: nothing was said.
    #[default]
    Unknown,
    /// `KVM_EXIT_HLT`: the program ended.
    Hlt,
    /// `KVM_EXIT_MMIO`.
    Mmio {
        /// Guest physical address.
        gpa: Gpa,
        /// Bytes.
        len: u32,
        /// The value of a write; for a read, what user space supplies before it runs again.
        data: u64,
        /// Whether the guest writes.
        is_write: bool,
    },
    /// `KVM_EXIT_HYPERCALL`.
    Hypercall {
        /// Number.
        nr: u64,
        /// Arguments.
        args: [u64; 4],
        /// What the guest gets; user space may change it.
        ret: u64,
        /// `KVM_EXIT_HYPERCALL_LONG_MODE`: how wide the guest's registers were.
        mode: CpuMode,
    },
    /// `KVM_EXIT_INTR`: a signal is pending.
    Intr,
    /// `KVM_EXIT_IO`.
    Io {
        /// The port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        len: u8,
        /// The value of a write; for a read, what user space supplies before it runs again.
        data: u32,
        /// Whether the guest writes.
        is_write: bool,
    },
    /// `KVM_EXIT_SHUTDOWN`: an exception could not be delivered, nor the double fault, nor anything after it.
    Shutdown,
    /// `KVM_EXIT_INTERNAL_ERROR`.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
        /// With `KVM_INTERNAL_ERROR_DELIVERY_EV`: the address that the delivery touched (`kvm_run.internal.data[3]`).
        gpa: Option<Gpa>,
        /// With `KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON`: of a TD what RAX held after VP.ENTER (`kvm_run.internal.data[0]`).
        reason: Option<u64>,
    },
    /// `KVM_EXIT_MEMORY_FAULT`; comes with an error of the ioctl.
    MemoryFault {
        /// `KVM_MEMORY_EXIT_FLAG_*`.
        flags: u64,
        /// Page-aligned guest physical address.
        gpa: Gpa,
        /// Bytes, always a page.
        size: u64,
    },
    /// `KVM_EXIT_SYSTEM_EVENT`.
    SystemEvent {
        /// `KVM_SYSTEM_EVENT_*`.
        kind: u32,
        /// `data[0]`. Of a TD that ends itself `data[12]`, the only one of the sixteen registers there that is kept: R12.
        data: u64,
    },
    /// `KVM_EXIT_FAIL_ENTRY`: the processor did not enter the guest.
    FailEntry {
        /// `hardware_entry_failure_reason`.
        reason: u64,
    },
    /// `KVM_EXIT_SNP_REQ_CERTS`: an SNP guest wants certificates beside a report.
    SnpReqCerts {
        /// Where they go.
        gpa: Gpa,
        /// For how many pages there is room; with `ENOSPC`, user space puts here how many it needs.
        npages: u64,
        /// What user space answers.
        ret: u64,
    },
}

impl ExitInfo {
    /// The name of the exit in the UAPI.
    pub fn name(&self) -> &'static str {
        match self {
            ExitInfo::Unknown => "KVM_EXIT_UNKNOWN",
            ExitInfo::Hlt => "KVM_EXIT_HLT",
            ExitInfo::Mmio { .. } => "KVM_EXIT_MMIO",
            ExitInfo::Hypercall { .. } => "KVM_EXIT_HYPERCALL",
            ExitInfo::Intr => "KVM_EXIT_INTR",
            ExitInfo::Io { .. } => "KVM_EXIT_IO",
            ExitInfo::Shutdown => "KVM_EXIT_SHUTDOWN",
            ExitInfo::InternalError { .. } => "KVM_EXIT_INTERNAL_ERROR",
            ExitInfo::MemoryFault { .. } => "KVM_EXIT_MEMORY_FAULT",
            ExitInfo::SystemEvent { .. } => "KVM_EXIT_SYSTEM_EVENT",
            ExitInfo::FailEntry { .. } => "KVM_EXIT_FAIL_ENTRY",
            ExitInfo::SnpReqCerts { .. } => "KVM_EXIT_SNP_REQ_CERTS",
        }
    }
}

impl ExitInfo {
    /// Puts user space's answer where the exit has a place for one.
    pub(crate) fn set_answer(&mut self, value: u64) {
        match self {
            ExitInfo::Mmio { data, is_write: false, .. } => *data = value,
            ExitInfo::Io { data, is_write: false, .. } => *data = value as u32,
            ExitInfo::Hypercall { ret, .. } => *ret = value,
            // Two fields of `kvm_run` in one word: the error, and above it how many pages are needed, if that is to be said.
            ExitInfo::SnpReqCerts { ret, npages, .. } => {
                *ret = value & 0xffff_ffff;
                if value >> 32 != 0 {
                    *npages = value >> 32;
                }
            }
            _ => {}
        }
    }
}

/// What `vcpu->mutex` protects.
#[derive(Debug)]
pub(crate) struct VcpuState {
    /// The processor that runs the vCPU. Nobody else's task touches it.
    pub(crate) cpu: Cpu,
    pub(crate) root: Option<Arc<Root>>,
    /// `vcpu->last_used_slot`, with the generation of the set that it came from.
    pub(crate) last_used_slot: Option<(u64, Arc<Memslot>)>,
    /// The page of the last MMIO access and the generation for which that is known.
    pub(crate) mmio_cache: Option<(u64, u64)>,
    pub(crate) program: Vec<GuestInsn>,
    /// What [`WriteBlock`](super::kernel::KernelInsn::WriteBlock) writes.
    pub(crate) blocks: Vec<Box<[u8]>>,
    /// The kernel that makes the program, if the guest has one.
    pub(crate) kernel: Option<Box<super::kernel::KernelOnVcpu>>,
    pub(crate) regs: GuestRegs,
    pub(crate) mode: CpuMode,
    /// Where instructions are fetched from; `None`: fetches are not modelled.
    pub(crate) code: Option<Gva>,
    /// Where the guest is if it has jumped out of its program.
    pub(crate) foreign_rip: Option<Gva>,
    pub(crate) sregs: SpecialRegisters,
    pub(crate) cr2: Gva,
    /// An exception that the guest gets when it is entered.
    pub(crate) pending_exception: Option<Exception>,
    pub(crate) exit: ExitInfo,
    /// The exit of the current instruction that user space is handling. `exit` may say something else by then: a pre-fault in
    /// between writes to the same run page.
    pub(crate) pending_exit: Option<ExitInfo>,
    /// What is left of the access that a pending MMIO exit is part of.
    pub(crate) mmio: super::emulate::Mmio,
    pub(crate) immediate_exit: bool,
    /// `vcpu->stat.tlb_flush`.
    pub(crate) tlb_flush: u64,
    /// Retries in a row that nothing explains. Not the kernel's; for INV-506.
    pub(crate) unexplained_retries: u32,
    /// The frames that the guest has reached since everything was flushed, with how often each had been allocated, if the host is watched: what
    /// its TLB may lead to. Not the kernel's; for MMU-INV-026 and MMU-INV-031.
    pub(crate) reached: BTreeMap<Pfn, u32>,
    /// SEV-SNP, if the VM is of that type.
    pub(crate) sev: Option<Box<SevState>>,
    /// TDX, if the VM is a TD.
    pub(crate) tdx: Option<Box<TdxState>>,
}

impl VcpuState {
    fn new(cpu: Cpu, sev: Option<Box<SevState>>, tdx: Option<Box<TdxState>>) -> VcpuState {
        VcpuState {
            cpu,
            root: None,
            last_used_slot: None,
            mmio_cache: None,
            program: Vec::new(),
            blocks: Vec::new(),
            kernel: None,
            regs: GuestRegs::default(),
            mode: CpuMode::default(),
            code: None,
            foreign_rip: None,
            sregs: SpecialRegisters::default(),
            cr2: Gva(0),
            pending_exception: None,
            exit: ExitInfo::default(),
            pending_exit: None,
            mmio: Default::default(),
            immediate_exit: false,
            tlb_flush: 0,
            unexplained_retries: 0,
            reached: BTreeMap::new(),
            sev,
            tdx,
        }
    }

    /// `kvm_vcpu_flush_tlb_all`, `kvm_vcpu_flush_tlb_current`.
    pub(super) fn flush_all(&mut self, cx: &Cx<'_>) {
        self.tlb_flush += 1;
        self.cpu.flush_all(cx);
        self.reached.clear();
    }
}

/// A vCPU.
pub struct Vcpu {
    pub(crate) vm: Arc<Vm>,
    id: u64,
    /// The program that the vCPU runs and what it leaves in the registers belong to one thread of the VMM at a time.
    pub(crate) operator: Mutex<()>,
    pub(crate) mutex: Mutex<VcpuState>,
    guest_mode: Atomic64,
    requests: Atomic64,
    outside: WaitQueue,
    /// What the guest reaches and stores is recorded, as the host was asked to.
    pub(super) is_watched: bool,
    /// Beginnings and ends of visits to the guest: odd in one. Not the kernel's; for MMU-INV-033.
    visits: AtomicU64,
    /// What the processor has cached, as far as somebody looks on: `mutex` is held while it runs.
    shown: parking_lot::Mutex<ShownProcessor>,
    pub(crate) sev: Option<SevEs>,
    pub(crate) tdx: Option<VcpuTdx>,
    pub(super) pkvm: Option<PkvmVcpu>,
}

/// What a report shows of the processor that runs a vCPU.
#[derive(Clone, Debug, Default)]
pub struct ShownProcessor {
    /// The root table that it was given.
    pub root: Option<Pfn>,
    /// What its TLB has for that tree.
    pub tlb: Vec<CachedTranslation>,
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Vcpu {
    /// `KVM_CREATE_VCPU`'s argument.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// `kvm_make_request`.
    pub fn make_request(&self, cx: &Cx<'_>, request: Request) {
        self.requests.rmw(cx, |r| r | request as u64);
    }

    /// `kvm_make_request_and_kick` of a request that is waited for: the vCPU is not in the guest with it unseen when this returns.
    pub(crate) fn make_request_and_wait(self: &Arc<Vcpu>, cx: &Cx<'_>, request: Request) {
        self.vm.make_requests(cx, std::slice::from_ref(self), Some(request));
    }

    /// `kvm_check_request`: takes the request if it is there.
    pub(crate) fn check_request(&self, cx: &Cx<'_>, request: Request) -> bool {
        if self.requests.peek() & request as u64 == 0 {
            return false;
        }
        self.requests.rmw(cx, |r| r & !(request as u64)) & request as u64 != 0
    }

    /// `vcpu->mode` by the kernel's name, without a scheduling point: for reports.
    pub fn peek_mode(&self) -> &'static str {
        match self.guest_mode.peek() {
            OUTSIDE_GUEST_MODE => "OUTSIDE_GUEST_MODE",
            IN_GUEST_MODE => "IN_GUEST_MODE",
            _ => "EXITING_GUEST_MODE",
        }
    }

    /// Shows what the processor has cached, if anybody looks on.
    #[inline]
    pub(super) fn show_processor(&self, state: &VcpuState) {
        if self.vm.host.is_recorded() {
            let root = state.root.as_ref().map(|root| root.table());
            *self.shown.lock() = ShownProcessor { root, tlb: state.cpu.translations() };
        }
    }

    /// What was shown last: nothing unless the host is recorded ([`Host::record`](super::host::Host::record)).
    pub fn shown(&self) -> ShownProcessor {
        self.shown.lock().clone()
    }

    /// Whether any request waits.
    pub(crate) fn has_requests(&self, cx: &Cx<'_>) -> bool {
        self.requests.load(cx) != 0
    }

    /// Whether the vCPU is in the guest and has not seen this request: for checkers.
    pub(crate) fn runs_with_request(&self, request: Request) -> bool {
        self.visits.load(Ordering::Relaxed) % 2 == 1 && self.requests.peek() & request as u64 != 0
    }

    /// Requests without a scheduling point: for checkers.
    pub fn peek_requests(&self) -> u64 {
        self.requests.peek()
    }

    /// Stores the mode before the vCPU leaves SRCU, which is the barrier behind the store: whoever makes a request from then on sees the mode.
    pub(crate) fn show_guest_mode(&self, cx: &Cx<'_>) {
        if !cx.has_mutant(RC_09) && !cx.has_mutant(MODE_NO_FENCE) {
            self.store_guest_mode(cx);
        }
    }

    fn store_guest_mode(&self, cx: &Cx<'_>) {
        self.guest_mode.store(cx, IN_GUEST_MODE);
        self.outside.condition_changes(cx);
    }

    /// Whether the guest may run. Afterwards it runs, as far as others can see, until [`Vcpu::leave_guest_mode`].
    pub(crate) fn enter_guest_mode(&self, cx: &Cx<'_>) -> bool {
        // As in `kvm_vcpu_exit_request`, the mode comes first: what is looked at last must be the requests.
        let may_run = !self.was_told_to_leave(cx) && self.may_enter(cx) && !cx.signal_pending();
        if may_run {
            let seen = self.peek_requests() == 0 || self.guest_mode.peek() == EXITING_GUEST_MODE;
            assert!(seen, "MMU-INV-034: vCPU {} enters the guest with a request that it has not seen", self.id);
            self.visits.fetch_add(1, Ordering::Relaxed);
        }
        may_run
    }

    /// Whether there is no request. After the mode was stored: a request made before is seen here, one made later kicks.
    fn may_enter(&self, cx: &Cx<'_>) -> bool {
        if cx.has_mutant(RC_09) {
            let seen = self.has_requests(cx);
            self.store_guest_mode(cx);
            !seen
        } else {
            if cx.has_mutant(MODE_NO_FENCE) {
                self.store_guest_mode(cx);
            }
            !self.has_requests(cx)
        }
    }

    /// `vcpu->mode` says that somebody wants the vCPU outside, without any request (`KVM_REQ_OUTSIDE_GUEST_MODE`): only TDs have that.
    fn was_told_to_leave(&self, cx: &Cx<'_>) -> bool {
        self.tdx.is_some() && self.guest_mode.load(cx) == EXITING_GUEST_MODE
    }

    /// The guest has left, if it ran.
    pub(crate) fn leave_guest_mode(&self, cx: &Cx<'_>, ran: bool) {
        if ran {
            self.visits.fetch_add(1, Ordering::Relaxed);
        }
        let before = self.guest_mode.rmw(cx, |_| OUTSIDE_GUEST_MODE);
        self.outside.condition_changes(cx);
        if before == EXITING_GUEST_MODE {
            self.outside.wake_unscheduled(cx);
        }
    }

    /// Whether the guest runs now, without a scheduling point: for checkers.
    pub fn is_in_guest(&self) -> bool {
        self.guest_mode.peek() != OUTSIDE_GUEST_MODE
    }

    /// `kvm_vcpu_exiting_guest_mode`: if the guest runs, makes it leave. Returns the mode before. Does not wait.
    fn kick(&self, cx: &Cx<'_>) -> u64 {
        let before = self.guest_mode.cmpxchg(cx, IN_GUEST_MODE, EXITING_GUEST_MODE).err().unwrap_or(IN_GUEST_MODE);
        if before == IN_GUEST_MODE {
            self.outside.condition_changes(cx);
        }
        before
    }

    /// `kvm_arch_vcpu_destroy` of a vCPU that nobody could name: what it has of its kind. Nothing else was given to it yet.
    fn forget(&self, cx: &Cx<'_>) {
        if let (Some(es), Some(sev)) = (&self.sev, self.vm.sev()) {
            es.free(cx, sev);
            sev.abandon_vcpu();
        }
        if let Some(tdx) = self.vm.tdx() {
            tdx.abandon_vcpu();
        }
        self.abandon(cx);
    }

    /// The vCPU was not made after all: pKVM's part.
    fn abandon(&self, cx: &Cx<'_>) {
        if let (Some(vcpu), Some(pkvm)) = (&self.pkvm, self.vm.pkvm()) {
            vcpu.abandon(cx, pkvm);
        }
    }

    /// Drops everything that the vCPU holds, when the VM is destroyed.
    pub(crate) fn destroy(&self, cx: &Cx<'_>) {
        let root = {
            let mut state = self.mutex.lock(cx);
            state.last_used_slot = None;
            [state.root.take(), self.tdx_take_mirror(&mut state)]
        };
        for root in root.into_iter().flatten() {
            self.vm.mmu.put_root(cx, root);
        }
        if let (Some(vcpu), Some(tdx)) = (&self.tdx, self.vm.tdx()) {
            vcpu.free(cx, &self.vm, tdx);
        }
        if let (Some(es), Some(sev)) = (&self.sev, self.vm.sev()) {
            es.free(cx, sev);
        }
        if let Some(pkvm) = &self.pkvm {
            pkvm.destroy(cx);
        }
    }

    /// Forgets all requests: what they ask for is the hypervisor's to do where they are not served.
    pub(super) fn take_requests(&self, cx: &Cx<'_>) {
        if self.peek_requests() != 0 {
            self.requests.store(cx, 0);
        }
    }
}

impl Vm {
    /// `kvm_vm_ioctl_create_vcpu`: the vCPU and its descriptor. From the first check to the descriptor `kvm->lock` is held, which here only SNP VMs
    /// and TDs have: what looks at all of their vCPUs under it sees none that is half made.
    ///
    /// # Errors
    /// `EINVAL` if the id is too large or the VM has as many vCPUs as it may; `EEXIST` if the id is taken; `ENOMEM`; without a number for the descriptor
    /// `EMFILE`, and then the vCPU is forgotten.
    pub(crate) fn create_vcpu(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        process: &super::process::Process,
        id: u64,
    ) -> Result<(RawFd, Arc<Vcpu>), Errno> {
        let _of_sev = self.sev().map(|sev| sev.lock.lock(cx));
        let _of_tdx = self.tdx().map(|tdx| tdx.lock.lock(cx));
        let vcpu = self.arch_create_vcpu(cx, id)?;
        let fd = install_vcpu(cx, process, Arc::clone(&vcpu)).inspect_err(|_| vcpu.forget(cx))?;
        Ok((fd, vcpu))
    }

    fn arch_create_vcpu(self: &Arc<Vm>, cx: &Cx<'_>, id: u64) -> Result<Arc<Vcpu>, Errno> {
        let most = self.max_vcpus();
        if self.vcpus.read().len() as u64 >= most || id >= self.host.config.max_vcpus * super::uapi::KVM_VCPU_ID_RATIO {
            return Err(Errno::EINVAL);
        }
        if self.vcpus.read().iter().any(|vcpu| vcpu.id == id) {
            return Err(Errno::EEXIST);
        }
        if let Some(tdx) = self.tdx() {
            return self.tdx_vcpu_create(cx, tdx, id);
        }
        let pkvm = self.pkvm().map(|pkvm| PkvmVcpu::new(cx, pkvm)).transpose()?;
        let Some(sev) = self.sev() else { return self.make_vcpu(cx, id, None, pkvm) };
        sev.begin_vcpu();
        let made = SevEs::new(cx, sev).inspect_err(|_| sev.abandon_vcpu())?;
        Ok(self.make_vcpu(cx, id, Some(made), None).expect("under kvm->lock, an id that is free stays free"))
    }

    pub(super) fn make_vcpu(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        id: u64,
        sev: Option<(SevEs, Box<SevState>)>,
        pkvm: Option<PkvmVcpu>,
    ) -> Result<Arc<Vcpu>, Errno> {
        let (es, sev_state) = sev.unzip();
        let tdx_state = self.tdx().map(|_| Default::default());
        let encryption = if es.is_some() { Encryption::CBit(51) } else { Encryption::None };
        let mut cpu = Cpu::new(cx, &self.host.config, encryption);
        if self.mmu.config().pml && self.logs_dirty_pages() {
            cpu.set_logging(true);
        }
        let vcpu = Arc::new(Vcpu {
            vm: Arc::clone(self),
            id,
            operator: Mutex::new(cx, "vmm->vcpu", ()),
            mutex: Mutex::new(cx, "vcpu->mutex", VcpuState::new(cpu, sev_state, tdx_state)),
            guest_mode: Atomic64::new(cx, "vcpu->mode", OUTSIDE_GUEST_MODE),
            requests: Atomic64::new(cx, "vcpu->requests", 0),
            outside: WaitQueue::new(cx, "vcpu_kick_wait"),
            is_watched: self.watches_guests(),
            visits: AtomicU64::new(0),
            shown: Default::default(),
            sev: es,
            tdx: self.tdx().map(|_| VcpuTdx::default()),
            pkvm,
        });
        let mut vcpus = self.vcpus.write();
        if vcpus.iter().any(|v| v.id == id) {
            drop(vcpus);
            vcpu.abandon(cx);
            return Err(Errno::EEXIST);
        }
        if let Some(pkvm) = &vcpu.pkvm {
            pkvm.set_index(vcpus.len());
        }
        vcpus.push(Arc::clone(&vcpu));
        Ok(vcpu)
    }

    pub(crate) fn all_vcpus(&self) -> Vec<Arc<Vcpu>> {
        self.vcpus.read().clone()
    }

    /// `kvm_make_all_cpus_request` with WAIT: no vCPU is in the guest with the request unseen when this returns. Whether any had to be called out of it.
    ///
    /// # Panics
    /// MMU-INV-033: if one is.
    pub(crate) fn make_all_requests(&self, cx: &Cx<'_>, request: Request) -> bool {
        self.make_requests(cx, &self.all_vcpus(), Some(request))
    }

    /// `KVM_REQ_OUTSIDE_GUEST_MODE` to all vCPUs: nothing is asked of them but that they are out of the guest once before this returns.
    ///
    /// # Panics
    /// As [`Vm::make_all_requests`].
    pub(crate) fn kick_all_and_wait(&self, cx: &Cx<'_>) {
        self.make_requests(cx, &self.all_vcpus(), None);
    }

    fn make_requests(&self, cx: &Cx<'_>, vcpus: &[Arc<Vcpu>], request: Option<Request>) -> bool {
        let mut inside = Vec::new();
        for vcpu in vcpus {
            if let Some(request) = request {
                vcpu.make_request(cx, request);
            }
            let visit = vcpu.visits.load(Ordering::Relaxed);
            let waits = match vcpu.kick(cx) {
                OUTSIDE_GUEST_MODE => continue,
                // Somebody who does not wait has kicked it, and it is still inside.
                EXITING_GUEST_MODE => !cx.has_mutant(WAIT_ONLY_IN_GUEST),
                _ => true,
            };
            inside.push((vcpu, visit, waits));
        }
        for (vcpu, ..) in inside.iter().filter(|(_, _, waits)| *waits) {
            // EXITING belongs to this round of the guest: whatever mode follows, it has been outside.
            vcpu.outside.wait_event_told(cx, || vcpu.guest_mode.peek() != EXITING_GUEST_MODE);
        }
        let called = inside.iter().any(|(_, _, waits)| *waits);
        for (vcpu, visit, _) in inside {
            let goes_on = visit % 2 == 1 && vcpu.visits.load(Ordering::Relaxed) == visit;
            assert!(
                !goes_on,
                "MMU-INV-033: vCPU {} is in the guest as before all vCPUs were asked to leave it",
                vcpu.id
            );
        }
        called
    }

    /// Kicks every vCPU without a request and without waiting.
    pub(crate) fn kick_all(&self, cx: &Cx<'_>) {
        for vcpu in self.all_vcpus() {
            vcpu.kick(cx);
        }
    }
}

impl RemoteFlush for Vm {
    fn flush_remote_tlbs(&self, cx: &Cx<'_>) {
        self.remote_tlb_flush_requests.fetch_add(1, Ordering::Relaxed);
        cx.note("TLB", "remote flush");
        if self.pkvm_flush_remote_tlbs(cx) {
            return;
        }
        if self.make_all_requests(cx, Request::TlbFlush) {
            self.remote_tlb_flush.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The file behind a vCPU's descriptor.
#[derive(Debug)]
pub(crate) struct VcpuFile {
    pub(crate) vcpu: Arc<Vcpu>,
}

impl FileOperations for VcpuFile {
    fn is_regular(&self) -> bool {
        false
    }

    /// `noop_llseek`: the position, which nothing moves.
    fn seek(&self, _cx: &Cx<'_>, _offset: i64, _whence: u32) -> Result<u64, Errno> {
        Ok(0)
    }

    fn release(&self, cx: &Cx<'_>) {
        self.vcpu.vm.put(cx);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn stat(&self, _cx: &Cx<'_>) -> Stat {
        anonymous_inode_stat()
    }
}

/// Makes a descriptor for a VM or vCPU that was just created, which takes over the object's reference.
pub(crate) fn install_vm(cx: &Cx<'_>, process: &super::process::Process, vm: Arc<Vm>) -> Result<RawFd, Errno> {
    process.install(cx, File::new(cx, Arc::new(VmFile { vm })))
}

/// As [`install_vm`], for a vCPU; it counts as one more user of its VM.
pub(crate) fn install_vcpu(cx: &Cx<'_>, process: &super::process::Process, vcpu: Arc<Vcpu>) -> Result<RawFd, Errno> {
    vcpu.vm.get(cx);
    let file = File::new(cx, Arc::new(VcpuFile { vcpu: Arc::clone(&vcpu) }));
    // Nobody could name the vCPU without a descriptor: its id is free again.
    process.install(cx, file).inspect_err(|_| vcpu.vm.vcpus.write().retain(|other| !Arc::ptr_eq(other, &vcpu)))
}
