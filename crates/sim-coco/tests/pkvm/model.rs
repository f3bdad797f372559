//! The hypervisor against a naive one: each page is in one place, and holds one number. And any operands at all.

use crate::discipline::Checker;
use crate::machine::{Both, DEVICE, GFN, IDLE, N, NOMAP, OK, P, Vm, config, ipa};
use proptest::prelude::*;
use sim_coco::pkvm::{
    CallFail, CpuId, Handle, HostCall, HostContext, HostOutcome, HostVcpu, Memcache, Ownership, Pa, PageState,
    PkvmConfig, Prot, Pte, Touch, func, invariants,
};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::Gfn;
use std::collections::{BTreeMap, BTreeSet};

/// Pages that the operations are about, and addresses in each VM.
const PAGES: usize = 6;
const ADDRESSES: u64 = 4;

/// Where a page is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum At {
    Host,
    /// Shared with the hypervisor, so many pins.
    Shared(u32),
    TrustZone,
    /// At these addresses of the other VM.
    Lent(BTreeSet<u64>),
    Hyp,
    /// At this address of the protected VM, and whether it is shared back.
    Guest(u64, bool),
}

#[derive(Clone, Debug)]
struct Model {
    at: Vec<At>,
    value: Vec<u64>,
    poisoned: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    ShareHyp(usize),
    UnshareHyp(usize),
    Pin(usize),
    Unpin(usize),
    DonateHyp(usize),
    DonateHost(usize),
    ShareFfa(usize),
    UnshareFfa(usize),
    Donate(usize, u64),
    GuestShare(u64),
    GuestUnshare(u64),
    Force(usize),
    Lend(usize, u64),
    TakeBack(u64),
    GuestWrite(u64, u64),
    GuestRead(u64),
    OtherWrite(u64, u64),
    OtherRead(u64),
    HostWrite(usize, u64, u32),
    HostRead(usize, u32),
    KernelRead(usize),
    /// The protected VM ends, and another takes its place.
    Reboot,
}

fn errno(answer: Result<u64, CallFail>) -> Result<(), Errno> {
    answer.map(|_| ()).map_err(|fail| fail.errno().expect("nothing is refused, and nobody panics"))
}

impl Model {
    fn new() -> Model {
        Model { at: vec![At::Host; PAGES], value: vec![0; PAGES], poisoned: BTreeSet::new() }
    }

    /// Moves a page, if it is where it has to be.
    fn moves(&mut self, page: usize, from: &At, to: At) -> Result<(), Errno> {
        if self.at[page] != *from {
            return Err(Errno::EPERM);
        }
        self.at[page] = to;
        Ok(())
    }

    fn guest_page(&self, address: u64) -> Option<usize> {
        self.at.iter().position(|at| matches!(at, At::Guest(of, _) if *of == address))
    }

    fn lent_page(&self, address: u64) -> Option<usize> {
        self.at.iter().position(|at| matches!(at, At::Lent(at) if at.contains(&address)))
    }

    fn host_has(&self, page: usize) -> bool {
        !matches!(self.at[page], At::Hyp | At::Guest(_, false))
    }

    fn take_back(&mut self, page: usize, address: u64) {
        self.poisoned.insert(address);
        self.value[page] = 0;
        self.at[page] = At::Host;
    }

