//! The module, TDs and vCPUs from beginning to end: TD-026 to TD-030, TD-033, MNG.INIT's checks, and SYS leaves.

use crate::machine::{GPA, K, L, LP, Machine, config, leave, name, params, pfn, told, with, with_config};
use sim_coco::tdx::{
    CONFIG_GPAW, EPTP_5_LEVELS, Hkid, HkidState, Hpa, Injected, Lifecycle, Lp, PageType, StatusName, SysState,
    TdParams, Tdx, TdxConfig,
};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Sim;
use sim_mmu::{Gpa, Level};
use std::sync::Arc;

fn packages() -> TdxConfig {
    TdxConfig { packages: 2, ..config() }
}

#[test]
fn a_module_is_not_ready_before_it_is_and_not_after() {
    Sim::sequential().solo(|cx| {
        let phys = Arc::new(PhysMem::new(cx, 8 << 20));
        let page = Hpa::of(phys.alloc_zeroed().unwrap());
        let config = TdxConfig { packages: 2, lps_per_package: 1, ..TdxConfig::new(sim_coco::tdx::Tdmr::below(2048)) };
        let tdx = Tdx::new(cx, phys, config);
        let seam = tdx.on(LP);
        assert_eq!(name(seam.mng_create(cx, page, K)), StatusName::SysNotReady);
        assert_eq!(name(seam.sys_config(cx)), StatusName::SysConfigNotPending);
        seam.sys_init(cx).unwrap();
        assert_eq!(name(seam.sys_init(cx)), StatusName::SysInitNotPending);
        assert_eq!(name(seam.sys_key_config(cx)), StatusName::SysKeyConfigNotPending);
        seam.sys_config(cx).unwrap();
        seam.sys_key_config(cx).unwrap();
        assert_eq!(name(seam.sys_key_config(cx)), StatusName::KeyConfigured);
        assert_eq!(name(seam.mng_create(cx, page, K)), StatusName::SysNotReady);
        tdx.on(Lp(1)).sys_key_config(cx).unwrap();
        assert_eq!(tdx.sys_state(), SysState::Ready);
        // Metadata comes in steps of 4 MiB, and counts in blocks of 1 GiB.
        assert_eq!(told(seam.mng_create(cx, page, K)), "OPERAND_ADDR_RANGE_ERROR|1");
        assert_eq!(told(seam.sys_tdmr_init(cx, Hpa(1 << 30))), "OPERAND_INVALID|1");
        for _ in 1..256 {
            assert_eq!(seam.sys_tdmr_init(cx, Hpa(0)), Ok(Hpa(0)));
        }
        assert_eq!(told(seam.mng_create(cx, page, K)), "OPERAND_ADDR_RANGE_ERROR|1");
        assert_eq!(seam.sys_tdmr_init(cx, Hpa(0)), Ok(Hpa(1 << 30)));
        assert_eq!(name(seam.sys_tdmr_init(cx, Hpa(0))), StatusName::TdmrAlreadyInitialized);
        seam.mng_create(cx, page, K).unwrap();
        seam.sys_shutdown(cx).unwrap();
        assert_eq!(name(seam.mng_key_config(cx, page)), StatusName::SysShutdown);
        assert_eq!(name(seam.sys_init(cx)), StatusName::SysShutdown);
    });
}

