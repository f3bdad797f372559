//! TDH.MEM leaves, row by row of the checklist: TD-001 to TD-008, TD-013 to TD-018, TD-021 to TD-024, TD-034 to TD-036.

use crate::machine::{GPA, K, L, LP, Machine, info, name, params, pfn, told, with, with_config};
use sim_coco::tdx::{
    ALLOW_EXISTING, Hpa, Lp, OpState, PageType, SeptAdded, SeptEntry, SeptInfo, SeptState, StatusName, TdAttributes,
    TdParams, TdxConfig,
};
use sim_kernel::Cx;
use sim_mmu::{Gpa, Level};

const AT: SeptInfo = SeptInfo::page(GPA);

#[test]
fn td_001_aug_makes_a_pending_page_once() {
    with(|cx, machine| {
        let (tdr, _) = machine.running(cx);
        machine.aug(cx, tdr, GPA, Level::L4K);
        assert_eq!(machine.state(tdr, GPA, Level::L4K), Some(SeptState::Pending));
        let fail = machine.tdx.on(LP).mem_page_aug(cx, AT, tdr, machine.page()).unwrap_err();
        assert_eq!(format!("{:?}", fail.status), "EPT_ENTRY_STATE_INCORRECT|1");
        // Public number 2, level 0.
        assert_eq!((fail.rdx, fail.entry_state()), (2 << 8, Some(SeptState::Pending)));
    });
}

#[test]
fn td_002_a_walk_that_ends_above() {
    with(|cx, machine| {
        let tdr = machine.building(cx);
        let fail = machine.tdx.on(LP).mem_page_aug(cx, AT, tdr, machine.page()).unwrap_err();
        assert_eq!(format!("{:?}", fail.status), "EPT_WALK_FAILED|1");
        assert_eq!((fail.rcx, fail.rdx), (1 << 63, 1));
    });
}

#[test]
fn td_003_a_large_page_with_one_part_in_use() {
    with(|cx, machine| {
        let (tdr, other) = (machine.building(cx), machine.building_with(cx, L, &params()));
        machine.table(cx, other, GPA, Level::L2M);
        let huge = machine.huge();
        let seam = machine.tdx.on(LP);
        seam.mem_page_aug(cx, AT, other, Hpa(huge.0 + 0x7000)).unwrap();
        let before = machine.tdx.snapshot();
        let answer = seam.mem_page_aug(cx, info(GPA, Level::L2M), tdr, huge);
        assert_eq!(told(answer), "PAGE_METADATA_INCORRECT|8");
        assert_eq!(machine.tdx.snapshot(), before);
        assert_eq!(machine.state(tdr, GPA, Level::L2M), Some(SeptState::Free));
    });
}

#[test]
fn td_004_td_005_pages_that_cannot_be_had() {
    let shift = TdxConfig::new(sim_coco::tdx::Tdmr::below(1)).keyid_shift;
    with(|cx, machine| {
        let (tdr, _) = machine.running(cx);
        let other = machine.building_with(cx, L, &params());
        machine.table(cx, other, GPA, Level::L2M);
        let theirs = machine.aug(cx, other, GPA, Level::L4K);
        let try_page = |page| told(machine.tdx.on(LP).mem_page_aug(cx, AT, tdr, page));
        assert_eq!(try_page(theirs), "PAGE_METADATA_INCORRECT|8");
        // A hole, and metadata, are reserved; beyond the TDMRs there is nothing.
        assert_eq!(try_page(Hpa(64 << 20)), "PAGE_METADATA_INCORRECT|8");
        assert_eq!(try_page(Hpa(1 << 30)), "OPERAND_ADDR_RANGE_ERROR|8");
        assert_eq!(try_page(Hpa(machine.page().0 | 8)), "OPERAND_INVALID|8");
        assert_eq!(try_page(machine.page().with_keyid(K, shift)), "OPERAND_INVALID|8");
        assert_eq!(try_page(Hpa::NULL), "OPERAND_INVALID|8");
        assert_eq!(try_page(machine.page()), "SUCCESS");
    });
}

