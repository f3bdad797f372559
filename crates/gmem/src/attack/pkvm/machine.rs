//! The machine on which an attack runs: memory, the hypervisor, and two protected VMs whose vCPUs are loaded on processors 1 and 2. The host is on processor 0.

use super::Action;
use crate::attack::pages::Pages;
use crate::attack::step::Who;
use crate::attack::step::{Answer, PageName};
use sim_coco::pkvm::{
    CallFail, CpuId, GuestStop, Handle, HostCall, HostContext, HostKvm, HostOutcome, HostVcpu, HvcResult, Pa, Pkvm,
    PkvmConfig, SMCCC_SUCCESS, Touch, func,
};
use sim_kernel::mm::PhysMem;
use sim_kernel::{Cx, PAGE_SIZE, Pfn};
use sim_mmu::Gpa;
use std::sync::Arc;

/// The machine's memory.
const RAM: u64 = 64 << 20;
/// The host's processor.
const HOST: CpuId = CpuId(0);

/// Performs the steps one after the other.
pub(in crate::attack) fn perform_all<'s>(cx: &Cx<'_>, actions: impl Iterator<Item = &'s Action>) -> Vec<Answer> {
    let mut machine = Machine::new(cx);
    actions.map(|action| machine.perform(action)).collect()
}

struct Guest {
    handle: Handle,
    cpu: CpuId,
    vcpu: Arc<HostVcpu>,
}

struct Machine<'a> {
    cx: &'a Cx<'a>,
    pkvm: Pkvm,
    phys: Arc<PhysMem>,
    pages: Pages,
    guests: Vec<Guest>,
}

fn done(result: Result<u64, CallFail>) -> Answer {
    match result {
        Ok(_) => Answer::Ok,
        Err(CallFail::Errno(errno)) => Answer::Fail(errno.number() as u32),
        // A panic of EL2 ends the machine, and with it the attack.
        Err(CallFail::NotSupported | CallFail::Panic(_)) => Answer::Fail(0),
    }
}