#[test]
fn create_and_its_checks() {
    with(|cx, machine| {
        let seam = machine.tdx.on(LP);
        // The range of the KeyID comes before the page.
        assert_eq!(told(seam.mng_create(cx, Hpa::NULL, Hkid(5))), "OPERAND_INVALID|2");
        assert_eq!(told(seam.mng_create(cx, Hpa::NULL, Hkid(64))), "OPERAND_INVALID|2");
        assert_eq!(told(seam.mng_create(cx, Hpa::NULL, K)), "OPERAND_INVALID|1");
        assert_eq!(told(seam.mng_create(cx, machine.page(), machine.tdx.config().global_hkid())), "HKID_NOT_FREE|0");
        machine.tdx.inject(Injected::NoEntropy);
        let page = machine.page();
        assert_eq!(told(seam.mng_create(cx, page, K)), "RND_NO_ENTROPY|0");
        assert_eq!(machine.tdx.peek_pamt(pfn(page)).1.page_type, PageType::Nda);
        assert_eq!(told(seam.mng_create(cx, page, K)), "SUCCESS");
        assert_eq!(told(seam.mng_create(cx, machine.page(), K)), "HKID_NOT_FREE|0");
        assert_eq!(told(seam.mng_create(cx, page, L)), "PAGE_METADATA_INCORRECT|1");
        assert_eq!(machine.tdx.peek_hkid(K), Some(HkidState::Assigned));
    });
}

#[test]
fn td_033_a_key_for_each_package() {
    with_config(packages(), |cx, machine| {
        let (tdr, first, second) = (machine.page(), machine.tdx.on(LP), machine.tdx.on(Lp(4)));
        first.mng_create(cx, tdr, K).unwrap();
        assert_eq!(name(first.mng_addcx(cx, machine.page(), tdr)), StatusName::TdKeysNotConfigured);
        machine.tdx.inject(Injected::NoEntropy);
        assert_eq!(name(machine.tdx.on(LP).mng_key_config(cx, tdr)), StatusName::RndNoEntropy);
        machine.tdx.inject(Injected::KeyGenerationFailed);
        assert_eq!(name(first.mng_key_config(cx, tdr)), StatusName::KeyGenerationFailed);
        first.mng_key_config(cx, tdr).unwrap();
        let again = first.mng_key_config(cx, tdr).unwrap_err();
        assert_eq!((again.name(), again.status.is_error()), (StatusName::KeyConfigured, false));
        assert_eq!(told(first.vp_create(cx, machine.page(), tdr)), "TD_KEYS_NOT_CONFIGURED|0");
        second.mng_key_config(cx, tdr).unwrap();
        assert_eq!(name(second.mng_key_config(cx, tdr)), StatusName::LifecycleStateIncorrect);
        assert_eq!(told(first.vp_create(cx, machine.page(), tdr)), "TDCS_NOT_ALLOCATED|0");
    });
}

#[test]
fn pages_of_tdcs() {
    with(|cx, machine| {
        let tdr = machine.created(cx, K, 5);
        let seam = machine.tdx.on(LP);
        machine.tdx.inject(Injected::NoEntropy);
        assert_eq!(name(seam.mng_addcx(cx, machine.page(), tdr)), StatusName::RndNoEntropy);
        for _ in 5..9 {
            seam.mng_addcx(cx, machine.page(), tdr).unwrap();
        }
        assert_eq!(name(seam.mng_addcx(cx, machine.page(), tdr)), StatusName::TdcxNumIncorrect);
        assert_eq!(machine.tdx.peek_td(pfn(tdr)).unwrap().chldcnt, 9);
        let late = machine.initialized(cx, L, &params());
        assert_eq!(name(seam.mng_addcx(cx, machine.page(), late)), StatusName::OpStateIncorrect);
    });
}