#[test]
fn td_006_addresses_and_levels() {
    with(|cx, machine| {
        let (tdr, _) = machine.running(cx);
        let seam = machine.tdx.on(LP);
        let invalid = [
            SeptInfo(GPA.0 | 1 << 47),
            SeptInfo(GPA.0 | 1 << 48),
            SeptInfo(GPA.0 | 1 << 52),
            SeptInfo(GPA.0 | 1 << 3),
            SeptInfo(GPA.0 | 1 << 11),
            // Not aligned to its level; levels that AUG has not, and that there are not.
            SeptInfo((GPA.0 + 0x1000) | 1),
            SeptInfo(GPA.0 | 2),
            SeptInfo(GPA.0 | 5),
            SeptInfo(GPA.0 | 7),
        ];
        for at in invalid {
            assert_eq!(told(seam.mem_page_aug(cx, at, tdr, machine.page())), "OPERAND_INVALID|1", "{at:?}");
        }
        // Four levels have no entry of level 4; five have.
        let top = SeptInfo(4);
        assert_eq!(told(seam.mem_sept_rd(cx, top, tdr)), "OPERAND_INVALID|1");
        assert_eq!(told(seam.mem_sept_rd(cx, SeptInfo(3), tdr)), "SUCCESS");
        let wide = TdParams {
            eptp_controls: sim_coco::tdx::EPTP_5_LEVELS,
            config_flags: sim_coco::tdx::CONFIG_GPAW,
            ..params()
        };
        let wide = machine.initialized(cx, L, &wide);
        assert_eq!(told(seam.mem_sept_rd(cx, top, wide)), "SUCCESS");
        assert_eq!(told(seam.mem_sept_add(cx, SeptInfo(1 << 51 | 4), wide, machine.page())), "OPERAND_INVALID|1");
        assert_eq!(told(seam.mem_sept_add(cx, SeptInfo(1 << 50 | 4), wide, machine.page())), "SUCCESS");
    });
}

#[test]
fn td_007_td_008_a_page_is_blocked_and_tracked_before_it_goes() {
    with(|cx, machine| {
        let seam = machine.tdx.on(LP);
        let built = machine.building_with(cx, L, &params());
        machine.table(cx, built, GPA, Level::L2M);
        let page = machine.add(cx, built, GPA);
        assert_eq!(seam.mem_page_remove(cx, AT, built), Ok(page));
        let (tdr, tdvpr) = machine.running(cx);
        let page = machine.aug(cx, tdr, GPA, Level::L4K);
        machine.accept(cx, tdvpr, GPA, Level::L4K);
        assert_eq!(told(seam.mem_page_remove(cx, AT, tdr)), "GPA_RANGE_NOT_BLOCKED|1");
        seam.mem_range_block(cx, AT, tdr).unwrap();
        assert_eq!(told(seam.mem_page_remove(cx, AT, tdr)), "TLB_TRACKING_NOT_DONE|1");
        assert_eq!(told(seam.mem_range_unblock(cx, AT, tdr)), "TLB_TRACKING_NOT_DONE|146");
        seam.mem_track(cx, tdr).unwrap();
        assert_eq!(seam.mem_page_remove(cx, AT, tdr), Ok(page));
        assert_eq!(machine.tdx.peek_pamt(pfn(page)).1.page_type, PageType::Nda);
    });
}

#[test]
fn td_013_td_014_a_second_block() {
    with(|cx, machine| {
        let (tdr, _) = machine.running(cx);
        let page = machine.aug(cx, tdr, GPA, Level::L4K);
        let seam = machine.tdx.on(LP);
        let bepoch = || machine.tdx.peek_pamt(pfn(page)).1.bepoch;
        seam.mem_range_block(cx, AT, tdr).unwrap();
        assert_eq!(bepoch(), 1);
        seam.mem_track(cx, tdr).unwrap();
        let fail = seam.mem_range_block(cx, AT, tdr).unwrap_err();
        assert_eq!((fail.name(), fail.status.is_error()), (StatusName::GpaRangeAlreadyBlocked, false));
        assert_eq!(bepoch(), 1);
        // Unblocked and blocked again: in the new epoch.
        seam.mem_range_unblock(cx, AT, tdr).unwrap();
        seam.mem_range_block(cx, AT, tdr).unwrap();
        assert_eq!(bepoch(), 2);
        assert_eq!(name(seam.mem_page_remove(cx, AT, tdr)), StatusName::TlbTrackingNotDone);
    });
}

