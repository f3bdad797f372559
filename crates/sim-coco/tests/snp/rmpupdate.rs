//! RMPUPDATE: SN-011 to SN-030 as far as they concern the instruction. Each test breaks one precondition at a time.

use crate::machine::{DONE, G, GPA, H, Machine, STATES, UNCHANGED, config, with, with_config};
use sim_coco::AccessKind;
use sim_coco::snp::{
    Asid, GuestCpu, GuestFault, PageOperand, PageState, ResizeRule, RmpEntry, RmpFail, RmpSize, RmpUpdate, SnpAccess,
    SnpConfig, VmplPerms,
};
use sim_kernel::{Cx, Pfn};
use sim_mmu::Gpa;

const HUGE: RmpUpdate = RmpUpdate::guest(G, GPA).sized(RmpSize::Size2M);
const SMALL: RmpUpdate = RmpUpdate::guest(G, GPA);
const NO_HUGE: RmpUpdate = RmpUpdate::HYPERVISOR.sized(RmpSize::Size2M);

/// RMPUPDATE fails so, and every entry of the region stays as it was.
#[track_caller]
fn refused(cx: &Cx<'_>, machine: &Machine, pfn: Pfn, new: RmpUpdate, fail: RmpFail) {
    let region = Pfn(pfn.0 & !511);
    let before: Vec<_> = (0..512).map(|i| machine.entry(region + i)).collect();
    assert_eq!(machine.snp.rmpupdate(cx, pfn, new), Err(fail));
    let after: Vec<_> = (0..512).map(|i| machine.entry(region + i)).collect();
    assert!(before == after, "a failed RMPUPDATE changed something");
}

#[test]
fn sn_011_and_sn_012_input() {
    with(|cx, machine| {
        let head = machine.huge();
        refused(cx, machine, head + 1, HUGE, RmpFail::Input);
        refused(cx, machine, head, RmpUpdate { asid: G, ..RmpUpdate::HYPERVISOR }, RmpFail::Input);
        refused(cx, machine, head, RmpUpdate { immutable: true, ..RmpUpdate::HYPERVISOR }, RmpFail::Input);
        let beyond = RmpUpdate::guest(Asid(machine.snp.config().asid_max + 1), GPA);
        refused(cx, machine, head, beyond, RmpFail::Input);
        assert_eq!(RmpFail::Input.code(), Some(1));
    });
}

#[test]
fn sn_013_what_is_immutable_stays() {
    with(|cx, machine| {
        let immutable = [
            PageState::HvFixed,
            PageState::Firmware,
            PageState::Context,
            PageState::Metadata,
            PageState::PreGuest,
            PageState::PreSwap,
        ];
        for state in STATES {
            let pfn = machine.in_state(cx, state);
            if immutable.contains(&state) {
                for new in [RmpUpdate::HYPERVISOR, SMALL, SMALL.immutable(), RmpUpdate::FIRMWARE] {
                    refused(cx, machine, pfn, new, RmpFail::Permission);
                }
                assert_eq!(RmpFail::Permission.code(), Some(2));
            } else {
                machine.assign(cx, pfn, RmpUpdate::HYPERVISOR);
            }
        }
        // A page of 2 MiB does not swallow one that is fixed.
        let head = machine.huge();
        machine.snp.snp_page_set_state(cx, &[head + 3..head + 4]).unwrap();
        refused(cx, machine, head, HUGE, RmpFail::Permission);
    });
}

#[test]
fn sn_014_to_sn_016_overlap() {
    with(|cx, machine| {
        let head = machine.huge();
        machine.assign(cx, head, HUGE);
        for pfn in [head, head + 1, head + 511] {
            refused(cx, machine, pfn, SMALL, RmpFail::Overlap);
            refused(cx, machine, pfn, RmpUpdate::HYPERVISOR, RmpFail::Overlap);
        }
        assert_eq!(RmpFail::Overlap.code(), Some(4));
        // Over a page of 2 MiB, of whomever.
        machine.assign(cx, head, HUGE);
        machine.assign(cx, head, RmpUpdate { asid: H, ..HUGE });
        machine.assign(cx, head, NO_HUGE);
        for tail in [0, 1, 511] {
            machine.assign(cx, head + tail, SMALL);
            refused(cx, machine, head, HUGE, RmpFail::Overlap);
            refused(cx, machine, head, NO_HUGE, RmpFail::Overlap);
            machine.assign(cx, head + tail, RmpUpdate::HYPERVISOR);
        }
        machine.assign(cx, head, HUGE);
    });
}