#[test]
fn what_mng_init_refuses() {
    let five = EPTP_5_LEVELS;
    let good = TdParams::default;
    // In the order of the checks.
    let refused = [
        (TdParams { attributes: 1 << 5, xfam: 0, ..good() }, "OPERAND_INVALID|64"),
        (TdParams { xfam: 1, max_vcpus: 0, ..good() }, "OPERAND_INVALID|65"),
        (TdParams { xfam: 3 | 1 << 5, ..good() }, "OPERAND_INVALID|65"),
        (TdParams { xfam: 3 | 7 << 5, ..good() }, "OPERAND_INVALID|65"),
        (TdParams { xfam: 3 | 1 << 17, ..good() }, "OPERAND_INVALID|65"),
        (TdParams { max_vcpus: 0, num_l2_vms: 9, ..good() }, "OPERAND_INVALID|68"),
        (TdParams { num_l2_vms: 4, ..good() }, "OPERAND_INVALID|71"),
        (TdParams { num_l2_vms: 1, config_flags: 8, ..good() }, "TDCS_NOT_ALLOCATED|0"),
        (TdParams { config_flags: 8, eptp_controls: 0, ..good() }, "OPERAND_INVALID|66"),
        (TdParams { eptp_controls: 6 | 2 << 3, tsc_frequency: 0, ..good() }, "OPERAND_INVALID|67"),
        (TdParams { config_flags: CONFIG_GPAW, ..good() }, "OPERAND_INVALID|67"),
        (TdParams { tsc_frequency: 3, ..good() }, "OPERAND_INVALID|70"),
        (TdParams { tsc_frequency: 401, ..good() }, "OPERAND_INVALID|70"),
        (TdParams { config_flags: CONFIG_GPAW, eptp_controls: five, xfam: 0xe7, ..good() }, "SUCCESS"),
    ];
    with(|cx, machine| {
        let tdr = machine.created(cx, K, 6);
        let seam = machine.tdx.on(LP);
        assert_eq!(told(seam.mng_init(cx, tdr, Hpa(machine.page().0 + 512))), "OPERAND_INVALID|2");
        let keyed = machine.page().with_keyid(K, machine.tdx.config().keyid_shift);
        assert_eq!(told(seam.mng_init(cx, tdr, keyed)), "OPERAND_INVALID|2");
        let mut bytes = good().to_bytes();
        bytes[0x30] = 1;
        let page = machine.page();
        seam.host_write(cx, pfn(page), 0, &bytes).unwrap();
        assert_eq!(told(seam.mng_init(cx, tdr, page)), "OPERAND_INVALID|2");
        for (params, status) in refused {
            assert_eq!(told(seam.mng_init(cx, tdr, machine.params(cx, &params))), status, "{params:?}");
        }
        assert_eq!(machine.tdx.peek_td(pfn(tdr)).unwrap().epoch.epoch, 1);
        assert_eq!(told(seam.mng_init(cx, tdr, page)), "OP_STATE_INCORRECT|0");
    });
    with(|cx, machine| {
        let tdr = machine.created(cx, K, 5);
        let answer = machine.tdx.on(LP).mng_init(cx, tdr, machine.params(cx, &good()));
        assert_eq!(told(answer), "TDCS_NOT_ALLOCATED|0");
    });
}

#[test]
fn vcpus_are_made_in_order() {
    with(|cx, machine| {
        let tdr = machine.building_with(cx, K, &TdParams { max_vcpus: 1, ..params() });
        let seam = machine.tdx.on(LP);
        let tdvpr = machine.page();
        seam.vp_create(cx, tdvpr, tdr).unwrap();
        assert_eq!(name(seam.vp_init(cx, tdvpr, 0, None)), StatusName::TdcxNumIncorrect);
        for _ in 0..5 {
            seam.vp_addcx(cx, machine.page(), tdvpr).unwrap();
        }
        assert_eq!(name(seam.vp_addcx(cx, machine.page(), tdvpr)), StatusName::TdcxNumIncorrect);
        assert_eq!(told(seam.vp_init(cx, tdvpr, 0, Some(1 << 32))), "OPERAND_INVALID|8");
        seam.vp_init(cx, tdvpr, 0x1234, Some(7)).unwrap();
        assert_eq!(name(seam.vp_init(cx, tdvpr, 0, Some(8))), StatusName::VcpuStateIncorrect);
        assert_eq!(name(seam.vp_addcx(cx, machine.page(), tdvpr)), StatusName::VcpuStateIncorrect);
        let info = machine.tdx.peek_vp(pfn(tdvpr)).unwrap();
        assert_eq!((info.initial_rcx, info.assoc, info.index), (0x1234, Some(LP), 0));
        let other = machine.page();
        seam.vp_create(cx, other, tdr).unwrap();
        for _ in 0..5 {
            seam.vp_addcx(cx, machine.page(), other).unwrap();
        }
        assert_eq!(name(seam.vp_init(cx, other, 0, Some(8))), StatusName::MaxVcpusExceeded);
    });
    with(|cx, machine| {
        let tdr = machine.building(cx);
        let seam = machine.tdx.on(LP);
        let mut answers = [7, 7].map(|id| {
            let tdvpr = machine.page();
            seam.vp_create(cx, tdvpr, tdr).unwrap();
            for _ in 0..5 {
                seam.vp_addcx(cx, machine.page(), tdvpr).unwrap();
            }
            name(seam.vp_init(cx, tdvpr, 0, Some(id)))
        });
        answers.sort();
        assert_eq!(answers, [StatusName::Success, StatusName::X2apicIdNotUnique]);
    });
}