#[test]
fn td_015_unblock_puts_the_page_back() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let seam = machine.tdx.on(LP);
        let there_and_back = |state| {
            seam.mem_range_block(cx, AT, tdr).unwrap();
            seam.mem_track(cx, tdr).unwrap();
            seam.mem_range_unblock(cx, AT, tdr).unwrap();
            assert_eq!(machine.state(tdr, GPA, Level::L4K), Some(state));
        };
        let page = machine.aug(cx, tdr, GPA, Level::L4K);
        there_and_back(SeptState::Pending);
        machine.accept(cx, tdvpr, GPA, Level::L4K);
        there_and_back(SeptState::Mapped);
        let entry = machine.tdx.peek_sept(pfn(tdr), GPA.gfn(), Level::L4K).unwrap();
        assert_eq!(entry, SeptEntry::leaf(SeptState::Mapped, pfn(page)));
    });
}

#[test]
fn td_016_a_table_in_use_stays() {
    with(|cx, machine| {
        let (tdr, _) = machine.running(cx);
        let seam = machine.tdx.on(LP);
        let table = info(GPA, Level::L2M);
        machine.aug(cx, tdr, Gpa(GPA.0 + 0x1ff000), Level::L4K);
        assert_eq!(told(seam.mem_sept_remove(cx, table, tdr)), "GPA_RANGE_NOT_BLOCKED|1");
        seam.mem_range_block(cx, table, tdr).unwrap();
        assert_eq!(told(seam.mem_sept_remove(cx, table, tdr)), "TLB_TRACKING_NOT_DONE|1");
        seam.mem_track(cx, tdr).unwrap();
        assert_eq!(told(seam.mem_sept_remove(cx, table, tdr)), "EPT_PAGE_NOT_FREE|1");
        // A leaf is no table, and a table no page.
        assert_eq!(told(seam.mem_page_remove(cx, table, tdr)), "EPT_ENTRY_STATE_INCORRECT|1");
    });
}

#[test]
fn td_017_a_table_that_is_there() {
    with(|cx, machine| {
        let tdr = machine.building(cx);
        let seam = machine.tdx.on(LP);
        let (level, page) = (info(GPA, Level::L1G), machine.page());
        assert_eq!(told(seam.mem_sept_add(cx, level, tdr, page)), "EPT_ENTRY_STATE_INCORRECT|1");
        let allowing = Hpa(tdr.0 | ALLOW_EXISTING);
        assert_eq!(seam.mem_sept_add(cx, level, allowing, page), Ok(SeptAdded::Existing));
        assert_eq!(machine.tdx.peek_pamt(pfn(page)).1.page_type, PageType::Nda);
        // In registers: version 1 says which page it did not use.
        let before = |version: u64| sim_coco::tdx::SeamRegisters {
            rax: 3 | version << 16,
            rcx: level.0,
            rdx: allowing.0,
            r8: page.0,
            ..Default::default()
        };
        assert_eq!(seam.seamcall(cx, before(0)).r8, page.0);
        assert_eq!(seam.seamcall(cx, before(1)).r8, page.0 | 1 << 63);
        assert_eq!(told(seam.mem_sept_add(cx, info(GPA, Level::L2M), tdr, Hpa::NULL)), "OPERAND_INVALID|8");
    });
}

