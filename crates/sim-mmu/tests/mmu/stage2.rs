//! MM-020 to MM-029 and MM-031 to MM-033: EPT and NPT as the processor reads them, and what it reports.

use crate::bits::{NX, PS, RWX, Vendor};
use crate::machine::{Machine, Setup, exit, host};
use sim_kernel::sched::Sim;
use sim_mmu::guest_paging::AccessMode;
use sim_mmu::walker::{Ept, EptExit, EptViolation, ExitInfo1, ExitQualification, Npt, PML_ENTRIES, Stage2Format};
use sim_mmu::{Access, Gfn, Gpa, Gva, Level};

const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Exec];
const PAGE: Gva = Gva(0x7000);
const FRAME: Gfn = Gfn(0x42);

#[track_caller]
fn violation(exit: EptExit) -> EptViolation {
    match exit {
        EptExit::Violation(violation) => violation,
        other => panic!("no violation: {other:?}"),
    }
}

fn ept(cx: &sim_kernel::Cx<'_>, change: impl FnOnce(&mut Ept)) -> Machine<Ept> {
    let mut machine = Machine::<Ept>::new(cx, Setup::uncached());
    let mut format = Ept::processor();
    change(&mut format);
    machine.processor.set_format(format);
    machine.map(PAGE, FRAME, RWX);
    machine
}

fn npt(cx: &sim_kernel::Cx<'_>, change: impl FnOnce(&mut Npt)) -> Machine<Npt> {
    let mut machine = Machine::<Npt>::new(cx, Setup::uncached());
    let mut format = Npt::processor();
    change(&mut format);
    machine.processor.set_format(format);
    machine.map(PAGE, FRAME, RWX);
    machine
}

#[test]
fn mm_020_mm_021_violations_of_the_final_access() {
    use ExitQualification as Q;
    Sim::sequential().solo(|cx| {
        let mut machine = ept(cx, |format| format.exec_only = true);
        let kinds = [Q::READ, Q::WRITE, Q::FETCH];
        let fixed = Q::GVA_VALID | Q::GVA_TRANSLATED;
        for level in [Level::L512G, Level::L1G, Level::L2M, Level::L4K] {
            // At a higher level the tables of the guest would be taken away too.
            let far = Gfn(0x23 << 27 | 0x42);
            machine.map(PAGE, far, RWX);
            let whole = machine.stage2_entry(far, level);
            for rights in 0..8u64 {
                let is_misconfigured = rights & 0b011 == 0b010;
                if is_misconfigured {
                    continue;
                }
                machine.set_stage2_entry(far, level, whole & !0b111 | rights);
                for (access, kind) in ACCESSES.into_iter().zip(kinds) {
                    let needed = 1 << access as u64;
                    let result = machine.access(cx, PAGE + 0x123, access);
                    if rights & needed != 0 {
                        result.unwrap();
                        continue;
                    }
                    let EptViolation { gpa, gva, qualification } = violation(exit(result));
                    assert_eq!((gpa, gva), (far.gpa() + 0x123, PAGE + 0x123));
                    let granted = Q::from_bits_retain(rights << 3);
                    assert_eq!(qualification, kind | granted | fixed, "{level:?}, {rights:#b}, {access:?}");
                }
            }
            machine.set_stage2_entry(far, level, whole);
        }
    });
}

