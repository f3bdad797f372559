//! VMs that are not protected: sharing pages and blocks, and changes of their mappings.

use crate::machine::{Both, EINVAL, EPERM, GFN, IDLE, N, NOMAP, OK, P, config, err, ipa, with};
use sim_coco::pkvm::{AbortKind, CpuId, GuestAbort, GuestStop, HostCall, PageState, Prot, Pte, S2Level, Touch};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::Gfn;

fn unshare(cx: &Cx<'_>, both: &Both, gfn: Gfn, pages: u64) -> crate::machine::Answer {
    both.call(cx, IDLE, HostCall::HostUnshareGuest { handle: both.other.handle, gfn, pages })
}

#[test]
fn pk_009_pk_010_blocks() {
    with(|cx, both| {
        let head = both.huge();
        for (pfn, gfn, pages) in [
            (head, Gfn(GFN.0 + 1), 512),
            (head + 1, GFN, 512),
            (head, GFN, 3),
            (head, GFN, 0),
            (head, GFN, 1 << 18),
            (head, GFN, u64::MAX),
            (Pfn(u64::MAX), GFN, 1),
        ] {
            assert_eq!(both.share_guest(cx, N, pfn, gfn, pages), EINVAL, "{pages} at {gfn:?}");
        }
        assert_eq!(both.share_guest(cx, N, NOMAP, GFN, 1), EPERM);
        // One page of the block is somebody else's.
        both.pkvm.el2(cx, IDLE).host_share_hyp(head + 300).unwrap();
        let before = both.pkvm.ownership();
        assert_eq!(both.share_guest(cx, N, head, GFN, 512), EPERM);
        assert_eq!(both.pkvm.ownership(), before);
        both.pkvm.el2(cx, IDLE).host_unshare_hyp(head + 300).unwrap();

        assert_eq!(unshare(cx, both, GFN, 1), err(Errno::ENOENT));
        assert_eq!(both.share_guest(cx, N, head, GFN, 512), OK);
        assert_eq!(both.guest_pte(both.other.handle, Gfn(GFN.0 + 9)).1, S2Level::BLOCK);
        assert!(both.guest_write(cx, N, Gfn(GFN.0 + 9), 5));
        assert_eq!(both.host_read(cx, IDLE, head + 9), Some(5));
        // Inside of it there is no room, and no page.
        assert_eq!(both.share_guest(cx, N, both.page(), Gfn(GFN.0 + 9), 1), EPERM);
        assert_eq!(unshare(cx, both, Gfn(GFN.0 + 9), 1), err(Errno::E2BIG));
        assert_eq!(unshare(cx, both, Gfn(GFN.0 + 9), 512), EINVAL);
        assert_eq!(unshare(cx, both, GFN, 512), OK);
        assert_eq!(unshare(cx, both, GFN, 512), err(Errno::ENOENT));
        assert_eq!(both.guest_read(cx, N, GFN), None);
        // A page, where a block is meant.
        assert_eq!(both.share_guest(cx, N, head, GFN, 1), OK);
        assert_eq!(unshare(cx, both, GFN, 512), err(Errno::E2BIG));
        assert_eq!(both.share_guest(cx, N, head, GFN, 512), EPERM);
        assert_eq!(unshare(cx, both, GFN, 1), OK);
    });
}

#[test]
fn a_block_takes_the_place_of_an_empty_table() {
    with(|cx, both| {
        let head = both.huge();
        // The tables go when the last page goes, so that nothing but annotations could keep one.
        assert_eq!(both.share_guest(cx, N, head + 3, Gfn(GFN.0 + 3), 1), OK);
        assert_eq!(both.guest_pte(both.other.handle, GFN).1, S2Level::LAST);
        assert_eq!(unshare(cx, both, Gfn(GFN.0 + 3), 1), OK);
        assert_eq!(both.guest_pte(both.other.handle, GFN), (Pte::NONE, S2Level(1)));
        assert_eq!(both.share_guest(cx, N, head, GFN, 512), OK);
    });
}

#[test]
fn every_mapping_of_a_page_counts() {
    with(|cx, both| {
        let pfn = both.page();
        for i in 0..300 {
            assert_eq!(both.share_guest(cx, N, pfn, Gfn(GFN.0 + i), 1), OK);
        }
        assert_eq!(both.view(pfn).host.share_guest_count, 300);
    });
}

