//! The smallest confidential VM: a host, a process, one slot of four private pages, one vCPU.

use gmem::MachineConfig;
use gmem::kvm::guest_memfd::GmemInode;
use gmem::kvm::host::Host;
use gmem::kvm::ioctl;
use gmem::kvm::process::{Mapped, Process, Sharing};
use gmem::kvm::uapi::*;
use gmem::kvm::vcpu::{ExitInfo, GuestInsn, Vcpu};
use gmem::kvm::vm::Vm;
use sim_kernel::fs::RawFd;
use sim_kernel::mm::Prot;
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE, Pfn, Pgoff};
use sim_mmu::Gpa;
use std::sync::Arc;

/// Pages of the slot and of the guest_memfd.
pub const PAGES: u64 = 4;
/// Where the slot begins.
pub const BASE: Gpa = Gpa(0x10_0000);

/// A VM with its process and the descriptors of everything.
#[derive(Debug)]
pub struct SmallVm {
    /// The VMM.
    pub process: Arc<Process>,
    /// The VM.
    pub vm: Arc<Vm>,
    /// Its only vCPU.
    pub vcpu: Arc<Vcpu>,
    /// The memory of its guest_memfd.
    pub inode: Arc<GmemInode>,
    /// Descriptor of the VM.
    pub vm_fd: RawFd,
    /// Descriptor of the vCPU.
    pub vcpu_fd: RawFd,
    /// Descriptor of the guest_memfd.
    pub gmem_fd: RawFd,
    /// The VMM's mapping that backs the slot's shared pages.
    pub hva: Hva,
}

impl SmallVm {
    /// Builds it by the system calls that a VMM makes: every page of the slot is private, none exists yet.
    ///
    /// # Panics
    /// If a call fails.
    pub fn new(cx: &Cx<'_>) -> SmallVm {
        let process = Host::new(cx, MachineConfig::default()).process(cx);
        let p = &*process;
        let kvm = ioctl::open_kvm(cx, p).expect("open");
        let vm_fd = ioctl::create_vm(cx, p, kvm, KVM_X86_SW_PROTECTED_VM).expect("KVM_CREATE_VM");
        let args = kvm_create_guest_memfd { size: PAGES * PAGE_SIZE, ..Default::default() };
        let gmem_fd = ioctl::create_guest_memfd(cx, p, vm_fd, &args).expect("KVM_CREATE_GUEST_MEMFD");
        let rw = Prot::READ | Prot::WRITE;
        let hva = p.mmap(cx, PAGES * PAGE_SIZE, rw, Sharing::Private, Mapped::Anonymous, PAGE_SIZE).expect("mmap");
        let region = kvm_userspace_memory_region2 {
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: BASE.0,
            memory_size: PAGES * PAGE_SIZE,
            userspace_addr: hva.0,
            guest_memfd: gmem_fd as u32,
            ..Default::default()
        };
        ioctl::set_user_memory_region2(cx, p, vm_fd, &region).expect("KVM_SET_USER_MEMORY_REGION2");
        let vcpu_fd = ioctl::create_vcpu(cx, p, vm_fd, 0).expect("KVM_CREATE_VCPU");
        let vm = ioctl::peek_vm(cx, p, vm_fd).expect("a VM");
        let vcpu = ioctl::peek_vcpu(cx, p, vcpu_fd).expect("a vCPU");
        let inode = ioctl::peek_gmem(cx, p, gmem_fd).expect("a guest_memfd");
        let this = SmallVm { process, vm, vcpu, inode, vm_fd, vcpu_fd, gmem_fd, hva };
        this.convert(cx, 0, PAGES, KVM_MEMORY_ATTRIBUTE_PRIVATE);
        this
    }

    /// Guest address of a page of the slot.
    pub fn gpa(page: u64) -> Gpa {
        Gpa(BASE.0 + page * PAGE_SIZE)
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES` on pages of the slot.
    ///
    /// # Panics
    /// If the call fails.
    pub fn convert(&self, cx: &Cx<'_>, page: u64, pages: u64, attributes: u64) {
        let args =
            kvm_memory_attributes { address: SmallVm::gpa(page).0, size: pages * PAGE_SIZE, attributes, flags: 0 };
        ioctl::set_memory_attributes(cx, &self.process, self.vm_fd, &args).expect("KVM_SET_MEMORY_ATTRIBUTES");
    }

    /// `fallocate` without a hole: pages of the guest_memfd exist afterwards, mapped nowhere.
    ///
    /// # Panics
    /// If the call fails.
    pub fn allocate(&self, cx: &Cx<'_>, page: u64, pages: u64) {
        let (offset, len) = ((page * PAGE_SIZE) as i64, (pages * PAGE_SIZE) as i64);
        self.process.fallocate(cx, self.gmem_fd, FALLOC_FL_KEEP_SIZE, offset, len).expect("fallocate");
    }

    /// Punches a hole over pages of the guest_memfd.
    ///
    /// # Panics
    /// If the call fails.
    pub fn punch(&self, cx: &Cx<'_>, page: u64, pages: u64) {
        let mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        let (offset, len) = ((page * PAGE_SIZE) as i64, (pages * PAGE_SIZE) as i64);
        self.process.fallocate(cx, self.gmem_fd, mode, offset, len).expect("fallocate");
    }

    /// `KVM_RUN` with a program that writes one word.
    pub fn write(&self, cx: &Cx<'_>, page: u64, value: u32) -> (Result<(), Errno>, ExitInfo) {
        self.vcpu.set_program(cx, &[GuestInsn::Write { gpa: SmallVm::gpa(page), value }]);
        self.run(cx)
    }

    /// `KVM_RUN`.
    ///
    /// # Panics
    /// If the descriptor is no vCPU's any more.
    pub fn run(&self, cx: &Cx<'_>) -> (Result<(), Errno>, ExitInfo) {
        ioctl::run(cx, &self.process, self.vcpu_fd).expect("a vCPU")
    }

    /// The frame of a page of the guest_memfd, if it has one.
    pub fn page(&self, page: u64) -> Option<Pfn> {
        self.inode.mapping().peek(Pgoff(page))
    }

    /// The first word of a page of the guest_memfd, if the page exists.
    pub fn private_word(&self, page: u64) -> Option<u32> {
        self.page(page).map(|pfn| self.process.host().phys().peek_u64(pfn, 0) as u32)
    }

    /// Ends the process, and with it the VM.
    ///
    /// # Panics
    /// If anything is left: the VM, or a frame besides the zero page.
    pub fn destroy(self, cx: &Cx<'_>) {
        let phys = Arc::clone(self.process.host().phys());
        self.process.exit(cx);
        assert!(self.vm.is_destroyed(), "the VM outlives its last descriptor");
        drop(self);
        assert_eq!(phys.used_frames(), 1, "the dead VM leaks frames");
    }
}
