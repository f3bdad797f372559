//! What each rule of the hypervisor stops, and what happens without it.

use crate::discipline::Checker;
use crate::machine::{Both, DEVICE, EPERM, GFN, IDLE, N, NOMAP, OK, P, config, ipa};
use sim_coco::pkvm::{HostAbort, HostCall, Memcache, Pa, PageState, PkvmConfig, Prot, Touch, invariants, mutants};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno, Mutant, MutantSet, Pfn};
use sim_mmu::Gfn;

/// What an attempt came to: `false` if the hypervisor stopped it.
type Attempt = fn(&Cx<'_>, &Both) -> bool;

const OTHER: Gfn = Gfn(GFN.0 + 1);

/// A page of the protected VM in which it wrote this.
fn written(cx: &Cx<'_>, both: &Both, value: u64) -> Pfn {
    let pfn = both.donated(cx, GFN);
    assert!(both.guest_write(cx, P, GFN, value));
    pfn
}

/// Ends the protected VM's vCPU, and begins to end the VM.
fn dying(cx: &Cx<'_>, both: &Both) {
    assert_eq!(both.call(cx, P, HostCall::VcpuPut), OK);
    assert_eq!(both.call(cx, IDLE, HostCall::StartTeardownVm { handle: both.protected.handle }), OK);
}

fn share_back(cx: &Cx<'_>, both: &Both) {
    both.pkvm.el2(cx, P).guest_share_host(&both.pkvm.loaded(P).unwrap(), GFN).unwrap();
}

const ATTEMPTS: [(Mutant, Attempt); 19] = [
    // The guest goes on with a page that was taken from it.
    (mutants::NO_TLBI, |cx, both| {
        let pfn = written(cx, both, 7);
        assert_eq!(both.force(cx, pfn), OK);
        let stale = both.guest_write(cx, P, GFN, 8);
        assert_eq!(stale, invariants::pkvm_inv_009(&both.pkvm).is_err());
        assert_eq!(stale, both.phys.peek_u64(pfn, 0) == 8);
        stale
    }),
    // A processor may use both translations at once. No access shows that here, only who looks at the descriptors.
    (mutants::NO_BBM, |cx, both| {
        let head = both.huge();
        assert!(both.host_read(cx, IDLE, head).is_some(), "a block");
        assert_eq!(both.donate(cx, P, head + 9, GFN), OK);
        let unbroken = Checker::check(&both.pkvm.trace_jsonl()).is_err();
        assert_eq!(unbroken, invariants::pkvm_inv_023(&both.pkvm).is_err());
        unbroken
    }),
    (mutants::NO_ZERO, |cx, both| {
        let pfn = written(cx, both, 7);
        assert_eq!(both.force(cx, pfn), OK);
        let leaked = both.host_read(cx, IDLE, pfn) == Some(7);
        assert_eq!(leaked, invariants::pkvm_inv_008(&both.pkvm).is_err());
        leaked
    }),
    (mutants::DYING_NO_ZERO, |cx, both| {
        let pfn = written(cx, both, 7);
        dying(cx, both);
        let handle = both.protected.handle;
        assert_eq!(both.call(cx, IDLE, HostCall::ReclaimDyingGuestPage { handle, gfn: GFN }), OK);
        let leaked = both.host_read(cx, IDLE, pfn) == Some(7);
        assert_eq!(leaked, invariants::pkvm_inv_008(&both.pkvm).is_err());
        leaked
    }),
    // The guest's page is replaced by another, and the guest does not learn of it.
    (mutants::NO_POISON, |cx, both| {
        let pfn = written(cx, both, 7);
        assert_eq!(both.force(cx, pfn), OK);
        let forgotten = invariants::pkvm_inv_007(&both.pkvm).is_err();
        let replaced = both.donate(cx, P, pfn, GFN).is_ok() && both.guest_read(cx, P, GFN) == Some(0);
        assert_eq!(replaced, forgotten);
        replaced
    }),
    // Neither has the page.
    (mutants::K10, |cx, both| {
        let vcpu = both.pkvm.loaded(P).unwrap();
        *both.protected.vcpus[0].memcache.lock() = Memcache::default();
        let pfn = both.page();
        assert!(both.pkvm.el2(cx, P).host_donate_guest(&vcpu, pfn, GFN).is_err());
        let lost = both.state(pfn) == PageState::NoPage;
        assert_eq!(lost, invariants::pkvm_inv_001(&both.pkvm).is_err());
        assert_eq!(lost, invariants::pkvm_inv_004(&both.pkvm).is_err());
        lost
    }),
    (mutants::K07, |cx, both| {
        let pfn = both.page();
        assert_eq!(both.share_guest(cx, N, pfn, GFN, 1), OK);
        assert_eq!(both.share_guest(cx, N, pfn, OTHER, 1), OK);
        let handle = both.other.handle;
        assert_eq!(both.call(cx, IDLE, HostCall::HostUnshareGuest { handle, gfn: GFN, pages: 1 }), OK);
        // The page goes to the protected VM, and the other still has it.
        let given = both.donate(cx, P, pfn, GFN).is_ok();
        assert_eq!(given, invariants::pkvm_inv_002(&both.pkvm).is_err());
        given && both.guest_write(cx, N, OTHER, 9) && both.guest_read(cx, P, GFN) == Some(9)
    }),
    (mutants::K08, |cx, both| {
        let frame = both.protected.kvm.frame();
        let taken = both.call(cx, IDLE, HostCall::HostUnshareHyp { pfn: frame }).is_ok();
        assert_eq!(taken, invariants::pkvm_inv_006(&both.pkvm).is_err());
        taken
    }),
    // The host writes a table of the guest's.
    (mutants::K09, |cx, both| {
        let table = both.protected.vcpus[0].memcache.lock().head.pfn();
        written(cx, both, 7);
        let written = both.host_write(cx, IDLE, table, 0);
        assert_eq!(written, invariants::pkvm_inv_017(&both.pkvm).is_err());
        written
    }),
    // The next VM in the place of one that ended too early sees what is left of it.
    (mutants::K13, |cx, both| {
        written(cx, both, 7);
        dying(cx, both);
        let handle = both.protected.handle;
        assert_eq!(both.call(cx, IDLE, HostCall::FinalizeTeardownVm { handle }), OK);
        let next = both.vm(cx, true, 1);
        assert!(next.handle == handle && both.load(cx, P, handle, 0));
        let seen = both.guest_read(cx, P, GFN) == Some(7);
        assert_eq!(seen, invariants::pkvm_inv_009(&both.pkvm).is_err());
        seen
    }),
    (mutants::K14, |cx, both| {
        dying(cx, both);
        let loaded = both.load(cx, P, both.protected.handle, 0);
        assert_eq!(loaded, invariants::pkvm_inv_013(&both.pkvm).is_err());
        loaded
    }),
    (mutants::K12, |cx, both| {
        let started = both.call(cx, IDLE, HostCall::StartTeardownVm { handle: both.protected.handle }).is_ok();
        assert_eq!(started, invariants::pkvm_inv_013(&both.pkvm).is_err());
        started
    }),
    // A neighbour of the page is touched, and the annotation is gone.
    (mutants::K16, |cx, both| {
        let head = both.huge();
        assert_eq!(both.donate(cx, P, head + 9, GFN), OK);
        assert!(both.guest_write(cx, P, GFN, 7) && both.host_read(cx, IDLE, head + 8).is_some());
        let seen = both.host_read(cx, IDLE, head + 9) == Some(7);
        assert_eq!(seen, invariants::pkvm_inv_016(&both.pkvm).is_err());
        seen
    }),
    // What the guest shared on purpose is cleared under it.
    (mutants::K04, |cx, both| {
        let pfn = written(cx, both, 7);
        share_back(cx, both);
        let taken = both.force(cx, pfn).is_ok();
        assert_eq!(taken, both.guest_read(cx, P, GFN) != Some(7));
        assert_eq!(taken, invariants::pkvm_inv_024(&both.pkvm).is_err());
        taken
    }),
    (mutants::DONATES_MMIO, |cx, both| both.donate(cx, P, DEVICE, GFN).is_ok()),
    (mutants::PARTIAL_SHARE, |cx, both| {
        let head = both.huge();
        both.pkvm.el2(cx, IDLE).host_share_hyp(head + 300).unwrap();
        assert!(both.share_guest(cx, N, head, GFN, 512).is_err());
        let partial = both.state(head) != PageState::Owned;
        assert_eq!(partial, invariants::pkvm_inv_005(&both.pkvm).is_err());
        partial
    }),
    (mutants::SHARES_SHARED, |cx, both| {
        let pfn = both.shared(cx);
        let shared = both.share_guest(cx, N, pfn, GFN, 1).is_ok();
        assert_eq!(shared, invariants::pkvm_inv_002(&both.pkvm).is_err());
        shared
    }),
    (mutants::UNSHARE_KEEPS_HOST, |cx, both| {
        let pfn = written(cx, both, 7);
        share_back(cx, both);
        assert!(both.host_write(cx, IDLE, pfn, 8));
        both.pkvm.el2(cx, P).guest_unshare_host(&both.pkvm.loaded(P).unwrap(), GFN).unwrap();
        let wrote = both.pkvm.host_access(cx, IDLE, Pa::of(pfn), Touch::Write(9)) != Err(HostAbort::Injected);
        assert_eq!(wrote, invariants::pkvm_inv_003(&both.pkvm).is_err());
        wrote
    }),
    (mutants::ORACLE, |cx, both| {
        let pfn = both.page();
        both.top_up(cx, &both.other.vcpus[0]);
        let share = HostCall::HostShareGuest { pfn, gfn: GFN, pages: 1, prot: Prot::R };
        assert_eq!(both.call(cx, N, share), OK);
        assert!(both.pkvm.guest_access(cx, N, ipa(GFN), Touch::Write(1)).is_err());
        both.call(cx, N, HostCall::VcpuInPoisonFault).is_ok()
    }),
];

#[test]
fn pk_029_what_each_rule_stops() {
    for (mutant, attempt) in ATTEMPTS {
        for without in [None, Some(mutant)] {
            Sim::sequential().solo(|cx| {
                cx.set_mutants(without.into_iter().collect::<MutantSet>());
                let both = Both::new(cx, PkvmConfig { trace: true, ..config() });
                let came_through = attempt(cx, &both);
                assert_eq!(came_through, without.is_some(), "{} off: {}", mutant.id(), without.is_some());
                if without.is_none() {
                    both.check();
                    Checker::check(&both.pkvm.trace_jsonl()).unwrap();
                }
            });
        }
    }
}

#[test]
fn a_rule_is_off_alone() {
    Sim::sequential().solo(|cx| {
        cx.set_mutants([mutants::PARTIAL_SHARE, mutants::DONATES_MMIO].into_iter().collect::<MutantSet>());
        let both = Both::new(cx, config());
        let (pfn, vcpu) = (both.page(), both.pkvm.loaded(N).unwrap());
        let shared = both.pkvm.el2(cx, N).host_share_guest(&vcpu, pfn, GFN, 1, Prot::RWX);
        assert_eq!((vcpu.memcache_pages(), shared), (0, Err(Errno::ENOMEM)));
        assert_eq!(both.donate(cx, P, NOMAP, GFN), EPERM);
        both.check();
    });
}

/// What of it a checker sees that has the recording only. The others change what a call answers, or what is in a page, in ways that break no discipline; K05 and K06 are in `races.rs`.
#[test]
fn what_the_recording_shows() {
    let shown = ATTEMPTS.iter().filter(|(mutant, attempt)| {
        Sim::sequential().solo(|cx| {
            cx.set_mutants(MutantSet::EMPTY.with(*mutant));
            let both = Both::new(cx, PkvmConfig { trace: true, ..config() });
            assert!(attempt(cx, &both));
            Checker::check(&both.pkvm.trace_jsonl()).is_err()
        })
    });
    let shown: Vec<&str> = shown.map(|(mutant, _)| mutant.id()).collect();
    let expected = [
        mutants::NO_TLBI,
        mutants::NO_BBM,
        mutants::NO_ZERO,
        mutants::DYING_NO_ZERO,
        mutants::K07,
        mutants::K08,
        mutants::K09,
        mutants::K13,
        mutants::K16,
        mutants::SHARES_SHARED,
        mutants::UNSHARE_KEEPS_HOST,
    ];
    assert_eq!(shown, expected.map(|mutant| mutant.id()));
}

#[test]
fn every_mutant_is_attempted() {
    let attempted = ATTEMPTS.iter().map(|(mutant, _)| *mutant);
    // These need two processors: `races.rs`.
    let mut all: Vec<_> = attempted.chain([mutants::K03, mutants::K05, mutants::K06]).collect();
    all.sort();
    assert_eq!(all, mutants::ALL, "each once, in the order of their numbers");
}

#[test]
fn a_hypervisor_has_the_rules_that_it_was_made_with() {
    Sim::sequential().solo(|cx| {
        let both = Both::new(cx, config());
        cx.set_mutants(MutantSet::EMPTY.with(mutants::NO_ZERO));
        let pfn = written(cx, &both, 7);
        assert_eq!(both.force(cx, pfn), OK);
        assert_eq!(both.host_read(cx, IDLE, pfn), Some(0));
    });
}
