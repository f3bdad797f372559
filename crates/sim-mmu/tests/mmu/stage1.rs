//! MM-001, MM-002, MM-004, MM-005, MM-008 to MM-012: walks of guest tables.

use crate::bits::{A, C_BIT, D, G, NX, PS, RWX};
use crate::machine::{Machine, Setup, accessed, exit, host, page_fault};
use sim_kernel::sched::Sim;
use sim_mmu::guest_paging::{Cr4, Efer, Encryption, GuestFault, GuestFormat, PageFaultCode, PagingMode};
use sim_mmu::walker::{CountReferences, Ept, ExitInfo1, GuestAdBeforeFinal, MmuFault, Npt};
use sim_mmu::{Access, Gfn, Gpa, Gva, Level};

const LEVELS: [Level; 4] = [Level::L512G, Level::L1G, Level::L2M, Level::L4K];

#[test]
fn mm_001_addresses_that_are_not_canonical() {
    Sim::sequential().solo(|cx| {
        let rows: [(u8, &[u64], &[u64]); 2] = [
            (4, &[1 << 47, !0 << 48, 1 << 63, 0x8000_7fff_ffff_f000], &[(1 << 47) - 1, !0 << 47]),
            (5, &[1 << 56, !0 << 57, 1 << 63], &[(1 << 56) - 1, !0 << 56, 1 << 47]),
        ];
        for (guest_levels, refused, fine) in rows {
            let mut machine = Machine::<Ept>::new(cx, Setup { guest_levels, ..Setup::default() });
            for &gva in refused {
                let mut counts = CountReferences::default();
                let result = machine.processor.translate_observed(
                    cx,
                    &machine.memory,
                    Gva(gva),
                    sim_mmu::guest_paging::AccessMode::Supervisor,
                    Access::Read,
                    &mut counts,
                );
                assert_eq!(result, Err(MmuFault::Guest(GuestFault::GeneralProtection)), "{gva:#x}");
                assert_eq!(counts, CountReferences::default(), "{gva:#x}: nothing is looked up");
            }
            for &gva in fine {
                page_fault(machine.access(cx, Gva(gva), Access::Read));
            }
        }
        assert_eq!(PagingMode::FourLevel.not_canonical(true), GuestFault::StackSegment);
        assert!(PagingMode::Off.is_canonical(Gva(1 << 47)));
    });
}

#[test]
fn mm_002_pages_of_every_size_at_every_offset() {
    Sim::sequential().solo(|cx| {
        for guest_levels in [4, 5] {
            for level in [Level::L4K, Level::L2M, Level::L1G] {
                let stage2_page = Level::L1G;
                let mut machine = Machine::<Npt>::new(cx, Setup { guest_levels, stage2_page, ..Setup::default() });
                let gva = Gva(if guest_levels == 5 { 0x12_3456_c000_0000 } else { 0x5678_c000_0000 });
                let gfn = Gfn(7 << 18);
                machine.map_guest(gva, gfn, level, RWX);
                machine.back(gfn);
                let size = level.span() << 12;
                for offset in [0, 1, 0xfff, 0x1000 % size, size / 2 + 5, size - 1] {
                    let found = machine.access(cx, gva + offset, Access::Write).unwrap();
                    let expected = (host(Gfn(gfn.0 + (offset >> 12))), offset & 0xfff);
                    assert_eq!((found.pfn, found.offset), expected, "{guest_levels} levels, {level:?}, {offset:#x}");
                }
            }
        }
    });
}

#[test]
fn mm_002_an_access_across_pages() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::default());
        machine.map(Gva(0x7000), Gfn(0x42), RWX);
        let span = |machine: &mut Machine<Ept>, gva, bytes, access| {
            machine.processor.translate_span(cx, &machine.memory, Gva(gva), bytes, access)
        };
        let (first, second) = span(&mut machine, 0x7ff8, 8, Access::Write).unwrap();
        assert_eq!((first.pfn, first.offset, second), (host(Gfn(0x42)), 0xff8, None));
        let Err(MmuFault::Guest(GuestFault::Page(fault))) = span(&mut machine, 0x7ffc, 8, Access::Write) else {
            panic!("the second page is not mapped");
        };
        assert_eq!(fault.cr2, Gva(0x8000), "the first byte on the page that faults");
        let Err(MmuFault::Guest(GuestFault::Page(fault))) = span(&mut machine, 0x6fff, 8, Access::Read) else {
            panic!("the first page is not mapped");
        };
        assert_eq!(fault.cr2, Gva(0x6fff));
        machine.map(Gva(0x8000), Gfn(0x77), RWX);
        let (first, second) = span(&mut machine, 0x7ffc, 8, Access::Read).unwrap();
        let second = second.unwrap();
        assert_eq!((first.pfn, second.pfn, second.offset), (host(Gfn(0x42)), host(Gfn(0x77)), 0));
    });
}