#[test]
fn mm_021_accesses_to_guest_tables() {
    use ExitQualification as Q;
    Sim::sequential().solo(|cx| {
        let mut machine = ept(cx, |_| ());
        let cr3 = machine.cr3();
        let entry = machine.stage2_entry(cr3, Level::L4K);
        machine.set_stage2_entry(cr3, Level::L4K, entry & !0b10);
        let found = violation(exit(machine.access(cx, PAGE, Access::Read)));
        let granted = Q::READABLE | Q::EXECUTABLE;
        assert_eq!(found.qualification, Q::READ | Q::WRITE | Q::GVA_VALID | granted, "a read counts as a write");
        // Advanced information is about final accesses.
        let mut format = *machine.processor.format();
        format.advanced_info = true;
        machine.processor.set_format(format);
        let found = violation(exit(machine.access(cx, PAGE, Access::Read)));
        assert_eq!(found.qualification, Q::READ | Q::WRITE | Q::GVA_VALID | granted);
        machine.set_stage2_entry(cr3, Level::L4K, entry);
        machine.set_stage2_entry(FRAME, Level::L4K, 0);
        machine.set_guest_entry(PAGE, Level::L4K, RWX & !2 | NX | FRAME.0 << 12);
        let found = violation(exit(machine.access(cx, PAGE, Access::Read)));
        let expected = Q::READ | Q::GVA_VALID | Q::GVA_TRANSLATED | Q::USER_ADDRESS | Q::NX_PAGE;
        assert_eq!(found.qualification, expected);
    });
}

/// Takes each page that a walk touches away from stage 2, one after the other, and sees each reported, from the root to the final one.
fn each_walk_faults_separately<F: Vendor>(guest_levels: u8) {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<F>::new(cx, Setup { guest_levels, ..Setup::uncached() });
        machine.map(PAGE, FRAME, RWX);
        let mut pages = Vec::new();
        let mut level = Level::from_number(guest_levels).unwrap();
        loop {
            let cr3 = machine.cr3();
            let (table, index) = machine.guest_place(cr3, PAGE, level);
            pages.push((Gfn(table.0 - host(Gfn(0)).0), Some(index)));
            match level.down() {
                Some(lower) => level = lower,
                None => break,
            }
        }
        pages.push((FRAME, None));
        assert_eq!(pages.len(), usize::from(guest_levels) + 1);
        let entries: Vec<_> = pages.iter().map(|(gfn, _)| machine.stage2_entry(*gfn, Level::L4K)).collect();
        for (gfn, _) in &pages {
            machine.set_stage2_entry(*gfn, Level::L4K, 0);
        }
        for (&(gfn, index), entry) in pages.iter().zip(entries) {
            let offset = index.map_or(0x123, |index| index as u64 * 8);
            let found = F::place(&exit(machine.access(cx, PAGE + 0x123, Access::Read)));
            assert_eq!(found, (gfn.gpa().0 + offset, index.is_none()), "{gfn:?}");
            machine.set_stage2_entry(gfn, Level::L4K, entry);
        }
        machine.access(cx, PAGE, Access::Read).unwrap();
    });
}

#[test]
fn mm_022_mm_023_each_walk_faults_separately() {
    for levels in [4, 5] {
        each_walk_faults_separately::<Ept>(levels);
        each_walk_faults_separately::<Npt>(levels);
    }
}

#[test]
fn mm_024_mm_025_misconfigurations() {
    Sim::sequential().solo(|cx| {
        let leaf = Ept::LEAF;
        let with_type = |kind: u64| leaf & !(0b111 << 3) | kind << 3;
        // Level, the entry without its address, whether the processor has execute-only entries, whether it is misconfigured.
        let mut rows: Vec<(Level, u64, bool, bool)> = vec![
            (Level::L4K, leaf & !0b111 | 0b010, true, true),
            (Level::L4K, leaf & !0b111 | 0b110, true, true),
            (Level::L4K, leaf & !0b111 | 0b100, false, true),
            (Level::L4K, leaf & !0b111 | 0b100, true, false),
            (Level::L2M, Ept::TABLE & !0b111 | 0b110, true, true),
            (Level::L512G, Ept::TABLE | PS, false, true),
        ];
        rows.extend((0..8).map(|kind| (Level::L4K, with_type(kind), false, [2, 3, 7].contains(&kind))));
        rows.extend((0..8).map(|kind| (Level::L2M, with_type(kind) | PS, false, [2, 3, 7].contains(&kind))));
        rows.extend((46..52).map(|bit| (Level::L4K, leaf | 1 << bit, false, true)));
        rows.extend((12..21).map(|bit| (Level::L2M, leaf | PS | 1 << bit, false, true)));
        rows.extend((12..30).map(|bit| (Level::L1G, leaf | PS | 1 << bit, false, true)));
        for level in [Level::L512G, Level::L1G, Level::L2M] {
            rows.extend((3..7).map(|bit| (level, Ept::TABLE | 1 << bit, false, true)));
            rows.extend([8, 9, 10, 11, 52, 57, 58, 60, 61].map(|bit| (level, Ept::TABLE | 1 << bit, false, false)));
        }
        rows.extend([7, 8, 9, 10, 11, 52, 56, 57, 58, 60, 61].map(|bit| (Level::L4K, leaf | 1 << bit, false, false)));
        for (level, entry, exec_only, is_misconfigured) in rows {
            let mut machine = ept(cx, |format| format.exec_only = exec_only);
            let far = Gfn(0x23 << 27);
            machine.map(PAGE, far, RWX);
            let whole = machine.stage2_entry(far, level);
            let address = if entry & PS != 0 { 0 } else { whole & 0x3fff_ffff_f000 };
            machine.set_stage2_entry(far, level, entry | address);
            for access in ACCESSES {
                let result = machine.access(cx, PAGE, access);
                let found = matches!(
                    result,
                    Err(sim_mmu::walker::MmuFault::Stage2(EptExit::Misconfiguration { gpa })) if gpa == far.gpa()
                );
                assert_eq!(
                    found, is_misconfigured,
                    "{level:?} {entry:#x} exec_only {exec_only} {access:?}: {result:?}"
                );
            }
        }
    });
}