impl<'a> Machine<'a> {
    fn new(cx: &'a Cx<'a>) -> Machine<'a> {
        let phys = Arc::new(PhysMem::new(cx, RAM));
        let pkvm = Pkvm::new(cx, Arc::clone(&phys), PkvmConfig::new(RAM / PAGE_SIZE)).expect("the machine has memory");
        pkvm.bring_up(cx).expect("a machine that was just reset comes up");
        let mut machine = Machine { cx, pkvm, pages: Pages::new(&phys), phys, guests: Vec::new() };
        machine.guests = [CpuId(1), CpuId(2)].into_iter().map(|cpu| machine.guest(cpu)).collect();
        machine
    }

    fn call(&self, cpu: CpuId, call: HostCall) -> Result<u64, CallFail> {
        self.pkvm.host_call(self.cx, cpu, call)
    }

    fn frame(&self) -> Pfn {
        self.phys.alloc_zeroed().expect("no attack needs more pages than the machine has")
    }

    fn shared_frame(&self) -> Pfn {
        let pfn = self.frame();
        self.call(HOST, HostCall::HostShareHyp { pfn }).expect("a new page");
        pfn
    }

    /// A protected VM with one vCPU, loaded.
    fn guest(&self, cpu: CpuId) -> Guest {
        let handle = Handle(self.call(HOST, HostCall::ReserveVm).expect("a free place") as u16);
        let kvm = HostKvm::new(self.shared_frame(), 1, true);
        let pgd = self.phys.alloc_huge_zeroed().expect("the machine has memory for its guests");
        self.call(HOST, HostCall::InitVm { kvm, handle, frame: self.frame(), pgd }).expect("a usual VM");
        let vcpu = HostVcpu::new(self.shared_frame(), 0);
        let init = HostCall::InitVcpu { handle, vcpu: Arc::clone(&vcpu), frame: self.frame() };
        self.call(HOST, init).expect("a usual vCPU");
        self.call(cpu, HostCall::VcpuLoad { handle, index: 0 }).expect("loading answers nothing");
        Guest { handle, cpu, vcpu }
    }

    fn who(&self, who: Who) -> &Guest {
        &self.guests[who as usize]
    }

    fn page(&mut self, page: &PageName) -> Pfn {
        self.pages.frame(page)
    }

    /// As many pages for tables as a mapping can take.
    fn top_up(&self, vcpu: &HostVcpu) {
        let mut list = *vcpu.memcache.lock();
        while list.nr_pages < self.pkvm.min_memcache_pages() {
            list.push(self.cx, &self.phys, self.frame());
        }
        *vcpu.memcache.lock() = list;
    }

    fn host(&self, pfn: Pfn, touch: Touch) -> Answer {
        match self.pkvm.host_touch(self.cx, HOST, HostContext::User, Pa::of(pfn), touch) {
            HostOutcome::Done(_) if touch != Touch::Read => Answer::Ok,
            HostOutcome::Done(value) => Answer::Value(value),
            _ => Answer::Segv,
        }
    }

    fn guest_touch(&self, who: Who, gpa: u64, touch: Touch) -> Answer {
        match self.pkvm.guest_access(self.cx, self.who(who).cpu, Gpa(gpa), touch) {
            Ok(_) if touch != Touch::Read => Answer::Ok,
            Ok(value) => Answer::Value(value),
            Err(GuestStop::Abort(_) | GuestStop::NoVcpu | GuestStop::Dead) => Answer::Abort,
        }
    }

    fn hvc(&self, who: Who, function: u32, gpa: u64) -> Answer {
        match self.pkvm.guest_hvc(self.cx, self.who(who).cpu, function, [gpa, 0, 0]) {
            Ok(HvcResult::Answered(SMCCC_SUCCESS)) => Answer::Ok,
            Ok(HvcResult::Answered(_)) => Answer::Invalid,
            Ok(HvcResult::ToHost | HvcResult::Replay(_)) | Err(_) => Answer::Abort,
        }
    }

    fn perform(&mut self, action: &Action) -> Answer {
        match action {
            Action::Donate { page, who, gpa } => {
                let pfn = self.page(page);
                let guest = self.who(*who);
                self.top_up(&guest.vcpu);
                done(self.call(guest.cpu, HostCall::HostDonateGuest { pfn, gfn: Gpa(*gpa).gfn() }))
            }
            Action::Take { page } => {
                let pa = Pa::of(self.page(page));
                done(self.call(HOST, HostCall::ForceReclaimGuestPage { pa }))
            }
            Action::End { who } => {
                let (cpu, handle) = (self.who(*who).cpu, self.who(*who).handle);
                self.call(cpu, HostCall::VcpuPut).expect("putting answers nothing");
                done(self.call(HOST, HostCall::StartTeardownVm { handle }))
            }
            Action::Reclaim { who, gpa } => {
                let handle = self.who(*who).handle;
                done(self.call(HOST, HostCall::ReclaimDyingGuestPage { handle, gfn: Gpa(*gpa).gfn() }))
            }
            Action::Share { page } => {
                let pfn = self.page(page);
                done(self.call(HOST, HostCall::HostShareHyp { pfn }))
            }
            Action::HostRead { page } => {
                let pfn = self.page(page);
                self.host(pfn, Touch::Read)
            }
            Action::HostWrite { page, value } => {
                let pfn = self.page(page);
                self.host(pfn, Touch::Write(*value))
            }
            Action::DeviceRead { page } => {
                let pa = Pa::of(self.page(page));
                Answer::Value(self.pkvm.device_access(self.cx, pa, Touch::Read))
            }
            Action::DeviceWrite { page, value } => {
                let pa = Pa::of(self.page(page));
                self.pkvm.device_access(self.cx, pa, Touch::Write(*value));
                Answer::Ok
            }
            Action::GuestShare { who, gpa } => self.hvc(*who, func::MEM_SHARE, *gpa),
            Action::GuestUnshare { who, gpa } => self.hvc(*who, func::MEM_UNSHARE, *gpa),
            Action::Read { who, gpa } => self.guest_touch(*who, *gpa, Touch::Read),
            Action::Write { who, gpa, value } => self.guest_touch(*who, *gpa, Touch::Write(*value)),
        }
    }
}
