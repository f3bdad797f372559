//! Accesses: the lazily filled stage 2 of the host, TLBs, and what the host does with an abort.

use crate::machine::{DEVICE, EPERM, GFN, IDLE, Machine, N, NOMAP, OK, P, RAM_PAGES, config, err, with};
use sim_coco::AccessKind;
use sim_coco::pkvm::{
    CpuId, HostAbort, HostCall, HostContext, HostOutcome, MemRegion, Pa, PageState, PkvmConfig, Prot, Pte, S2Level,
    Touch, Vmid,
};
use sim_kernel::sched::Sim;
use sim_kernel::{Errno, Pfn};

const CONTEXTS: [HostContext; 4] =
    [HostContext::User, HostContext::KernelFixup, HostContext::Kernel, HostContext::KernelUnmapped];

#[test]
fn pk_003_what_the_host_finds_where_the_hypervisor_is() {
    with(|cx, both| {
        let pfn = both.page();
        both.pkvm.el2(cx, IDLE).host_donate_hyp(pfn, 1).unwrap();
        let outcomes = CONTEXTS.map(|context| both.pkvm.host_touch(cx, IDLE, context, Pa::of(pfn), Touch::Read));
        let expected = [HostOutcome::SigSegv, HostOutcome::Efault, HostOutcome::Oops, HostOutcome::Oops];
        assert_eq!(outcomes, expected);
        assert_eq!(both.pkvm.host_access(cx, IDLE, Pa::of(pfn), Touch::Read), Err(HostAbort::Injected));
    });
}

#[test]
fn pk_014_what_the_host_finds_where_a_guest_is() {
    for (context, outcome) in
        CONTEXTS.into_iter().zip([HostOutcome::SigSegv, HostOutcome::Efault, HostOutcome::Done(0), HostOutcome::Oops])
    {
        with(|cx, both| {
            let pfn = both.donated(cx, GFN);
            assert!(both.guest_write(cx, P, GFN, 7));
            assert_eq!(both.pkvm.host_touch(cx, IDLE, context, Pa::of(pfn), Touch::Read), outcome);
            let taken = context == HostContext::Kernel;
            assert_eq!(both.guest_read(cx, P, GFN), (!taken).then_some(7));
            assert_eq!(both.state(pfn), if taken { PageState::Owned } else { PageState::NoPage });
        });
    }
}

#[test]
fn instructions_are_not_taken_by_force() {
    with(|cx, both| {
        let pfn = both.donated(cx, GFN);
        let fetch = both.pkvm.host_touch(cx, IDLE, HostContext::Kernel, Pa::of(pfn), Touch::Fetch);
        assert_eq!(fetch, HostOutcome::Oops);
        assert_eq!(both.state(pfn), PageState::NoPage);
        assert_eq!(both.pkvm.host_access(cx, IDLE, Pa::of(DEVICE), Touch::Fetch), Err(HostAbort::Permission));
        assert_eq!(both.pkvm.host_access(cx, IDLE, Pa(1 << 40), Touch::Read), Err(HostAbort::AddressSize));
        assert_eq!(both.pkvm.host_access(cx, IDLE, Pa(u64::MAX), Touch::Read), Err(HostAbort::AddressSize));
    });
}

#[test]
fn the_hosts_stage_2_is_filled_lazily_with_what_fits() {
    with(|cx, both| {
        let head = both.huge();
        let none = both.pkvm.host_pte(head).unwrap();
        assert_eq!(none, (Pte::NONE, none.1));
        assert_eq!(both.host_read(cx, IDLE, head), Some(0));
        let (pte, level) = both.pkvm.host_pte(head + 9).unwrap();
        assert_eq!((pte.prot(), pte.pfn(), level), (Prot::RWX, head, S2Level::BLOCK));
        // One page of the block goes: the rest is filled again, page by page.
        both.pkvm.el2(cx, IDLE).host_donate_hyp(head + 9, 1).unwrap();
        assert_eq!(both.pkvm.host_pte(head + 8).unwrap(), (Pte::NONE, S2Level::LAST));
        assert_eq!(both.host_read(cx, IDLE, head + 8), Some(0));
        assert_eq!(both.pkvm.host_pte(head + 8).unwrap().0.prot(), Prot::RWX);
        assert_eq!(both.host_read(cx, IDLE, head + 9), None);
        // Devices are read and written, not executed. Memory that is not the kernel's is memory.
        assert!(both.host_write(cx, IDLE, DEVICE, 1) && both.host_write(cx, IDLE, NOMAP, 1));
        assert_eq!(both.pkvm.host_pte(DEVICE).unwrap().0.prot(), Prot::RW);
        assert_eq!(both.pkvm.host_pte(NOMAP).unwrap().0.prot(), Prot::RWX);
    });
}

