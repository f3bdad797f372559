//! What the firmware does with pages: SN-093 to SN-097, SN-101, SN-102, SN-104, SN-105, SN-108.

use crate::firmware::{finish, status};
use crate::machine::{G, GPA, H, STATES, config, start, with, with_config};
use sim_coco::snp::firmware::{
    CpuidEntry, CpuidPage, FwStatus, GuestPolicy, LaunchUpdate, PageMove, PageType, secrets_page,
};
use sim_coco::snp::{
    GuestCpu, KeyPath, PageOperand, PageState, RmpEntry, RmpSize, RmpUpdate, SnpConfig, Spa, Vmpl, VmplPerms,
};
use sim_mmu::Gpa;
use std::collections::BTreeMap;

const ALL_TYPES: [PageType; 6] =
    [PageType::Normal, PageType::Vmsa, PageType::Zero, PageType::Unmeasured, PageType::Secrets, PageType::Cpuid];

#[test]
fn sn_093_which_pages_can_be_launched() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        for state in STATES {
            let page = Spa::of(machine.in_state(cx, state));
            let answer = snp.snp_launch_update(cx, &LaunchUpdate::new(gctx, page, PageType::Normal));
            if state == PageState::PreGuest {
                assert_eq!(answer, Ok(()));
            } else {
                assert_eq!(status(answer), FwStatus::InvalidPageState, "{state:?}");
                assert_eq!(machine.state(page.pfn()), state);
            }
        }
        let update =
            |pfn, page_size| LaunchUpdate { page_size, ..LaunchUpdate::new(gctx, Spa::of(pfn), PageType::Zero) };
        let others = machine.page();
        machine.assign(cx, others, RmpUpdate::guest(H, GPA).immutable());
        assert_eq!(status(snp.snp_launch_update(cx, &update(others, RmpSize::Size4K))), FwStatus::InvalidPageOwner);
        let head = machine.sized_in_state(cx, PageState::PreGuest, RmpSize::Size2M);
        for pfn in [head, head + 1] {
            assert_eq!(status(snp.snp_launch_update(cx, &update(pfn, RmpSize::Size4K))), FwStatus::InvalidPageSize);
        }
        assert_eq!(status(snp.snp_launch_update(cx, &update(head + 1, RmpSize::Size2M))), FwStatus::InvalidAddress);
        let small = machine.huge();
        machine.assign(cx, small, RmpUpdate::guest(G, GPA).immutable());
        assert_eq!(status(snp.snp_launch_update(cx, &update(small, RmpSize::Size2M))), FwStatus::InvalidPageSize);
        let vmsa = LaunchUpdate { page_type: PageType::Vmsa, ..update(head, RmpSize::Size2M) };
        assert_eq!(status(snp.snp_launch_update(cx, &vmsa)), FwStatus::InvalidParam);
        // A guest without an ASID.
        let inactive = machine.firmware_page(cx);
        snp.snp_gctx_create(cx, inactive).unwrap();
        snp.snp_launch_start(cx, &start(inactive, GuestPolicy::USUAL)).unwrap();
        let answer = snp.snp_launch_update(cx, &LaunchUpdate { gctx: inactive, ..update(small, RmpSize::Size4K) });
        assert_eq!(status(answer), FwStatus::Inactive);
    });
}

#[test]
fn sn_094_what_a_launched_page_is() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        let perms = [VmplPerms::R, VmplPerms::empty(), VmplPerms::R | VmplPerms::XU];
        for page_type in ALL_TYPES {
            let pfn = machine.in_state(cx, PageState::PreGuest);
            let found = if page_type == PageType::Cpuid { *CpuidPage::build(&[]) } else { [0x5a; 4096] };
            snp.memory().write_page(KeyPath::Raw, pfn, &found);
            let digest = snp.peek_guest(gctx, |guest| guest.digest).unwrap();
            let update = LaunchUpdate { perms, ..LaunchUpdate::new(gctx, Spa::of(pfn), page_type) };
            snp.snp_launch_update(cx, &update).unwrap();
            let expected = RmpEntry {
                assigned: true,
                gpa: GPA,
                asid: G,
                validated: true,
                vmsa: page_type == PageType::Vmsa,
                perms: [VmplPerms::from_bits_retain(0xf), perms[0], perms[1], perms[2]],
                ..RmpEntry::HYPERVISOR
            };
            assert_eq!(machine.entry(pfn), expected);
            assert_ne!(snp.peek_guest(gctx, |guest| guest.digest), Some(digest));
            let plaintext = snp.memory().read_page(KeyPath::Guest(G), pfn);
            let secrets = snp.peek_guest(gctx, secrets_page).unwrap();
            match page_type {
                PageType::Zero => assert_eq!(plaintext[..], [0; 4096]),
                PageType::Secrets => {
                    assert_eq!(plaintext, secrets);
                    let keys: Vec<_> = plaintext[0x20..0xa0].chunks(32).collect();
                    assert!(keys.iter().all(|key| **key != [0; 32]) && keys[0] != keys[1]);
                }
                _ => assert_eq!(plaintext[..], found),
            }
            assert_ne!(snp.memory().read_page(KeyPath::Raw, pfn), plaintext, "SNP-INV-017");
            // The guest finds it accepted.
            let cpu = GuestCpu::snp(0, G);
            assert!(snp.guest_read_u64(cx, &cpu, GPA, pfn).is_ok());
            assert!(snp.pvalidate(cx, &cpu, &PageOperand::page(GPA, pfn), 1).unwrap().unchanged);
        }
    });
}