#[test]
fn sn_017_tails_say_that_they_are_assigned() {
    with(|cx, machine| {
        let head = machine.huge();
        machine.assign(cx, head, HUGE);
        assert_eq!(machine.entry(head).page_size, RmpSize::Size2M);
        let tail = RmpEntry { assigned: true, ..RmpEntry::HYPERVISOR };
        assert!((1..512).all(|i| machine.entry(head + i) == tail));
        machine.assign(cx, head, NO_HUGE);
        assert!((0..512).all(|i| machine.entry(head + i) == RmpEntry::HYPERVISOR));
    });
}

#[test]
fn sn_018_and_sn_054_a_new_owner_begins_anew() {
    for supervisor_shadow_stack in [false, true] {
        with_config(SnpConfig { supervisor_shadow_stack, ..config() }, |cx, machine| {
            let pfn = machine.in_state(cx, PageState::GuestInvalid);
            let full = if supervisor_shadow_stack { 0x1f } else { 0x0f };
            let expected = RmpEntry {
                assigned: true,
                gpa: GPA,
                asid: G,
                perms: [full, 0, 0, 0].map(VmplPerms::from_bits_retain),
                ..RmpEntry::HYPERVISOR
            };
            assert_eq!(machine.entry(pfn), expected);
        });
    }
}

#[test]
fn sn_019_and_sn_020_what_a_guest_decided_is_kept_for_the_same_page_only() {
    with(|cx, machine| {
        let rows = [
            (SMALL, true),
            (SMALL.immutable(), true),
            (RmpUpdate { gpa: Gpa(GPA.0 + 0x1000), ..SMALL }, false),
            (RmpUpdate { asid: H, ..SMALL }, false),
        ];
        for (new, kept) in rows {
            let pfn = machine.in_state(cx, PageState::GuestValid);
            machine.assign(cx, pfn, new);
            assert_eq!(machine.entry(pfn).validated, kept, "{new:?}");
            assert_eq!((machine.entry(pfn).asid, machine.entry(pfn).gpa), (new.asid, new.gpa));
        }
        let pre_swap = machine.in_state(cx, PageState::PreSwap);
        refused(cx, machine, pre_swap, SMALL, RmpFail::Permission);
    });
}

#[test]
fn sn_021_a_page_can_be_taken_from_its_guest_at_any_time() {
    with(|cx, machine| {
        let pfn = machine.in_state(cx, PageState::GuestValid);
        let cpu = GuestCpu::snp(0, G);
        let snp = &machine.snp;
        snp.guest_write_u64(cx, &cpu, GPA, pfn, 7).unwrap();
        let raw = machine.phys.peek_u64(pfn, 0);
        machine.assign(cx, pfn, RmpUpdate::HYPERVISOR);
        assert!(matches!(snp.guest_read_u64(cx, &cpu, GPA, pfn), Err(GuestFault::Npf { .. })));
        assert_eq!(machine.phys.peek_u64(pfn, 0), raw, "SN-030: contents do not change");
        // Given back, it is not accepted any more: the guest notices.
        machine.assign(cx, pfn, SMALL);
        assert!(matches!(snp.guest_read_u64(cx, &cpu, GPA, pfn), Err(GuestFault::NotValidated { .. })));
        assert_eq!(snp.pvalidate(cx, &cpu, &PageOperand::page(GPA, pfn), 1), Ok(DONE));
        assert_eq!(snp.guest_read_u64(cx, &cpu, GPA, pfn), Ok(7));
        assert_eq!(snp.pvalidate(cx, &cpu, &PageOperand::page(GPA, pfn), 1), Ok(UNCHANGED));
    });
}