    /// The same as the hypervisor's answer: a value for reads, an error as a number.
    fn step(&mut self, op: Op) -> Result<u64, Errno> {
        let done = |result: Result<(), Errno>| result.map(|()| 0);
        match op {
            Op::ShareHyp(page) => done(self.moves(page, &At::Host, At::Shared(0))),
            Op::UnshareHyp(page) => match self.at[page] {
                At::Shared(1..) => Err(Errno::EBUSY),
                _ => done(self.moves(page, &At::Shared(0), At::Host)),
            },
            Op::Pin(page) => match &mut self.at[page] {
                At::Shared(pins) => {
                    *pins += 1;
                    Ok(0)
                }
                _ => Err(Errno::EPERM),
            },
            Op::Unpin(page) => {
                // Nobody unpins what is not pinned.
                if let At::Shared(pins) = &mut self.at[page] {
                    *pins = pins.saturating_sub(1);
                }
                Ok(0)
            }
            Op::DonateHyp(page) => done(self.moves(page, &At::Host, At::Hyp)),
            Op::DonateHost(page) => done(self.moves(page, &At::Hyp, At::Host)),
            Op::ShareFfa(page) => done(self.moves(page, &At::Host, At::TrustZone)),
            Op::UnshareFfa(page) => done(self.moves(page, &At::TrustZone, At::Host)),
            Op::Donate(page, address) => {
                let free = self.guest_page(address).is_none() && !self.poisoned.contains(&address);
                if free { done(self.moves(page, &At::Host, At::Guest(address, false))) } else { Err(Errno::EPERM) }
            }
            Op::GuestShare(address) | Op::GuestUnshare(address) => {
                let share = matches!(op, Op::GuestShare(_));
                match self.guest_page(address) {
                    _ if self.poisoned.contains(&address) => Err(Errno::EHWPOISON),
                    None => Err(Errno::ENOENT),
                    Some(page) => done(self.moves(page, &At::Guest(address, !share), At::Guest(address, share))),
                }
            }
            Op::Force(page) => match self.at[page] {
                At::Hyp => Err(Errno::EPERM),
                At::Guest(address, false) => {
                    self.take_back(page, address);
                    Ok(0)
                }
                _ => Err(Errno::EAGAIN),
            },
            Op::Lend(page, address) => {
                if self.lent_page(address).is_some() {
                    return Err(Errno::EPERM);
                }
                match &mut self.at[page] {
                    At::Lent(at) => {
                        at.insert(address);
                        Ok(0)
                    }
                    _ => done(self.moves(page, &At::Host, At::Lent([address].into()))),
                }
            }
            Op::TakeBack(address) => {
                let page = self.lent_page(address).ok_or(Errno::ENOENT)?;
                let At::Lent(at) = &mut self.at[page] else { unreachable!("it is lent") };
                at.remove(&address);
                if at.is_empty() {
                    self.at[page] = At::Host;
                }
                Ok(0)
            }
            Op::GuestWrite(address, value) => self.access(self.guest_page(address), Some(value)),
            Op::GuestRead(address) => self.access(self.guest_page(address), None),
            Op::OtherWrite(address, value) => self.access(self.lent_page(address), Some(value)),
            Op::OtherRead(address) => self.access(self.lent_page(address), None),
            Op::HostWrite(page, value, _) => self.access(self.host_has(page).then_some(page), Some(value)),
            Op::HostRead(page, _) => self.access(self.host_has(page).then_some(page), None),
            Op::KernelRead(page) => {
                if let At::Guest(address, false) = self.at[page] {
                    self.take_back(page, address);
                }
                self.access(self.host_has(page).then_some(page), None)
            }
            Op::Reboot => {
                for page in 0..PAGES {
                    if let At::Guest(_, shared) = self.at[page] {
                        self.at[page] = At::Host;
                        self.value[page] = if shared { self.value[page] } else { 0 };
                    }
                }
                self.poisoned.clear();
                Ok(0)
            }
        }
    }

    fn access(&mut self, page: Option<usize>, write: Option<u64>) -> Result<u64, Errno> {
        let page = page.ok_or(Errno::EFAULT)?;
        self.value[page] = write.unwrap_or(self.value[page]);
        Ok(self.value[page])
    }
}

struct Real<'a> {
    both: Both,
    vm: Vm,
    pages: Vec<Pfn>,
    cx: &'a Cx<'a>,
}

fn gfn(address: u64) -> Gfn {
    // Pages of one table and of the next.
    Gfn(GFN.0 + 510 + address)
}

