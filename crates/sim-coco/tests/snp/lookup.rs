//! Storage, coverage and lookup: SN-001 to SN-009.

use crate::firmware::{finish, status};
use crate::machine::{G, GPA, Machine, config, with, with_config};
use sim_coco::AccessKind;
use sim_coco::snp::firmware::{FwStatus, GuestPolicy};
use sim_coco::snp::{
    Asid, GuestCpu, GuestFault, HostSnpAccess, NpfError, PageState, RmpEntry, RmpFail, RmpLayout, RmpSize, RmpUnusable,
    RmpUpdate, RstEntry, SegmentedRmp, Snp, SnpAccess, SnpConfig, Spa, VmplPerms,
};
use sim_kernel::Pfn;
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Sim;
use sim_mmu::{Gpa, Level};
use std::sync::Arc;

const GIB_PAGES: u64 = 1 << 18;

#[test]
fn sn_001_where_an_entry_lies() {
    let layout = RmpLayout::contiguous(Spa(0x10_0000), Spa(0x110_3fff), 1 << 20).unwrap();
    assert_eq!(layout.entry_address(Pfn(0)), Some(Spa(0x10_4000)));
    assert_eq!(layout.entry_address(Pfn(5)), Some(Spa(0x10_4050)));
    assert_eq!(layout.entry_address(Pfn((1 << 20) - 1)), Some(Spa(0x110_3ff0)));
    assert_eq!(layout.entry_address(Pfn(1 << 20)), None);
    // A host that exists.
    let real = RmpLayout::contiguous(Spa(0x9860_0000), Spa(0xa8bf_ffff), 1 << 20).unwrap();
    assert!(real.is_rmp_page(Pfn(0x98600)) && real.is_rmp_page(Pfn(0xa8bff)) && !real.is_rmp_page(Pfn(0xa8c00)));
}

#[test]
fn sn_002_a_page_without_an_entry_is_the_hypervisors() {
    // The RMP ends inside the memory of the host: as if it had been plugged in later.
    let layout = RmpLayout::above(512);
    let beyond = (0u64..).map(Pfn).find(|pfn| !layout.covers(*pfn)).unwrap();
    Sim::sequential().solo(|cx| {
        let phys = Arc::new(PhysMem::new(cx, 1 << 30));
        let snp = Snp::new(cx, Arc::clone(&phys), SnpConfig::new(layout));
        snp.bring_up(cx).unwrap();
        let pfn = std::iter::repeat_with(|| phys.alloc_zeroed().unwrap()).find(|pfn| *pfn >= beyond).unwrap();
        let head = std::iter::repeat_with(|| phys.alloc_huge_zeroed().unwrap()).find(|pfn| *pfn >= beyond).unwrap();
        assert_eq!(snp.rmpupdate(cx, pfn, RmpUpdate::guest(G, GPA)), Err(RmpFail::Input));
        assert_eq!(snp.rmpupdate(cx, head, RmpUpdate::guest(G, GPA).sized(RmpSize::Size2M)), Err(RmpFail::Input));
        assert_eq!(snp.psmash(cx, head), Err(RmpFail::Input));
        assert_eq!(snp.rmpread(cx, pfn), Err(RmpFail::Input));
        assert_eq!(snp.host_write(cx, &HostSnpAccess::kernel(AccessKind::Write, pfn), 0, &[1]), Ok(()));
        let access = SnpAccess::private(AccessKind::Write, GPA, pfn);
        let cpu = GuestCpu::snp(0, G);
        let Err(GuestFault::Npf { error, .. }) = snp.guest_write(cx, &cpu, &access, &[2]) else { panic!("no NPF") };
        assert!(error.contains(NpfError::RMP | NpfError::ENC));
        assert_eq!(snp.guest_write(cx, &cpu, &access.shared(), &[3]), Ok(()));
    });
}

/// Segments of 64 GiB (RMP_CFG 0x2401) that map so many GiB each.
fn segmented(gib: &[u32]) -> SegmentedRmp {
    let table = (0u64..).zip(gib).map(|(i, gib)| RstEntry::new(Spa(0x1000_0000 + (i << 28)), *gib)).collect();
    SegmentedRmp {
        base: Spa(0x800_0000),
        end: Spa(0),
        segment_shift: 0x2401 >> 8 & 0x3f,
        shift_bounds: (30, 40),
        segments_max: None,
        table,
    }
}