#[test]
fn a_block_does_not_leave_its_region() {
    // Regions that are not aligned: what is around the last page of one is not all memory.
    let config = PkvmConfig {
        regions: vec![
            MemRegion { start: Pfn(0), end: Pfn(0x2041), nomap: false },
            MemRegion { start: Pfn(0x2043), end: Pfn(0x3000), nomap: true },
        ],
        ..config()
    };
    Sim::sequential().solo(|cx| {
        let machine = Machine::new(cx, config);
        for (pfn, prot) in [(0x2040, Prot::RWX), (0x2041, Prot::RW), (0x2042, Prot::RW), (0x2043, Prot::RWX)] {
            assert!(machine.host_read(cx, IDLE, Pfn(pfn)).is_some());
            let (pte, level) = machine.pkvm.host_pte(Pfn(pfn)).unwrap();
            assert_eq!((pte.prot(), pte.pfn(), level), (prot, Pfn(pfn), S2Level::LAST));
        }
        machine.check();
    });
}

#[test]
fn pk_024_without_tables_devices_are_given_up() {
    // Each of these takes a table below the root.
    let config = PkvmConfig { mmio_tables: 4, host_bits: 48, ..config() };
    Sim::sequential().solo(|cx| {
        let machine = Machine::new(cx, config);
        let device = |i: u64| Pfn((i + 1) << 27);
        for i in 0..64 {
            assert_eq!(machine.host_read(cx, IDLE, device(i)), Some(0));
        }
        let mapped = |i: &u64| machine.pkvm.host_pte(device(*i)).unwrap().0.is_valid();
        let left = (0..64).filter(mapped).count();
        assert!((1..64).contains(&left), "{left}: some had to go");
        // Memory can still be annotated, everywhere.
        let head = machine.huge();
        machine.pkvm.el2(cx, IDLE).host_donate_hyp(head, 512).unwrap();
        machine.check();
    });
}

#[test]
fn translations_stay_until_they_are_invalidated() {
    with(|cx, both| {
        let pfn = both.donated(cx, GFN);
        assert!(both.guest_write(cx, P, GFN, 7));
        let entries = both.pkvm.tlb_entries();
        let vmid = both.pkvm.vm(both.protected.handle).unwrap().vmid();
        assert_eq!(entries[&(P, vmid, Pfn(GFN.0))].pfn, pfn);
        assert!(!entries.contains_key(&(N, vmid, Pfn(GFN.0))), "each processor has its own");
        assert_eq!(both.force(cx, pfn), OK);
        assert!(!both.pkvm.tlb_entries().contains_key(&(P, vmid, Pfn(GFN.0))));
        assert_eq!(both.guest_read(cx, P, GFN), None);
        // The host's, on a processor that had it.
        assert!(both.host_write(cx, CpuId(2), pfn, 1));
        assert_eq!(both.donate(cx, P, pfn, sim_mmu::Gfn(GFN.0 + 1)), OK);
        assert!(!both.pkvm.tlb_entries().contains_key(&(CpuId(2), Vmid::HOST, pfn)));
        assert!(!both.host_write(cx, CpuId(2), pfn, 2));
        assert_eq!(both.guest_read(cx, P, sim_mmu::Gfn(GFN.0 + 1)), Some(1));
    });
}

