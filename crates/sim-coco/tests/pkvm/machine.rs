//! A small machine, brought up, with one VM of each kind, and pages in the states that the tests need.

use sim_coco::pkvm::{
    CallFail, CpuId, HostCall, HostKvm, HostVcpu, MemRegion, Pa, PageState, PageView, Pkvm, PkvmConfig, Prot, Touch,
};
use sim_coco::pkvm::{Handle, Pte, S2Level, TraceEvent};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::{Gfn, Gpa};
use std::sync::Arc;

/// Memory of the machine. What is above is devices.
pub(crate) const RAM_PAGES: u64 = 16 << 10;
/// The last part of it is not the kernel's.
pub(crate) const NOMAP: Pfn = Pfn(12 << 10);
/// A frame of devices.
pub(crate) const DEVICE: Pfn = Pfn(RAM_PAGES + 5);
/// Where pages are in their guests; a block could be there.
pub(crate) const GFN: Gfn = Gfn(0x8_0200);

/// The protected VM's vCPU 0 is loaded here.
pub(crate) const P: CpuId = CpuId(0);
/// The other VM's.
pub(crate) const N: CpuId = CpuId(1);
/// Nothing is loaded here.
pub(crate) const IDLE: CpuId = CpuId(3);

/// What a call answered.
pub(crate) type Answer = Result<u64, CallFail>;

pub(crate) const OK: Answer = Ok(0);

pub(crate) const fn err(errno: Errno) -> Answer {
    Err(CallFail::Errno(errno))
}

pub(crate) const EPERM: Answer = err(Errno::EPERM);
pub(crate) const EINVAL: Answer = err(Errno::EINVAL);
pub(crate) const ENOMEM: Answer = err(Errno::ENOMEM);

/// A VM as the host has it.
pub(crate) struct Vm {
    pub(crate) handle: Handle,
    pub(crate) kvm: Arc<HostKvm>,
    pub(crate) vcpus: Vec<Arc<HostVcpu>>,
}

pub(crate) struct Machine {
    pub(crate) pkvm: Pkvm,
    pub(crate) phys: Arc<PhysMem>,
}

pub(crate) fn config() -> PkvmConfig {
    let ram = MemRegion { start: Pfn(0), end: NOMAP, nomap: false };
    let nomap = MemRegion { start: NOMAP, end: Pfn(RAM_PAGES), nomap: true };
    PkvmConfig { regions: vec![ram, nomap], ..PkvmConfig::new(RAM_PAGES) }
}

pub(crate) fn ipa(gfn: Gfn) -> Gpa {
    gfn.gpa()
}

impl Machine {
    pub(crate) fn new(cx: &Cx<'_>, config: PkvmConfig) -> Machine {
        let machine = Machine::booting(cx, config);
        machine.pkvm.bring_up(cx).unwrap();
        machine
    }

    /// Before the hypervisor is set up.
    pub(crate) fn booting(cx: &Cx<'_>, config: PkvmConfig) -> Machine {
        let phys = Arc::new(PhysMem::new(cx, RAM_PAGES << 12));
        Machine { pkvm: Pkvm::new(cx, Arc::clone(&phys), config).unwrap(), phys }
    }

    pub(crate) fn call(&self, cx: &Cx<'_>, cpu: CpuId, call: HostCall) -> Answer {
        self.pkvm.host_call(cx, cpu, call)
    }

    /// A page of the host, zeroed.
    pub(crate) fn page(&self) -> Pfn {
        self.phys.alloc_zeroed().unwrap()
    }

    /// 512 of them, aligned.
    pub(crate) fn huge(&self) -> Pfn {
        self.phys.alloc_huge_zeroed().unwrap()
    }

    /// A page that the host shares with the hypervisor.
    pub(crate) fn shared(&self, cx: &Cx<'_>) -> Pfn {
        let pfn = self.page();
        assert_eq!(self.call(cx, IDLE, HostCall::HostShareHyp { pfn }), OK);
        pfn
    }

    /// Pages for the root of a guest's stage 2.
    pub(crate) fn pgd(&self) -> Pfn {
        let head = self.huge();
        (self.pkvm.pgd_pages()..512).for_each(|i| self.phys.put_unscheduled(head + i));
        head
    }

    pub(crate) fn reserve(&self, cx: &Cx<'_>) -> Handle {
        Handle(self.call(cx, IDLE, HostCall::ReserveVm).unwrap() as u16)
    }

    /// A VM with so many vCPUs.
    pub(crate) fn vm(&self, cx: &Cx<'_>, is_protected: bool, vcpus: u32) -> Vm {
        self.vm_at(cx, is_protected, vcpus, self.pgd())
    }

    /// The same, with its root in these pages.
    pub(crate) fn vm_at(&self, cx: &Cx<'_>, is_protected: bool, vcpus: u32, pgd: Pfn) -> Vm {
        let handle = self.reserve(cx);
        let kvm = HostKvm::new(self.shared(cx), vcpus, is_protected);
        let call = HostCall::InitVm { kvm: Arc::clone(&kvm), handle, frame: self.page(), pgd };
        assert_eq!(self.call(cx, IDLE, call), OK);
        let vcpus = (0..vcpus).map(|index| {
            let vcpu = HostVcpu::new(self.shared(cx), index);
            let call = HostCall::InitVcpu { handle, vcpu: Arc::clone(&vcpu), frame: self.page() };
            assert_eq!(self.call(cx, IDLE, call), OK);
            self.top_up(cx, &vcpu);
            vcpu
        });
        Vm { handle, kvm, vcpus: vcpus.collect() }
    }

