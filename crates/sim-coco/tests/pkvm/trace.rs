//! The recording: that it is complete enough for a checker, and that the checker sees what it is for.

use crate::discipline::Checker;
use crate::machine::{Both, GFN, IDLE, N, OK, P, config};
use sim_coco::pkvm::{HostCall, PkvmConfig, mutants};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Mutant, MutantSet};
use sim_mmu::Gfn;

fn recorded(without: Option<Mutant>, work: impl FnOnce(&Cx<'_>, &Both)) -> String {
    Sim::sequential().solo(|cx| {
        cx.set_mutants(without.into_iter().collect::<MutantSet>());
        let both = Both::new(cx, PkvmConfig { trace: true, ..config() });
        work(cx, &both);
        both.pkvm.trace_jsonl()
    })
}

/// Something of everything that changes stage 2.
fn everything(cx: &Cx<'_>, both: &Both) {
    let gfn = |i| Gfn(GFN.0 + i);
    let vcpu = both.pkvm.loaded(P).unwrap();
    let el2 = both.pkvm.el2(cx, P);
    let pfns: Vec<_> = (0..3).map(|i| both.donated(cx, gfn(i))).collect();
    (0..3).for_each(|i| assert!(both.guest_write(cx, P, gfn(i), 5)));
    el2.guest_share_host(&vcpu, gfn(0)).unwrap();
    assert!(both.host_write(cx, IDLE, pfns[0], 6));
    el2.guest_unshare_host(&vcpu, gfn(0)).unwrap();
    el2.guest_share_host(&vcpu, gfn(1)).unwrap();
    assert_eq!(both.force(cx, pfns[2]), OK);
    let head = both.huge();
    assert!(both.host_read(cx, IDLE, head).is_some());
    assert_eq!(both.share_guest(cx, N, head, GFN, 512), OK);
    assert!(both.guest_write(cx, N, gfn(8), 5));
    let handle = both.other.handle;
    assert_eq!(both.call(cx, IDLE, HostCall::HostWrprotectGuest { handle, gfn: GFN, pages: 512 }), OK);
    assert_eq!(both.call(cx, IDLE, HostCall::HostUnshareGuest { handle, gfn: GFN, pages: 512 }), OK);
    el2.host_donate_hyp(head + 3, 2).unwrap();
    el2.hyp_donate_host(head + 3, 2).unwrap();
    drop(vcpu);
    assert_eq!(both.call(cx, P, HostCall::VcpuPut), OK);
    let handle = both.protected.handle;
    assert_eq!(both.call(cx, IDLE, HostCall::StartTeardownVm { handle }), OK);
    for i in 0..3 {
        assert_eq!(both.call(cx, IDLE, HostCall::ReclaimDyingGuestPage { handle, gfn: gfn(i) }), OK);
    }
    assert_eq!(both.call(cx, IDLE, HostCall::FinalizeTeardownVm { handle }), OK);
}

#[test]
fn the_hypervisor_keeps_the_discipline() {
    let lines = recorded(None, everything);
    assert!(lines.lines().count() > 500);
    Checker::check(&lines).unwrap();
    assert_eq!(lines, recorded(None, everything), "the same work is recorded in the same words");
}

#[test]
fn pk_029_the_checker_sees_what_is_missing() {
    for (mutant, complaint) in [
        (mutants::NO_BBM, "break before make"),
        (mutants::NO_TLBI, "made before TLB maintenance was complete"),
        (mutants::NO_ZERO, "the host gets a page of a guest as it was"),
        (mutants::DYING_NO_ZERO, "the host gets a page of a guest as it was"),
        (mutants::K09, "a table in memory of the host"),
    ] {
        let lines = recorded(Some(mutant), |cx, both| {
            if mutant == mutants::K09 {
                // The host's pages cannot go back to it later.
                both.donated(cx, GFN);
            } else {
                everything(cx, both);
            }
        });
        let found = Checker::check(&lines).unwrap_err();
        assert!(found.contains(complaint), "{}: {found}", mutant.id());
    }
}

#[test]
fn the_format() {
    let lines = recorded(None, |cx, both| {
        both.donated(cx, GFN);
    });
    // As docs/pkvm.md describes it: one example of each.
    for line in [
        r#"{"cpu":0,"event":"enter","call":"host_donate_guest"}"#,
        r#"{"cpu":0,"event":"lock","lock":"vm","vmid":1}"#,
        r#"{"cpu":0,"event":"exit","call":"host_donate_guest","ret":0}"#,
        r#"{"cpu":0,"event":"dsb"}"#,
    ] {
        assert!(lines.lines().any(|of| of == line), "{line}");
    }
    let last: Vec<_> = lines.lines().rev().take(12).collect();
    assert!(last.iter().any(|line| line.contains(r#""event":"pte","vmid":1,"at":"0x"#)), "{last:#?}");
    let leaf = last.iter().find(|line| line.contains(r#""level":3,"ipa":"0x80200000""#)).unwrap();
    assert!(leaf.contains(r#""old":"0x0""#), "{leaf}");
}
