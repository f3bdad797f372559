//! What each rule of the machine stops, and what happens in a machine without it: attacks of a hypervisor, and mistakes of software that the
//! hardware would have caught.

use crate::machine::{G, GPA, H, Machine, UNCHANGED, config, running, set_vmsa, start};
use sim_coco::AccessKind::{self, Read, Write};
use sim_coco::snp::firmware::GuestPolicy;
use sim_coco::snp::{
    GuestCpu, GuestKind, HostSnpAccess, KeyPath, PageOperand, PageState, RmpSize, RmpUpdate, Snp, SnpAccess, SnpConfig,
    Vmpl, invariants, mutants,
};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Mutant, MutantSet, Pfn};
use sim_mmu::{Gpa, Level};

const CPU: GuestCpu = GuestCpu::snp(0, G);

/// What an attempt came to: `false` if the machine stopped it.
type Attempt = fn(&Cx<'_>, &Machine) -> bool;

fn reads(cx: &Cx<'_>, snp: &Snp, cpu: &GuestCpu, gpa: Gpa, pfn: Pfn) -> Option<u64> {
    snp.guest_read_u64(cx, cpu, gpa, pfn).ok()
}

/// A page of the guest in which it wrote this.
fn written(cx: &Cx<'_>, machine: &Machine, gpa: Gpa, value: u64) -> Pfn {
    let pfn = machine.page();
    machine.validated(cx, pfn, RmpUpdate::guest(G, gpa));
    machine.snp.guest_write_u64(cx, &CPU, gpa, pfn, value).unwrap();
    pfn
}

const OTHER: Gpa = Gpa(GPA.0 + 0x1000);

const ATTEMPTS: [(Mutant, Attempt); 21] = [
    // The host writes into the guest's memory: what the guest reads then is nobody's.
    (mutants::HV_OWNED, |cx, machine| {
        let pfn = written(cx, machine, GPA, 1);
        let wrote = machine.snp.host_write(cx, &HostSnpAccess::kernel(Write, pfn), 0, &[0; 16]).is_ok();
        assert_eq!(wrote, reads(cx, &machine.snp, &CPU, GPA, pfn) != Some(1));
        wrote
    }),
    // Another guest is given the page: it reads, but not with this guest's key.
    (mutants::OWNER, |cx, machine| {
        // Both have keys: without one, an ASID has the key of all that have none.
        machine.launching(cx, G, GuestPolicy::USUAL);
        machine.launching(cx, H, GuestPolicy::USUAL);
        let pfn = written(cx, machine, GPA, 1);
        let read = reads(cx, &machine.snp, &GuestCpu { asid: H, ..CPU }, GPA, pfn);
        assert_ne!(read, Some(1));
        read.is_some()
    }),
    // Remap: the page of another address shows here, in plaintext (SNP-INV-006).
    (mutants::REVMAP, |cx, machine| {
        written(cx, machine, GPA, 1);
        let other = written(cx, machine, OTHER, 2);
        let read = reads(cx, &machine.snp, &CPU, GPA, other);
        assert!(read.is_none() || read == Some(2));
        read.is_some()
    }),
    // The page is being moved while the guest uses it.
    (mutants::MUTABLE, |cx, machine| {
        let pfn = written(cx, machine, GPA, 1);
        machine.assign(cx, pfn, RmpUpdate::guest(G, GPA).immutable());
        reads(cx, &machine.snp, &CPU, GPA, pfn).is_some()
    }),
    // One large nested leaf over pages of which some are not the guest's.
    (mutants::SIZE, |cx, machine| {
        let head = machine.huge();
        machine.validated(cx, head, RmpUpdate::guest(G, GPA));
        machine.snp.check_guest(&CPU, &SnpAccess::private(Read, GPA, head).at_level(Level::L2M)).is_ok()
    }),
    // Swap: a new page in place of the guest's, which it has not accepted.
    (mutants::VALID, |cx, machine| {
        let pfn = machine.in_state(cx, PageState::GuestInvalid);
        reads(cx, &machine.snp, &CPU, GPA, pfn).is_some()
    }),
    (mutants::VMPL, |cx, machine| {
        let pfn = machine.in_state(cx, PageState::GuestValid);
        reads(cx, &machine.snp, &CPU.at_vmpl(Vmpl::new(1).unwrap()), GPA, pfn).is_some()
    }),
    // Replay by reassignment: taken for another address and given back.
    (mutants::KEEPS_VALIDATED, |cx, machine| {
        let pfn = written(cx, machine, GPA, 1);
        machine.assign(cx, pfn, RmpUpdate::guest(G, OTHER));
        reads(cx, &machine.snp, &CPU, OTHER, pfn).is_some()
    }),
    // Double validation: the guest does not learn that it had accepted the page before.
    (mutants::NO_CF, |cx, machine| {
        let pfn = machine.in_state(cx, PageState::GuestValid);
        machine.snp.pvalidate(cx, &CPU, &PageOperand::page(GPA, pfn), 1) != Ok(UNCHANGED)
    }),
    // The host writes a part of a large page of the guest, which says nothing of itself.
    (mutants::NO_TAILS, |cx, machine| {
        let head = machine.huge();
        machine.assign(cx, head, RmpUpdate::guest(G, GPA).sized(RmpSize::Size2M));
        assert_eq!(invariants::snp_inv_014(&machine.snp).is_err(), !machine.snp.rmp().is_assigned(head + 1));
        machine.snp.host_write(cx, &HostSnpAccess::kernel(Write, head + 1), 0, &[1]).is_ok()
    }),
    (mutants::R08, |cx, machine| {
        let (running, pfn) = running(cx, machine);
        let taken = machine.snp.rmpupdate(cx, pfn, RmpUpdate::HYPERVISOR).is_ok();
        // It writes the page at the next exit, whosever it is then (SNP-INV-020).
        assert_eq!(taken, !machine.entry(pfn).vmsa);
        machine.snp.vmexit(cx, running);
        taken
    }),
    (mutants::R10, |cx, machine| {
        let (running, pfn) = running(cx, machine);
        let taken = machine.snp.rmpadjust(cx, &CPU, &PageOperand::page(GPA, pfn), set_vmsa(false)).is_ok();
        assert_eq!(taken, !machine.entry(pfn).vmsa);
        machine.snp.vmexit(cx, running);
        taken
    }),
    (mutants::R14, |cx, machine| {
        machine.snp.snp_decommission(cx, machine.launching(cx, G, GuestPolicy::USUAL)).unwrap();
        let gctx = machine.firmware_page(cx);
        machine.snp.snp_gctx_create(cx, gctx).unwrap();
        machine.snp.snp_launch_start(cx, &start(gctx, GuestPolicy::USUAL)).unwrap();
        machine.snp.snp_activate(cx, gctx, G).is_ok()
    }),
    // The host takes a page back that the firmware is still to write.
    (mutants::R18, |cx, machine| {
        let pfn = machine.in_state(cx, PageState::Firmware);
        machine.snp.rmpupdate(cx, pfn, RmpUpdate::HYPERVISOR).is_ok()
    }),
    // The guest goes on with a page that the host has given to somebody else.
    (mutants::R23, |cx, machine| {
        let pfn = written(cx, machine, GPA, 1);
        machine.assign(cx, pfn, RmpUpdate::guest(H, GPA));
        reads(cx, &machine.snp, &CPU, GPA, pfn).is_some()
    }),
    // The host reads what the guest has written.
    (mutants::PLAIN, |cx, machine| {
        machine.launching(cx, G, GuestPolicy::USUAL);
        let pfn = written(cx, machine, GPA, 0x1234);
        let mut bytes = [0; 8];
        machine.snp.host_read(cx, pfn, 0, &mut bytes);
        u64::from_le_bytes(bytes) == 0x1234
    }),
    // The host has its tables in a page of the guest: the processor would set bits in it.
    (mutants::HV_OWNED_WALK, |cx, machine| {
        let pfn = written(cx, machine, GPA, 1);
        let walk = HostSnpAccess { walk: true, ..HostSnpAccess::kernel(Read, pfn) };
        machine.snp.check_host(&walk).is_ok()
    }),
    // A guest without SNP is given the page.
    (mutants::HV_OWNED_GUEST, |cx, machine| {
        let pfn = written(cx, machine, GPA, 1);
        let plain = GuestCpu { kind: GuestKind::Plain, ..CPU };
        machine.snp.guest_write(cx, &plain, &SnpAccess::private(Write, GPA, pfn).shared(), &[0; 16]).is_ok()
    }),
    // The guest itself writes past its key.
    (mutants::HV_OWNED_SHARED, |cx, machine| {
        let pfn = written(cx, machine, GPA, 1);
        machine.snp.guest_write(cx, &CPU, &SnpAccess::private(Write, GPA, pfn).shared(), &[0; 16]).is_ok()
    }),
    (mutants::HV_OWNED_DMA, |cx, machine| {
        let pfn = written(cx, machine, GPA, 1);
        machine.snp.dma_write(cx, pfn, 0, &[0; 16])
    }),
    (mutants::R25, |cx, machine| {
        machine.snp.snp_decommission(cx, machine.launching(cx, G, GuestPolicy::USUAL)).unwrap();
        machine.snp.snp_df_flush(cx).is_ok()
    }),
];

#[test]
fn what_each_rule_stops() {
    for (mutant, attempt) in ATTEMPTS {
        for without in [None, Some(mutant)] {
            Sim::sequential().solo(|cx| {
                cx.set_mutants(without.into_iter().collect::<MutantSet>());
                let machine = Machine::new(cx, SnpConfig { guest_tlb: true, ..config() });
                assert_eq!(attempt(cx, &machine), without.is_some(), "{} off: {}", mutant.id(), without.is_some());
            });
        }
    }
}

#[test]
fn every_mutant_is_attempted() {
    let attempted = ATTEMPTS.iter().map(|(mutant, _)| *mutant);
    // R06 needs two processors: `races.rs`.
    let mut all: Vec<_> = attempted.chain([mutants::R06]).collect();
    all.sort();
    let mut known = mutants::ALL;
    known.sort();
    assert_eq!(all, known, "each once");
}

#[test]
fn a_machine_has_the_rules_that_it_was_made_with() {
    Sim::sequential().solo(|cx| {
        let machine = Machine::new(cx, config());
        cx.set_mutants(MutantSet::EMPTY.with(mutants::VALID));
        let pfn = machine.in_state(cx, PageState::GuestInvalid);
        assert!(machine.snp.check_guest(&CPU, &SnpAccess::private(AccessKind::Read, GPA, pfn)).is_err());
        assert_ne!(machine.snp.memory().read_page(KeyPath::Guest(G), pfn)[..], [0; 4096]);
    });
}