#[test]
fn sn_022_the_size_of_an_assigned_page_does_not_change() {
    with(|cx, machine| {
        let head = machine.sized_in_state(cx, PageState::GuestValid, RmpSize::Size2M);
        refused(cx, machine, head, SMALL, RmpFail::Overlap);
        machine.snp.psmash(cx, head).unwrap();
        refused(cx, machine, head, HUGE, RmpFail::Overlap);
    });
    // OP-18, the other way.
    let config = SnpConfig { resize: ResizeRule::ClearsValidated, ..config() };
    with_config(config, |cx, machine| {
        let head = machine.sized_in_state(cx, PageState::GuestValid, RmpSize::Size2M);
        machine.assign(cx, head + 1, RmpUpdate::HYPERVISOR);
        assert_eq!(machine.state(head + 1), PageState::Hypervisor);
        assert!((2..512).all(|i| machine.state(head + i) == PageState::GuestInvalid));
        assert_eq!(machine.entry(head + 2).gpa, Gpa(GPA.0 + 0x2000));
        machine.assign(cx, head, HUGE);
        assert_eq!(machine.state(head + 1), PageState::GuestInvalid);
    });
}

#[test]
fn sn_027_cached_translations_do_not_survive() {
    with_config(SnpConfig { guest_tlb: true, ..config() }, |cx, machine| {
        let head = machine.sized_in_state(cx, PageState::GuestValid, RmpSize::Size2M);
        let cpu = GuestCpu::snp(3, G);
        let read = SnpAccess::private(AccessKind::Read, Gpa(GPA.0 + 0x5000), head + 5).at_level(sim_mmu::Level::L2M);
        let check = || machine.snp.check_guest(&cpu, &read).map(|_| ());
        assert_eq!(check(), Ok(()));
        machine.snp.psmash(cx, head).unwrap();
        assert!(matches!(check(), Err(GuestFault::Npf { .. })), "the size is checked again");
        let read = SnpAccess { level: sim_mmu::Level::L4K, ..read };
        let check = || machine.snp.check_guest(&cpu, &read).map(|_| ());
        assert_eq!(check(), Ok(()));
        machine.assign(cx, head + 5, RmpUpdate::HYPERVISOR);
        assert!(matches!(check(), Err(GuestFault::Npf { .. })), "the owner is checked again");
    });
}

#[test]
fn sn_028_and_sn_029_the_way_back() {
    with(|cx, machine| {
        let reclaim = machine.in_state(cx, PageState::Reclaim);
        machine.assign(cx, reclaim, RmpUpdate::HYPERVISOR);
        let firmware = machine.in_state(cx, PageState::Firmware);
        refused(cx, machine, firmware, RmpUpdate::HYPERVISOR, RmpFail::Permission);
        machine.assign(cx, machine.page(), RmpUpdate::HYPERVISOR);
    });
}

#[test]
fn addresses_are_as_wide_as_the_processor_says() {
    for (gpa_bits, gfn) in [(48, 0xf_ffff_ffff), (51, 0x7f_ffff_ffff)] {
        with_config(SnpConfig { gpa_bits, ..config() }, |cx, machine| {
            let pfn = machine.page();
            machine.assign(cx, pfn, RmpUpdate::guest(G, Gpa(u64::MAX)));
            assert_eq!(machine.entry(pfn).gpa, Gpa(gfn << 12));
        });
    }
}

#[test]
fn the_structure_in_memory() {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&GPA.0.to_le_bytes());
    assert_eq!(RmpUpdate::from_bytes(bytes), RmpUpdate { gpa: GPA, ..RmpUpdate::HYPERVISOR });
    bytes[8..].copy_from_slice(&[1, 1, 1, 0, 1, 0, 0, 0]);
    assert_eq!(RmpUpdate::from_bytes(bytes), HUGE.immutable());
    bytes[14] = 1;
    assert_eq!(RmpUpdate::from_bytes(bytes).asid, Asid(u16::MAX), "no ASID is so large");
    with(|cx, machine| {
        let pfn = machine.in_state(cx, PageState::PreGuest);
        let readout = machine.snp.rmpread(cx, pfn).unwrap().to_bytes();
        assert_eq!(readout[..8], GPA.0.to_le_bytes());
        assert_eq!(readout[8..], [1, 0, 1, 0, 1, 0, 0, 0]);
        let head = machine.sized_in_state(cx, PageState::GuestInvalid, RmpSize::Size2M);
        assert_eq!(machine.snp.rmpread(cx, head).unwrap().to_bytes()[8..10], [1, 3]);
        assert_eq!(machine.snp.rmpread(cx, head + 1).unwrap().to_bytes()[8..], [1, 2, 0, 0, 0, 0, 0, 0]);
    });
}
