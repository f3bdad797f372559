//! VMs and vCPUs begin and end.

use crate::machine::{Both, EINVAL, ENOMEM, EPERM, GFN, IDLE, Machine, N, OK, P, Vm, config, err, with};
use sim_coco::pkvm::{CallFail, CpuId, Handle, HostCall, HostContext, HostKvm, HostOutcome, HostVcpu, Pa, Touch};
use sim_coco::pkvm::{Memcache, PageState, invariants};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno};
use sim_mmu::Gfn;
use std::sync::Arc;

fn start(cx: &Cx<'_>, machine: &Machine, vm: &Vm) -> crate::machine::Answer {
    machine.call(cx, IDLE, HostCall::StartTeardownVm { handle: vm.handle })
}

fn finalize(cx: &Cx<'_>, machine: &Machine, vm: &Vm) -> crate::machine::Answer {
    machine.call(cx, IDLE, HostCall::FinalizeTeardownVm { handle: vm.handle })
}

fn reclaim(cx: &Cx<'_>, machine: &Machine, vm: &Vm, gfn: Gfn) -> crate::machine::Answer {
    machine.call(cx, IDLE, HostCall::ReclaimDyingGuestPage { handle: vm.handle, gfn })
}

/// Pages that a VM's end gave back.
fn returned(cx: &Cx<'_>, machine: &Machine, vm: &Vm) -> usize {
    let mut list: Memcache = *vm.kvm.teardown.lock();
    std::iter::from_fn(|| list.pop(cx, &machine.phys)).count()
}

#[test]
fn pk_017_a_whole_life() {
    Sim::sequential().solo(|cx| {
        let both = Both::new(cx, config());
        let vm = &both.protected;
        let gfn = |i| Gfn(GFN.0 + i);
        let pfns: Vec<_> = (0..3).map(|i| both.donated(cx, gfn(i))).collect();
        (0..3).for_each(|i| assert!(both.guest_write(cx, P, gfn(i), 5)));
        both.pkvm.el2(cx, P).guest_share_host(&both.pkvm.loaded(P).unwrap(), gfn(1)).unwrap();
        assert_eq!(both.force(cx, pfns[2]), OK);
        assert_eq!(both.call(cx, P, HostCall::VcpuPut), OK);
        assert_eq!(start(cx, &both, vm), OK);
        assert_eq!(reclaim(cx, &both, vm, gfn(9)), err(Errno::ENOENT));
        (0..3).for_each(|i| assert_eq!(reclaim(cx, &both, vm, gfn(i)), OK));
        assert_eq!(reclaim(cx, &both, vm, gfn(0)), err(Errno::ENOENT));
        // Cleared; kept, because the host could read it anyway; cleared when it was taken.
        let contents = [0, 1, 2].map(|i: usize| both.host_read(cx, IDLE, pfns[i]));
        assert_eq!(contents, [Some(0), Some(5), Some(0)]);
        both.check();
        assert_eq!(finalize(cx, &both, vm), OK);
        invariants::pkvm_inv_015(&both.pkvm).unwrap();
        both.check();
        // One for the VM, two for its root, one for each vCPU, two tables, and what was left in a memcache.
        assert!(returned(cx, &both, vm) >= 7);
        // The host has everything again, and shares what it shared.
        for (pfn, page) in both.pkvm.ownership().pages {
            assert!(page.guests.is_empty() && page.hyp.refcount <= 1, "{pfn:?} {page:?}");
        }
        for vcpu in &vm.vcpus {
            assert_eq!(both.view(vcpu.frame()).hyp.refcount, 0);
        }
        assert_eq!(finalize(cx, &both, vm), EINVAL);
        assert_eq!(both.reserve(cx), vm.handle, "the handle is free");
    });
}

#[test]
fn pk_018_the_order_of_the_end() {
    with(|cx, both| {
        let vm = &both.protected;
        assert_eq!(finalize(cx, both, vm), EINVAL);
        assert_eq!(start(cx, both, vm), EINVAL);
        assert_eq!(both.call(cx, P, HostCall::VcpuPut), OK);
        assert_eq!(start(cx, both, vm), OK);
        assert_eq!(start(cx, both, vm), EINVAL);
        assert!(!both.load(cx, P, vm.handle, 0));
        for handle in [0, 0xfff, 0x1000 + 7, 0x1000 + 255, u16::MAX].map(Handle) {
            assert_eq!(both.call(cx, IDLE, HostCall::StartTeardownVm { handle }), EINVAL);
            assert_eq!(both.call(cx, IDLE, HostCall::FinalizeTeardownVm { handle }), EINVAL);
            assert_eq!(both.call(cx, IDLE, HostCall::UnreserveVm { handle }), OK);
        }
    });
}