/// Which bit of an entry is reserved, where, and with which format.
struct Reserved {
    level: Level,
    bits: u64,
    format: fn(&mut GuestFormat),
    nxe: bool,
}

#[test]
fn mm_004_reserved_bits() {
    let row = |level, bits| Reserved { level, bits, format: |_| {}, nxe: true };
    let mut rows = Vec::new();
    for level in LEVELS {
        // MAXPHYADDR is 46.
        rows.extend((46..52).map(|bit| row(level, 1 << bit)));
        rows.push(Reserved { nxe: false, ..row(level, NX) });
    }
    rows.push(row(Level::L512G, PS));
    rows.extend((13..30).map(|bit| row(Level::L1G, PS | 1 << bit)));
    rows.extend((13..21).map(|bit| row(Level::L2M, PS | 1 << bit)));
    rows.push(Reserved { format: |f| f.has_1g_pages = false, ..row(Level::L1G, PS) });
    rows.push(Reserved { format: |f| f.upper_global_reserved = true, ..row(Level::L512G, G) });
    rows.push(Reserved { format: |f| f.maxphyaddr = 40, ..row(Level::L4K, 1 << 40) });
    Sim::sequential().solo(|cx| {
        for Reserved { level, bits, format, nxe } in rows {
            let mut setup = Setup::uncached();
            format(&mut setup.format);
            let mut machine = Machine::<Npt>::new(cx, setup);
            let gva = Gva(0x7000);
            machine.map(gva, Gfn(0x42), RWX);
            machine.change_registers(|r| r.efer.set(Efer::NXE, nxe));
            let entry = machine.guest_entry(gva, level);
            let leaf = if bits & PS != 0 { RWX } else { entry };
            // Reserved bits are reported before any permission is looked at: U and W are clear.
            machine.set_guest_entry(gva, level, leaf & !(RWX & !1) | bits);
            machine.change_registers(|r| r.cpl = 3);
            for (access, kind) in [(Access::Read, 0), (Access::Write, 2), (Access::Exec, if nxe { 16 } else { 0 })] {
                let fault = page_fault(machine.access(cx, gva, access));
                assert_eq!(fault.code.bits(), 1 | 8 | 4 | kind, "{level:?} {bits:#x} {access:?}");
            }
        }
    });
}

#[test]
fn mm_004_bits_that_are_not_reserved() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Npt>::new(cx, Setup { stage2_page: Level::L1G, ..Setup::uncached() });
        machine.map(Gva(0x7000), Gfn(0x42), RWX);
        // Ignored: 11:9 and 58:52 everywhere, G of a table on Intel, PAT at its places, D of a table.
        let ignored = 0b111 << 9 | 0x7f << 52 | G | D | 0b11 << 3;
        for level in LEVELS {
            let entry = machine.guest_entry(Gva(0x7000), level);
            let ignored = if level == Level::L4K { ignored | PS } else { ignored };
            machine.set_guest_entry(Gva(0x7000), level, entry | ignored);
        }
        assert_eq!(machine.frame(cx, Gva(0x7000)), host(Gfn(0x42)));
        let pat = 1 << 12;
        machine.map_guest(Gva(0x4000_0000), Gfn(1 << 18), Level::L1G, RWX | pat);
        machine.map_guest(Gva(0x8000_0000), Gfn(2 << 18), Level::L2M, RWX | pat);
        machine.back(Gfn(1 << 18));
        machine.back(Gfn(2 << 18));
        assert_eq!(machine.frame(cx, Gva(0x4000_3000)), host(Gfn((1 << 18) + 3)));
        assert_eq!(machine.frame(cx, Gva(0x8000_3000)), host(Gfn((2 << 18) + 3)));
    });
}

#[test]
fn mm_005_an_entry_that_is_not_present_may_hold_anything() {
    Sim::sequential().solo(|cx| {
        for level in LEVELS {
            let mut machine = Machine::<Ept>::new(cx, Setup::default());
            let gva = Gva(0x7000);
            machine.map(gva, Gfn(0x42), RWX);
            machine.set_guest_entry(gva, level, !1);
            for (access, code) in [(Access::Read, 0), (Access::Write, 2), (Access::Exec, 16)] {
                assert_eq!(page_fault(machine.access(cx, gva, access)).code.bits(), code, "{level:?} {access:?}");
            }
            assert_eq!(machine.guest_entry(gva, level), !1, "{level:?} is left as it is");
        }
    });
}