impl Real<'_> {
    fn step(&mut self, model: &Model, op: Op) -> Result<u64, Errno> {
        let (cx, both) = (self.cx, &self.both);
        let el2 = both.pkvm.el2(cx, IDLE);
        let call = |cpu, call| both.call(cx, cpu, call).map_err(|fail| fail.errno().expect("no panic"));
        let done = |result: Result<(), Errno>| result.map(|()| 0);
        let value = |read: Option<u64>| read.ok_or(Errno::EFAULT);
        let pfn = |page: usize| self.pages[page];
        let host = |page: usize, cpu: u32, touch| {
            both.pkvm.host_access(cx, CpuId(cpu), Pa::of(pfn(page)), touch).map_err(|_| Errno::EFAULT)
        };
        let guest = |cpu, address, touch| value(both.pkvm.guest_access(cx, cpu, ipa(gfn(address)), touch).ok());
        match op {
            Op::ShareHyp(page) => call(IDLE, HostCall::HostShareHyp { pfn: pfn(page) }),
            Op::UnshareHyp(page) => call(IDLE, HostCall::HostUnshareHyp { pfn: pfn(page) }),
            Op::Pin(page) => done(el2.pin_shared_mem(pfn(page), 1)),
            Op::Unpin(page) => {
                if matches!(model.at[page], At::Shared(1..)) {
                    el2.unpin_shared_mem(pfn(page), 1);
                }
                Ok(0)
            }
            Op::DonateHyp(page) => done(el2.host_donate_hyp(pfn(page), 1)),
            Op::DonateHost(page) => done(el2.hyp_donate_host(pfn(page), 1)),
            Op::ShareFfa(page) => done(el2.host_share_ffa(pfn(page), 1)),
            // The proxy only does this for what TrustZone has.
            Op::UnshareFfa(page) if model.at[page] != At::TrustZone => Err(Errno::EPERM),
            Op::UnshareFfa(page) => done(el2.host_unshare_ffa(pfn(page), 1)),
            Op::Donate(page, address) => done(errno(both.donate(cx, P, pfn(page), gfn(address)))),
            Op::GuestShare(address) => {
                let vcpu = both.pkvm.loaded(P).unwrap();
                done(both.pkvm.el2(cx, P).guest_share_host(&vcpu, gfn(address)))
            }
            Op::GuestUnshare(address) => {
                let vcpu = both.pkvm.loaded(P).unwrap();
                done(both.pkvm.el2(cx, P).guest_unshare_host(&vcpu, gfn(address)))
            }
            Op::Force(page) => done(errno(both.force(cx, pfn(page)))),
            Op::Lend(page, address) => done(errno(both.share_guest(cx, N, pfn(page), gfn(address), 1))),
            Op::TakeBack(address) => {
                let handle = both.other.handle;
                call(IDLE, HostCall::HostUnshareGuest { handle, gfn: gfn(address), pages: 1 })
            }
            Op::GuestWrite(address, value) => guest(P, address, Touch::Write(value)),
            Op::GuestRead(address) => guest(P, address, Touch::Read),
            Op::OtherWrite(address, value) => guest(N, address, Touch::Write(value)),
            Op::OtherRead(address) => guest(N, address, Touch::Read),
            Op::HostWrite(page, value, cpu) => host(page, cpu, Touch::Write(value)),
            Op::HostRead(page, cpu) => host(page, cpu, Touch::Read),
            Op::KernelRead(page) => {
                match both.pkvm.host_touch(cx, IDLE, HostContext::Kernel, Pa::of(pfn(page)), Touch::Read) {
                    HostOutcome::Done(value) => Ok(value),
                    _ => Err(Errno::EFAULT),
                }
            }
            Op::Reboot => {
                self.reboot(model);
                Ok(0)
            }
        }
    }

    fn reboot(&mut self, model: &Model) {
        let (cx, both) = (self.cx, &self.both);
        let handle = self.vm.handle;
        assert_eq!(both.call(cx, P, HostCall::VcpuPut), OK);
        assert_eq!(both.call(cx, IDLE, HostCall::StartTeardownVm { handle }), OK);
        for address in 0..ADDRESSES {
            let there = model.guest_page(address).is_some() || model.poisoned.contains(&address);
            let answer = both.call(cx, IDLE, HostCall::ReclaimDyingGuestPage { handle, gfn: gfn(address) });
            assert_eq!(errno(answer), if there { Ok(()) } else { Err(Errno::ENOENT) });
        }
        assert_eq!(both.call(cx, IDLE, HostCall::FinalizeTeardownVm { handle }), OK);
        invariants::pkvm_inv_015(&both.pkvm).unwrap();
        // The host frees what it gets back, and what it shared for the VM.
        let mut list = *self.vm.kvm.teardown.lock();
        while let Some(pfn) = list.pop(cx, &both.phys) {
            both.phys.put_unscheduled(pfn);
        }
        for pfn in std::iter::once(self.vm.kvm.frame()).chain(self.vm.vcpus.iter().map(|vcpu| vcpu.frame())) {
            assert_eq!(both.call(cx, IDLE, HostCall::HostUnshareHyp { pfn }), OK);
            both.phys.put_unscheduled(pfn);
        }
        self.vm = both.vm(cx, true, 1);
        assert!(both.load(cx, P, self.vm.handle, 0));
    }
}

/// What everybody has of the pages that the model knows.
fn states(ownership: &Ownership, pages: &[Pfn]) -> BTreeMap<Pfn, (PageState, u32, PageState, u16, Vec<PageState>)> {
    let of = |pfn: &Pfn| {
        let page = ownership.pages.get(pfn)?;
        let guests = page.guests.iter().map(|guest| guest.state()).collect();
        Some((*pfn, (page.host.state, page.host.share_guest_count, page.hyp.state, page.hyp.refcount, guests)))
    };
    pages.iter().filter_map(of).collect()
}

