//! MM-003, MM-006, MM-007: every row of the permission table, in all combinations of bits, by real walks.

use crate::bits::{NX, Vendor};
use crate::machine::{Machine, Setup, page_fault};
use sim_kernel::sched::Sim;
use sim_mmu::guest_paging::{AccessMode, Cr0, Cr4, Efer, PageFaultCode, Pkru, gpte};
use sim_mmu::walker::{Ept, Npt};
use sim_mmu::{Access, Gfn, Gva, Level};

const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Exec];

/// One combination.
#[derive(Clone, Copy, Debug)]
struct Case {
    user_page: bool,
    writable: bool,
    no_execute: bool,
    mode: AccessMode,
    access: Access,
    wp: bool,
    smep: bool,
    smap: bool,
    ac: bool,
    nxe: bool,
}

/// The specification's table, row by row.
fn is_allowed(c: Case) -> bool {
    let executable = !c.no_execute || !c.nxe;
    let supervisor_reads = !c.user_page || !c.smap || (c.ac && c.mode == AccessMode::Supervisor);
    match (c.mode == AccessMode::User, c.access) {
        (true, Access::Read) => c.user_page,
        (true, Access::Write) => c.user_page && c.writable,
        (true, Access::Exec) => c.user_page && executable,
        (false, Access::Read) => supervisor_reads,
        (false, Access::Write) => supervisor_reads && (c.writable || !c.wp),
        (false, Access::Exec) => executable && (!c.user_page || !c.smep),
    }
}

/// And of its error codes.
fn expected_code(c: Case) -> PageFaultCode {
    let mut code = PageFaultCode::PRESENT;
    code.set(PageFaultCode::WRITE, c.access == Access::Write);
    code.set(PageFaultCode::USER, c.mode == AccessMode::User);
    code.set(PageFaultCode::FETCH, c.access == Access::Exec && (c.nxe || c.smep));
    code
}

fn all_combinations<F: Vendor>() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<F>::new(cx, Setup::default());
        let gva = Gva(0x7000);
        machine.map(gva, Gfn(0x42), 0);
        let mut cases = 0;
        for bits in 0..1 << 8 {
            let bit = |n: u32| bits >> n & 1 != 0;
            for mode in [AccessMode::User, AccessMode::Supervisor, AccessMode::Implicit] {
                for access in ACCESSES {
                    let case = Case {
                        user_page: bit(0),
                        writable: bit(1),
                        no_execute: bit(2),
                        mode,
                        access,
                        wp: bit(3),
                        smep: bit(4),
                        smap: bit(5),
                        ac: bit(6),
                        nxe: bit(7),
                    };
                    if case.no_execute && !case.nxe {
                        continue; // A reserved bit: MM-004.
                    }
                    let entry = gpte::PRESENT
                        | if case.user_page { gpte::USER } else { 0 }
                        | if case.writable { gpte::WRITABLE } else { 0 }
                        | if case.no_execute { NX } else { 0 };
                    machine.set_guest_entry(gva, Level::L4K, entry | 0x42 << 12);
                    machine.change_registers(|r| {
                        r.cr0.set(Cr0::WP, case.wp);
                        r.cr4.set(Cr4::SMEP, case.smep);
                        r.cr4.set(Cr4::SMAP, case.smap);
                        r.efer.set(Efer::NXE, case.nxe);
                        r.ac = case.ac;
                        r.cpl = if mode == AccessMode::User { 3 } else { 0 };
                    });
                    machine.processor.invlpg(cx, gva);
                    // Once by a walk, once from the TLB, once more through what accelerates it.
                    for round in 0..3 {
                        let result = if round == 2 && mode != AccessMode::Implicit {
                            machine.access(cx, gva, access)
                        } else {
                            machine.access_as(cx, gva, mode, access)
                        };
                        assert_eq!(result.is_ok(), is_allowed(case), "{case:?}, round {round}");
                        if !is_allowed(case) {
                            let fault = page_fault(result);
                            assert_eq!((fault.cr2, fault.code), (gva, expected_code(case)), "{case:?}");
                        }
                        machine.processor.check_acceleration();
                    }
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 9 * (128 + 64));
    });
}