#[test]
fn sn_093_permissions_that_the_processor_does_not_have() {
    // SNP-INV-035: neither RMPADJUST nor a launch gives them.
    with(|cx, machine| {
        let snp = &machine.snp;
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        let pfn = machine.in_state(cx, PageState::PreGuest);
        for vmpl in 0..3 {
            let mut perms = [VmplPerms::R; 3];
            perms[vmpl] = VmplPerms::R | VmplPerms::SSS;
            let update = LaunchUpdate { perms, ..LaunchUpdate::new(gctx, Spa::of(pfn), PageType::Normal) };
            assert_eq!(status(snp.snp_launch_update(cx, &update)), FwStatus::InvalidParam, "VMPL{}", vmpl + 1);
            assert_eq!(machine.state(pfn), PageState::PreGuest);
        }
    });
    with_config(SnpConfig { supervisor_shadow_stack: true, ..config() }, |cx, machine| {
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        let pfn = machine.in_state(cx, PageState::PreGuest);
        let perms = [VmplPerms::SSS, VmplPerms::empty(), VmplPerms::empty()];
        let update = LaunchUpdate { perms, ..LaunchUpdate::new(gctx, Spa::of(pfn), PageType::Normal) };
        assert_eq!(machine.snp.snp_launch_update(cx, &update), Ok(()));
    });
}

#[test]
fn sn_095_cpuid_values_that_the_platform_does_not_have() {
    let cpuid = BTreeMap::from([((7, 0), [1, 0xff, 0xff, 0xff])]);
    with_config(SnpConfig { cpuid, ..config() }, |cx, machine| {
        let snp = &machine.snp;
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        let pfn = machine.in_state(cx, PageState::PreGuest);
        let other = CpuidEntry { eax_in: 1, out: [9; 4], ..CpuidEntry::default() };
        let entry = |ebx| CpuidEntry { eax_in: 7, out: [1, ebx, 2, 3], ..CpuidEntry::default() };
        snp.memory().write_page(KeyPath::Raw, pfn, &CpuidPage::build(&[other, entry(0x1ff)]));
        let update = LaunchUpdate::new(gctx, Spa::of(pfn), PageType::Cpuid);
        let digest = snp.peek_guest(gctx, |guest| guest.digest);
        assert_eq!(status(snp.snp_launch_update(cx, &update)).code(), 0x16);
        assert_eq!(machine.state(pfn), PageState::PreGuest);
        assert_eq!(snp.memory().read_page(KeyPath::Raw, pfn), CpuidPage::build(&[other, entry(0xff)]), "readable");
        assert_eq!(snp.peek_guest(gctx, |guest| guest.digest), digest);
        // What was written back is accepted.
        snp.snp_launch_update(cx, &update).unwrap();
        assert_eq!(machine.state(pfn), PageState::GuestValid);
        // More functions than a page has.
        let pfn = machine.in_state(cx, PageState::PreGuest);
        snp.memory().write(KeyPath::Raw, pfn, 0, &65u32.to_le_bytes());
        let update = LaunchUpdate::new(gctx, Spa::of(pfn), PageType::Cpuid);
        assert_eq!(status(snp.snp_launch_update(cx, &update)), FwStatus::InvalidParam);
    });
}