/// Without what an access of the host only filled.
fn without_fills(mut ownership: Ownership) -> Ownership {
    ownership.pages.values_mut().filter(|page| page.host.pte.is_valid()).for_each(|page| page.host.pte = Pte::NONE);
    ownership
}

fn op() -> impl Strategy<Value = Op> {
    let page = || 0..PAGES;
    let at = || 0..ADDRESSES;
    let value = || 1..1000_u64;
    prop_oneof![
        2 => page().prop_map(Op::ShareHyp),
        2 => page().prop_map(Op::UnshareHyp),
        1 => page().prop_map(Op::Pin),
        1 => page().prop_map(Op::Unpin),
        2 => page().prop_map(Op::DonateHyp),
        2 => page().prop_map(Op::DonateHost),
        1 => page().prop_map(Op::ShareFfa),
        1 => page().prop_map(Op::UnshareFfa),
        8 => (page(), at()).prop_map(|(page, at)| Op::Donate(page, at)),
        4 => at().prop_map(Op::GuestShare),
        3 => at().prop_map(Op::GuestUnshare),
        2 => page().prop_map(Op::Force),
        4 => (page(), at()).prop_map(|(page, at)| Op::Lend(page, at)),
        3 => at().prop_map(Op::TakeBack),
        4 => (at(), value()).prop_map(|(at, value)| Op::GuestWrite(at, value)),
        3 => at().prop_map(Op::GuestRead),
        3 => (at(), value()).prop_map(|(at, value)| Op::OtherWrite(at, value)),
        2 => at().prop_map(Op::OtherRead),
        4 => (page(), value(), 0..4_u32).prop_map(|(page, value, cpu)| Op::HostWrite(page, value, cpu)),
        3 => (page(), 0..4_u32).prop_map(|(page, cpu)| Op::HostRead(page, cpu)),
        1 => page().prop_map(Op::KernelRead),
        1 => Just(Op::Reboot),
    ]
}

/// An operand: often one that is something.
fn operand() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0..8_u64,
        2 => Just(GFN.0),
        2 => Just(DEVICE.0),
        2 => Just(NOMAP.0),
        1 => Just(512_u64),
        1 => (0..64_u32).prop_map(|bit| 1 << bit),
        1 => any::<u64>(),
    ]
}

