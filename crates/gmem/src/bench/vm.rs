//! A confidential VM of one slot and one vCPU, made by the system calls that a VMM makes.

use crate::api::{GuestMemfd, Kvm, Mapping, VcpuExit, VcpuFd, VmFd};
use crate::kvm::process::{Process, Sharing};
use crate::kvm::uapi::*;
use crate::kvm::vcpu::GuestInsn;
use crate::{Cx, Gpa, Prot};
use sim_kernel::PAGE_SIZE;
use std::sync::Arc;

/// Where the slot begins: aligned as a huge page is, so that conversions are of whole ones.
const BASE: u64 = 1 << 30;

/// The VM and the descriptors of everything.
#[derive(Debug)]
pub struct BenchVm {
    kvm: Kvm,
    vm: VmFd,
    vcpu: VcpuFd,
    gmem: Option<GuestMemfd>,
    /// The VMM's mapping that backs the slot's shared pages.
    pub(super) mapping: Mapping,
    pages: u64,
}

impl BenchVm {
    /// A software-protected VM whose slot has so many pages, shared at first, with a guest_memfd behind them.
    ///
    /// # Panics
    /// If a call fails.
    pub fn private(cx: &Cx<'_>, process: &Arc<Process>, pages: u64) -> BenchVm {
        BenchVm::new(cx, process, KVM_X86_SW_PROTECTED_VM, pages, 0)
    }

    /// An ordinary VM; its slot's pages are those of a guest_memfd that the VMM has mapped.
    ///
    /// # Panics
    /// If a call fails.
    pub fn mapped(cx: &Cx<'_>, process: &Arc<Process>, pages: u64) -> BenchVm {
        let flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
        BenchVm::new(cx, process, KVM_X86_DEFAULT_VM, pages, flags)
    }

    /// An ordinary VM over anonymous memory in small pages, with dirty logging.
    ///
    /// # Panics
    /// If a call fails.
    pub fn logged(cx: &Cx<'_>, process: &Arc<Process>, pages: u64) -> BenchVm {
        let vm = BenchVm::without_slot(cx, process, KVM_X86_DEFAULT_VM, pages, None);
        vm.mapping.madvise(cx, 0, pages * PAGE_SIZE, crate::Advice::Nohugepage).expect("madvise");
        vm.set_slot(cx, KVM_MEM_LOG_DIRTY_PAGES);
        vm
    }

    fn new(cx: &Cx<'_>, process: &Arc<Process>, kind: u64, pages: u64, flags: u64) -> BenchVm {
        let vm = BenchVm::without_slot(cx, process, kind, pages, Some(flags));
        vm.set_slot(cx, KVM_MEM_GUEST_MEMFD);
        vm
    }

    fn without_slot(cx: &Cx<'_>, process: &Arc<Process>, kind: u64, pages: u64, gmem: Option<u64>) -> BenchVm {
        let len = pages * PAGE_SIZE;
        let kvm = Kvm::new(cx, process).expect("/dev/kvm");
        let vm = kvm.create_vm_with_type(cx, kind).expect("KVM_CREATE_VM");
        let gmem = gmem.map(|flags| {
            let args = kvm_create_guest_memfd { size: len, flags, ..Default::default() };
            vm.create_guest_memfd(cx, args).expect("KVM_CREATE_GUEST_MEMFD")
        });
        let rw = Prot::READ | Prot::WRITE;
        let mapping = match &gmem {
            Some(gmem) if kind == KVM_X86_DEFAULT_VM => gmem.mmap(cx, len, rw, Sharing::Shared, 0),
            _ => Mapping::anonymous(cx, process, len, rw, Sharing::Private),
        };
        let vcpu = vm.create_vcpu(cx, 0).expect("KVM_CREATE_VCPU");
        BenchVm { kvm, vm, vcpu, gmem, mapping: mapping.expect("mmap"), pages }
    }

    fn set_slot(&self, cx: &Cx<'_>, flags: u32) {
        let region = kvm_userspace_memory_region2 {
            flags,
            guest_phys_addr: BASE,
            memory_size: self.pages * PAGE_SIZE,
            userspace_addr: self.mapping.addr().0,
            guest_memfd: self.gmem.as_ref().map_or(0, |gmem| gmem.as_raw_fd() as u32),
            ..Default::default()
        };
        self.vm.set_user_memory_region2(cx, region).expect("KVM_SET_USER_MEMORY_REGION2");
    }

    /// Pages of the slot.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES` on the first `pages` pages.
    ///
    /// # Panics
    /// If the call fails.
    pub fn convert(&self, cx: &Cx<'_>, pages: u64, attributes: u64) {
        let args = kvm_memory_attributes { address: BASE, size: pages * PAGE_SIZE, attributes, flags: 0 };
        self.vm.set_memory_attributes(cx, args).expect("KVM_SET_MEMORY_ATTRIBUTES");
    }