#[test]
fn mm_024_reserved_bits_of_nested_tables() {
    Sim::sequential().solo(|cx| {
        let mut rows: Vec<(Level, u64, bool)> = vec![
            (Level::L512G, Npt::TABLE | PS, true),
            (Level::L512G, Npt::TABLE | 1 << 8, true),
            (Level::L1G, Npt::TABLE | 1 << 8, false),
            (Level::L4K, Npt::LEAF | 1 << 8 | PS, false),
            (Level::L2M, Npt::LEAF | PS | 1 << 12, false),
        ];
        for level in [Level::L512G, Level::L1G, Level::L2M, Level::L4K] {
            rows.extend((46..52).map(|bit| (level, Npt::TABLE | 1 << bit, true)));
            rows.extend([9, 10, 11, 52, 58, 62].map(|bit| (level, Npt::TABLE | 1 << bit, false)));
        }
        rows.extend((13..21).map(|bit| (Level::L2M, Npt::LEAF | PS | 1 << bit, true)));
        rows.extend((13..30).map(|bit| (Level::L1G, Npt::LEAF | PS | 1 << bit, true)));
        for (level, entry, is_reserved) in rows {
            let mut machine = npt(cx, |_| ());
            let far = Gfn(0x23 << 27);
            machine.map(PAGE, far, RWX);
            let whole = machine.stage2_entry(far, level);
            let address = if entry & PS != 0 && level != Level::L4K { 0 } else { whole & 0x3fff_ffff_f000 };
            machine.set_stage2_entry(far, level, entry | address);
            let result = machine.access(cx, PAGE, Access::Write);
            if is_reserved {
                use ExitInfo1 as E;
                let expected = E::PRESENT | E::RESERVED | E::WRITE | E::USER | E::FINAL;
                assert_eq!(exit(result).info1, expected, "{level:?} {entry:#x}");
            } else {
                assert!(result.is_ok(), "{level:?} {entry:#x}: {result:?}");
            }
        }
    });
}

#[test]
fn npt_faults_of_the_final_access() {
    use ExitInfo1 as E;
    Sim::sequential().solo(|cx| {
        let mut machine = npt(cx, |_| ());
        let kinds = [E::empty(), E::WRITE, E::FETCH];
        let whole = machine.stage2_entry(FRAME, Level::L4K);
        let rows: [(u64, [bool; 3], E); 4] = [
            (whole & !1, [false; 3], E::empty()),
            (whole & !2, [true, false, true], E::PRESENT),
            (whole & !4, [false; 3], E::PRESENT),
            (whole | NX, [true, true, false], E::PRESENT),
        ];
        for (entry, allowed, present) in rows {
            machine.set_stage2_entry(FRAME, Level::L4K, entry);
            for ((access, kind), allowed) in ACCESSES.into_iter().zip(kinds).zip(allowed) {
                let result = machine.access(cx, PAGE + 8, access);
                if allowed {
                    result.unwrap();
                } else {
                    let fault = exit(result);
                    assert_eq!((fault.gpa, fault.info1), (FRAME.gpa() + 8, present | kind | E::USER | E::FINAL));
                }
            }
        }
    });
}

