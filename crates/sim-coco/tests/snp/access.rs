//! The checks of accesses: SN-061 to SN-079.

use crate::machine::{DONE, G, GPA, H, Machine, STATES, config, with, with_config};
use sim_coco::AccessKind::{self, Fetch, Read, Write};
use sim_coco::snp::{
    GuestCpu, GuestFault, GuestKind, Gva, HostSnpAccess, NpfError, PageOperand, PageState, PfError, RmpAdjust, RmpSize,
    RmpUpdate, SnpAccess, SnpConfig, Vmpl, VmplPerms,
};
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gpa, Level};

const CPU: GuestCpu = GuestCpu::snp(0, G);
/// Of every NPF that the RMP causes at the final translation.
const NPF: NpfError = NpfError::P.union(NpfError::U).union(NpfError::RMP).union(NpfError::FINAL);

/// How an access ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Passes,
    /// NPF with these bits beside those that every one has.
    Npf(NpfError),
    Vc,
}

const ENC: NpfError = NpfError::ENC;

fn end(machine: &Machine, cpu: &GuestCpu, access: &SnpAccess) -> End {
    match machine.snp.check_guest(cpu, access) {
        Ok(_) => End::Passes,
        Err(GuestFault::NotValidated { cr2 }) => {
            assert_eq!(cr2, access.gva);
            End::Vc
        }
        Err(GuestFault::Npf { error, gpa }) => {
            assert_eq!(gpa, access.gpa);
            assert!(error.contains(NpfError::P | NpfError::U | NpfError::RMP));
            let final_or_walk = error & (NpfError::FINAL | NpfError::WALK);
            assert_eq!(final_or_walk, if access.walk { NpfError::WALK } else { NpfError::FINAL });
            assert_eq!(error.contains(NpfError::W), access.kind == Write);
            assert_eq!(error.contains(NpfError::ID), access.kind == Fetch);
            End::Npf(error - NPF - NpfError::W - NpfError::ID - NpfError::WALK)
        }
        Err(other) => panic!("an access ended in {other}"),
    }
}

fn private(kind: AccessKind, pfn: Pfn) -> SnpAccess {
    SnpAccess::private(kind, GPA, pfn)
}

#[test]
fn every_state_against_every_access() {
    with(|cx, machine| {
        for state in STATES {
            let pfn = machine.in_state(cx, state);
            let hv = matches!(state, PageState::Hypervisor | PageState::HvFixed);
            // The host, and guests without SNP.
            for kind in [Read, Write, Fetch] {
                let passes = hv || kind != Write;
                let host = machine.snp.check_host(&HostSnpAccess::kernel(kind, pfn));
                assert_eq!(host.is_ok(), passes, "SN-061, SN-062: host {kind:?} of {state:?}");
                if let Err(fault) = host {
                    assert_eq!(fault.error, PfError::RMP | PfError::P | PfError::W);
                }
                for (kind_of_guest, c_bit) in
                    [(GuestKind::Plain, false), (GuestKind::Sev, false), (GuestKind::Sev, true)]
                {
                    let cpu = GuestCpu { kind: kind_of_guest, asid: H, ..CPU };
                    let access = SnpAccess { c_bit, ..private(kind, pfn) };
                    let encrypted = c_bit || (kind_of_guest == GuestKind::Sev && kind == Fetch);
                    let expected =
                        if passes { End::Passes } else { End::Npf(if encrypted { ENC } else { NpfError::empty() }) };
                    assert_eq!(end(machine, &cpu, &access), expected, "{kind_of_guest:?} {kind:?} of {state:?}");
                    let walk = if hv {
                        End::Passes
                    } else {
                        End::Npf(if kind_of_guest == GuestKind::Sev { ENC } else { NpfError::empty() })
                    };
                    assert_eq!(end(machine, &cpu, &access.of_table()), walk);
                }
                // An SNP guest. A fetch is private whatever the table says.
                let shared = match (kind, hv) {
                    (Fetch, _) => end(machine, &CPU, &private(Fetch, pfn)),
                    (Write, false) => End::Npf(NpfError::empty()),
                    _ => End::Passes,
                };
                assert_eq!(end(machine, &CPU, &private(kind, pfn).shared()), shared, "SN-066: {kind:?} of {state:?}");
                let expected = match state {
                    PageState::GuestValid => End::Passes,
                    PageState::GuestInvalid => End::Vc,
                    _ => End::Npf(ENC),
                };
                assert_eq!(end(machine, &CPU, &private(kind, pfn)), expected, "SN-067, SN-069: {kind:?} of {state:?}");
                let table = private(kind, pfn).shared().of_table();
                assert_eq!(end(machine, &CPU, &table), expected, "SN-068, SN-070: {kind:?} of a table in {state:?}");
                assert_eq!(end(machine, &GuestCpu { asid: H, ..CPU }, &private(kind, pfn)), End::Npf(ENC), "SN-076");
            }
            assert_eq!(machine.snp.check_dma(pfn, Write), hv, "SN-079");
            assert!(machine.snp.check_dma(pfn, Read));
        }
    });
}