#[test]
fn td_026_a_td_without_vcpus_is_not_finished() {
    with(|cx, machine| {
        let tdr = machine.building(cx);
        assert_eq!(told(machine.tdx.on(LP).mr_finalize(cx, tdr)), "NO_VCPUS|0");
        machine.vcpu(cx, tdr, LP);
        assert_eq!(told(machine.tdx.on(LP).mr_finalize(cx, tdr)), "SUCCESS");
        assert_eq!(told(machine.tdx.on(LP).mr_finalize(cx, tdr)), "OP_STATE_INCORRECT|0");
    });
}

/// Reclaims all pages of a TD but its TDR; how many.
fn reclaim_all(cx: &sim_kernel::Cx<'_>, machine: &Machine, tdr: Hpa) -> usize {
    let pages = machine.tdx.peek_used_pages();
    let pages: Vec<_> = pages.into_iter().filter(|(_, _, entry)| entry.owner == Some(pfn(tdr))).collect();
    for (pfn, _, _) in &pages {
        machine.tdx.on(LP).phymem_page_reclaim(cx, Hpa::of(*pfn)).unwrap();
    }
    pages.len()
}

#[test]
fn td_027_pages_are_reclaimed_at_the_end() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let page = machine.aug(cx, tdr, GPA, Level::L4K);
        let huge = machine.aug(cx, tdr, Gpa(GPA.0 + (2 << 20)), Level::L2M);
        let seam = machine.tdx.on(LP);
        let fail = seam.phymem_page_reclaim(cx, page).unwrap_err();
        assert_eq!(fail.name(), StatusName::LifecycleStateIncorrect);
        assert_eq!((fail.rcx, fail.rdx, fail.r8), (PageType::Reg as u64, tdr.0, 0));
        assert_eq!(told(seam.phymem_page_reclaim(cx, machine.page())), "PAGE_METADATA_INCORRECT|1");
        machine.free_key(cx, tdr, &[(tdvpr, LP)]);
        assert_eq!(name(seam.phymem_page_reclaim(cx, tdr)), StatusName::TdAssociatedPagesExist);
        let inside = seam.phymem_page_reclaim(cx, Hpa(huge.0 + 0x3000)).unwrap_err();
        assert_eq!((format!("{:?}", inside.status), inside.r8), ("OPERAND_INVALID|1".into(), 1));
        // Tables, pages, TDCS, TDVPS: 3 + 2 + 6 + 6.
        assert_eq!(reclaim_all(cx, machine, tdr), 17);
        assert_eq!(machine.tdx.peek_td(pfn(tdr)).unwrap().chldcnt, 0);
        let last = seam.phymem_page_reclaim(cx, tdr).unwrap();
        assert_eq!((last.page_type, last.owner), (PageType::Tdr, None));
        assert_eq!(machine.tdx.peek_td(pfn(tdr)), None);
        assert_eq!(machine.tdx.peek_used_pages(), []);
        assert_eq!(machine.tdx.peek_hkid(K), None);
    });
}