#[test]
fn mm_003_every_combination_ept() {
    all_combinations::<Ept>();
}

#[test]
fn mm_003_every_combination_npt() {
    all_combinations::<Npt>();
}

#[test]
fn mm_003_rights_are_those_of_all_levels() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::uncached());
        let gva = Gva(0x7000);
        machine.map(gva, Gfn(0x42), crate::bits::RWX);
        machine.change_registers(|r| r.cpl = 3);
        for level in [Level::L512G, Level::L1G, Level::L2M, Level::L4K] {
            let entry = machine.guest_entry(gva, level);
            let refusals = [
                (entry & !gpte::WRITABLE, [true, false, true]),
                (entry & !gpte::USER, [false; 3]),
                (entry | NX, [true, true, false]),
            ];
            for (changed, allowed) in refusals {
                machine.set_guest_entry(gva, level, changed);
                let found = ACCESSES.map(|access| machine.access(cx, gva, access).is_ok());
                assert_eq!(found, allowed, "{level:?} {changed:#x}");
            }
            machine.set_guest_entry(gva, level, entry);
        }
    });
}

#[test]
fn mm_006_fetches_are_reported_with_nxe_or_smep_only() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Npt>::new(cx, Setup::default());
        for (nxe, smep, expected) in [(false, false, 0), (true, false, 16), (false, true, 16), (true, true, 16)] {
            machine.change_registers(|r| {
                r.efer.set(Efer::NXE, nxe);
                r.cr4.set(Cr4::SMEP, smep);
            });
            let fault = page_fault(machine.access(cx, Gva(0x9000), Access::Exec));
            assert_eq!(fault.code.bits(), expected, "nxe {nxe}, smep {smep}");
        }
    });
}

#[test]
fn mm_007_protection_keys() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::default());
        let (user, supervisor) = (Gva(0x7000), Gva(0x8000));
        let key: u64 = 5;
        let keyed = |rights: u64| rights | key << 59;
        machine.map(user, Gfn(0x42), keyed(gpte::PRESENT | gpte::WRITABLE | gpte::USER));
        machine.map(supervisor, Gfn(0x43), keyed(gpte::PRESENT | gpte::WRITABLE));
        let access_disable = Pkru(1 << (2 * key));
        let write_disable = Pkru(2 << (2 * key));
        let other_key = Pkru(0b11 << (2 * (key + 1)));
        // (PKRU, CPL, WP, page, read, write, fetch)
        let rows = [
            (access_disable, 3, true, user, false, false, true),
            (access_disable, 0, true, user, false, false, true),
            (access_disable, 0, false, user, false, false, true),
            (write_disable, 3, true, user, true, false, true),
            (write_disable, 3, false, user, true, false, true),
            (write_disable, 0, true, user, true, false, true),
            (write_disable, 0, false, user, true, true, true),
            (other_key, 3, true, user, true, true, true),
            (access_disable, 0, true, supervisor, true, true, true),
            (write_disable, 0, true, supervisor, true, true, true),
        ];
        for (pkru, cpl, wp, gva, read, write, fetch) in rows {
            machine.change_registers(|r| {
                r.cr4.insert(Cr4::PKE);
                r.cr0.set(Cr0::WP, wp);
                (r.pkru, r.cpl) = (pkru, cpl);
            });
            for (access, allowed) in ACCESSES.into_iter().zip([read, write, fetch]) {
                for round in 0..2 {
                    let result = machine.access(cx, gva, access);
                    assert_eq!(result.is_ok(), allowed, "{pkru:?} cpl {cpl} wp {wp} {gva:?} {access:?} {round}");
                    if !allowed {
                        let code = page_fault(result).code;
                        assert!(code.contains(PageFaultCode::PROTECTION_KEY | PageFaultCode::PRESENT), "{code:?}");
                    }
                    machine.processor.check_acceleration();
                }
            }
        }
        machine.change_registers(|r| r.cr4.remove(Cr4::PKE));
        assert!(machine.access(cx, user, Access::Write).is_ok(), "keys are off");
    });
}
