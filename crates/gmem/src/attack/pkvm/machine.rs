//! The machine on which an attack runs: memory, the hypervisor, two protected VMs whose vCPUs are loaded on processors 1 and 2, and one that is not protected on processor 3. The host is
//! on processor 0.

use super::Action;
use crate::attack::pages::Pages;
use crate::attack::step::Who;
use crate::attack::step::{Answer, PageName};
use sim_coco::pkvm::{
    CallFail, CpuId, GuestStop, Handle, HostCall, HostContext, HostKvm, HostOutcome, HostVcpu, HvcResult, Pa, Pkvm,
    PkvmConfig, Prot, SMCCC_SUCCESS, Touch, func,
};
use sim_kernel::mm::PhysMem;
use sim_kernel::{Cx, PAGE_SIZE, PAGES_PER_PMD, Pfn};
use sim_mmu::Gpa;
use std::sync::Arc;

/// The machine's memory.
const RAM: u64 = 64 << 20;
/// A page of a device, behind it.
const DEVICE: Pfn = Pfn(RAM / PAGE_SIZE + 5);
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
    kvm: Arc<HostKvm>,
    vcpu: Arc<HostVcpu>,
    /// The last page that was given for tables.
    table: Option<Pfn>,
}

/// Where the guest that is not protected is among the guests.
const OTHER: usize = 2;

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
        let guests = [(1, true), (2, true), (3, false)];
        let made = guests.map(|(cpu, protected)| machine.guest(CpuId(cpu), protected).expect("the first guests"));
        machine.guests = made.into();
        machine
    }

    fn call(&self, cpu: CpuId, call: HostCall) -> Result<u64, CallFail> {
        self.pkvm.host_call(self.cx, cpu, call)
    }

    fn frame(&self) -> Result<Pfn, CallFail> {
        self.phys.alloc_zeroed().map_err(CallFail::from)
    }

    fn shared_frame(&self) -> Result<Pfn, CallFail> {
        let pfn = self.frame()?;
        self.call(HOST, HostCall::HostShareHyp { pfn })?;
        Ok(pfn)
    }

    /// A VM with one vCPU, loaded.
    fn guest(&self, cpu: CpuId, protected: bool) -> Result<Guest, CallFail> {
        let handle = Handle(self.call(HOST, HostCall::ReserveVm)? as u16);
        let kvm = HostKvm::new(self.shared_frame()?, 1, protected);
        let pgd = self.phys.alloc_huge_zeroed()?;
        (self.pkvm.pgd_pages()..PAGES_PER_PMD).for_each(|i| self.phys.put(self.cx, pgd + i));
        self.call(HOST, HostCall::InitVm { kvm: Arc::clone(&kvm), handle, frame: self.frame()?, pgd })?;
        let vcpu = HostVcpu::new(self.shared_frame()?, 0);
        let init = HostCall::InitVcpu { handle, vcpu: Arc::clone(&vcpu), frame: self.frame()? };
        self.call(HOST, init)?;
        self.call(cpu, HostCall::VcpuPut)?;
        self.call(cpu, HostCall::VcpuLoad { handle, index: 0 })?;
        Ok(Guest { handle, cpu, kvm, vcpu, table: None })
    }

    /// As many pages for tables as a mapping can take, and then a call of the guest's vCPU.
    fn map(&mut self, guest: usize, call: HostCall) -> Answer {
        let vcpu = Arc::clone(&self.guests[guest].vcpu);
        let mut list = *vcpu.memcache.lock();
        while list.nr_pages < self.pkvm.min_memcache_pages() {
            let Ok(pfn) = self.frame() else { break };
            list.push(self.cx, &self.phys, pfn);
            self.guests[guest].table = Some(pfn);
        }
        *vcpu.memcache.lock() = list;
        done(self.call(self.guests[guest].cpu, call))
    }

    fn who(&self, who: Who) -> &Guest {
        &self.guests[who as usize]
    }

    fn page(&mut self, page: &PageName) -> Pfn {
        self.pages.frame(page)
    }

    fn host(&self, pfn: Pfn, touch: Touch) -> Answer {
        match self.pkvm.host_touch(self.cx, HOST, HostContext::User, Pa::of(pfn), touch) {
            HostOutcome::Done(_) if touch != Touch::Read => Answer::Ok,
            HostOutcome::Done(value) => Answer::Value(value),
            _ => Answer::Segv,
        }
    }

    fn guest_touch(&self, guest: &Guest, gpa: u64, touch: Touch) -> Answer {
        match self.pkvm.guest_access(self.cx, guest.cpu, Gpa(gpa), touch) {
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
                self.map(*who as usize, HostCall::HostDonateGuest { pfn, gfn: Gpa(*gpa).gfn() })
            }
            Action::DonateDevice { who, gpa } => {
                self.map(*who as usize, HostCall::HostDonateGuest { pfn: DEVICE, gfn: Gpa(*gpa).gfn() })
            }
            Action::WriteTable { who, value } => match self.who(*who).table {
                Some(pfn) => self.host(pfn, Touch::Write(*value)),
                None => Answer::Ok,
            },
            Action::Take { page } => {
                let pa = Pa::of(self.page(page));
                done(self.call(HOST, HostCall::ForceReclaimGuestPage { pa }))
            }
            Action::End { who } => {
                let (cpu, handle) = (self.who(*who).cpu, self.who(*who).handle);
                let put = self.call(cpu, HostCall::VcpuPut);
                done(put.and_then(|_| self.call(HOST, HostCall::StartTeardownVm { handle })))
            }
            Action::Teardown { who } => {
                done(self.call(HOST, HostCall::StartTeardownVm { handle: self.who(*who).handle }))
            }
            Action::Load { who } => {
                let guest = self.who(*who);
                done(self.call(guest.cpu, HostCall::VcpuLoad { handle: guest.handle, index: 0 }))
            }
            Action::Finish { who } => {
                done(self.call(HOST, HostCall::FinalizeTeardownVm { handle: self.who(*who).handle }))
            }
            Action::Again { who } => match self.guest(self.who(*who).cpu, true) {
                Ok(guest) => {
                    self.guests[*who as usize] = guest;
                    Answer::Ok
                }
                Err(fail) => done(Err(fail)),
            },
            Action::UnshareVm { who } => {
                done(self.call(HOST, HostCall::HostUnshareHyp { pfn: self.who(*who).kvm.frame() }))
            }
            Action::Lend { page, gpa, read_only } => {
                let (pfn, gfn) = (self.page(page), Gpa(*gpa).gfn());
                let prot = if *read_only { Prot::R } else { Prot::RW };
                self.map(OTHER, HostCall::HostShareGuest { pfn, gfn, pages: 1, prot })
            }
            Action::Unlend { gpa } => {
                let (handle, gfn) = (self.guests[OTHER].handle, Gpa(*gpa).gfn());
                done(self.call(HOST, HostCall::HostUnshareGuest { handle, gfn, pages: 1 }))
            }
            Action::Ask => match self.call(self.guests[OTHER].cpu, HostCall::VcpuInPoisonFault) {
                Ok(value) => Answer::Value(value),
                refused => done(refused),
            },
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
            Action::Read { who, gpa } => self.guest_touch(self.who(*who), *gpa, Touch::Read),
            Action::Write { who, gpa, value } => self.guest_touch(self.who(*who), *gpa, Touch::Write(*value)),
            Action::OtherRead { gpa } => self.guest_touch(&self.guests[OTHER], *gpa, Touch::Read),
            Action::OtherWrite { gpa, value } => self.guest_touch(&self.guests[OTHER], *gpa, Touch::Write(*value)),
        }
    }
}