#[test]
fn pk_019_pages_of_a_live_vm() {
    with(|cx, both| {
        both.donated(cx, GFN);
        assert_eq!(reclaim(cx, both, &both.protected, GFN), EINVAL);
        assert_eq!(both.call(cx, P, HostCall::VcpuPut), OK);
        assert_eq!(reclaim(cx, both, &both.protected, GFN), EINVAL);
    });
}

#[test]
fn pk_029_a_page_that_was_left() {
    Sim::sequential().solo(|cx| {
        let both = Both::new(cx, config());
        let pfn = both.donated(cx, GFN);
        assert_eq!(both.call(cx, P, HostCall::VcpuPut), OK);
        assert_eq!(start(cx, &both, &both.protected), OK);
        // The host forgot it. Nothing stops it, and the page is lost.
        assert_eq!(finalize(cx, &both, &both.protected), OK);
        let broken = invariants::pkvm_inv_015(&both.pkvm).unwrap_err();
        assert!(broken.what.contains("is gone"), "{broken}");
        assert_eq!(both.state(pfn), PageState::NoPage);
        let kernel = both.pkvm.host_touch(cx, IDLE, HostContext::Kernel, Pa::of(pfn), Touch::Read);
        assert_eq!(kernel, HostOutcome::Livelock);
        both.check();
        // Somebody else has the handle, and a page at the same address: the annotation names the wrong VM.
        let next = both.vm(cx, true, 1);
        assert_eq!(next.handle, both.protected.handle);
        assert!(both.load(cx, P, next.handle, 0));
        both.donated(cx, GFN);
        assert!(matches!(both.force(cx, pfn), Err(CallFail::Panic(_))));
        assert!(matches!(both.force(cx, pfn), Err(CallFail::Panic(_))), "the machine stays dead");
    });
}

#[test]
fn init_vm_order_of_checks() {
    with(|cx, both| {
        let handle = both.reserve(cx);
        let (shared, frame, pgd) = (both.shared(cx), both.page(), both.pgd());
        let before = both.pkvm.ownership();
        let init = |kvm_frame, vcpus, handle, frame, pgd| {
            let kvm = HostKvm::new(kvm_frame, vcpus, true);
            both.call(cx, IDLE, HostCall::InitVm { kvm, handle, frame, pgd })
        };
        let (none, used) = (Handle(0x1000 + 200), both.protected.handle);
        for (answer, expected) in [
            (init(both.page(), 0, Handle(0), shared, shared), EPERM),
            (init(shared, 0, handle, frame, pgd), EINVAL),
            (init(shared, 1, Handle(0xfff), frame, pgd), EINVAL),
            (init(shared, 1, handle, shared, pgd), ENOMEM),
            (init(shared, 1, handle, frame, shared), ENOMEM),
            (init(shared, 1, handle, frame, frame), ENOMEM),
            (init(shared, 1, none, frame, pgd), EINVAL),
            (init(shared, 1, used, frame, pgd), EINVAL),
            (init(shared, 1, Handle(u16::MAX), frame, pgd), EINVAL),
        ] {
            assert_eq!(answer, expected);
        }
        // What was taken on the way went back, cleared; pins are gone.
        let after = both.pkvm.ownership();
        assert!(before.pages.iter().all(|(pfn, page)| after.pages[pfn].hyp == page.hyp));
        assert_eq!(init(shared, 1, handle, frame, pgd), OK);
        assert_eq!(init(shared, 1, handle, both.page(), both.pgd()), EINVAL);
    });
}