#[test]
fn td_018_nothing_is_reached_behind_a_blocked_table() {
    with(|cx, machine| {
        let params = TdParams { attributes: TdAttributes::DEBUG.bits(), ..params() };
        let tdr = machine.building_with(cx, K, &params);
        machine.table(cx, tdr, GPA, Level::L2M);
        machine.add(cx, tdr, GPA);
        let seam = machine.tdx.on(LP);
        seam.mem_range_block(cx, info(GPA, Level::L2M), tdr).unwrap();
        let next = SeptInfo::page(Gpa(GPA.0 + 0x1000));
        let details = (0, 1 | 129 << 8);
        let walk_failed = [
            seam.mem_page_add(cx, next, tdr, machine.page(), machine.page()).unwrap_err(),
            seam.mem_page_aug(cx, next, tdr, machine.page()).unwrap_err(),
            seam.mem_range_block(cx, AT, tdr).unwrap_err(),
            seam.mem_range_unblock(cx, AT, tdr).unwrap_err(),
            seam.mem_page_remove(cx, AT, tdr).unwrap_err(),
            seam.mem_page_relocate(cx, AT, tdr, machine.page()).unwrap_err(),
            seam.mem_sept_rd(cx, AT, tdr).unwrap_err(),
        ];
        for fail in walk_failed {
            assert_eq!((format!("{:?}", fail.status), (fail.rcx, fail.rdx)), ("EPT_WALK_FAILED|1".into(), details));
        }
        let not_present =
            [seam.mr_extend(cx, GPA, tdr), seam.mem_rd(cx, GPA, tdr).map(drop), seam.mem_wr(cx, GPA, tdr, 0).map(drop)];
        for fail in not_present.map(Result::unwrap_err) {
            assert_eq!(
                (format!("{:?}", fail.status), (fail.rcx, fail.rdx)),
                ("EPT_ENTRY_NOT_PRESENT|1".into(), details)
            );
        }
    });
}

#[test]
fn td_021_relocate_moves_the_contents() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let old = machine.aug(cx, tdr, GPA, Level::L4K);
        let seam = machine.tdx.on(LP);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.mem_page_accept(cx, AT).unwrap().unwrap();
        guest.write_u64(cx, Gpa(GPA.0 + 8), 77).unwrap();
        crate::machine::leave(cx, guest);
        assert_eq!(told(seam.mem_page_relocate(cx, AT, tdr, old)), "OPERAND_INVALID|8");
        assert_eq!(told(seam.mem_page_relocate(cx, AT, tdr, machine.page())), "GPA_RANGE_NOT_BLOCKED|1");
        seam.mem_range_block(cx, AT, tdr).unwrap();
        seam.mem_track(cx, tdr).unwrap();
        let new = machine.page();
        assert_eq!(seam.mem_page_relocate(cx, AT, tdr, new), Ok(old));
        assert_eq!(machine.tdx.peek_pamt(pfn(old)).1.page_type, PageType::Nda);
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert_eq!(guest.read_u64(cx, Gpa(GPA.0 + 8)), Ok(77));
        crate::machine::leave(cx, guest);
    });
}

#[test]
fn td_022_the_source_of_an_added_page() {
    with(|cx, machine| {
        let tdr = machine.building(cx);
        machine.table(cx, tdr, GPA, Level::L2M);
        let seam = machine.tdx.on(LP);
        let shift = machine.tdx.config().keyid_shift;
        let private = machine.page().with_keyid(K, shift);
        // After the state of the entry, before the target.
        assert_eq!(told(seam.mem_page_add(cx, AT, tdr, Hpa::NULL, private)), "OPERAND_INVALID|9");
        assert_eq!(told(seam.mem_page_add(cx, AT, tdr, Hpa::NULL, Hpa(machine.page().0 + 8))), "OPERAND_INVALID|9");
        assert_eq!(told(seam.mem_page_add(cx, AT, tdr, Hpa::NULL, machine.page())), "OPERAND_INVALID|8");
        let mktme = machine.page().with_keyid(sim_coco::tdx::Hkid(5), shift);
        assert_eq!(told(seam.mem_page_add(cx, AT, tdr, machine.page(), mktme)), "SUCCESS");
        let again = seam.mem_page_add(cx, AT, tdr, machine.page(), private);
        assert_eq!(told(again), "EPT_ENTRY_STATE_INCORRECT|1");
    });
}

#[test]
fn td_023_leaves_in_the_wrong_op_state() {
    with(|cx, machine| {
        let (tdr, _) = machine.running(cx);
        let seam = machine.tdx.on(LP);
        let refused = seam.mem_page_add(cx, AT, tdr, machine.page(), machine.page());
        assert_eq!(told(refused), "OP_STATE_INCORRECT|0");
        let uninitialized = machine.created(cx, L, 6);
        assert_eq!(told(seam.mem_page_aug(cx, AT, uninitialized, machine.page())), "OP_STATE_INCORRECT|0");
    });
}