#[test]
fn mm_026_mode_based_execution() {
    Sim::sequential().solo(|cx| {
        let (x, xu) = (1 << 2, 1 << 10);
        // Which of X and XU the page has, the guest's U/S, and whether a fetch may succeed with MBEC.
        let rows = [
            (x, false, true),
            (x, true, false),
            (xu, false, false),
            (xu, true, true),
            (x | xu, true, true),
            (0, false, false),
        ];
        for (bits, user_page, allowed) in rows {
            for cpl in [0, 3] {
                if cpl == 3 && !user_page {
                    continue;
                }
                let mut machine = ept(cx, |format| format.mbec = true);
                let rights = if user_page { RWX } else { RWX & !4 };
                machine.map(PAGE, FRAME, rights);
                machine.change_registers(|r| r.cpl = cpl);
                machine.set_stage2_entry(FRAME, Level::L4K, Ept::LEAF & !x | bits | host(FRAME).0 << 12);
                // Tables above have X and not XU unless they are given it.
                for level in [Level::L2M, Level::L1G, Level::L512G] {
                    let entry = machine.stage2_entry(FRAME, level);
                    machine.set_stage2_entry(FRAME, level, entry | xu);
                }
                let result = machine.access(cx, PAGE, Access::Exec);
                assert_eq!(result.is_ok(), allowed, "{bits:#x}, user page {user_page}, cpl {cpl}");
                if !allowed {
                    let q = violation(exit(result)).qualification;
                    assert_eq!(q.contains(ExitQualification::EXECUTABLE), bits & x != 0);
                    assert_eq!(q.contains(ExitQualification::USER_EXECUTABLE), bits & xu != 0);
                }
            }
        }
        // Without paging every address is a user-mode address.
        let mut machine = Machine::<Ept>::new(cx, Setup { guest_levels: 0, ..Setup::uncached() });
        let mut format = Ept::processor();
        format.mbec = true;
        machine.processor.set_format(format);
        machine.back(FRAME);
        for level in [Level::L4K, Level::L2M, Level::L1G, Level::L512G] {
            let entry = machine.stage2_entry(FRAME, level);
            machine.set_stage2_entry(FRAME, level, entry & !x | xu);
        }
        machine.access(cx, Gva(FRAME.0 << 12), Access::Exec).unwrap();
    });
}

#[test]
fn mm_027_guest_mode_execute_trap() {
    use ExitInfo1 as E;
    Sim::sequential().solo(|cx| {
        let mut machine = npt(cx, |format| format.gmet = true);
        let whole = machine.stage2_entry(FRAME, Level::L4K);
        let fault = exit(machine.access(cx, PAGE, Access::Exec));
        assert_eq!(fault.info1, E::PRESENT | E::FETCH | E::FINAL, "the supervisor's fetch is reported as one");
        machine.access(cx, PAGE, Access::Write).unwrap();
        machine.set_stage2_entry(FRAME, Level::L4K, whole & !4);
        for access in ACCESSES {
            machine.access(cx, PAGE, access).unwrap();
            machine.access_as(cx, PAGE, AccessMode::User, access).unwrap();
        }
        machine.set_stage2_entry(FRAME, Level::L4K, whole);
        machine.access_as(cx, PAGE, AccessMode::User, Access::Exec).unwrap();
        machine.set_stage2_entry(FRAME, Level::L4K, whole | NX);
        let fault = exit(machine.access_as(cx, PAGE, AccessMode::User, Access::Exec));
        assert_eq!(fault.info1, E::PRESENT | E::FETCH | E::FINAL | E::USER);
    });
}