#[test]
fn init_vcpu_order_of_checks() {
    with(|cx, both| {
        let handle = both.protected.handle;
        let init = |handle, vcpu, frame| both.call(cx, IDLE, HostCall::InitVcpu { handle, vcpu, frame });
        let vm = both.reserve(cx);
        let kvm = HostKvm::new(both.shared(cx), 2, true);
        let call = HostCall::InitVm { kvm, handle: vm, frame: both.page(), pgd: both.pgd() };
        assert_eq!(both.call(cx, IDLE, call), OK);
        let (shared, page) = (both.shared(cx), both.page());
        let with_sve = |sve| HostVcpu::with_sve(shared, 0, Some(sve));
        for (answer, expected) in [
            (init(Handle(7), HostVcpu::new(page, 9), shared), ENOMEM),
            (init(Handle(7), HostVcpu::new(page, 9), page), err(Errno::ENOENT)),
            (init(vm, HostVcpu::new(both.page(), 9), page), err(Errno::EBUSY)),
            (init(vm, with_sve(both.page()), page), EPERM),
            (init(vm, HostVcpu::new(shared, 2), page), EINVAL),
            (init(handle, HostVcpu::new(shared, 0), page), EINVAL),
        ] {
            assert_eq!(answer, expected);
        }
        assert_eq!(both.view(shared).hyp.refcount, 0);
        let sve = both.shared(cx);
        assert_eq!(init(vm, with_sve(sve), page), OK);
        assert_eq!((both.view(shared).hyp.refcount, both.view(sve).hyp.refcount), (1, 1));
        assert_eq!(both.call(cx, IDLE, HostCall::HostUnshareHyp { pfn: sve }), err(Errno::EBUSY));
    });
}

#[test]
fn loading() {
    with(|cx, both| {
        let vm = &both.protected;
        let loaded = |cpu| both.pkvm.loaded(cpu).map(|vcpu| vcpu.vm().handle());
        // One for each processor, a vCPU on one of them.
        both.load(cx, P, both.other.handle, 1);
        assert_eq!(loaded(P), Some(vm.handle));
        assert!(!both.load(cx, CpuId(2), vm.handle, 0));
        for (handle, index) in [(vm.handle, 2), (vm.handle, u32::MAX), (Handle(0), 0), (both.reserve(cx), 0)] {
            assert!(!both.load(cx, CpuId(2), handle, index));
        }
        assert!(both.load(cx, CpuId(2), vm.handle, 1));
        assert_eq!(both.call(cx, CpuId(2), HostCall::VcpuPut), OK);
        assert_eq!(both.call(cx, CpuId(2), HostCall::VcpuPut), OK);
        assert_eq!(both.call(cx, P, HostCall::VcpuPut), OK);
        assert!(both.load(cx, CpuId(2), vm.handle, 0));
        assert_eq!((loaded(P), loaded(N)), (None, Some(both.other.handle)));
    });
}

#[test]
fn there_are_255_handles() {
    with(|cx, both| {
        let more = (0..300).map(|_| both.call(cx, IDLE, HostCall::ReserveVm)).take_while(Result::is_ok).count();
        assert_eq!(more, 253, "two have VMs");
        assert_eq!(both.call(cx, IDLE, HostCall::ReserveVm), ENOMEM);
        assert_eq!(both.call(cx, IDLE, HostCall::UnreserveVm { handle: Handle(0x1000 + 100) }), OK);
        // A VM that was made is not just unreserved.
        assert_eq!(both.call(cx, IDLE, HostCall::UnreserveVm { handle: both.protected.handle }), OK);
        assert_eq!(both.reserve(cx), Handle(0x1000 + 100));
        assert!(both.pkvm.vm(both.protected.handle).is_some());
    });
}

#[test]
fn the_end_of_a_vm_that_is_not_protected() {
    Sim::sequential().solo(|cx| {
        let both = Both::new(cx, config());
        let vm = &both.other;
        let head = both.huge();
        assert_eq!(both.share_guest(cx, N, head, GFN, 512), OK);
        assert_eq!(both.call(cx, N, HostCall::VcpuPut), OK);
        assert_eq!(start(cx, &both, vm), OK);
        assert_eq!(both.call(cx, IDLE, HostCall::HostUnshareGuest { handle: vm.handle, gfn: GFN, pages: 512 }), OK);
        assert_eq!(finalize(cx, &both, vm), OK);
        invariants::pkvm_inv_015(&both.pkvm).unwrap();
        both.check();
        let kvm: &Arc<HostKvm> = &vm.kvm;
        assert!(kvm.teardown.lock().nr_pages > 0);
    });
}