#[test]
fn pk_015_what_cannot_be_taken_by_force() {
    with(|cx, both| {
        let el2 = both.pkvm.el2(cx, P);
        let own = both.page();
        el2.host_donate_hyp(own, 1).unwrap();
        assert_eq!(both.force(cx, own), EPERM);
        assert_eq!(both.force(cx, DEVICE), err(Errno::EFAULT));
        assert_eq!(both.force(cx, NOMAP), err(Errno::EAGAIN));
        let pfn = both.donated(cx, GFN);
        el2.guest_share_host(&both.pkvm.loaded(P).unwrap(), GFN).unwrap();
        assert_eq!(both.force(cx, pfn), err(Errno::EAGAIN));
        let far = both.call(cx, IDLE, HostCall::ForceReclaimGuestPage { pa: Pa(u64::MAX) });
        assert_eq!(far, err(Errno::EFAULT));
    });
}

#[test]
fn devices_are_not_kept_from_anything() {
    with(|cx, both| {
        let pfn = both.donated(cx, GFN);
        both.pkvm.device_access(cx, Pa::of(pfn), Touch::Write(5));
        assert_eq!(both.guest_read(cx, P, GFN), Some(5));
    });
}

#[test]
fn pkvm_inv_018_the_host_never_faults_twice_for_what_it_has() {
    with(|cx, both| {
        let pages: Vec<Pfn> = (0..8).map(|_| both.page()).collect();
        let el2 = both.pkvm.el2(cx, IDLE);
        el2.host_share_hyp(pages[1]).unwrap();
        el2.host_share_ffa(pages[2], 1).unwrap();
        assert_eq!(both.share_guest(cx, N, pages[3], GFN, 1), OK);
        assert_eq!(both.donate(cx, P, pages[4], GFN), OK);
        el2.guest_share_host(&both.pkvm.loaded(P).unwrap(), GFN).unwrap();
        for pfn in &pages[..5] {
            // After one abort the access goes through; what the guest shared back is there already.
            if both.pkvm.host_probe(IDLE, Pa::of(*pfn), AccessKind::Write).is_err() {
                both.pkvm.host_mem_abort(cx, IDLE, Pa::of(*pfn)).unwrap();
            }
            assert_eq!(both.pkvm.host_probe(IDLE, Pa::of(*pfn), AccessKind::Write), Ok(()));
        }
    });
}

#[test]
fn a_range_comes_back_in_blocks() {
    with(|cx, both| {
        let (head, el2) = (both.huge(), both.pkvm.el2(cx, IDLE));
        el2.host_donate_hyp(head, 512).unwrap();
        assert_eq!(both.pkvm.host_pte(head + 9).unwrap().1, S2Level::LAST);
        el2.hyp_donate_host(head, 512).unwrap();
        let (pte, level) = both.pkvm.host_pte(head + 9).unwrap();
        assert_eq!((pte.prot(), pte.pfn(), level), (Prot::RWX, head, S2Level::BLOCK));
        // What is not a block of its own is pages.
        el2.host_donate_hyp(head + 1, 511).unwrap();
        el2.hyp_donate_host(head + 1, 511).unwrap();
        assert_eq!(both.pkvm.host_pte(head + 9).unwrap().1, S2Level::LAST);
    });
}

#[test]
fn without_any_table_for_devices() {
    // None to begin with, and none that could be given up: every table of memory has an annotation in it.
    let ram = MemRegion { start: Pfn(512), end: Pfn(RAM_PAGES), nomap: false };
    let config = PkvmConfig { mmio_tables: 0, host_bits: 48, regions: vec![ram], ..config() };
    Sim::sequential().solo(|cx| {
        let machine = Machine::new(cx, config);
        let el2 = machine.pkvm.el2(cx, IDLE);
        let heads = std::iter::from_fn(|| machine.phys.alloc_huge_zeroed().ok()).filter(|head| *head < ram.end);
        heads.for_each(|head| el2.host_donate_hyp(head, 1).unwrap());
        machine.check();
        let far = machine.pkvm.host_touch(cx, IDLE, HostContext::User, Pa(1 << 39), Touch::Read);
        assert_eq!((far, machine.pkvm.panicked().is_some()), (HostOutcome::Dead, true));
    });
}
