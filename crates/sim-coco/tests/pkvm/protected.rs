//! Donations: what can be given to a protected VM, and what comes with it.

use crate::machine::{Both, DEVICE, EINVAL, ENOMEM, EPERM, GFN, IDLE, Machine, N, NOMAP, OK, P, with};
use sim_coco::pkvm::{HostCall, HostVcpu, Memcache, Owner, Pa, PageState};
use sim_kernel::{Errno, Pfn};
use sim_mmu::Gfn;

#[test]
fn pk_004_what_cannot_be_donated() {
    with(|cx, both| {
        // One page cannot leave its region, which would be EINVAL: that is for ranges (`matrix.rs::ranges_and_regions`).
        for (pfn, answer) in [(DEVICE, EPERM), (NOMAP, EPERM), (Pfn(1 << 28), EPERM), (Pfn(u64::MAX), EINVAL)] {
            assert_eq!(both.donate(cx, P, pfn, GFN), answer, "{pfn:?}");
        }
    });
}

#[test]
fn pk_006_an_empty_memcache() {
    with(|cx, both| {
        // The host has no pages to refill from.
        *both.protected.vcpus[0].memcache.lock() = Memcache::default();
        let pfn = both.page();
        assert_eq!(both.call(cx, P, HostCall::HostDonateGuest { pfn, gfn: GFN }), ENOMEM);
        assert_eq!(both.state(pfn), PageState::Owned);
        // Nor has the vCPU any, if nobody refills it.
        let vcpu = both.pkvm.loaded(P).unwrap();
        let el2 = both.pkvm.el2(cx, P);
        assert_eq!((vcpu.memcache_pages(), el2.host_donate_guest(&vcpu, pfn, GFN)), (0, Err(Errno::ENOMEM)));
        assert_eq!(both.state(pfn), PageState::Owned);
    });
}

#[test]
fn a_memcache_is_the_hosts_memory() {
    with(|cx, both| {
        let host: &HostVcpu = &both.protected.vcpus[0];
        let pfn = both.page();
        let donate = || both.call(cx, P, HostCall::HostDonateGuest { pfn, gfn: GFN });
        // Pages that the host cannot give end the refill; what was taken before stays taken.
        let taken = host.memcache.lock().head.pfn();
        both.phys.poke_u64(taken, 0, Pa::of(DEVICE).0);
        assert_eq!(donate(), ENOMEM);
        assert_eq!(both.view(taken).host.pte.owner(), Some(Owner::Hyp));
        assert_eq!(both.pkvm.loaded(P).unwrap().memcache_pages(), 1);
        for head in [Pa(u64::MAX), Pa::of(NOMAP), Pa::of(DEVICE), Pa::of(taken)] {
            *host.memcache.lock() = Memcache { head, nr_pages: u64::MAX };
            let before = both.pkvm.ownership();
            assert_eq!(donate(), ENOMEM, "{head:?}");
            assert_eq!(both.pkvm.ownership(), before);
        }
    });
}

/// The hypervisor takes pages until it has as many as the list says, whether it needs them or not.
#[test]
fn the_refill_is_what_the_list_claims() {
    // Pages that the vCPU has, pages in the list, what the list says, whether the page is the host's: the answer, and what the vCPU has then.
    for (has, there, claimed, free, answer, left) in [
        (0, 10, 10, true, OK, 8),
        (1, 1, 1, true, ENOMEM, 1),
        (1, 2, 2, true, OK, 0),
        (4, 2, 2, true, OK, 2),
        (0, 0, 0, false, EPERM, 0),
        (0, 0, 0, true, ENOMEM, 0),
        // To its end, wherever it says that this is.
        (0, 3, u64::MAX, true, ENOMEM, 3),
    ] {
        with(|cx, both| {
            let host = &both.protected.vcpus[0];
            let vcpu = both.pkvm.loaded(P).unwrap();
            let fill = |pages| {
                // The last names a page that no host can give.
                let mut list = Memcache { head: Pa::of(NOMAP), nr_pages: 0 };
                (0..pages).for_each(|_| list.push(cx, &both.phys, both.page()));
                list
            };
            host.replace_memcache(cx, &both.phys, fill(has));
            let given = both.shared(cx);
            assert_eq!(both.call(cx, P, HostCall::HostDonateGuest { pfn: given, gfn: GFN }), EPERM);
            assert_eq!(vcpu.memcache_pages(), has);
            host.replace_memcache(cx, &both.phys, Memcache { nr_pages: claimed, ..fill(there) });
            let pfn = if free { both.page() } else { given };
            let case = format!("{has}, {there} of {claimed}, {free}");
            assert_eq!(both.call(cx, P, HostCall::HostDonateGuest { pfn, gfn: GFN }), answer, "{case}");
            assert_eq!(vcpu.memcache_pages(), left, "{case}");
        });
    }
}

#[test]
fn pk_007_a_donation_keeps_contents() {
    with(|cx, both| {
        let pfn = both.page();
        assert!(both.host_write(cx, IDLE, pfn, 0x1234));
        assert_eq!(both.donate(cx, P, pfn, GFN), OK);
        assert_eq!(both.guest_read(cx, P, GFN), Some(0x1234));
        assert_eq!(both.view(pfn).host.pte.owner(), Some(Owner::Guest(both.protected.handle, GFN)));
    });
}

#[test]
fn pk_008_one_page_twice() {
    with(|cx, both| {
        let pfn = both.donated(cx, GFN);
        assert_eq!(both.donate(cx, P, pfn, Gfn(GFN.0 + 1)), EPERM);
        let shared = both.page();
        for gfn in [GFN, Gfn(GFN.0 + 1)] {
            assert_eq!(both.share_guest(cx, N, shared, gfn, 1), OK);
        }
        assert_eq!(both.view(shared).host.share_guest_count, 2);
    });
}

#[test]
fn a_table_that_lasts_is_taken_once() {
    with(|cx, both| {
        let vcpu = both.pkvm.loaded(P).unwrap();
        both.donated(cx, GFN);
        assert_eq!(vcpu.memcache_pages(), 0, "two tables below the root");
        both.donated(cx, Gfn(GFN.0 + 1));
        assert_eq!(vcpu.memcache_pages(), 2, "refilled, and not needed");
    });
}

#[test]
fn two_machines_do_not_meet() {
    with(|cx, both| {
        let other = Both::new(cx, crate::machine::config());
        let pfn = both.donated(cx, GFN);
        let machine: &Machine = &other;
        assert!(machine.pkvm.page(pfn).guests.is_empty());
        other.check();
    });
}
