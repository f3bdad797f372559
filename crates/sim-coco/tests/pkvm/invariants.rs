//! Each invariant on a machine on which it does not hold: descriptors are changed behind EL2's back, or rules switched off. And the list of the checklist.

use crate::machine::{Both, GFN, IDLE, N, OK, P, config};
use sim_coco::pkvm::{HostCall, PageState, PkvmConfig, Prot, Pte, S2Level, TraceEvent, invariants, mutants};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, MutantSet, PAGE_SHIFT, Pfn};
use std::collections::BTreeSet;

/// Breaks an invariant.
type Break = fn(&Cx<'_>, &Both);

/// The last descriptor of this VMID and address, replaced.
fn rewrite(both: &Both, vmid: u16, address: u64, new: impl Fn(Pte) -> Pte) {
    let at = both.pkvm.trace().into_iter().rev().find_map(|record| match record.event {
        TraceEvent::Pte { vmid: of, at, level, ipa, .. } if of.0 == vmid && level.0 == 3 && ipa.0 == address => {
            Some(at)
        }
        _ => None,
    });
    let at = at.expect("a descriptor was written there");
    let old = Pte(both.phys.peek_u64(at.pfn(), at.word()));
    both.phys.poke_u64(at.pfn(), at.word(), new(old).0);
}

fn of_guest(both: &Both, vmid: u16, new: impl Fn(Pte) -> Pte) {
    rewrite(both, vmid, GFN.0 << PAGE_SHIFT, new);
}

fn of_host(both: &Both, pfn: Pfn, new: impl Fn(Pte) -> Pte) {
    rewrite(both, 0, pfn.0 << PAGE_SHIFT, new);
}

fn lent(cx: &Cx<'_>, both: &Both) -> Pfn {
    let pfn = both.page();
    assert_eq!(both.share_guest(cx, N, pfn, GFN, 1), OK);
    pfn
}

const NONE: MutantSet = MutantSet::EMPTY;
/// State bits of a descriptor.
const STATE: u64 = 3 << 55;

#[test]
fn every_invariant_can_fail() {
    let rows: Vec<(&str, MutantSet, Break)> = vec![
        ("PKVM-INV-001", NONE, |cx, both| {
            both.donated(cx, GFN);
            of_guest(both, 1, |_| Pte::NONE);
        }),
        ("PKVM-INV-002", NONE, |cx, both| {
            both.donated(cx, GFN);
            of_guest(both, 1, |pte| Pte(pte.0 | STATE & 1 << 55));
        }),
        // Another owner than has it; an owner of what the host has; the host maps another page.
        ("PKVM-INV-003", NONE, |cx, both| {
            let pfn = both.donated(cx, GFN);
            of_host(both, pfn, |pte| Pte(pte.0 ^ 1 << 20));
        }),
        ("PKVM-INV-003", NONE, |cx, both| {
            let pfn = both.donated(cx, GFN);
            of_host(both, pfn, |_| Pte(2 << 60 | 1 << 1));
        }),
        ("PKVM-INV-003", NONE, |cx, both| {
            let (pfn, el2) = (both.page(), both.pkvm.el2(cx, IDLE));
            el2.host_donate_hyp(pfn, 1).unwrap();
            el2.hyp_donate_host(pfn, 1).unwrap();
            of_host(both, pfn, |pte| Pte(pte.0 ^ 1 << 13));
        }),
        ("PKVM-INV-004", NONE, |cx, both| {
            both.donated(cx, GFN);
            of_guest(both, 1, |_| Pte::POISONED);
        }),
        ("PKVM-INV-005", NONE, |cx, both| {
            lent(cx, both);
            of_guest(both, 2, |_| Pte::NONE);
        }),
        ("PKVM-INV-006", NONE.with(mutants::K08), |cx, both| {
            let pfn = both.protected.kvm.frame();
            assert_eq!(both.call(cx, IDLE, HostCall::HostUnshareHyp { pfn }), OK);
        }),
        ("PKVM-INV-007", NONE, |cx, both| {
            let pfn = both.donated(cx, GFN);
            assert_eq!(both.force(cx, pfn), OK);
            of_guest(both, 1, |_| Pte::NONE);
        }),
        ("PKVM-INV-008", NONE.with(mutants::NO_ZERO), |cx, both| {
            let pfn = both.donated(cx, GFN);
            assert!(both.guest_write(cx, P, GFN, 1));
            assert_eq!(both.force(cx, pfn), OK);
        }),
        ("PKVM-INV-009", NONE, |cx, both| {
            lent(cx, both);
            assert!(both.guest_write(cx, N, GFN, 1));
            of_guest(both, 2, |pte| Pte(pte.0 ^ 1 << 13));
        }),
        ("PKVM-INV-011", NONE, |cx, both| {
            lent(cx, both);
            of_guest(both, 2, |pte| Pte(pte.0 & !STATE));
        }),
        ("PKVM-INV-013", NONE.with(mutants::K12), |cx, both| {
            assert_eq!(both.call(cx, IDLE, HostCall::StartTeardownVm { handle: both.protected.handle }), OK);
        }),
        // A break that did not end; a descriptor that was not counted.
        ("PKVM-INV-014", NONE, |cx, both| {
            lent(cx, both);
            of_guest(both, 2, |_| Pte::LOCKED);
        }),
        ("PKVM-INV-014", NONE, |cx, both| {
            let pfn = both.donated(cx, GFN);
            assert_eq!(both.force(cx, pfn), OK);
            of_guest(both, 1, |_| Pte::NONE);
        }),
        ("PKVM-INV-016", NONE, |cx, both| {
            let (pfn, el2) = (both.page(), both.pkvm.el2(cx, IDLE));
            el2.host_donate_hyp(pfn, 1).unwrap();
            of_host(both, pfn, |_| Pte::leaf(pfn, S2Level::LAST, Prot::RWX, PageState::Owned));
        }),
        ("PKVM-INV-017", NONE.with(mutants::K09), |cx, both| {
            both.donated(cx, GFN);
        }),
        // A table in the place of a block.
        ("PKVM-INV-023", NONE.with(mutants::NO_BBM), |cx, both| {
            let head = both.huge();
            assert!(both.host_read(cx, IDLE, head).is_some());
            assert_eq!(both.donate(cx, P, head + 9, GFN), OK);
        }),
        ("PKVM-INV-024", NONE.with(mutants::K04), |cx, both| {
            let pfn = both.donated(cx, GFN);
            both.pkvm.el2(cx, P).guest_share_host(&both.pkvm.loaded(P).unwrap(), GFN).unwrap();
            assert_eq!(both.force(cx, pfn), OK);
        }),
    ];
    let shown: BTreeSet<&str> = rows.iter().map(|(id, ..)| *id).collect();
    assert_eq!(shown, invariants::ALL.iter().map(|(id, _)| *id).collect());
    for (i, (id, without, broken)) in rows.into_iter().enumerate() {
        Sim::sequential().solo(|cx| {
            cx.set_mutants(without);
            let both = Both::new(cx, PkvmConfig { trace: true, ..config() });
            let (_, holds) = invariants::ALL.iter().find(|(of, _)| *of == id).unwrap();
            holds(&both.pkvm).unwrap();
            broken(cx, &both);
            let found = holds(&both.pkvm).err().unwrap_or_else(|| panic!("row {i}: {id} holds"));
            assert_eq!(found.id, id, "row {i}: {found}");
        });
    }
}

/// PKVM-INV-015 is the host's: a page that was left.
#[test]
fn pkvm_inv_015_can_fail() {
    Sim::sequential().solo(|cx| {
        let both = Both::new(cx, config());
        let handle = both.other.handle;
        lent(cx, &both);
        assert_eq!(both.call(cx, N, HostCall::VcpuPut), OK);
        for call in [HostCall::StartTeardownVm { handle }, HostCall::FinalizeTeardownVm { handle }] {
            invariants::pkvm_inv_015(&both.pkvm).unwrap();
            assert_eq!(both.call(cx, N, call), OK);
        }
        assert!(invariants::pkvm_inv_015(&both.pkvm).is_err());
    });
}

/// Rows of the checklist that are the hypervisor's have tests by their number, KVM's rows are elsewhere.
#[test]
fn every_row_of_the_checklist_has_a_test() {
    let sources = [
        include_str!("access.rs"),
        include_str!("boot.rs"),
        include_str!("guest.rs"),
        include_str!("lifecycle.rs"),
        include_str!("matrix.rs"),
        include_str!("mutants.rs"),
        include_str!("np.rs"),
        include_str!("protected.rs"),
        include_str!("races.rs"),
        include_str!("trace.rs"),
        include_str!("../../src/pkvm/np_guest.rs"),
    ];
    let tests = sources.iter().flat_map(|source| source.split("#[test]").skip(1));
    let names: Vec<&str> = tests.filter_map(|test| test.split("fn ").nth(1)?.split('(').next()).collect();
    let has = |row: &u32| names.iter().any(|name| name.contains(&format!("pk_{row:03}")));
    let missing: Vec<u32> = (1..=30).filter(|row| !has(row)).collect();
    // Memslots, notifiers, kinds of memory, guest_memfds.
    assert_eq!(missing, [20, 21, 22, 28, 30]);
}