#[test]
fn sn_062_a_host_write_changes_no_byte() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let pfn = machine.in_state(cx, PageState::GuestValid);
        snp.guest_write_u64(cx, &CPU, GPA, pfn, 42).unwrap();
        let raw = machine.phys.peek_u64(pfn, 0);
        let user = HostSnpAccess { user: true, ..HostSnpAccess::kernel(Write, pfn) };
        let fault = snp.host_write(cx, &user, 0, &[0; 8]).unwrap_err();
        assert_eq!(fault.error, PfError::RMP | PfError::P | PfError::W | PfError::U);
        assert!(!snp.dma_write(cx, pfn, 0, &[0; 8]));
        assert_eq!(machine.phys.peek_u64(pfn, 0), raw, "SNP-INV-002");
        // SN-061: it reads the ciphertext.
        let mut bytes = [0; 8];
        snp.host_read(cx, pfn, 0, &mut bytes);
        assert_eq!(u64::from_le_bytes(bytes), raw);
        assert_ne!(raw, 42, "SNP-INV-017");
        snp.dma_read(cx, pfn, 0, &mut bytes);
        assert_eq!(u64::from_le_bytes(bytes), raw);
        // SN-066, SN-076: so does a guest without the C-bit, this one or another.
        for cpu in [CPU, GuestCpu { asid: H, ..CPU }] {
            snp.guest_read(cx, &cpu, &private(Read, pfn).shared(), &mut bytes).unwrap();
            assert_eq!(u64::from_le_bytes(bytes), raw);
        }
    });
    with_config(SnpConfig { ciphertext_hiding: true, ..config() }, |cx, machine| {
        let pfn = machine.in_state(cx, PageState::GuestValid);
        let mut bytes = [0; 8];
        machine.snp.host_read(cx, pfn, 0, &mut bytes);
        assert_eq!(bytes, [0xff; 8], "OP-12");
        machine.snp.host_read(cx, machine.page(), 0, &mut bytes);
        assert_eq!(bytes, [0; 8]);
    });
}

#[test]
fn sn_063_and_sn_064_large_mappings_of_the_host() {
    with(|cx, machine| {
        let head = machine.huge();
        machine.assign(cx, head + 77, RmpUpdate::guest(G, GPA));
        let write = |level| machine.snp.check_host(&HostSnpAccess { level, ..HostSnpAccess::kernel(Write, head) });
        assert!(write(Level::L4K).is_ok());
        assert!(write(Level::L2M).is_err() && write(Level::L1G).is_err());
        assert!(
            machine
                .snp
                .host_write(cx, &HostSnpAccess { level: Level::L2M, ..HostSnpAccess::kernel(Write, head) }, 0, &[1])
                .is_err()
        );
        // The same holds of what a guest shares with the host.
        let shared = private(Write, head).shared();
        assert_eq!(end(machine, &CPU, &shared), End::Passes);
        assert_eq!(end(machine, &CPU, &shared.at_level(Level::L2M)), End::Npf(NpfError::empty()));
        machine.assign(cx, head + 77, RmpUpdate::HYPERVISOR);
        assert!(write(Level::L2M).is_ok() && write(Level::L1G).is_ok());
        // A page of the next region is no obstacle to a mapping of 1 GiB.
        let next = machine.huge();
        machine.assign(cx, next, RmpUpdate::guest(G, GPA));
        assert!(write(Level::L1G).is_ok());
    });
}

