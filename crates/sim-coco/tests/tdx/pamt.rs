//! Page metadata: every type of page against every leaf that takes or names a page; TD-031 and TD-032.

use crate::machine::{GPA, K, L, LP, Machine, info, name, params, pfn, told, with};
use sim_coco::tdx::{Hkid, Hpa, PageSize, PageType, Seamcall, SeptInfo, StatusName};
use sim_kernel::Cx;
use sim_mmu::{Gpa, Level};

const AT: SeptInfo = SeptInfo::page(GPA);

/// A page of a type (of a large one, the first page) that is a part of a TD that runs.
fn page_of(cx: &Cx<'_>, machine: &Machine, tdr: Hpa, page_type: PageType, size: PageSize) -> Hpa {
    let find = |page_type| {
        let pages = machine.tdx.peek_used_pages();
        let mut pages = pages.into_iter().filter(|(_, of, entry)| {
            (entry.page_type, *of) == (page_type, PageSize::Size4K) && entry.owner.is_none_or(|owner| owner == pfn(tdr))
        });
        Hpa::of(pages.next().unwrap().0)
    };
    match page_type {
        PageType::Nda => machine.page(),
        // The hole behind memory.
        PageType::Rsvd => Hpa(64 << 20),
        PageType::Tdr => tdr,
        PageType::Reg if size == PageSize::Size2M => machine.aug(cx, tdr, Gpa(GPA.0 + (2 << 20)), Level::L2M),
        PageType::Reg => machine.aug(cx, tdr, Gpa(GPA.0 + 0x7000), Level::L4K),
        other => find(other),
    }
}

const TYPES: [(PageType, PageSize); 8] = [
    (PageType::Nda, PageSize::Size4K),
    (PageType::Rsvd, PageSize::Size4K),
    (PageType::Reg, PageSize::Size4K),
    (PageType::Reg, PageSize::Size2M),
    (PageType::Tdr, PageSize::Size4K),
    (PageType::Tdcx, PageSize::Size4K),
    (PageType::Tdvpr, PageSize::Size4K),
    (PageType::Ept, PageSize::Size4K),
];

/// A TD that is being built, one that runs, and vCPUs of both.
struct Tds {
    built: Hpa,
    built_vcpu: Hpa,
    running: Hpa,
}