#[test]
fn td_028_every_package_writes_back_before_the_key_is_free() {
    with_config(packages(), |cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let (first, second) = (machine.tdx.on(LP), machine.tdx.on(Lp(4)));
        assert_eq!(name(first.phymem_cache_wb(cx, false)), StatusName::NoHkidReadyToWbcache);
        assert_eq!(name(first.mng_key_freeid(cx, tdr)), StatusName::LifecycleStateIncorrect);
        first.vp_flush(cx, tdvpr).unwrap();
        first.mng_vpflushdone(cx, tdr).unwrap();
        assert_eq!(name(first.mng_vpflushdone(cx, tdr)), StatusName::LifecycleStateIncorrect);
        first.phymem_cache_wb(cx, false).unwrap();
        assert_eq!(name(first.mng_key_freeid(cx, tdr)), StatusName::WbcacheNotComplete);
        assert_eq!(name(second.phymem_cache_wb(cx, true)), StatusName::WbcacheResumeError);
        machine.tdx.post_interrupt(Lp(4));
        assert_eq!(name(second.phymem_cache_wb(cx, false)), StatusName::InterruptedResumable);
        assert_eq!(name(second.mng_key_freeid(cx, tdr)), StatusName::WbcacheNotComplete);
        machine.tdx.ack_interrupt(Lp(4));
        second.phymem_cache_wb(cx, true).unwrap();
        first.mng_key_freeid(cx, tdr).unwrap();
        assert_eq!(machine.tdx.peek_td(pfn(tdr)).unwrap().lifecycle, Lifecycle::Teardown);
        assert_eq!(name(first.mem_track(cx, tdr)), StatusName::TdKeysNotConfigured);
    });
}

#[test]
fn td_029_vcpus_and_processors() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let (here, there) = (machine.tdx.on(LP), machine.tdx.on(Lp(1)));
        assert_eq!(name(here.mng_vpflushdone(cx, tdr)), StatusName::FlushvpNotDone);
        assert_eq!(name(there.vp_flush(cx, tdvpr)), StatusName::VcpuNotAssociated);
        assert_eq!(name(there.vp_enter(cx, tdvpr)), StatusName::VcpuAssociated);
        here.vp_flush(cx, tdvpr).unwrap();
        assert_eq!(name(here.vp_flush(cx, tdvpr)), StatusName::VcpuNotAssociated);
        leave(cx, machine.enter(cx, tdvpr, Lp(1)));
        assert_eq!(name(here.vp_enter(cx, tdvpr)), StatusName::VcpuAssociated);
        assert_eq!(machine.tdx.peek_td(pfn(tdr)).unwrap().num_assoc_vcpus, 1);
    });
}

#[test]
fn td_030_only_free_pages_are_written_back_one_by_one() {
    with(|cx, machine| {
        let (tdr, _) = machine.running(cx);
        let page = machine.aug(cx, tdr, GPA, Level::L4K);
        let seam = machine.tdx.on(LP);
        let keyed = |page: Hpa| page.with_keyid(K, machine.tdx.config().keyid_shift);
        assert_eq!(told(seam.phymem_page_wbinvd(cx, keyed(page))), "PAGE_METADATA_INCORRECT|1");
        machine.take_away(cx, tdr, GPA, Level::L4K);
        assert_eq!(told(seam.phymem_page_wbinvd(cx, keyed(page))), "SUCCESS");
        assert_eq!(told(seam.phymem_page_wbinvd(cx, Hpa(page.0 | 1 << 60))), "OPERAND_INVALID|1");
    });
}

#[test]
fn a_vcpu_is_not_entered_before_the_td_is_finished() {
    with(|cx, machine| {
        let tdr = machine.building(cx);
        let tdvpr = machine.vcpu(cx, tdr, LP);
        assert_eq!(name(machine.tdx.on(LP).vp_enter(cx, tdvpr)), StatusName::OpStateIncorrect);
        assert_eq!(told(machine.tdx.on(LP).vp_enter(cx, tdr)), "PAGE_METADATA_INCORRECT|1");
    });
}