#[test]
fn sn_065_tables_of_the_host() {
    with(|cx, machine| {
        let pfn = machine.in_state(cx, PageState::GuestInvalid);
        let walk = HostSnpAccess { walk: true, ..HostSnpAccess::kernel(Read, pfn) };
        assert_eq!(machine.snp.check_host(&walk).unwrap_err().error, PfError::RMP | PfError::P);
        assert!(machine.snp.check_host(&HostSnpAccess::kernel(Read, pfn)).is_ok());
    });
}

#[test]
fn sn_069_size_then_validation_then_level() {
    with(|cx, machine| {
        let at_1 = CPU.at_vmpl(Vmpl::new(1).unwrap());
        // Wrong in all three: the size is told.
        let pfn = machine.in_state(cx, PageState::GuestInvalid);
        assert_eq!(end(machine, &at_1, &private(Read, pfn).at_level(Level::L2M)), End::Npf(ENC));
        // In the last two: validation.
        assert_eq!(end(machine, &at_1, &private(Read, pfn)), End::Vc);
        let pfn = machine.in_state(cx, PageState::GuestValid);
        assert_eq!(end(machine, &at_1, &private(Read, pfn)), End::Npf(ENC | NpfError::VMPL));
        // The shadow-stack permission is copied where levels restrict it.
    });
    with_config(SnpConfig { supervisor_shadow_stack: true, ..config() }, |cx, machine| {
        let pfn = machine.in_state(cx, PageState::GuestValid);
        let sss = RmpAdjust::new(Vmpl::new(1).unwrap(), VmplPerms::SSS, false);
        machine.snp.rmpadjust(cx, &CPU, &PageOperand::page(GPA, pfn), sss).unwrap().unwrap();
        let at_1 = GuestCpu { vmpl_sss: true, ..CPU.at_vmpl(Vmpl::new(1).unwrap()) };
        assert_eq!(end(machine, &at_1, &private(Read, pfn)), End::Npf(ENC | NpfError::VMPL | NpfError::SSS));
        let stack = SnpAccess { shadow_stack: true, ..private(Write, pfn) };
        assert_eq!(end(machine, &GuestCpu { vmpl_sss: true, ..CPU }, &stack), End::Passes);
        let rw = RmpAdjust::new(Vmpl::new(1).unwrap(), VmplPerms::R | VmplPerms::W, false);
        machine.snp.rmpadjust(cx, &CPU, &PageOperand::page(GPA, pfn), rw).unwrap().unwrap();
        assert_eq!(end(machine, &at_1, &stack), End::Npf(ENC | NpfError::VMPL | NpfError::SS));
    });
}

#[test]
fn sn_071_sizes_of_both_sides() {
    with(|cx, machine| {
        let rows = [
            (Level::L4K, RmpSize::Size4K, true),
            (Level::L4K, RmpSize::Size2M, false),
            (Level::L2M, RmpSize::Size4K, false),
            (Level::L1G, RmpSize::Size4K, false),
            (Level::L2M, RmpSize::Size2M, true),
            (Level::L1G, RmpSize::Size2M, true),
        ];
        for (level, size, passes) in rows {
            let pfn = machine.sized_in_state(cx, PageState::GuestValid, size);
            let expected = if passes { End::Passes } else { End::Npf(ENC) };
            assert_eq!(end(machine, &CPU, &private(Read, pfn).at_level(level)), expected, "{level:?} over {size:?}");
            // Without SIZEM: that bit is of PVALIDATE and RMPADJUST.
        }
    });
}

#[test]
fn sn_072_to_sn_074_what_the_hypervisor_may_try() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let other = Gpa(GPA.0 + 0x1000);
        let a = machine.in_state(cx, PageState::GuestValid);
        let b = machine.page();
        machine.validated(cx, b, RmpUpdate::guest(G, other));
        // Alias: a second address for one page.
        assert_eq!(end(machine, &CPU, &SnpAccess::private(Read, other, a)), End::Npf(ENC));
        // Remap: another page of the guest at this address.
        assert_eq!(end(machine, &CPU, &private(Read, b)), End::Npf(ENC));
        // With the address made right, it is not accepted any more.
        machine.assign(cx, b, RmpUpdate::guest(G, GPA));
        assert_eq!(end(machine, &CPU, &private(Read, b)), End::Vc);
        // Swap: a new page at the right address.
        let c = machine.in_state(cx, PageState::GuestInvalid);
        assert_eq!(end(machine, &CPU, &private(Read, c)), End::Vc);
        // Double validation: a guest that accepts again is told by CF only if it is the same page.
        assert_eq!(snp.pvalidate(cx, &CPU, &PageOperand::page(GPA, c), 1), Ok(DONE));
    });
}

