//! VMs and vCPUs begin and end.

use crate::machine::{Both, EINVAL, ENOMEM, EPERM, GFN, IDLE, Machine, N, OK, P, Vm, config, err, ipa, with};
use sim_coco::pkvm::{CallFail, CpuId, Handle, HostCall, HostContext, HostKvm, HostOutcome, HostVcpu, Pa, Touch};
use sim_coco::pkvm::{GuestStop, HostAbort, Memcache, PageState, func, invariants};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno, Pfn};
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
fn returned(cx: &Cx<'_>, machine: &Machine, vm: &Vm) -> Vec<Pfn> {
    let mut list: Memcache = *vm.kvm.teardown.lock();
    std::iter::from_fn(|| list.pop(cx, &machine.phys)).collect()
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
        // One for the VM, two for its root, one for each vCPU, two tables, and what was left in a memcache. The host has them again, with nothing in them but the list.
        let returned = returned(cx, &both, vm);
        assert_eq!(returned.len(), 1 + 2 + 2 + 2 + 2);
        for pfn in returned {
            let page = both.view(pfn);
            assert_eq!((page.host.state, page.hyp.state), (PageState::Owned, PageState::NoPage), "{pfn:?}");
            assert!((1..512).all(|word| both.phys.peek_u64(pfn, word) == 0), "{pfn:?}");
            assert!(both.host_write(cx, IDLE, pfn, 1), "{pfn:?}");
        }
        // So it has what was the guest's, and shares what it shared.
        for (pfn, page) in both.pkvm.ownership().pages {
            assert!(page.guests.is_empty() && page.hyp.refcount <= 1, "{pfn:?} {page:?}");
        }
        assert!(pfns.iter().all(|pfn| both.state(*pfn) == PageState::Owned));
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
fn the_wrong_page_is_seen_before_its_state() {
    Sim::sequential().solo(|cx| {
        let both = Both::new(cx, config());
        let pfn = both.donated(cx, GFN);
        assert_eq!(both.call(cx, P, HostCall::VcpuPut), OK);
        assert_eq!([start(cx, &both, &both.protected), finalize(cx, &both, &both.protected)], [OK; 2]);
        let next = both.vm(cx, true, 1);
        assert!(both.load(cx, P, next.handle, 0));
        // The next VM's page is not even its own alone.
        both.donated(cx, GFN);
        both.pkvm.el2(cx, P).guest_share_host(&both.pkvm.loaded(P).unwrap(), GFN).unwrap();
        both.check();
        assert!(matches!(both.force(cx, pfn), Err(CallFail::Panic(_))));
    });
}

/// Pages that the host shared with a VM that ended stay shared, one mapping too many for ever; what else happens to them is still checked.
#[test]
fn a_loan_that_was_left() {
    with(|cx, both| {
        let (pfn, handle) = (both.page(), both.other.handle);
        assert_eq!(both.share_guest(cx, N, pfn, GFN, 1), OK);
        assert_eq!(both.call(cx, N, HostCall::VcpuPut), OK);
        assert_eq!([start(cx, both, &both.other), finalize(cx, both, &both.other)], [OK; 2]);
        assert!(invariants::pkvm_inv_015(&both.pkvm).is_err());
        both.check();
        let next = both.vm(cx, false, 1);
        assert!(next.handle == handle && both.load(cx, N, handle, 0));
        assert_eq!(both.share_guest(cx, N, pfn, GFN, 1), OK);
        assert_eq!(both.view(pfn).host.share_guest_count, 2);
        both.check();
        assert_eq!(both.call(cx, IDLE, HostCall::HostUnshareGuest { handle, gfn: GFN, pages: 1 }), OK);
        assert_eq!((both.state(pfn), both.view(pfn).host.share_guest_count), (PageState::SharedOwned, 1));
    });
}

/// What a host can do that EL2 has not thought of: the machine panics, and nothing on it does anything any more.
#[test]
fn what_is_the_end_of_the_machine() {
    let pins: fn(&Cx<'_>, &Both) = |cx, both| {
        let (pfn, el2) = (both.shared(cx), both.pkvm.el2(cx, IDLE));
        (0..1 << 16).for_each(|_| el2.pin_shared_mem(pfn, 1).unwrap());
    };
    let age: fn(&Cx<'_>, &Both) = |cx, both| {
        let (handle, gfn) = (both.other.handle, Gfn(1 << 28));
        let call = HostCall::HostTestClearYoungGuest { handle, gfn, pages: 1, mkold: true };
        assert!(matches!(both.call(cx, IDLE, call), Err(CallFail::Panic(_))));
    };
    let root: fn(&Cx<'_>, &Both) = |cx, both| {
        let kvm = HostKvm::new(both.shared(cx), 1, true);
        let call = HostCall::InitVm { kvm, handle: both.reserve(cx), frame: both.page(), pgd: both.huge() + 1 };
        assert!(matches!(both.call(cx, IDLE, call), Err(CallFail::Panic(_))));
    };
    let unpin: fn(&Cx<'_>, &Both) = |cx, both| both.pkvm.el2(cx, IDLE).unpin_shared_mem(both.page(), 1);
    for end in [pins, age, root, unpin] {
        Sim::sequential().solo(|cx| {
            let both = Both::new(cx, config());
            let pfn = both.donated(cx, GFN);
            assert!(both.guest_write(cx, P, GFN, 7) && both.host_read(cx, IDLE, both.page()).is_some());
            both.check();
            end(cx, &both);
            assert!(both.pkvm.panicked().is_some());
            let before = both.pkvm.ownership();
            assert!(matches!(both.call(cx, P, HostCall::VcpuPut), Err(CallFail::Panic(_))));
            assert_eq!(both.pkvm.guest_access(cx, P, ipa(GFN), Touch::Write(8)), Err(GuestStop::Dead));
            for function in [func::MEM_SHARE, func::MEMINFO] {
                assert_eq!(both.pkvm.guest_hvc(cx, P, function, [ipa(GFN).0, 0, 0]), Err(GuestStop::Dead));
            }
            let page = both.page();
            assert_eq!(both.pkvm.host_mem_abort(cx, IDLE, Pa::of(page)), Err(HostAbort::Dead));
            for (context, pfn) in [(HostContext::User, page), (HostContext::Kernel, pfn)] {
                let touch = both.pkvm.host_touch(cx, IDLE, context, Pa::of(pfn), Touch::Write(8));
                assert_eq!(touch, HostOutcome::Dead);
            }
            assert_eq!(both.pkvm.ownership(), before);
            assert_eq!(both.phys.peek_u64(pfn, 0), 7);
        });
    }
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
