//! A protected guest and its hypercalls, and what the host learns of its aborts.

use crate::machine::{GFN, IDLE, N, OK, P, err, ipa, with};
use sim_coco::AccessKind;
use sim_coco::pkvm::{
    AbortKind, CpuId, GuestAbort, GuestStop, HostCall, HvcResult, PageState, Prot, S2Level, SMCCC_INVALID_PARAMETER,
    SMCCC_SUCCESS, Touch, func,
};
use sim_kernel::Errno;
use sim_mmu::{Gfn, Gpa};

const INVALID: HvcResult = HvcResult::Answered(SMCCC_INVALID_PARAMETER);
const SUCCESS: HvcResult = HvcResult::Answered(SMCCC_SUCCESS);
const FREE: Gfn = Gfn(GFN.0 + 1);

#[test]
fn what_the_hypervisor_offers() {
    with(|cx, both| {
        let call = |cpu, function, args| both.pkvm.guest_hvc(cx, cpu, function, args);
        assert_eq!(call(P, func::FEATURES, [0; 3]), Ok(HvcResult::Answered(0b11101)));
        assert_eq!(call(P, func::MEMINFO, [0; 3]), Ok(HvcResult::Answered(4096)));
        for args in [[1, 0, 0], [0, 1, 0], [0, 0, u64::MAX]] {
            assert_eq!(call(P, func::MEMINFO, args), Ok(INVALID));
        }
        assert_eq!(call(P, func::MMIO_GUARD, [0; 3]), Ok(HvcResult::ToHost));
        // A guest that is not protected talks to the host.
        assert_eq!(call(N, func::MEM_SHARE, [ipa(GFN).0, 0, 0]), Ok(HvcResult::ToHost));
        assert_eq!(call(IDLE, func::MEMINFO, [0; 3]), Err(GuestStop::NoVcpu));
    });
}

#[test]
fn pk_012_share_and_unshare() {
    with(|cx, both| {
        let call = |function, args| both.pkvm.guest_hvc(cx, P, function, args).unwrap();
        let pfn = both.donated(cx, GFN);
        let at = ipa(GFN).0;
        assert!(both.guest_write(cx, P, GFN, 7));
        assert!(!both.host_write(cx, IDLE, pfn, 1));
        for args in [[at + 1, 0, 0], [at, 1, 0], [at, 0, 1]] {
            assert_eq!(call(func::MEM_SHARE, args), INVALID);
        }
        assert_eq!(call(func::MEM_UNSHARE, [at, 0, 0]), INVALID);
        assert_eq!(call(func::MEM_SHARE, [at, 0, 0]), SUCCESS);
        assert_eq!(call(func::MEM_SHARE, [at, 0, 0]), INVALID);
        // Nothing is cleared on the way, there or back.
        assert_eq!(both.host_read(cx, IDLE, pfn), Some(7));
        assert!(both.host_write(cx, IDLE, pfn, 8));
        assert_eq!(call(func::MEM_UNSHARE, [at, 0, 0]), SUCCESS);
        assert!(!both.host_write(cx, IDLE, pfn, 9));
        assert_eq!(both.guest_read(cx, P, GFN), Some(8));
        assert_eq!(both.state(pfn), PageState::NoPage);
    });
}

#[test]
fn pk_013_share_of_what_is_not_there_yet() {
    with(|cx, both| {
        let call = |function| both.pkvm.guest_hvc(cx, P, function, [ipa(FREE).0, 0, 0]).unwrap();
        assert_eq!(call(func::MEM_UNSHARE), INVALID);
        let abort = GuestAbort {
            ipa: ipa(FREE),
            kind: AbortKind::Translation,
            level: S2Level::LAST,
            access: AccessKind::Write,
        };
        assert_eq!(call(func::MEM_SHARE), HvcResult::Replay(abort));
        both.donated(cx, FREE);
        assert_eq!(call(func::MEM_SHARE), SUCCESS);
        // Beyond all addresses there will never be anything.
        for at in [1 << 40, !0xfff] {
            assert_eq!(both.pkvm.guest_hvc(cx, P, func::MEM_SHARE, [at, 0, 0]), Ok(INVALID));
        }
    });
}