#[test]
fn mm_008_accessed_and_dirty_bits() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::uncached());
        let gva = Gva(0x7000);
        machine.map(gva, Gfn(0x42), RWX);
        machine.access(cx, gva, Access::Read).unwrap();
        assert!(LEVELS.iter().all(|&level| accessed(machine.guest_entry(gva, level))), "A at every level");
        assert!(LEVELS.iter().all(|&level| machine.guest_entry(gva, level) & D == 0), "and D nowhere");
        machine.access(cx, gva, Access::Write).unwrap();
        assert_eq!(machine.guest_entry(gva, Level::L4K) & D, D);
        assert_eq!(machine.guest_entry(gva, Level::L2M) & D, 0, "no table has D");
        let updates = machine.memory.guest_updates.get();
        for access in [Access::Read, Access::Write, Access::Exec] {
            machine.access(cx, gva, access).unwrap();
        }
        assert_eq!(machine.memory.guest_updates.get(), updates, "what is set is not stored again");
    });
}

#[test]
fn mm_008_accessed_bits_of_a_walk_that_faults() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Npt>::new(cx, Setup::uncached());
        let gva = Gva(0x7000);
        machine.map(gva, Gfn(0x42), RWX & !2);
        page_fault(machine.access(cx, gva, Access::Write));
        let bits = LEVELS.map(|level| accessed(machine.guest_entry(gva, level)));
        assert_eq!(bits, [true, true, true, false], "a permission fault leaves the leaf untouched");
        let mut machine = Machine::<Npt>::new(cx, Setup::uncached());
        machine.map(gva, Gfn(0x42), RWX);
        let entry = machine.guest_entry(gva, Level::L2M);
        machine.set_guest_entry(gva, Level::L2M, entry | 1 << 50);
        page_fault(machine.access(cx, gva, Access::Read));
        let bits = LEVELS.map(|level| accessed(machine.guest_entry(gva, level)));
        assert_eq!(bits, [true, true, false, false], "a reserved bit leaves its entry untouched");
    });
}

#[test]
fn mm_008_bits_of_the_leaf_when_stage_2_refuses_the_page() {
    Sim::sequential().solo(|cx| {
        let policies =
            [(GuestAdBeforeFinal::Never, 0), (GuestAdBeforeFinal::Accessed, A), (GuestAdBeforeFinal::Both, A | D)];
        for (policy, expected) in policies {
            let mut machine = Machine::<Npt>::new(cx, Setup::default());
            machine.processor.set_ad_before_final(policy);
            let gva = Gva(0x7000);
            machine.map_guest(gva, Gfn(0x42), Level::L4K, RWX);
            exit(machine.access(cx, gva, Access::Write));
            assert_eq!(machine.guest_entry(gva, Level::L4K) & (A | D), expected, "{policy:?}");
            machine.back(Gfn(0x42));
            machine.access(cx, gva, Access::Write).unwrap();
            assert_eq!(machine.guest_entry(gva, Level::L4K) & (A | D), A | D, "{policy:?}");
        }
    });
}

#[test]
fn mm_009_an_entry_that_changes_under_the_walk() {
    Sim::sequential().solo(|cx| {
        for level in LEVELS {
            let mut machine = Machine::<Ept>::new(cx, Setup::default());
            let gva = Gva(0x7000);
            machine.map(gva, Gfn(0x42), RWX);
            machine.back(Gfn(0x43));
            let cr3 = machine.cr3();
            let (table, index) = machine.guest_place(cr3, gva, level);
            // Right after the entry is read, it becomes another: the leaf names another page; a table's only gets a software bit.
            let entry = machine.memory.get(table, index);
            let new = if level == Level::L4K { RWX | 0x43 << 12 } else { entry | 1 << 9 };
            let place = (table.0, index);
            *machine.memory.surprise.borrow_mut() = Some((place, place, new));
            let counts = machine.count(cx, gva, Access::Write);
            assert_eq!(counts.restarts, 1, "{level:?}");
            let expected = if level == Level::L4K { 0x43 } else { 0x42 };
            assert_eq!(machine.frame(cx, gva), host(Gfn(expected)), "{level:?}");
            assert_eq!(machine.memory.get(table, index) & !(A | D), new, "{level:?}: only A and D were added");
        }
    });
}