fn wild(kind: u8, [a, b, c, d]: [u64; 4], pages: &[Pfn]) -> HostCall {
    // Small operands are pages of the machine, and handles.
    let pfn = |operand: u64| pages.get(operand as usize).copied().unwrap_or(Pfn(operand));
    let handle = |operand: u64| Handle(if operand < 8 { 0x1000 + operand as u16 } else { operand as u16 });
    let address = |operand: u64| if operand < 8 { Gfn(GFN.0 + operand) } else { Gfn(operand) };
    let prot = |operand: u64| Prot::from_bits_retain(operand);
    let vcpu = HostVcpu::with_sve(pfn(a), b as u32, (c % 2 == 0).then(|| pfn(c)));
    *vcpu.memcache.lock() = Memcache { head: Pa(c), nr_pages: d };
    match kind {
        0 => HostCall::HostShareHyp { pfn: pfn(a) },
        1 => HostCall::HostUnshareHyp { pfn: pfn(a) },
        2 | 3 => HostCall::HostDonateGuest { pfn: pfn(a), gfn: address(b) },
        4 | 5 => HostCall::HostShareGuest { pfn: pfn(a), gfn: address(b), pages: c.max(1), prot: prot(d) },
        6 => HostCall::HostUnshareGuest { handle: handle(a), gfn: address(b), pages: c },
        7 => HostCall::HostRelaxPermsGuest { gfn: address(a), prot: prot(b) },
        8 => HostCall::HostWrprotectGuest { handle: handle(a), gfn: address(b), pages: c },
        9 => HostCall::HostTestClearYoungGuest { handle: handle(a), gfn: address(b), pages: c, mkold: d % 2 == 0 },
        10 => HostCall::HostMkyoungGuest { gfn: address(a) },
        11 => HostCall::TlbFlushVmid { handle: handle(a) },
        12 => HostCall::ReserveVm,
        13 => HostCall::UnreserveVm { handle: handle(a) },
        14 => HostCall::InitVm {
            kvm: sim_coco::pkvm::HostKvm::new(pfn(a), b as u32, c % 2 == 0),
            handle: handle(d),
            frame: pfn(b),
            pgd: pfn(c),
        },
        15 => HostCall::InitVcpu { handle: handle(d), vcpu, frame: pfn(b) },
        16 => HostCall::VcpuLoad { handle: handle(a), index: b as u32 },
        17 => HostCall::VcpuPut,
        18 => HostCall::StartTeardownVm { handle: handle(a) },
        19 => HostCall::FinalizeTeardownVm { handle: handle(a) },
        20 => HostCall::ReclaimDyingGuestPage { handle: handle(a), gfn: address(b) },
        21 => HostCall::ForceReclaimGuestPage { pa: if a < 8 { Pa::of(pfn(a)) } else { Pa(a) } },
        22 => HostCall::VcpuInPoisonFault,
        23 => HostCall::ProtFinalize,
        24 => HostCall::Init,
        _ => HostCall::Undefined(a),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_page_is_in_one_place(ops in prop::collection::vec(op(), 1..60)) {
        Sim::sequential().solo(|cx| {
            let both = Both::new(cx, PkvmConfig { trace: true, ..config() });
            let pages: Vec<Pfn> = (0..PAGES).map(|_| both.page()).collect();
            // The protected VM that the operations are about can end.
            assert_eq!(both.call(cx, P, HostCall::VcpuPut), OK);
            let vm = both.vm(cx, true, 1);
            assert!(both.load(cx, P, vm.handle, 0));
            let mut real = Real { both, vm, pages, cx };
            let mut model = Model::new();
            for op in ops {
                let before = real.both.pkvm.ownership();
                let answer = real.step(&model, op);
                assert_eq!(answer, model.step(op), "{op:?}");
                if answer.is_err() {
                    let after = real.both.pkvm.ownership();
                    if matches!(op, Op::Donate(..) | Op::Lend(..)) {
                        // Pages for tables may have been taken.
                        let of = |ownership| states(ownership, &real.pages);
                        assert_eq!(of(&after), of(&before), "PKVM-INV-010: {op:?} failed");
                    } else {
                        assert_eq!(without_fills(after), without_fills(before), "PKVM-INV-010: {op:?} failed");
                    }
                }
                real.both.check();
                for (page, value) in model.value.iter().enumerate() {
                    assert_eq!(real.both.phys.peek_u64(real.pages[page], 0), *value, "page {page} after {op:?}");
                }
            }
            Checker::check(&real.both.pkvm.trace_jsonl()).unwrap();
        });
    }

    #[test]
    fn no_operands_are_too_strange(
        calls in prop::collection::vec((0..27_u8, prop::array::uniform4(operand()), 0..4_u32), 1..50),
    ) {
        Sim::sequential().solo(|cx| {
            let both = Both::new(cx, PkvmConfig { trace: true, ..config() });
            // Aligned, so that they can be the root of a VM.
            let head = both.huge();
            let pages: Vec<Pfn> = (0..8).map(|i| head + i).collect();
            for (kind, operands, cpu) in calls {
                let call = wild(kind, operands, &pages);
                let cpu = CpuId(cpu);
                both.top_up(cx, &both.protected.vcpus[0]);
                both.top_up(cx, &both.other.vcpus[0]);
                let answer = both.call(cx, cpu, call.clone());
                let [a, b, ..] = operands;
                let _ = both.pkvm.guest_access(cx, cpu, sim_mmu::Gpa(a), Touch::Write(b));
                let _ = both.pkvm.guest_access(cx, cpu, ipa(Gfn(GFN.0 + b % 8)), Touch::Read);
                let _ = both.pkvm.guest_hvc(cx, cpu, func::MEM_SHARE, [ipa(Gfn(GFN.0 + a % 8)).0, 0, 0]);
                let _ = both.pkvm.guest_hvc(cx, cpu, a as u32, [b, 0, 0]);
                let _ = both.pkvm.host_touch(cx, cpu, HostContext::KernelFixup, Pa(b), Touch::Write(a));
                if both.pkvm.panicked().is_some() {
                    // Only of what the host owes: a handle was used again while pages of the VM before it were left. And of what nobody looks at.
                    let known = match call {
                        HostCall::HostTestClearYoungGuest { gfn, .. } => gfn >= Gfn(1 << 28),
                        HostCall::InitVm { pgd, .. } => pgd.0 % 2 != 0,
                        _ => invariants::pkvm_inv_015(&both.pkvm).is_err(),
                    };
                    assert!(known, "{call:?}: {answer:?}");
                    return;
                }
                if let Err(broken) = both.pkvm.check_invariants() {
                    panic!("after {call:?}: {broken}");
                }
            }
            Checker::check(&both.pkvm.trace_jsonl()).unwrap();
        });
    }
}