#[test]
fn mm_028_nested_table_accesses_are_writes() {
    use ExitInfo1 as E;
    Sim::sequential().solo(|cx| {
        let mut machine = npt(cx, |_| ());
        machine.access(cx, PAGE, Access::Write).unwrap();
        let cr3 = machine.cr3();
        let entry = machine.stage2_entry(cr3, Level::L4K);
        machine.set_stage2_entry(cr3, Level::L4K, entry & !2);
        for _ in 0..2 {
            let fault = exit(machine.access(cx, PAGE, Access::Read));
            assert_eq!(fault.info1, E::PRESENT | E::WRITE | E::USER | E::PAGE, "though every bit is set already");
        }
        let mut format = *machine.processor.format();
        format.read_only_tables = true;
        machine.processor.set_format(format);
        machine.access(cx, PAGE, Access::Read).unwrap();
        let entry = machine.guest_entry(PAGE, Level::L512G);
        machine.set_guest_entry(PAGE, Level::L512G, entry & !(1 << 5));
        let fault = exit(machine.access(cx, PAGE, Access::Read));
        assert_eq!(fault.info1, E::PRESENT | E::WRITE | E::USER | E::PAGE, "A must be written");
    });
}

#[test]
fn mm_029_tables_without_ept_accessed_and_dirty_bits() {
    use ExitQualification as Q;
    Sim::sequential().solo(|cx| {
        let mut machine = ept(cx, |format| format.accessed_dirty = false);
        machine.access(cx, PAGE, Access::Read).unwrap();
        assert_eq!(machine.stage2_entry(FRAME, Level::L4K) & (Ept::ACCESSED | Ept::DIRTY), 0, "no bits are set");
        let table = Gfn(machine.guest_entry(PAGE, Level::L2M) >> 12 & 0xffff);
        let entry = machine.stage2_entry(table, Level::L4K);
        machine.set_stage2_entry(table, Level::L4K, entry & !2);
        machine.access(cx, PAGE, Access::Read).unwrap();
        let found = violation(exit(machine.access(cx, PAGE, Access::Write)));
        let index = PAGE.index(Level::L4K) as u64;
        assert_eq!(found.gpa, table.gpa() + index * 8, "D must be written, and the entry's address is reported");
        assert_eq!(found.qualification, Q::WRITE | Q::READABLE | Q::EXECUTABLE | Q::GVA_VALID);
        machine.set_stage2_entry(table, Level::L4K, entry);
        machine.access(cx, PAGE, Access::Write).unwrap();
        machine.set_stage2_entry(table, Level::L4K, entry & !2);
        machine.access(cx, PAGE, Access::Write).unwrap();
    });
}