#[test]
fn sn_075_old_ciphertext_from_the_bus_is_not_noticed() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let pfn = machine.in_state(cx, PageState::GuestValid);
        snp.guest_write_u64(cx, &CPU, GPA, pfn, 1).unwrap();
        let old = machine.phys.peek_u64(pfn, 0);
        let old_high = machine.phys.peek_u64(pfn, 1);
        snp.guest_write_u64(cx, &CPU, GPA, pfn, 2).unwrap();
        assert!(snp.host_write(cx, &HostSnpAccess::kernel(Write, pfn), 0, &old.to_le_bytes()).is_err());
        machine.phys.poke_u64(pfn, 0, old);
        machine.phys.poke_u64(pfn, 1, old_high);
        assert_eq!(snp.guest_read_u64(cx, &CPU, GPA, pfn), Ok(1));
    });
}

#[test]
fn virtual_top_of_memory() {
    with(|cx, machine| {
        let shared = machine.page();
        let cpu = GuestCpu { vtom: Some(Gpa(GPA.0 + 0x1000)), ..CPU };
        let pfn = machine.in_state(cx, PageState::GuestValid);
        // Below, everything is private without a C-bit; at and above it, nothing is.
        assert_eq!(end(machine, &cpu, &private(Write, pfn).shared()), End::Passes);
        assert_eq!(end(machine, &cpu, &private(Write, shared).shared()), End::Npf(ENC));
        let above = SnpAccess::private(Write, Gpa(GPA.0 + 0x1000), shared).shared();
        assert_eq!(end(machine, &cpu, &above), End::Passes);
    });
}

#[test]
fn a_device_may_go_unchecked() {
    with_config(SnpConfig { checks_dma: false, ..config() }, |cx, machine| {
        let pfn = machine.in_state(cx, PageState::GuestValid);
        assert!(machine.snp.dma_write(cx, pfn, 0, &[1]), "OP-17");
    });
}

/// Reads of a page that was written otherwise (§2.8).
#[test]
fn what_a_reader_sees() {
    with(|cx, machine: &Machine| {
        let snp = &machine.snp;
        let _gctx = machine.launching(cx, G, sim_coco::snp::firmware::GuestPolicy::USUAL);
        let pfn = machine.page();
        let read = |cx: &Cx<'_>, access: &SnpAccess| {
            let mut bytes = [0; 16];
            snp.guest_read(cx, &CPU, access, &mut bytes).map(|()| u128::from_le_bytes(bytes))
        };
        let write =
            |cx: &Cx<'_>, access: &SnpAccess, value: u128| snp.guest_write(cx, &CPU, access, &value.to_le_bytes());
        // Shared: the plain bytes, both ways.
        write(cx, &private(Write, pfn).shared(), 5).unwrap();
        assert_eq!(read(cx, &private(Read, pfn).shared()), Ok(5));
        // Private: through the key.
        machine.validated(cx, pfn, RmpUpdate::guest(G, GPA));
        let garbage = read(cx, &private(Read, pfn)).unwrap();
        assert_ne!(garbage, 5);
        write(cx, &private(Write, pfn), 6).unwrap();
        assert_eq!(read(cx, &private(Read, pfn)), Ok(6));
        // Shared again, without anybody writing: the old ciphertext.
        let ciphertext = read(cx, &private(Read, pfn).shared()).unwrap();
        assert!(ciphertext != 6 && ciphertext != 5);
        machine.assign(cx, pfn, RmpUpdate::HYPERVISOR);
        assert_eq!(read(cx, &private(Read, pfn).shared()), Ok(ciphertext));
        // A byte in the middle of a block leaves the others as they were.
        machine.validated(cx, pfn, RmpUpdate::guest(G, GPA));
        let access = SnpAccess { gva: Gva(3), gpa: Gpa(GPA.0 + 3), ..private(Write, pfn) };
        snp.guest_write(cx, &CPU, &access, &[9]).unwrap();
        assert_eq!(read(cx, &private(Read, pfn)), Ok(6 | 9 << 24));
    });
}