#[test]
fn sn_003_segments_map_what_they_say() {
    let segment_pages = 64 * GIB_PAGES;
    let layout = RmpLayout::segmented(&segmented(&[4, 0, 65]), 4 * GIB_PAGES).unwrap();
    assert_eq!(layout.entry_address(Pfn(3)), Some(Spa(0x1000_0030)));
    assert!(layout.covers(Pfn(4 * GIB_PAGES - 1)) && !layout.covers(Pfn(4 * GIB_PAGES)));
    assert!(!layout.covers(Pfn(segment_pages)) && !layout.covers(Pfn(2 * segment_pages - 1)));
    assert_eq!(layout.entry_address(Pfn(2 * segment_pages + 1)), Some(Spa(0x3000_0010)));
    // More than the segment's size is cut; there is no fourth segment.
    assert!(layout.covers(Pfn(3 * segment_pages - 1)) && !layout.covers(Pfn(3 * segment_pages)));
    assert!(layout.is_rmp_page(Pfn(0x8004)) && layout.is_rmp_page(Pfn(0x10000)) && !layout.is_rmp_page(Pfn(0x8005)));
    assert!(!layout.warns_of_end());
    let end = RmpLayout::segmented(&SegmentedRmp { end: Spa(0x2000), ..segmented(&[4]) }, 1).unwrap();
    assert!(end.warns_of_end());
    let refused = |rmp: &SegmentedRmp, pages| RmpLayout::segmented(rmp, pages).unwrap_err();
    assert_eq!(
        refused(&SegmentedRmp { segment_shift: 29, ..segmented(&[4]) }, 1),
        RmpUnusable::SegmentSize { shift: 29 }
    );
    let at = Spa::of(Pfn(4 * GIB_PAGES));
    assert_eq!(refused(&segmented(&[4]), 4 * GIB_PAGES + 1), RmpUnusable::SegmentDoesNotFit { at });
    let one = SegmentedRmp { segments_max: Some(1), ..segmented(&[64, 4]) };
    assert!(matches!(refused(&one, 65 * GIB_PAGES), RmpUnusable::SegmentDoesNotFit { .. }));
}

#[test]
fn sn_004_both_kinds_of_rmp_do_the_same() {
    let run = |layout: RmpLayout| {
        Sim::sequential().solo(|cx| {
            let machine = Machine::new(cx, SnpConfig::new(layout));
            let snp = &machine.snp;
            let head = machine.huge();
            let huge = RmpUpdate::guest(G, GPA).sized(RmpSize::Size2M);
            let mut answers = vec![snp.rmpupdate(cx, head, huge), snp.rmpupdate(cx, head + 1, huge)];
            answers.push(snp.rmpupdate(cx, head + 1, RmpUpdate::HYPERVISOR));
            answers.push(snp.psmash(cx, head));
            answers.push(snp.rmpupdate(cx, head + 1, RmpUpdate::HYPERVISOR));
            let entries: Vec<_> = (0..512).map(|i| snp.rmpread(cx, head + i)).collect();
            (answers, entries)
        })
    };
    let ram = 64 << 8;
    assert_eq!(run(RmpLayout::above(ram)), run(RmpLayout::segmented(&segmented(&[1]), ram).unwrap()));
}

#[test]
fn sn_005_an_rmp_that_is_too_small_is_not_used() {
    let contiguous = |base, end, pages| RmpLayout::contiguous(Spa(base), Spa(end), pages).unwrap_err();
    assert!(matches!(contiguous(0x10_0000, 0x110_3fff, (1 << 20) + 1), RmpUnusable::TooSmall { .. }));
    // It must have entries for itself, too.
    assert!(matches!(contiguous(0x1_0000_0000, 0x1_0000_ffff, 16), RmpUnusable::TooSmall { .. }));
    assert_eq!(contiguous(0, 0x110_3fff, 1), RmpUnusable::NotReserved);
    assert_eq!(contiguous(0x10_0000, 0, 1), RmpUnusable::NotReserved);
    assert_eq!(contiguous(0x20_0000, 0x10_ffff, 1), RmpUnusable::NotReserved);
}

#[test]
fn sn_006_and_sn_007_a_tail_is_looked_up_by_its_head() {
    with(|cx, machine| {
        let rmp = machine.snp.rmp();
        let head = machine.sized_in_state(cx, PageState::GuestInvalid, RmpSize::Size2M);
        assert_eq!(rmp.lookup(head + 7), Some((true, Level::L2M)));
        machine.snp.psmash(cx, head).unwrap();
        assert_eq!(rmp.lookup(head + 7), Some((true, Level::L4K)));
        machine.assign(cx, head + 7, RmpUpdate::HYPERVISOR);
        assert_eq!(rmp.lookup(head + 7), Some((false, Level::L4K)));
    });
}