#[test]
fn sn_096_and_sn_097_reclaim() {
    for size in [RmpSize::Size4K, RmpSize::Size2M] {
        with(|cx, machine| {
            for state in STATES {
                if size == RmpSize::Size2M
                    && matches!(state, PageState::Context | PageState::Hypervisor | PageState::HvFixed)
                {
                    continue;
                }
                let pfn = machine.sized_in_state(cx, state, size);
                let becomes = match state {
                    PageState::Firmware | PageState::Metadata | PageState::Reclaim => Ok(PageState::Reclaim),
                    PageState::PreGuest => Ok(PageState::GuestInvalid),
                    PageState::PreSwap => Ok(PageState::GuestValid),
                    _ => Err(FwStatus::InvalidPageState),
                };
                let answer = machine.snp.snp_page_reclaim(cx, Spa::of(pfn), size);
                assert_eq!(answer, becomes.map(|_| ()).map_err(Into::into), "{state:?}");
                assert_eq!(machine.state(pfn), becomes.unwrap_or(state));
                if becomes == Ok(PageState::Reclaim) {
                    assert_eq!(machine.snp.snp_page_reclaim(cx, Spa::of(pfn), size), Ok(()));
                }
                if becomes.is_ok() {
                    machine.assign(cx, pfn, RmpUpdate::HYPERVISOR.sized(size));
                }
            }
        });
    }
    with(|cx, machine| {
        let snp = &machine.snp;
        let head = machine.sized_in_state(cx, PageState::PreGuest, RmpSize::Size2M);
        let reclaim = |pfn, size| snp.snp_page_reclaim(cx, Spa::of(pfn), size);
        assert_eq!(status(reclaim(head, RmpSize::Size4K)), FwStatus::InvalidPageSize);
        assert_eq!(status(reclaim(head + 1, RmpSize::Size4K)), FwStatus::InvalidPageSize);
        assert_eq!(status(reclaim(head + 1, RmpSize::Size2M)), FwStatus::InvalidAddress);
        let small = machine.huge();
        machine.assign(cx, small, RmpUpdate::FIRMWARE);
        assert_eq!(status(reclaim(small, RmpSize::Size2M)), FwStatus::InvalidPageSize);
    });
}

#[test]
fn sn_101_debugging() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL | GuestPolicy::DEBUG);
        let src = machine.in_state(cx, PageState::GuestValid);
        snp.guest_write_u64(cx, &GuestCpu::snp(0, G), GPA, src, 0xfeed).unwrap();
        let dst = machine.firmware_page(cx);
        snp.snp_dbg_decrypt(cx, gctx, Spa::of(src), dst).unwrap();
        assert_eq!(machine.phys.peek_u64(dst.pfn(), 0), 0xfeed);
        assert_eq!(machine.state(dst.pfn()), PageState::Firmware);
        let host = machine.page();
        let decrypt = |src, dst| status(snp.snp_dbg_decrypt(cx, gctx, src, dst));
        assert_eq!(decrypt(Spa::of(src), Spa::of(host)), FwStatus::InvalidPageState);
        assert_eq!(decrypt(Spa::of(host), dst), FwStatus::InvalidPageOwner);
        assert_eq!(decrypt(dst, dst), FwStatus::InvalidAddress);
        machine.phys.poke_u64(host, 0, 0xbeef);
        snp.snp_dbg_encrypt(cx, gctx, Spa::of(host), Spa::of(src)).unwrap();
        assert_eq!(snp.guest_read_u64(cx, &GuestCpu::snp(0, G), GPA, src), Ok(0xbeef));
        // Of a guest whose owner does not allow it.
        let private = machine.launching(cx, H, GuestPolicy::USUAL);
        let page = machine.page();
        machine.validated(cx, page, RmpUpdate::guest(H, GPA));
        assert_eq!(status(snp.snp_dbg_decrypt(cx, private, Spa::of(page), dst)), FwStatus::PolicyFailure);
        assert_eq!(status(snp.snp_dbg_encrypt(cx, private, Spa::of(host), Spa::of(page))), FwStatus::PolicyFailure);
        assert_eq!(decrypt(Spa::of(page), dst), FwStatus::InvalidPageOwner);
    });
}

#[test]
fn sn_102_platform_status() {
    with(|cx, machine| {
        for state in STATES {
            let page = Spa::of(machine.in_state(cx, state));
            let answer = machine.snp.snp_platform_status(cx, page);
            if state == PageState::Firmware {
                assert_eq!(answer, Ok(()));
                assert_eq!(machine.state(page.pfn()), PageState::Reclaim);
                assert_eq!(machine.phys.peek_u64(page.pfn(), 0) & 0xff_ffff, 0x01_3701, "version 1.55, initialised");
            } else {
                assert_eq!(status(answer), FwStatus::InvalidPageState);
                assert_eq!(machine.state(page.pfn()), state);
            }
        }
    });
}