#[test]
fn mm_009_no_fault_is_made_of_the_old_value() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::default());
        let gva = Gva(0x7000);
        machine.map(gva, Gfn(0x42), RWX);
        let cr3 = machine.cr3();
        let (table, index) = machine.guest_place(cr3, gva, Level::L4K);
        // The entry is taken away between its read and its update: the walk finds that out, and reports what is there now.
        let place = (table.0, index);
        *machine.memory.surprise.borrow_mut() = Some((place, place, 0));
        assert_eq!(page_fault(machine.access(cx, gva, Access::Read)).code, PageFaultCode::empty());
        assert_eq!(machine.memory.get(table, index), 0, "nothing is written into it");
    });
}

#[test]
fn mm_010_a_write_through_an_entry_that_a_read_filled_sets_dirty() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Npt>::new(cx, Setup::default());
        let gva = Gva(0x7000);
        machine.map(gva, Gfn(0x42), RWX);
        for _ in 0..3 {
            machine.access(cx, gva, Access::Read).unwrap();
        }
        assert_eq!(machine.guest_entry(gva, Level::L4K) & D, 0);
        assert_eq!(machine.stage2_entry(Gfn(0x42), Level::L4K) & D, 0);
        machine.access(cx, gva, Access::Write).unwrap();
        assert_eq!(machine.guest_entry(gva, Level::L4K) & D, D);
        assert_eq!(machine.stage2_entry(Gfn(0x42), Level::L4K) & D, D);
    });
}

fn with_encryption(maxphyaddr: u8, encryption: Encryption) -> Setup {
    let format = GuestFormat { maxphyaddr, encryption, ..Setup::default().format };
    Setup { format, ..Setup::default() }
}

#[test]
fn mm_011_the_c_bit() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Npt>::new(cx, with_encryption(46, Encryption::CBit(51)));
        let (private, shared, absent) = (Gva(0x7000), Gva(0x8000), Gva(0x9000));
        machine.map(private, Gfn(0x42), RWX | C_BIT);
        machine.map(shared, Gfn(0x43), RWX);
        machine.map_guest(absent, Gfn(0x44), Level::L4K, RWX | C_BIT);
        let found = machine.access(cx, private, Access::Read).unwrap();
        assert_eq!((found.pfn, found.private), (host(Gfn(0x42)), true), "the bit is no part of the address");
        assert!(!machine.access(cx, shared, Access::Write).unwrap().private);
        assert!(machine.access(cx, shared, Access::Exec).unwrap().private, "fetches are private");
        assert!(!machine.access(cx, shared, Access::Read).unwrap().private, "and reads are not, after a fetch");
        machine.processor.check_acceleration();
        let fault = exit(machine.access(cx, absent, Access::Write));
        assert_eq!(fault.gpa, Gpa(0x44 << 12), "nor of the exit's address");
        assert!(fault.info1.contains(ExitInfo1::ENC | ExitInfo1::FINAL));
        machine.map_guest(absent, Gfn(0x44), Level::L4K, RWX);
        assert!(!exit(machine.access(cx, absent, Access::Write)).info1.contains(ExitInfo1::ENC));
        assert!(exit(machine.access(cx, absent, Access::Exec)).info1.contains(ExitInfo1::ENC));
        // In a table's entry, and in CR3, it says nothing: tables are private anyway.
        for level in [Level::L512G, Level::L1G, Level::L2M] {
            let entry = machine.guest_entry(shared, level);
            machine.set_guest_entry(shared, level, entry | C_BIT);
        }
        let cr3 = machine.cr3().0 << 12 | C_BIT;
        machine.processor.mov_to_cr3(cx, cr3).unwrap();
        let found = machine.access(cx, shared, Access::Read).unwrap();
        assert_eq!((found.pfn, found.private), (host(Gfn(0x43)), false));
        let table = machine.guest_entry(shared, Level::L2M) >> 12 & 0xffff;
        machine.set_stage2_entry(Gfn(table), Level::L4K, 0);
        machine.processor.tlb_control(cx, sim_mmu::processor::TlbControl::FlushAllAsid);
        let fault = exit(machine.access(cx, shared, Access::Read));
        assert!(fault.info1.contains(ExitInfo1::ENC | ExitInfo1::PAGE), "{fault:?}");
    });
}