/// A call of each leaf that is about a TD and looks at its op state.
type Call = (sim_coco::tdx::Leaf, fn(&Cx<'_>, &Machine, Hpa, Hpa) -> StatusName);

const CALLS: [Call; 22] = {
    use sim_coco::tdx::Leaf;
    [
        (Leaf::MngInit, |cx, machine, tdr, _| name(machine.tdx.on(LP).mng_init(cx, tdr, machine.page()))),
        (Leaf::MemPageAdd, |cx, machine, tdr, _| {
            name(machine.tdx.on(LP).mem_page_add(cx, AT, tdr, machine.page(), machine.page()))
        }),
        (Leaf::MemSeptAdd, |cx, machine, tdr, _| {
            name(machine.tdx.on(LP).mem_sept_add(cx, info(GPA, Level::L2M), tdr, machine.page()))
        }),
        (Leaf::VpAddcx, |cx, machine, _, tdvpr| name(machine.tdx.on(LP).vp_addcx(cx, machine.page(), tdvpr))),
        (Leaf::MemPageRelocate, |cx, machine, tdr, _| {
            name(machine.tdx.on(LP).mem_page_relocate(cx, AT, tdr, machine.page()))
        }),
        (Leaf::MemPageAug, |cx, machine, tdr, _| name(machine.tdx.on(LP).mem_page_aug(cx, AT, tdr, machine.page()))),
        (Leaf::MemRangeBlock, |cx, machine, tdr, _| name(machine.tdx.on(LP).mem_range_block(cx, AT, tdr))),
        (Leaf::VpCreate, |cx, machine, tdr, _| name(machine.tdx.on(LP).vp_create(cx, machine.page(), tdr))),
        (Leaf::MemRd, |cx, machine, tdr, _| name(machine.tdx.on(LP).mem_rd(cx, GPA, tdr))),
        (Leaf::MemWr, |cx, machine, tdr, _| name(machine.tdx.on(LP).mem_wr(cx, GPA, tdr, 0))),
        (Leaf::MemPageDemote, |cx, machine, tdr, _| {
            name(machine.tdx.on(LP).mem_page_demote(cx, info(GPA, Level::L2M), tdr, machine.page(), None))
        }),
        (Leaf::MrExtend, |cx, machine, tdr, _| name(machine.tdx.on(LP).mr_extend(cx, GPA, tdr))),
        (Leaf::MrFinalize, |cx, machine, tdr, _| name(machine.tdx.on(LP).mr_finalize(cx, tdr))),
        (Leaf::VpInit, |cx, machine, _, tdvpr| name(machine.tdx.on(LP).vp_init(cx, tdvpr, 0, None))),
        (Leaf::MemPagePromote, |cx, machine, tdr, _| {
            name(machine.tdx.on(LP).mem_page_promote(cx, info(GPA, Level::L2M), tdr))
        }),
        (Leaf::MemSeptRd, |cx, machine, tdr, _| name(machine.tdx.on(LP).mem_sept_rd(cx, AT, tdr))),
        (Leaf::MemPageRemove, |cx, machine, tdr, _| name(machine.tdx.on(LP).mem_page_remove(cx, AT, tdr))),
        (Leaf::MemSeptRemove, |cx, machine, tdr, _| {
            name(machine.tdx.on(LP).mem_sept_remove(cx, info(GPA, Level::L2M), tdr))
        }),
        (Leaf::MemTrack, |cx, machine, tdr, _| name(machine.tdx.on(LP).mem_track(cx, tdr))),
        (Leaf::MemRangeUnblock, |cx, machine, tdr, _| name(machine.tdx.on(LP).mem_range_unblock(cx, AT, tdr))),
        // The vCPU is not complete, which is looked at later.
        (Leaf::VpEnter, |cx, machine, _, tdvpr| name(machine.tdx.on(LP).vp_enter(cx, tdvpr))),
        // The seventh page.
        (Leaf::MngAddcx, |cx, machine, tdr, _| name(machine.tdx.on(LP).mng_addcx(cx, machine.page(), tdr))),
    ]
};

#[test]
fn every_op_state_against_every_leaf() {
    // Allowed op states by the leaf, as the specification lists them.
    let allowed: [(&str, &[u8]); 22] = [
        ("MngInit", &[0]),
        ("MemPageAdd", &[1]),
        ("MemSeptAdd", &[1, 2, 3, 6, 7, 8, 9]),
        ("VpAddcx", &[1, 7]),
        ("MemPageRelocate", &[1, 2, 3, 4, 5, 8, 9]),
        ("MemPageAug", &[1, 2, 3, 9]),
        ("MemRangeBlock", &[1, 2, 3, 4, 5, 8, 9]),
        ("VpCreate", &[1, 7]),
        ("MemRd", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("MemWr", &[1, 2, 3, 6, 7, 8, 9, 10]),
        ("MemPageDemote", &[1, 2, 3, 4, 5, 8, 9]),
        ("MrExtend", &[1]),
        ("MrFinalize", &[1]),
        ("VpInit", &[1]),
        ("MemPagePromote", &[1, 2, 3, 4, 5, 8, 9]),
        ("MemSeptRd", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("MemPageRemove", &[1, 2, 3, 4, 5, 8, 9, 10]),
        ("MemSeptRemove", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("MemTrack", &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("MemRangeUnblock", &[1, 2, 3, 4, 5, 8, 9]),
        ("VpEnter", &[2, 3, 9]),
        ("MngAddcx", &[0]),
    ];
    for ((leaf, call), (of, states)) in CALLS.into_iter().zip(allowed) {
        assert_eq!(format!("{leaf:?}"), of);
        for op_state in OpState::ALL {
            with(|cx, machine| {
                let tdr = machine.building(cx);
                let tdvpr = machine.page();
                machine.tdx.on(LP).vp_create(cx, tdvpr, tdr).unwrap();
                machine.tdx.force_op_state(pfn(tdr), op_state);
                let answer = call(cx, machine, tdr, tdvpr);
                let is_refused = answer == StatusName::OpStateIncorrect;
                assert_eq!(is_refused, !states.contains(&(op_state as u8)), "{leaf:?} in {op_state:?}: {answer:?}");
            });
        }
    }
}

#[test]
fn td_024_what_needs_the_td_for_itself_is_busy_while_a_vcpu_runs() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let guest = machine.enter(cx, tdvpr, LP);
        let seam = machine.tdx.on(Lp(1));
        assert_eq!(told(seam.mng_addcx(cx, machine.page(), tdr)), "OPERAND_BUSY|2");
        assert_eq!(told(seam.mng_init(cx, tdr, machine.page())), "OPERAND_BUSY|1");
        assert_eq!(told(seam.mng_key_config(cx, tdr)), "OPERAND_BUSY|1");
        assert_eq!(told(seam.mng_vpflushdone(cx, tdr)), "OPERAND_BUSY|1");
        assert_eq!(told(seam.mng_key_freeid(cx, tdr)), "OPERAND_BUSY|1");
        assert_eq!(told(seam.mr_finalize(cx, tdr)), "OPERAND_BUSY|1");
        assert_eq!(told(seam.mr_extend(cx, GPA, tdr)), "OPERAND_BUSY|2");
        assert_eq!(told(seam.mem_page_add(cx, AT, tdr, machine.page(), machine.page())), "OPERAND_BUSY|2");
        assert_eq!(told(seam.phymem_page_reclaim(cx, tdr)), "OPERAND_BUSY|1");
        // The vCPU's own page, and its TD beneath it.
        assert_eq!(told(seam.vp_flush(cx, tdvpr)), "OPERAND_BUSY|1");
        assert_eq!(told(seam.phymem_page_reclaim(cx, tdvpr)), "OPERAND_BUSY|1");
        let other = machine.tdx.on(LP).vp_init(cx, tdvpr, 0, Some(0));
        assert_eq!(told(other), "OPERAND_BUSY|1");
        // What shares it is not.
        assert_eq!(told(seam.mem_page_aug(cx, AT, tdr, machine.page())), "SUCCESS");
        crate::machine::leave(cx, guest);
    });
}

#[test]
fn what_was_busy_leaves_nothing_that_shows() {
    with(|cx, machine| {
        let tdr = machine.building(cx);
        let before = machine.tdx.snapshot();
        // A TD's own root as a page of it: the leaf itself holds it.
        assert_eq!(told(machine.tdx.on(LP).vp_create(cx, tdr, tdr)), "OPERAND_BUSY|1");
        assert_eq!(machine.tdx.snapshot(), before);
    });
}

#[test]
fn td_034_what_is_shown_of_an_entry() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let seam = machine.tdx.on(LP);
        let shown =
            |level| seam.mem_sept_rd(cx, info(GPA, level), tdr).map(|details| (details.rcx, details.rdx)).unwrap();
        assert_eq!(shown(Level::L4K), (1 << 63, 0));
        assert_eq!(shown(Level::L2M), (7, 1 | 132 << 8));
        let page = machine.aug(cx, tdr, GPA, Level::L4K);
        let leaf = 1 << 63 | page.0 | 6 << 3 | 1 << 6 | 1 << 7;
        assert_eq!(shown(Level::L4K), (leaf, 2 << 8));
        machine.accept(cx, tdvpr, GPA, Level::L4K);
        assert_eq!(shown(Level::L4K), (leaf | 7, 4 << 8));
        seam.mem_range_block(cx, AT, tdr).unwrap();
        assert_eq!(shown(Level::L4K), (leaf, 1 << 8));
        seam.mem_range_block(cx, info(GPA, Level::L2M), tdr).unwrap();
        assert_eq!(shown(Level::L2M), (0, 1 | 129 << 8));
    });
}