/// A leaf that takes a free page: the operand that names it, and the call.
type Taker = (u32, fn(&Cx<'_>, &Machine, &Tds, Hpa) -> Seamcall<()>);

const TAKERS: [Taker; 10] = [
    (1, |cx, machine, _, page| machine.tdx.on(LP).mng_create(cx, page, Hkid(50))),
    (1, |cx, machine, tds, page| machine.tdx.on(LP).mng_addcx(cx, page, tds.built)),
    (8, |cx, machine, tds, page| machine.tdx.on(LP).mem_page_add(cx, AT, tds.built, page, machine.page())),
    (8, |cx, machine, tds, page| machine.tdx.on(LP).mem_page_aug(cx, AT, tds.running, page)),
    (8, |cx, machine, tds, page| {
        let next = SeptInfo::new(Gpa(GPA.0 + (4 << 20)), Level::L2M);
        machine.tdx.on(LP).mem_sept_add(cx, next, tds.running, page).map(drop)
    }),
    (1, |cx, machine, tds, page| machine.tdx.on(LP).vp_create(cx, page, tds.built)),
    (1, |cx, machine, tds, page| machine.tdx.on(LP).vp_addcx(cx, page, tds.built_vcpu)),
    (8, |cx, machine, tds, page| {
        let at = SeptInfo::page(Gpa(GPA.0 + 0x9000));
        machine.tdx.on(LP).mem_page_relocate(cx, at, tds.running, page).map(drop)
    }),
    (8, |cx, machine, tds, page| {
        let at = SeptInfo::new(Gpa(GPA.0 + (6 << 20)), Level::L2M);
        machine.tdx.on(LP).mem_page_demote(cx, at, tds.running, page, None)
    }),
    // A large page, with this one as its first part.
    (8, |cx, machine, tds, page| {
        let at = SeptInfo::new(Gpa(GPA.0 + (8 << 20)), Level::L2M);
        let head = Hpa(page.0 & !0x1f_ffff);
        machine.tdx.on(LP).mem_page_aug(cx, at, tds.running, head)
    }),
];

fn tds(cx: &Cx<'_>, machine: &Machine) -> Tds {
    let (running, _) = machine.running(cx);
    let built = machine.building_with(cx, L, &params());
    machine.table(cx, built, GPA, Level::L2M);
    let built_vcpu = machine.page();
    let seam = machine.tdx.on(LP);
    seam.vp_create(cx, built_vcpu, built).unwrap();
    // A page and a large page that are blocked and tracked, to be moved and split.
    let (small, large) = (Gpa(GPA.0 + 0x9000), Gpa(GPA.0 + (6 << 20)));
    machine.aug(cx, running, small, Level::L4K);
    machine.aug(cx, running, large, Level::L2M);
    seam.mem_range_block(cx, SeptInfo::page(small), running).unwrap();
    seam.mem_range_block(cx, info(large, Level::L2M), running).unwrap();
    seam.mem_track(cx, running).unwrap();
    Tds { built, built_vcpu, running }
}

#[test]
fn every_type_against_every_leaf_that_takes_a_page() {
    for (i, (operand, take)) in TAKERS.into_iter().enumerate() {
        for (page_type, size) in TYPES {
            with(|cx, machine| {
                let tds = tds(cx, machine);
                let page = page_of(cx, machine, tds.running, page_type, size);
                let is_large = i == TAKERS.len() - 1;
                let page = if is_large && page_type == PageType::Nda { machine.huge() } else { page };
                let before = machine.tdx.snapshot();
                let answer = told(take(cx, machine, &tds, page));
                if i == 1 {
                    // ADDCX of a TD that is initialised: refused, after the page was looked at.
                    let expected =
                        if page_type == PageType::Nda { "OP_STATE_INCORRECT|0" } else { "PAGE_METADATA_INCORRECT|1" };
                    return assert_eq!(answer, expected, "ADDCX of {page_type:?}");
                }
                if page_type == PageType::Nda {
                    return assert_eq!(answer, "SUCCESS", "leaf {i}");
                }
                // The leaf itself holds its TDR, and with it the 2 MiB around that.
                let is_held = i > 2 && page_type == PageType::Tdr && i != 5 && i != 6;
                let is_around = is_large && page.0 >> 21 == tds.running.0 >> 21;
                if is_held || is_around {
                    return assert_eq!(answer, format!("OPERAND_BUSY|{operand}"), "leaf {i} of {page_type:?}");
                }
                let expected = format!("PAGE_METADATA_INCORRECT|{operand}");
                assert_eq!(answer, expected, "leaf {i} of {page_type:?} {size:?}");
                assert_eq!(machine.tdx.snapshot(), before, "TDX-INV-014: leaf {i} of {page_type:?}");
            });
        }
    }
}

/// A leaf that names a page of a type: the type, the operand, and the call.
type Namer = (PageType, u32, fn(&Cx<'_>, &Machine, Hpa) -> StatusName, &'static str);

const NAMERS: [Namer; 22] = {
    use PageType::{Tdr, Tdvpr};
    macro_rules! of_tdr {
        ($operand:literal, $name:literal, |$cx:ident, $machine:ident, $tdr:ident| $call:expr) => {
            (Tdr, $operand, |$cx, $machine, $tdr| operand($call), $name)
        };
    }
    [
        of_tdr!(1, "KEY.CONFIG", |cx, machine, tdr| machine.tdx.on(LP).mng_key_config(cx, tdr)),
        of_tdr!(2, "ADDCX", |cx, machine, tdr| machine.tdx.on(LP).mng_addcx(cx, machine.page(), tdr)),
        of_tdr!(1, "INIT", |cx, machine, tdr| machine.tdx.on(LP).mng_init(cx, tdr, machine.page())),
        of_tdr!(1, "VPFLUSHDONE", |cx, machine, tdr| machine.tdx.on(LP).mng_vpflushdone(cx, tdr)),
        of_tdr!(1, "FREEID", |cx, machine, tdr| machine.tdx.on(LP).mng_key_freeid(cx, tdr)),
        of_tdr!(2, "ADD", |cx, machine, tdr| {
            machine.tdx.on(LP).mem_page_add(cx, AT, tdr, machine.page(), machine.page())
        }),
        of_tdr!(2, "SEPT.ADD", |cx, machine, tdr| machine.tdx.on(LP).mem_sept_add(cx, AT, tdr, machine.page())),
        of_tdr!(2, "RELOCATE", |cx, machine, tdr| machine.tdx.on(LP).mem_page_relocate(cx, AT, tdr, machine.page())),
        of_tdr!(2, "AUG", |cx, machine, tdr| machine.tdx.on(LP).mem_page_aug(cx, AT, tdr, machine.page())),
        of_tdr!(2, "BLOCK", |cx, machine, tdr| machine.tdx.on(LP).mem_range_block(cx, AT, tdr)),
        of_tdr!(2, "UNBLOCK", |cx, machine, tdr| machine.tdx.on(LP).mem_range_unblock(cx, AT, tdr)),
        of_tdr!(2, "VP.CREATE", |cx, machine, tdr| machine.tdx.on(LP).vp_create(cx, machine.page(), tdr)),
        of_tdr!(2, "RD", |cx, machine, tdr| machine.tdx.on(LP).mem_rd(cx, GPA, tdr)),
        of_tdr!(2, "WR", |cx, machine, tdr| machine.tdx.on(LP).mem_wr(cx, GPA, tdr, 0)),
        of_tdr!(2, "DEMOTE", |cx, machine, tdr| {
            machine.tdx.on(LP).mem_page_demote(cx, AT, tdr, machine.page(), None)
        }),
        of_tdr!(2, "PROMOTE", |cx, machine, tdr| machine.tdx.on(LP).mem_page_promote(cx, AT, tdr)),
        of_tdr!(2, "EXTEND", |cx, machine, tdr| machine.tdx.on(LP).mr_extend(cx, GPA, tdr)),
        of_tdr!(2, "SEPT.RD", |cx, machine, tdr| machine.tdx.on(LP).mem_sept_rd(cx, AT, tdr)),
        of_tdr!(1, "TRACK", |cx, machine, tdr| machine.tdx.on(LP).mem_track(cx, tdr)),
        (Tdvpr, 2, |cx, machine, page| operand(machine.tdx.on(LP).vp_addcx(cx, machine.page(), page)), "VP.ADDCX"),
        (Tdvpr, 1, |cx, machine, page| operand(machine.tdx.on(LP).vp_init(cx, page, 0, None)), "VP.INIT"),
        (Tdvpr, 1, |cx, machine, page| operand(machine.tdx.on(LP).vp_flush(cx, page)), "VP.FLUSH"),
    ]
};

/// The name of a status; that of page metadata is told apart from others by the caller.
fn operand<T: std::fmt::Debug>(answer: Seamcall<T>) -> StatusName {
    name(answer)
}

#[test]
fn every_type_against_every_leaf_that_names_a_page() {
    for (expected, _, call, leaf) in NAMERS {
        for (page_type, size) in TYPES {
            with(|cx, machine| {
                let tds = tds(cx, machine);
                let page = page_of(cx, machine, tds.running, page_type, size);
                let before = machine.tdx.snapshot();
                let answer = call(cx, machine, page);
                let fits = page_type == expected;
                assert_eq!(
                    answer == StatusName::PageMetadataIncorrect,
                    !fits,
                    "{leaf} of {page_type:?} {size:?}: {answer:?}"
                );
                if !fits {
                    assert_eq!(machine.tdx.snapshot(), before, "TDX-INV-014: {leaf} of {page_type:?}");
                }
            });
        }
    }
}

#[test]
fn the_operand_of_a_page_that_is_none() {
    // Reserved and unaligned addresses, KeyIDs, and pages beyond the TDMRs, in each operand that names a page.
    with(|cx, machine| {
        machine.running(cx);
        let keyed = machine.page().with_keyid(K, machine.tdx.config().keyid_shift);
        for (_, operand, call, leaf) in NAMERS {
            for page in [Hpa(8), Hpa::NULL, keyed, Hpa(1 << 52)] {
                let page = Hpa(page.0 & !sim_coco::tdx::ALLOW_EXISTING);
                assert_eq!(call(cx, machine, page), StatusName::OperandInvalid, "{leaf} {operand} {page:?}");
            }
            assert_eq!(call(cx, machine, Hpa(5 << 30)), StatusName::OperandAddrRangeError, "{leaf}");
        }
    });
}

#[test]
fn td_031_what_is_read_of_a_page() {
    with(|cx, machine| {
        let tds = tds(cx, machine);
        let seam = machine.tdx.on(LP);
        for (page_type, size) in TYPES {
            let page = page_of(cx, machine, tds.running, page_type, size);
            let read = seam.phymem_page_rdmd(cx, page).unwrap();
            let is_owned = !matches!(page_type, PageType::Nda | PageType::Rsvd | PageType::Tdr);
            assert_eq!((read.page_type, read.size), (page_type, size));
            assert_eq!(read.owner, is_owned.then_some(tds.running));
        }
        // Any part of a large page is that page.
        let huge = machine.aug(cx, tds.running, Gpa(GPA.0 + (10 << 20)), Level::L2M);
        let inside = seam.phymem_page_rdmd(cx, Hpa(huge.0 + 0x5000)).unwrap();
        assert_eq!((inside.page_type, inside.size), (PageType::Reg, PageSize::Size2M));
        // The epoch of a block.
        let at = info(Gpa(GPA.0 + (10 << 20)), Level::L2M);
        seam.mem_range_block(cx, at, tds.running).unwrap();
        assert_eq!(seam.phymem_page_rdmd(cx, huge).unwrap().bepoch, 2);
    });
}

#[test]
fn td_032_the_count_of_pages() {
    with(|cx, machine| {
        let tdr = machine.created(cx, K, 6);
        let count = || machine.tdx.peek_td(pfn(tdr)).unwrap().chldcnt;
        assert_eq!(count(), 6);
        machine.tdx.on(LP).mng_init(cx, tdr, machine.params(cx, &params())).unwrap();
        for level in [Level::L512G, Level::L1G, Level::L2M] {
            machine.table(cx, tdr, GPA, level);
        }
        assert_eq!(count(), 9);
        machine.add(cx, tdr, GPA);
        machine.aug(cx, tdr, Gpa(GPA.0 + (2 << 20)), Level::L2M);
        assert_eq!(count(), 9 + 1 + 512);
        machine.vcpu(cx, tdr, LP);
        assert_eq!(count(), 9 + 1 + 512 + 6);
        let large = info(Gpa(GPA.0 + (2 << 20)), Level::L2M);
        machine.tdx.on(LP).mem_page_demote(cx, large, tdr, machine.page(), None).unwrap();
        assert_eq!(count(), 9 + 1 + 512 + 6 + 1);
        machine.tdx.on(LP).mem_page_promote(cx, large, tdr).unwrap();
        machine.tdx.on(LP).mem_page_remove(cx, large, tdr).unwrap();
        assert_eq!(count(), 9 + 1 + 6);
    });
}