#[test]
fn sn_104_moves() {
    for size in [RmpSize::Size4K, RmpSize::Size2M] {
        with(|cx, machine| {
            let snp = &machine.snp;
            let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
            snp.snp_launch_finish(cx, &finish(gctx)).unwrap();
            let src = machine.sized_in_state(cx, PageState::PreSwap, size);
            let dst = machine.of_size(size);
            let guest = RmpUpdate::guest(G, Gpa(0)).sized(size);
            machine.assign(cx, dst, guest.immutable());
            let before: Vec<_> =
                (0..size.pages()).map(|i| snp.memory().read_page(KeyPath::Guest(G), src + i)).collect();
            let moved = machine.entry(src);
            let page_move = PageMove { gctx, page_size: size, src: Spa::of(src), dst: Spa::of(dst) };
            snp.snp_page_move(cx, &page_move).unwrap();
            assert_eq!(machine.entry(dst), RmpEntry { immutable: false, ..moved });
            assert_eq!(machine.state(src), PageState::GuestInvalid);
            for (i, before) in (0..).zip(before) {
                assert_eq!(snp.memory().read_page(KeyPath::Guest(G), dst + i), before);
            }
            // Again: now neither page is as it must be.
            assert_eq!(status(snp.snp_page_move(cx, &page_move)), FwStatus::InvalidPageState);
        });
    }
    with(|cx, machine| {
        let snp = &machine.snp;
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL | GuestPolicy::PAGE_SWAP_DISABLE);
        let src = Spa::of(machine.in_state(cx, PageState::PreSwap));
        let dst = Spa::of(machine.in_state(cx, PageState::PreGuest));
        let page_move = PageMove { gctx, page_size: RmpSize::Size4K, src, dst };
        assert_eq!(status(snp.snp_page_move(cx, &page_move)), FwStatus::PolicyFailure);
        assert_eq!(machine.state(src.pfn()), PageState::PreSwap);
    });
    with(|cx, machine| {
        let snp = &machine.snp;
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        let src = Spa::of(machine.in_state(cx, PageState::PreSwap));
        let dst = Spa::of(machine.in_state(cx, PageState::PreGuest));
        let good = PageMove { gctx, page_size: RmpSize::Size4K, src, dst };
        let others = machine.page();
        machine.assign(cx, others, RmpUpdate::guest(H, GPA).immutable());
        let rows = [
            (PageMove { dst: Spa::of(others), ..good }, FwStatus::InvalidPageOwner),
            (PageMove { src: Spa::of(others), ..good }, FwStatus::InvalidPageOwner),
            (
                PageMove { src: Spa::of(machine.in_state(cx, PageState::GuestValid)), ..good },
                FwStatus::InvalidPageState,
            ),
            (PageMove { dst: Spa::of(machine.page()), ..good }, FwStatus::InvalidPageState),
            (PageMove { page_size: RmpSize::Size2M, ..good }, FwStatus::InvalidAddress),
        ];
        for (page_move, expected) in rows {
            assert_eq!(status(snp.snp_page_move(cx, &page_move)), expected, "{page_move:?}");
        }
    });
}

#[test]
fn sn_105_unsmash_and_back() {
    for unsmash_keeps_immutable in [true, false] {
        with_config(SnpConfig { unsmash_keeps_immutable, ..config() }, |cx, machine| {
            let snp = &machine.snp;
            let head = machine.sized_in_state(cx, PageState::GuestValid, RmpSize::Size2M);
            let whole = machine.entry(head);
            snp.psmash(cx, head).unwrap();
            let parts: Vec<_> = (0..512).map(|i| machine.entry(head + i)).collect();
            let close = |i: u64| {
                let gpa = Gpa(GPA.0 + (i << 12));
                machine.assign(cx, head + i, RmpUpdate::guest(G, gpa).immutable());
            };
            (0..511).for_each(close);
            assert_eq!(status(snp.snp_page_unsmash(cx, Spa::of(head))), FwStatus::InvalidPageState, "one is open");
            close(511);
            assert_eq!(status(snp.snp_page_unsmash(cx, Spa::of(head + 1))), FwStatus::InvalidAddress);
            snp.snp_page_unsmash(cx, Spa::of(head)).unwrap();
            assert_eq!(machine.entry(head), RmpEntry { immutable: unsmash_keeps_immutable, ..whole }, "OP-10");
            assert_eq!(status(snp.snp_page_unsmash(cx, Spa::of(head))), FwStatus::InvalidPageSize);
            if unsmash_keeps_immutable {
                snp.snp_page_reclaim(cx, Spa::of(head), RmpSize::Size2M).unwrap();
            }
            snp.psmash(cx, head).unwrap();
            assert!((0..512).map(|i| machine.entry(head + i)).eq(parts));
        });
    }
}