#[test]
fn mm_031_mm_032_the_modification_log() {
    Sim::sequential().solo(|cx| {
        let mut machine = ept(cx, |format| format.pml = true);
        machine.access(cx, PAGE, Access::Read).unwrap();
        let tables: Vec<_> = machine.processor.log().drain(cx).collect();
        let cr3 = machine.cr3();
        let expected: Vec<_> = (cr3.0..cr3.0 + 4).map(|gfn| Gfn(gfn).gpa()).collect();
        assert_eq!(tables, expected, "a guest that only reads dirties its page tables, from the root down");
        assert_eq!(machine.stage2_entry(cr3, Level::L4K) & Ept::DIRTY, Ept::DIRTY);
        assert_eq!(machine.stage2_entry(FRAME, Level::L4K) & Ept::DIRTY, 0);
        machine.access(cx, PAGE + 0x123, Access::Write).unwrap();
        machine.access(cx, PAGE, Access::Write).unwrap();
        assert_eq!(machine.processor.log().drain(cx).collect::<Vec<_>>(), [FRAME.gpa()], "once, in units of 4 KiB");
        // 512 records fit. Reading first gets the tables logged.
        let page = |n: u64| (Gva(0x10_0000 + (n << 12)), Gfn(0x1000 + n));
        for n in 0..512 {
            machine.map(page(n).0, page(n).1, RWX);
            machine.access(cx, page(n).0, Access::Read).unwrap();
        }
        machine.processor.log().drain(cx).for_each(drop);
        for n in 0..512 {
            assert_eq!(machine.processor.log().index(), PML_ENTRIES - 1 - n as u16);
            machine.access(cx, page(n).0 + n, Access::Write).unwrap();
        }
        assert_eq!(machine.processor.log().index(), 0xffff, "the index wraps");
        machine.map(PAGE, Gfn(0x3000), RWX);
        let entry = machine.guest_entry(PAGE, Level::L4K);
        assert_eq!(exit(machine.access(cx, PAGE, Access::Write)), EptExit::PmlFull);
        assert_eq!(machine.guest_entry(PAGE, Level::L4K) & (1 << 6), entry & (1 << 6), "before the access");
        assert_eq!(machine.stage2_entry(Gfn(0x3000), Level::L4K) & Ept::DIRTY, 0);
        machine.access(cx, PAGE, Access::Read).unwrap();
        let logged: Vec<_> = machine.processor.log().drain(cx).collect();
        let expected: Vec<_> = (0x1000..0x1200).map(|gfn| Gfn(gfn).gpa()).collect();
        assert_eq!(logged, expected, "in the order of writing; a 513th record is never written");
        assert_eq!(machine.processor.log().index(), PML_ENTRIES - 1);
        machine.access(cx, PAGE, Access::Write).unwrap();
        assert_eq!(machine.processor.log().drain(cx).collect::<Vec<_>>(), [Gfn(0x3000).gpa()]);
    });
}

#[test]
fn mm_032_records_below_a_large_leaf() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup { stage2_page: Level::L2M, ..Setup::uncached() });
        let mut format = Ept::processor();
        format.pml = true;
        machine.processor.set_format(format);
        machine.map(PAGE, Gfn(0x4321), RWX);
        machine.access(cx, PAGE + 0x567, Access::Write).unwrap();
        let logged: Vec<_> = machine.processor.log().drain(cx).collect();
        assert_eq!(logged.last(), Some(&Gfn(0x4321).gpa()), "the 4 KiB page that was written");
    });
}

#[test]
fn mm_033_virtualization_exceptions() {
    Sim::sequential().solo(|cx| {
        let mut machine = ept(cx, |format| format.violation_ve = true);
        machine.set_stage2_entry(FRAME, Level::L4K, 1 << 63);
        violation(exit(machine.access(cx, PAGE, Access::Read)));
        // What a TD's VMM installs for MMIO.
        machine.set_stage2_entry(FRAME, Level::L4K, 0);
        let EptExit::VirtualizationException(told) = exit(machine.access(cx, PAGE, Access::Read)) else {
            panic!("bit 63 is clear");
        };
        assert_eq!(told.gpa, FRAME.gpa());
        violation(exit(machine.access(cx, PAGE, Access::Read)));
        machine.processor.clear_ve_information();
        assert!(matches!(exit(machine.access(cx, PAGE, Access::Read)), EptExit::VirtualizationException(_)));
        machine.processor.clear_ve_information();
        let mut format = *machine.processor.format();
        format.violation_ve = false;
        machine.processor.set_format(format);
        violation(exit(machine.access(cx, PAGE, Access::Read)));
        // A misconfiguration never becomes one.
        format.violation_ve = true;
        machine.processor.set_format(format);
        machine.set_stage2_entry(FRAME, Level::L4K, 0b110);
        assert!(matches!(exit(machine.access(cx, PAGE, Access::Read)), EptExit::Misconfiguration { .. }));
    });
}

#[test]
fn an_address_beyond_the_tables_is_not_present() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, {
            let mut setup = Setup::uncached();
            setup.format.maxphyaddr = 52;
            setup
        });
        machine.map_guest(PAGE, Gfn(1 << 36), Level::L4K, RWX);
        let found = violation(exit(machine.access(cx, PAGE, Access::Read)));
        assert_eq!(found.gpa, Gpa(1 << 48), "four levels reach 48 bits");
        assert_eq!(Ept::KIND, sim_mmu::Stage2Kind::Ept);
    });
}