#[test]
fn td_035_only_what_the_guest_may_use_is_read() {
    with(|cx, machine| {
        let params = TdParams { attributes: TdAttributes::DEBUG.bits(), ..params() };
        let tdr = machine.building_with(cx, K, &params);
        machine.table(cx, tdr, GPA, Level::L2M);
        let seam = machine.tdx.on(LP);
        machine.aug(cx, tdr, GPA, Level::L4K);
        let other = Gpa(GPA.0 + 0x1000);
        machine.add(cx, tdr, other);
        assert_eq!(told(seam.mr_extend(cx, other, tdr)), "SUCCESS");
        assert_eq!(seam.mem_wr(cx, Gpa(other.0 + 8), tdr, 9), Ok(0));
        assert_eq!(seam.mem_rd(cx, Gpa(other.0 + 8), tdr), Ok(9));
        seam.mem_range_block(cx, SeptInfo::page(other), tdr).unwrap();
        for gpa in [GPA, other] {
            assert_eq!(told(seam.mr_extend(cx, gpa, tdr)), "EPT_ENTRY_NOT_PRESENT|1");
            assert_eq!(told(seam.mem_rd(cx, gpa, tdr)), "EPT_ENTRY_NOT_PRESENT|1");
        }
        // Op state, then whether it may be debugged, then alignment.
        assert_eq!(told(seam.mem_rd(cx, Gpa(GPA.0 + 4), tdr)), "OPERAND_INVALID|1");
        assert_eq!(told(seam.mr_extend(cx, Gpa(GPA.0 + 8), tdr)), "OPERAND_INVALID|1");
        let closed = machine.building_with(cx, L, &crate::machine::params());
        assert_eq!(told(seam.mem_rd(cx, Gpa(GPA.0 + 4), closed)), "TD_NON_DEBUG|0");
    });
}