#[test]
fn relaxing_permissions() {
    with(|cx, both| {
        let pfn = both.page();
        let relax = |cpu, gfn, prot| both.call(cx, cpu, HostCall::HostRelaxPermsGuest { gfn, prot });
        assert_eq!(relax(N, GFN, Prot::RWX), err(Errno::EAGAIN));
        both.top_up(cx, &both.other.vcpus[0]);
        let bad = Prot::from_bits_retain(1 << 5);
        let share = |prot| both.call(cx, N, HostCall::HostShareGuest { pfn, gfn: GFN, pages: 1, prot });
        assert_eq!(share(Prot::R | bad), EINVAL);
        assert_eq!(share(Prot::R), OK);
        // Another processor has the translation, too.
        assert!(both.load(cx, CpuId(2), both.other.handle, 1));
        assert_eq!((both.guest_read(cx, N, GFN), both.guest_read(cx, CpuId(2), GFN)), (Some(0), Some(0)));
        let write = |cpu| both.pkvm.guest_access(cx, cpu, ipa(GFN), Touch::Write(3));
        let denied = |stop| matches!(stop, Err(GuestStop::Abort(GuestAbort { kind: AbortKind::Permission, .. })));
        assert!(denied(write(N)));
        assert_eq!(relax(N, GFN, bad), EINVAL);
        assert_eq!(relax(N, GFN, Prot::RW), OK);
        assert_eq!(write(N), Ok(3));
        // Only this processor's translation went: the other faults once more, for nothing.
        assert!(denied(write(CpuId(2))));
        assert_eq!(relax(CpuId(2), GFN, Prot::RW), OK);
        assert_eq!(write(CpuId(2)), Ok(3));
        assert_eq!(both.guest_pte(both.other.handle, GFN).0.prot(), Prot::RW);
    });
}

#[test]
fn write_protection_waits_for_the_flush() {
    with(|cx, both| {
        let pfn = both.page();
        assert_eq!(both.share_guest(cx, N, pfn, GFN, 1), OK);
        assert!(both.guest_write(cx, N, GFN, 1));
        let handle = both.other.handle;
        let protect = |gfn, pages| both.call(cx, IDLE, HostCall::HostWrprotectGuest { handle, gfn, pages });
        // Missing pages are no failure, other sizes are.
        assert_eq!([protect(GFN, 512), protect(Gfn(GFN.0 + 1), 1)], [OK; 2]);
        assert_eq!([protect(GFN, 2), protect(Gfn(GFN.0 + 1), 512), protect(GFN, 0)], [EINVAL; 3]);
        assert_eq!(both.guest_pte(handle, GFN).0.prot(), Prot::R | Prot::X);
        assert!(both.guest_write(cx, N, GFN, 2), "the translation is still there");
        assert_eq!(both.call(cx, IDLE, HostCall::TlbFlushVmid { handle }), OK);
        assert!(!both.guest_write(cx, N, GFN, 3));
    });
}

#[test]
fn young_and_old() {
    with(|cx, both| {
        let pfn = both.page();
        assert_eq!(both.share_guest(cx, N, pfn, GFN, 1), OK);
        let handle = both.other.handle;
        let young =
            |mkold| both.call(cx, IDLE, HostCall::HostTestClearYoungGuest { handle, gfn: GFN, pages: 1, mkold });
        assert_eq!([young(false), young(true), young(true)], [Ok(1), Ok(1), Ok(0)]);
        let abort = both.pkvm.guest_access(cx, N, ipa(GFN), Touch::Read);
        assert!(matches!(abort, Err(GuestStop::Abort(GuestAbort { kind: AbortKind::AccessFlag, .. }))));
        assert_eq!(both.call(cx, N, HostCall::HostMkyoungGuest { gfn: GFN }), OK);
        assert_eq!(both.guest_read(cx, N, GFN), Some(0));
        assert_eq!(young(false), Ok(1));
        assert_eq!(both.call(cx, N, HostCall::HostMkyoungGuest { gfn: Gfn(u64::MAX) }), OK);
        let far = HostCall::HostWrprotectGuest { handle, gfn: Gfn(1 << 28), pages: 1 };
        assert_eq!(both.call(cx, N, far), err(Errno::ERANGE));
    });
}

#[test]
fn other_sizes_of_addresses() {
    // Roots of one page to sixteen, at levels 0 to 2.
    for bits in [32, 34, 36, 39, 40, 44, 48] {
        let config = sim_coco::pkvm::PkvmConfig { guest_bits: bits, host_bits: bits.max(40), ..config() };
        Sim::sequential().solo(|cx| {
            let both = Both::new(cx, config);
            let last = Gfn((1 << (bits - 12)) - 1);
            let pfn = both.donated(cx, last);
            assert_eq!(both.donate(cx, P, both.page(), Gfn(last.0 + 1)), err(Errno::ERANGE));
            assert!(both.guest_write(cx, P, last, 6));
            assert_eq!(both.force(cx, pfn), OK);
            assert_eq!(both.state(pfn), PageState::Owned);
            both.check();
        });
    }
}
