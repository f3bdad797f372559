//! Metadata that the host gives pages for.

use crate::machine::{GPA, K, LP, Machine, config, info, params, pfn, told, with, with_config};
use sim_coco::tdx::{Hpa, PageType, SeptInfo, TdxConfig};
use sim_kernel::Cx;
use sim_mmu::{Gpa, Level};

fn dynamic() -> TdxConfig {
    TdxConfig { dynamic_pamt: true, ..config() }
}

/// Gives metadata to the region of a page.
fn give(cx: &Cx<'_>, machine: &Machine, page: Hpa) -> [Hpa; 2] {
    let pages = [machine.page(), machine.page()];
    machine.tdx.on(LP).phymem_pamt_add(cx, region(page), pages).unwrap();
    pages
}

fn region(page: Hpa) -> SeptInfo {
    SeptInfo::new(Gpa(page.0 & !0x1f_ffff), Level::L2M)
}

#[test]
fn nothing_small_is_assigned_without_metadata() {
    with_config(dynamic(), |cx, machine| {
        let seam = machine.tdx.on(LP);
        let page = machine.page();
        assert_eq!(told(seam.mng_create(cx, page, K)), "MISSING_PAMT_PAGE_PAIR|1");
        let pages = give(cx, machine, page);
        assert_eq!(told(seam.mng_create(cx, page, K)), "SUCCESS");
        assert_eq!(machine.tdx.peek_pamt_node(pfn(page)).unwrap().used, 1);
        // What holds metadata is not free, and the region has some already.
        assert_eq!(told(seam.mng_create(cx, pages[0], sim_coco::tdx::Hkid(40))), "PAGE_METADATA_INCORRECT|1");
        let again = [machine.page(), machine.page()];
        assert_eq!(told(seam.phymem_pamt_add(cx, region(page), again)), "HPA_RANGE_NOT_FREE|1");
        let fail = seam.phymem_pamt_remove(cx, region(page)).unwrap_err();
        assert_eq!(fail.status.name.name(), "PAMT_PAGE_NOT_EMPTY");
    });
}

#[test]
fn pages_for_metadata_are_checked_and_come_back() {
    with_config(dynamic(), |cx, machine| {
        let seam = machine.tdx.on(LP);
        let (huge, page) = (machine.huge(), machine.page());
        let add = |at, pages| told(seam.phymem_pamt_add(cx, at, pages));
        assert_eq!(add(SeptInfo(huge.0), [page; 2]), "OPERAND_INVALID|1");
        assert_eq!(add(SeptInfo((huge.0 + 0x1000) | 1), [page; 2]), "OPERAND_INVALID|1");
        assert_eq!(add(region(huge), [Hpa(page.0 + 8), page]), "OPERAND_INVALID|2");
        assert_eq!(add(region(huge), [page, Hpa(9 << 30)]), "OPERAND_ADDR_RANGE_ERROR|8");
        assert_eq!(add(region(huge), [page, page]), "PAGE_NOT_FREE|8");
        assert_eq!(told(seam.phymem_pamt_remove(cx, region(huge))), "NO_PAMT_PAGE_PAIR|1");
        let pages = give(cx, machine, huge);
        assert_eq!(add(region(page), [pages[1], page]), "PAGE_NOT_FREE|2");
        assert_eq!(seam.phymem_pamt_remove(cx, region(huge)), Ok(pages));
        assert_eq!(machine.tdx.peek_pamt_node(pfn(huge)), None);
    });
    with(|cx, machine| {
        let answer = machine.tdx.on(LP).phymem_pamt_add(cx, region(machine.huge()), [machine.page(); 2]);
        assert_eq!(told(answer), "OPERAND_INVALID|0");
    });
}

#[test]
fn a_large_page_has_no_metadata_until_it_is_split() {
    with_config(dynamic(), |cx, machine| {
        // The machine's small pages come from its first region.
        give(cx, machine, machine.page());
        let tdr = machine.building_with(cx, K, &params());
        let huge = machine.aug(cx, tdr, GPA, Level::L2M);
        let seam = machine.tdx.on(LP);
        let at = info(GPA, Level::L2M);
        assert_eq!(told(seam.mem_page_demote(cx, at, tdr, machine.page(), None)), "OPERAND_INVALID|9");
        let pages = [machine.page(), machine.page()];
        seam.mem_page_demote(cx, at, tdr, machine.page(), Some(pages)).unwrap();
        let node = machine.tdx.peek_pamt_node(pfn(huge)).unwrap();
        assert_eq!((node.used, node.pages.map(Hpa::of)), (512, pages));
        assert_eq!(machine.tdx.peek_pamt(pfn(huge) + 3).1.page_type, PageType::Reg);
        let done = seam.mem_page_promote(cx, at, tdr).unwrap();
        assert_eq!(done.pamt, Some(pages));
        assert_eq!(machine.tdx.peek_pamt_node(pfn(huge)), None);
        seam.mem_page_remove(cx, at, tdr).unwrap();
    });
}

#[test]
fn a_large_page_that_is_free_again_is_written_back() {
    with_config(dynamic(), |cx, machine| {
        give(cx, machine, machine.page());
        let tdr = machine.building_with(cx, K, &params());
        let huge = machine.aug(cx, tdr, GPA, Level::L2M);
        let seam = machine.tdx.on(LP);
        let part = Hpa(huge.0 + 0x3000).with_keyid(K, machine.tdx.config().keyid_shift);
        assert_eq!(told(seam.phymem_page_wbinvd(cx, part)), "PAGE_METADATA_INCORRECT|1");
        seam.mem_page_remove(cx, info(GPA, Level::L2M), tdr).unwrap();
        assert_eq!(told(seam.phymem_page_wbinvd(cx, part)), "SUCCESS");
        // Taking it is something else.
        assert_eq!(told(seam.mng_create(cx, huge, sim_coco::tdx::Hkid(40))), "MISSING_PAMT_PAGE_PAIR|1");
    });
}