#[test]
fn td_036_a_page_that_is_blocked_for_writing_moves_as_it_is() {
    with_config(crate::machine::config(), |cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        machine.aug(cx, tdr, GPA, Level::L4K);
        machine.accept(cx, tdvpr, GPA, Level::L4K);
        machine.tdx.force_op_state(pfn(tdr), OpState::PausedExport);
        assert!(machine.tdx.force_sept_state(pfn(tdr), GPA.gfn(), Level::L4K, SeptState::BlockedW));
        machine.tdx.on(LP).mem_page_relocate(cx, AT, tdr, machine.page()).unwrap();
        assert_eq!(machine.state(tdr, GPA, Level::L4K), Some(SeptState::BlockedW));
    });
}

#[test]
fn in_an_import_a_removed_page_leaves_a_mark() {
    with(|cx, machine| {
        let (tdr, _) = machine.running(cx);
        machine.aug(cx, tdr, GPA, Level::L4K);
        machine.tdx.force_op_state(pfn(tdr), OpState::PostImport);
        machine.tdx.on(LP).mem_page_remove(cx, AT, tdr).unwrap();
        assert_eq!(machine.state(tdr, GPA, Level::L4K), Some(SeptState::Removed));
        machine.tdx.force_op_state(pfn(tdr), OpState::Runnable);
        machine.aug(cx, tdr, GPA, Level::L4K);
    });
}