    fn gmem(&self) -> &GuestMemfd {
        self.gmem.as_ref().expect("a VM with guest_memfd")
    }

    /// `fallocate` of the whole guest_memfd.
    ///
    /// # Panics
    /// If the call fails.
    pub fn allocate(&self, cx: &Cx<'_>) {
        self.gmem().allocate(cx, 0, self.pages * PAGE_SIZE).expect("fallocate");
    }

    /// Punches a hole over the whole guest_memfd.
    ///
    /// # Panics
    /// If the call fails.
    pub fn punch(&self, cx: &Cx<'_>) {
        self.gmem().punch_hole(cx, 0, self.pages * PAGE_SIZE).expect("fallocate");
    }

    /// The VMM writes a word of every page through its mapping.
    ///
    /// # Panics
    /// If an access raises a signal.
    pub fn touch(&self, cx: &Cx<'_>) {
        for page in 0..self.pages {
            self.mapping.write_u32(cx, page * PAGE_SIZE, 1).expect("the mapping is writable");
        }
    }

    /// Gives the vCPU a program that writes a word of every page of a range, `rounds` times over.
    pub fn load_writes(&mut self, cx: &Cx<'_>, pages: std::ops::Range<u64>, rounds: u64) {
        let program: Vec<_> = (0..rounds).flat_map(|_| pages.clone().map(write)).collect();
        self.vcpu.load_program(cx, &program);
    }

    /// As many vCPUs more, whose programs write a word of every page, each of its share.
    ///
    /// # Panics
    /// If a call fails.
    pub fn more_vcpus(&self, cx: &Cx<'_>, count: usize) -> Vec<VcpuFd> {
        let count = count as u64;
        let share = |n: u64| self.pages * n / count..self.pages * (n + 1) / count;
        let make = |n: u64| {
            let mut vcpu = self.vm.create_vcpu(cx, n + 1).expect("KVM_CREATE_VCPU");
            vcpu.load_program(cx, &share(n).map(write).collect::<Vec<_>>());
            vcpu
        };
        (0..count).map(make).collect()
    }

    /// Gives the vCPU a program that reads the first word again and again until it is 1.
    pub fn load_wait(&mut self, cx: &Cx<'_>) {
        let program =
            [GuestInsn::Read { gpa: Gpa(BASE) }, GuestInsn::JumpEqual { value: 1, to: 3 }, GuestInsn::Jump { to: 0 }];
        self.vcpu.load_program(cx, &program);
    }

    /// Writes the first word through the VMM's mapping.
    ///
    /// # Panics
    /// If the access raises a signal.
    pub fn set_first_word(&self, cx: &Cx<'_>, value: u32) {
        self.mapping.write_u32(cx, 0, value).expect("the mapping is writable");
    }

    /// The vCPU, to run it on another thread.
    pub fn vcpu(&self) -> Arc<crate::kvm::vcpu::Vcpu> {
        Arc::clone(self.vcpu.vcpu())
    }

    /// `KVM_RUN` until the program's end.
    ///
    /// # Panics
    /// If it leaves before.
    pub fn run(&mut self, cx: &Cx<'_>) {
        match self.vcpu.run(cx) {
            Ok(VcpuExit::Hlt) => {}
            other => panic!("the vCPU left the guest: {other:?}"),
        }
    }

    /// `KVM_GET_DIRTY_LOG`: how many pages were dirty.
    ///
    /// # Panics
    /// If the call fails.
    pub fn dirty_log(&self, cx: &Cx<'_>) -> u64 {
        let bits = self.vm.get_dirty_log(cx, 0, (self.pages * PAGE_SIZE) as usize).expect("KVM_GET_DIRTY_LOG");
        bits.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The VM as the model has it, for its counters.
    pub fn vm(&self) -> Arc<crate::kvm::vm::Vm> {
        self.vm.vm()
    }

    /// Closes everything.
    ///
    /// # Panics
    /// If a call fails.
    pub fn close(self, cx: &Cx<'_>) {
        self.vcpu.close(cx).expect("close");
        if let Some(gmem) = self.gmem {
            gmem.close(cx).expect("close");
        }
        self.vm.close(cx).expect("close");
        self.mapping.unmap(cx).expect("munmap");
        self.kvm.close(cx).expect("close");
    }
}

/// A write to the first word of a page.
fn write(page: u64) -> GuestInsn {
    GuestInsn::Write { gpa: Gpa(BASE + page * PAGE_SIZE), value: 1 }
}