    /// Where the recording says that a VM's root is.
    pub(crate) fn pgd_of(&self, handle: Handle) -> Pfn {
        let of = self.pkvm.vm(handle).unwrap().vmid();
        let root = self.pkvm.trace().into_iter().rev().find_map(|record| match record.event {
            TraceEvent::Root { vmid, pfn, .. } if vmid == of => Some(pfn),
            _ => None,
        });
        root.expect("a recording")
    }

    /// What the host does before each mapping.
    pub(crate) fn top_up(&self, cx: &Cx<'_>, vcpu: &HostVcpu) {
        let mut list = *vcpu.memcache.lock();
        while list.nr_pages < self.pkvm.min_memcache_pages() {
            list.push(cx, &self.phys, self.page());
        }
        *vcpu.memcache.lock() = list;
    }

    pub(crate) fn load(&self, cx: &Cx<'_>, cpu: CpuId, handle: Handle, index: u32) -> bool {
        assert_eq!(self.call(cx, cpu, HostCall::VcpuLoad { handle, index }), OK);
        let loaded = self.pkvm.loaded(cpu);
        loaded.is_some_and(|vcpu| vcpu.vm().handle() == handle && vcpu.host().index() == index)
    }

    pub(crate) fn donate(&self, cx: &Cx<'_>, cpu: CpuId, pfn: Pfn, gfn: Gfn) -> Answer {
        self.top_up_loaded(cx, cpu);
        self.call(cx, cpu, HostCall::HostDonateGuest { pfn, gfn })
    }

    pub(crate) fn share_guest(&self, cx: &Cx<'_>, cpu: CpuId, pfn: Pfn, gfn: Gfn, pages: u64) -> Answer {
        self.top_up_loaded(cx, cpu);
        self.call(cx, cpu, HostCall::HostShareGuest { pfn, gfn, pages, prot: Prot::RWX })
    }

    fn top_up_loaded(&self, cx: &Cx<'_>, cpu: CpuId) {
        if let Some(vcpu) = self.pkvm.loaded(cpu) {
            self.top_up(cx, vcpu.host());
        }
    }

    /// Takes a page by force.
    pub(crate) fn force(&self, cx: &Cx<'_>, pfn: Pfn) -> Answer {
        self.call(cx, IDLE, HostCall::ForceReclaimGuestPage { pa: Pa::of(pfn) })
    }

    /// A word that a guest reads.
    pub(crate) fn guest_read(&self, cx: &Cx<'_>, cpu: CpuId, gfn: Gfn) -> Option<u64> {
        self.pkvm.guest_access(cx, cpu, ipa(gfn), Touch::Read).ok()
    }

    pub(crate) fn guest_write(&self, cx: &Cx<'_>, cpu: CpuId, gfn: Gfn, value: u64) -> bool {
        self.pkvm.guest_access(cx, cpu, ipa(gfn), Touch::Write(value)).is_ok()
    }

    /// A word that the host reads, if it can.
    pub(crate) fn host_read(&self, cx: &Cx<'_>, cpu: CpuId, pfn: Pfn) -> Option<u64> {
        self.pkvm.host_access(cx, cpu, Pa::of(pfn), Touch::Read).ok()
    }

    pub(crate) fn host_write(&self, cx: &Cx<'_>, cpu: CpuId, pfn: Pfn, value: u64) -> bool {
        self.pkvm.host_access(cx, cpu, Pa::of(pfn), Touch::Write(value)).is_ok()
    }

    pub(crate) fn view(&self, pfn: Pfn) -> PageView {
        self.pkvm.page(pfn)
    }

    pub(crate) fn state(&self, pfn: Pfn) -> PageState {
        self.view(pfn).host.state
    }

    /// What ends the walk at a guest's address.
    pub(crate) fn guest_pte(&self, handle: Handle, gfn: Gfn) -> (Pte, S2Level) {
        self.pkvm.guest_pte(&self.pkvm.vm(handle).unwrap(), gfn).unwrap()
    }

    pub(crate) fn check(&self) {
        assert_eq!(self.pkvm.panicked(), None);
        self.pkvm.check_invariants().unwrap();
    }
}

/// A machine with one VM of each kind, loaded.
pub(crate) struct Both {
    pub(crate) machine: Machine,
    pub(crate) protected: Vm,
    pub(crate) other: Vm,
}

impl std::ops::Deref for Both {
    type Target = Machine;
    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Both {
    pub(crate) fn new(cx: &Cx<'_>, config: PkvmConfig) -> Both {
        let machine = Machine::new(cx, config);
        let (protected, other) = (machine.vm(cx, true, 2), machine.vm(cx, false, 2));
        assert!(machine.load(cx, P, protected.handle, 0) && machine.load(cx, N, other.handle, 0));
        Both { machine, protected, other }
    }

    /// A page that is the protected VM's, at this address.
    pub(crate) fn donated(&self, cx: &Cx<'_>, gfn: Gfn) -> Pfn {
        let pfn = self.page();
        assert_eq!(self.donate(cx, P, pfn, gfn), OK);
        pfn
    }
}

/// Runs a test on a machine that is up; afterwards all invariants must hold.
pub(crate) fn with(test: impl FnOnce(&Cx<'_>, &Both)) {
    Sim::sequential().solo(|cx| {
        let both = Both::new(cx, config());
        test(cx, &both);
        both.check();
    });
}