#[test]
fn sn_008_raw_entries_of_real_machines() {
    let full = VmplPerms::all() - VmplPerms::SSS;
    let none = VmplPerms::empty();
    let guest = |gfn: u64, asid, perms: VmplPerms| RmpEntry {
        assigned: true,
        gpa: Gpa(gfn << 12),
        asid: Asid(asid),
        vmsa: true,
        validated: true,
        perms: [perms, none, none, none],
        ..RmpEntry::HYPERVISOR
    };
    let rows = [
        ([0xfff0_0000_0014_4001, 0x0f], guest(0x144, 1022, full), 0),
        ([0x6010_ffff_ffff_f001, 0x1f], guest(0xf_ffff_ffff, 2, VmplPerms::all()), 0),
        ([0x8000_0000_0000_0005, 0], RmpEntry::FIRMWARE, 0),
        ([0x8000_0000_0000_07fd, 0], RmpEntry::FIRMWARE, 0xff),
        // Milan, printed as fields.
        (guest(0xf_ffff_ffff, 1, full).to_raw(0), guest(0xf_ffff_ffff, 1, full), 0),
    ];
    for (raw, entry, count) in rows {
        assert_eq!(RmpEntry::from_raw(raw), (entry, count), "{raw:x?}");
        // Bit 63 is opaque.
        assert_eq!(entry.to_raw(count), [raw[0] & !(1 << 63), raw[1]]);
    }
}

#[test]
fn sn_009_no_command_takes_a_page_of_the_rmp() {
    // An RMP inside the memory of the host, which has reserved it: its pages are the firmware's, but nobody's to give.
    let layout = RmpLayout::contiguous(Spa(0x20_0000), Spa(0x2f_ffff), 64 << 8).unwrap();
    with_config(SnpConfig { layout, ..config() }, |cx, machine| {
        let snp = &machine.snp;
        let own = machine.huge();
        assert!(snp.rmp().layout().is_rmp_page(own));
        assert_eq!(machine.state(own), PageState::Firmware);
        let own = Spa::of(own);
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL | GuestPolicy::DEBUG);
        let page = machine.in_state(cx, PageState::Firmware);
        let request = Spa::of(machine.page());
        for (command, answer) in [
            ("GCTX_CREATE", snp.snp_gctx_create(cx, own)),
            ("PLATFORM_STATUS", snp.snp_platform_status(cx, own)),
            ("DBG_DECRYPT", snp.snp_dbg_decrypt(cx, gctx, Spa::of(page), own)),
            ("PAGE_RECLAIM", snp.snp_page_reclaim(cx, own, RmpSize::Size4K)),
        ] {
            assert_eq!(status(answer), FwStatus::InvalidAddress, "{command}");
        }
        snp.snp_launch_finish(cx, &finish(gctx)).unwrap();
        assert_eq!(status(snp.snp_guest_request(cx, gctx, request, own)), FwStatus::InvalidAddress);
        assert_eq!(machine.state(own.pfn()), PageState::Firmware);
    });
}

#[test]
fn sn_009_the_rmp_protects_itself() {
    let layout = config().layout;
    let own = (0..).map(Pfn).find(|pfn| layout.is_rmp_page(*pfn)).unwrap();
    with(|cx, machine| {
        let snp = &machine.snp;
        assert_eq!(machine.state(own), PageState::Firmware);
        assert!(snp.check_host(&HostSnpAccess::kernel(AccessKind::Read, own)).is_ok());
        let fault = snp.check_host(&HostSnpAccess::kernel(AccessKind::Write, own)).unwrap_err();
        assert_eq!(fault.error.bits(), 0x8000_0003);
        assert_eq!(snp.rmpupdate(cx, own, RmpUpdate::HYPERVISOR), Err(RmpFail::Permission));
        assert!(snp.snp_page_reclaim(cx, Spa::of(own), RmpSize::Size4K).is_err());
        // What is read there are the entries.
        let page = machine.in_state(cx, PageState::GuestInvalid);
        assert_eq!(snp.rmp().raw(page), Some(machine.entry(page).to_raw(0)));
    });
}