#[test]
fn what_cannot_be_unsmashed() {
    let closed = |gfn: u64| RmpUpdate::guest(G, Gpa(gfn << 12)).immutable();
    let base = GPA.0 >> 12;
    // By the 4 KiB page that differs, if one does.
    type Page = Box<dyn Fn(u64) -> RmpUpdate>;
    let rows: [(Page, FwStatus); 5] = [
        (
            Box::new(move |i| RmpUpdate { asid: if i == 7 { H } else { G }, ..closed(base + i) }),
            FwStatus::InvalidPageOwner,
        ),
        (Box::new(move |_| RmpUpdate::FIRMWARE), FwStatus::InvalidPageOwner),
        (Box::new(move |i| closed(base + i + 1)), FwStatus::InvalidPageState),
        (Box::new(move |i| closed(base + i / 2)), FwStatus::InvalidPageState),
        (Box::new(move |i| RmpUpdate { immutable: i != 500, ..closed(base + i) }), FwStatus::InvalidPageState),
    ];
    with(|cx, machine| {
        for (page, expected) in &rows {
            let head = machine.huge();
            (0..512).for_each(|i| machine.assign(cx, head + i, page(i)));
            assert_eq!(status(machine.snp.snp_page_unsmash(cx, Spa::of(head))), *expected);
        }
        // Accepted in part.
        let head = machine.huge();
        for i in 0..512 {
            let open = RmpUpdate { immutable: false, ..closed(base + i) };
            if i == 100 {
                machine.validated(cx, head + i, open)
            } else {
                machine.assign(cx, head + i, open)
            }
            machine.assign(cx, head + i, closed(base + i));
        }
        assert_eq!(status(machine.snp.snp_page_unsmash(cx, Spa::of(head))), FwStatus::InvalidPageState);
        assert_eq!(Vmpl::ZERO.index(), 0);
    });
}

#[test]
fn sn_108_the_digest_does_not_depend_on_where_or_by_whom() {
    let launch = |seed, skip: usize, asid, byte: u8| {
        let mut digest = None;
        with_config(SnpConfig { seed, ..config() }, |cx, machine| {
            (0..skip).for_each(|_| {
                machine.page();
            });
            let gctx = machine.launching(cx, asid, GuestPolicy::USUAL);
            for (gfn, page_type) in (0u64..).zip(ALL_TYPES) {
                let pfn = machine.page();
                if matches!(page_type, PageType::Zero | PageType::Unmeasured | PageType::Secrets) {
                    machine.snp.memory().write_page(KeyPath::Raw, pfn, &[byte; 4096]);
                }
                machine.assign(cx, pfn, RmpUpdate::guest(asid, Gpa(gfn << 12)).immutable());
                machine.snp.snp_launch_update(cx, &LaunchUpdate::new(gctx, Spa::of(pfn), page_type)).unwrap();
            }
            digest = machine.snp.peek_guest(gctx, |guest| guest.digest);
        });
        digest.unwrap()
    };
    let one = launch(0, 0, G, 0);
    assert_eq!(one, launch(1, 100, H, 0xaa));
}

#[test]
fn the_command_buffer() {
    let mut bytes = [0; 0x20];
    bytes[..8].copy_from_slice(&0x5000u64.to_le_bytes());
    bytes[8] = 1 | 3 << 1 | 1 << 4;
    bytes[0x10..0x18].copy_from_slice(&0x20_0000u64.to_le_bytes());
    bytes[0x19..0x1c].copy_from_slice(&[1, 3, 0xf]);
    let update = LaunchUpdate::from_bytes(&bytes).unwrap();
    let expected = LaunchUpdate {
        page_size: RmpSize::Size2M,
        imi_page: true,
        perms: [1, 3, 0xf].map(VmplPerms::from_bits_retain),
        ..LaunchUpdate::new(Spa(0x5000), Spa(0x20_0000), PageType::Zero)
    };
    assert_eq!(update, expected);
    for (at, value) in [(8, 0u8), (8, 7 << 1), (9, 1), (12, 1), (0x18, 1), (0x19, 0x20), (0x1c, 1)] {
        let mut wrong = bytes;
        wrong[at] = value;
        assert_eq!(LaunchUpdate::from_bytes(&wrong), Err(FwStatus::InvalidParam), "byte {at:#x}");
    }
}