#[test]
fn pk_014_a_poisoned_address() {
    with(|cx, both| {
        let pfn = both.donated(cx, GFN);
        assert!(both.guest_write(cx, P, GFN, 7));
        assert_eq!(both.force(cx, pfn), OK);
        let abort = |access| GuestAbort { ipa: ipa(GFN), kind: AbortKind::Translation, level: S2Level::LAST, access };
        for _ in 0..2 {
            let read = both.pkvm.guest_access(cx, P, ipa(GFN), Touch::Read);
            assert_eq!(read, Err(GuestStop::Abort(abort(AccessKind::Read))));
            assert_eq!(both.call(cx, P, HostCall::VcpuInPoisonFault), Ok(1));
        }
        for function in [func::MEM_SHARE, func::MEM_UNSHARE] {
            assert_eq!(both.pkvm.guest_hvc(cx, P, function, [ipa(GFN).0, 0, 0]), Ok(INVALID));
        }
        assert_eq!(both.host_read(cx, IDLE, pfn), Some(0));
    });
}

#[test]
fn pk_016_a_poisoned_address_stays_so() {
    with(|cx, both| {
        let pfn = both.donated(cx, GFN);
        assert_eq!(both.force(cx, pfn), OK);
        assert_eq!(both.donate(cx, P, both.page(), GFN), err(Errno::EPERM));
        assert_eq!(both.donate(cx, P, pfn, GFN), err(Errno::EPERM));
        assert_eq!(both.donate(cx, P, pfn, FREE), OK);
    });
}

#[test]
fn pk_027_the_poison_query_is_no_oracle() {
    with(|cx, both| {
        let query = |cpu| both.call(cx, cpu, HostCall::VcpuInPoisonFault);
        assert_eq!([query(P), query(IDLE)], [err(Errno::EINVAL); 2]);
        // Nothing mapped: not poisoned, if there is a last level at all.
        assert!(!both.guest_write(cx, P, GFN, 1));
        assert_eq!(query(P), err(Errno::EINVAL));
        both.donated(cx, FREE);
        assert!(!both.guest_write(cx, P, GFN, 1));
        assert_eq!(query(P), OK);
        // A permission abort says nothing.
        let pfn = both.page();
        both.top_up(cx, &both.other.vcpus[0]);
        let share = HostCall::HostShareGuest { pfn, gfn: GFN, pages: 1, prot: Prot::R };
        assert_eq!(both.call(cx, N, share), OK);
        let abort = both.pkvm.guest_access(cx, N, ipa(GFN), Touch::Write(1));
        assert!(matches!(abort, Err(GuestStop::Abort(GuestAbort { kind: AbortKind::Permission, .. }))));
        assert_eq!(query(N), err(Errno::EINVAL));
        // An answered hypercall forgets the abort.
        assert!(!both.guest_write(cx, P, GFN, 1));
        both.pkvm.guest_hvc(cx, P, func::MEMINFO, [0; 3]).unwrap();
        assert_eq!(query(P), err(Errno::EINVAL));
    });
}

#[test]
fn an_abort_is_remembered_while_the_vcpu_is_put() {
    // The host's thread sleeps before it asks, and wakes up on another processor.
    const Q: CpuId = CpuId(2);
    with(|cx, both| {
        let pfn = both.donated(cx, GFN);
        for (gfn, poisoned) in [(GFN, 1), (FREE, 0)] {
            if poisoned == 1 {
                assert_eq!(both.force(cx, pfn), OK);
            }
            assert!(!both.guest_write(cx, P, gfn, 1));
            assert_eq!(both.call(cx, P, HostCall::VcpuPut), OK);
            assert!(both.load(cx, Q, both.protected.handle, 0));
            assert_eq!(both.call(cx, Q, HostCall::VcpuInPoisonFault), Ok(poisoned));
            assert_eq!(both.call(cx, Q, HostCall::VcpuPut), OK);
            assert!(both.load(cx, P, both.protected.handle, 0));
        }
    });
}

#[test]
fn addresses_beyond_the_guests() {
    with(|cx, both| {
        for at in [1 << 40, u64::MAX] {
            let read = both.pkvm.guest_access(cx, P, Gpa(at), Touch::Read);
            assert!(matches!(read, Err(GuestStop::Abort(GuestAbort { kind: AbortKind::Translation, .. }))));
        }
        assert_eq!(both.donate(cx, P, both.page(), Gfn(1 << 28)), err(Errno::ERANGE));
        assert_eq!(both.donate(cx, P, both.page(), Gfn(u64::MAX)), err(Errno::ERANGE));
        assert_eq!(both.pkvm.guest_access(cx, IDLE, Gpa(0), Touch::Read), Err(GuestStop::NoVcpu));
    });
}