#[test]
fn mm_012_the_shared_bit() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, with_encryption(48, Encryption::SharedBit(47)));
        let shared_root = machine.new_stage2_root();
        let bit = Gpa(1 << 47);
        machine.change_state(|state| (state.stage2.shared, state.stage2.shared_bit) = (Some(shared_root), bit));
        let alias = |gfn: u64| Gfn(gfn | 1 << 35);
        let (private, shared) = (Gva(0x7000), Gva(0x8000));
        machine.map(private, Gfn(0x42), RWX);
        machine.map_guest(shared, alias(0x42), Level::L4K, RWX);
        let sim_mmu::walker::EptExit::Violation(violation) = exit(machine.access(cx, shared, Access::Read)) else {
            panic!("the shared tree is empty");
        };
        assert_eq!(violation.gpa, Gpa(0x42 << 12 | bit.0), "the exit's address has the bit");
        machine.map_stage2(shared_root, Gpa(0x42 << 12 | bit.0), host(Gfn(0x99)), Level::L4K, Ept::LEAF_BITS);
        assert_eq!(machine.frame(cx, shared), host(Gfn(0x99)), "the shared tree, indexed with the bit");
        assert_eq!(machine.frame(cx, private), host(Gfn(0x42)));
        // GPAW 48: 51:48 are reserved.
        for bit in 48..52 {
            machine.map_guest(Gva(0xa000), Gfn(0x42 | 1 << (bit - 12)), Level::L4K, RWX);
            let code = page_fault(machine.access(cx, Gva(0xa000), Access::Read)).code;
            assert_eq!(code, PageFaultCode::PRESENT | PageFaultCode::RESERVED, "bit {bit}");
        }
        // What is cached of the shared tree is tagged with the private root.
        let eptp = machine.processor.format().eptp(&machine.processor.state().stage2);
        machine.map_stage2(shared_root, Gpa(0x42 << 12 | bit.0), host(Gfn(0x98)), Level::L4K, Ept::LEAF_BITS);
        assert_eq!(machine.frame(cx, shared), host(Gfn(0x99)), "stale");
        machine.processor.invept(cx, sim_mmu::processor::InveptType::Single(eptp));
        assert_eq!(machine.frame(cx, shared), host(Gfn(0x98)));
    });
}

trait LeafBits {
    const LEAF_BITS: u64;
}
impl LeafBits for Ept {
    const LEAF_BITS: u64 = <Ept as crate::bits::Vendor>::LEAF;
}

#[test]
fn control_registers_refuse_what_long_mode_forbids() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup::default());
        let gp = Err(GuestFault::GeneralProtection);
        let cr4 = machine.processor.state().registers.cr4;
        assert_eq!(machine.processor.mov_to_cr4(cx, cr4 | Cr4::LA57), gp);
        assert_eq!(machine.processor.mov_to_cr4(cx, cr4 - Cr4::PAE), gp);
        let cr3 = machine.cr3().0 << 12;
        assert_eq!(machine.processor.mov_to_cr3(cx, cr3 | 1 << 46), gp, "beyond MAXPHYADDR");
        assert_eq!(machine.processor.mov_to_cr3(cx, cr3 | 1 << 63), gp, "without PCIDs there is nothing to keep");
        machine.processor.mov_to_cr3(cx, cr3 | 0x18).unwrap();
        assert_eq!(machine.processor.mov_to_cr4(cx, cr4 | Cr4::PCIDE), gp, "PWT and PCD would become a PCID");
        machine.processor.mov_to_cr3(cx, cr3).unwrap();
        machine.processor.mov_to_cr4(cx, cr4 | Cr4::PCIDE).unwrap();
        machine.processor.mov_to_cr3(cx, cr3 | 1 << 63 | 5).unwrap();
        assert_eq!(machine.processor.state().registers.cr3.0, cr3 | 5, "bit 63 is not stored");
        machine.processor.mov_to_cr3(cx, cr3).unwrap();
        let no_paging = sim_mmu::guest_paging::Cr0::empty();
        assert_eq!(machine.processor.mov_to_cr0(cx, no_paging), gp, "PCIDs are of long mode");
        machine.processor.mov_to_cr4(cx, cr4).unwrap();
        machine.processor.mov_to_cr0(cx, no_paging).unwrap();
        machine.change_registers(|r| r.efer = Efer::empty());
        assert_eq!(machine.processor.mov_to_cr0(cx, sim_mmu::guest_paging::Cr0::PG), gp, "PAE paging is not modelled");
    });
}

#[test]
fn without_paging_the_linear_address_is_the_guests_physical_one() {
    Sim::sequential().solo(|cx| {
        let mut machine = Machine::<Ept>::new(cx, Setup { guest_levels: 0, ..Setup::default() });
        machine.back(Gfn(0x42));
        for access in [Access::Read, Access::Write, Access::Exec] {
            let found = machine.access(cx, Gva(0x42_123), access).unwrap();
            assert_eq!((found.pfn, found.offset), (host(Gfn(0x42)), 0x123));
        }
        let sim_mmu::walker::EptExit::Violation(violation) = exit(machine.access(cx, Gva(0x43_000), Access::Read))
        else {
            panic!("not mapped");
        };
        assert_eq!(violation.gpa, Gpa(0x43_000));
    });
}
