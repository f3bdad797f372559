//! The recording: that it is complete enough for a checker, and that the checker sees what it is for.

use crate::discipline::Checker;
use crate::machine::{Both, GFN, IDLE, N, OK, P, config, err};
use serde_json::Value;
use sim_coco::pkvm::{HostCall, PkvmConfig, Prot, mutants};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno, Mutant, MutantSet};
use sim_mmu::Gfn;
use std::collections::BTreeSet;

pub(crate) fn recorded(without: Option<Mutant>, work: impl FnOnce(&Cx<'_>, &Both)) -> String {
    Sim::sequential().solo(|cx| {
        cx.set_mutants(without.into_iter().collect::<MutantSet>());
        let both = Both::new(cx, PkvmConfig { trace: true, ..config() });
        work(cx, &both);
        both.pkvm.trace_jsonl()
    })
}

/// Something of everything that changes stage 2.
pub(crate) fn everything(cx: &Cx<'_>, both: &Both) {
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
        (mutants::NO_TLBI, "TLBs may still have"),
        (mutants::NO_ZERO, "the host gets a page of a guest as it was"),
        (mutants::DYING_NO_ZERO, "the host gets a page of a guest as it was"),
        (mutants::K05, "the host gets a page of a guest as it was"),
        (mutants::K09, "a table in memory of the host"),
        (mutants::K13, "TLBs may still have something of the VMID"),
        (mutants::UNSHARE_KEEPS_HOST, "of which its descriptor is"),
    ] {
        let lines = recorded(Some(mutant), |cx, both| {
            if mutant == mutants::K09 {
                // The host's pages cannot go back to it later.
                both.donated(cx, GFN);
            } else if mutant == mutants::UNSHARE_KEEPS_HOST {
                let vcpu = both.pkvm.loaded(P).unwrap();
                both.donated(cx, GFN);
                both.pkvm.el2(cx, P).guest_share_host(&vcpu, GFN).unwrap();
                both.pkvm.el2(cx, P).guest_unshare_host(&vcpu, GFN).unwrap();
            } else {
                everything(cx, both);
            }
        });
        let found = Checker::check(&lines).unwrap_err();
        assert!(found.contains(complaint), "{}: {found}", mutant.id());
    }
}

/// A page of a block changes hands while processors may remember the block: whole translations count, not only those of the page. That the VM ends, and its VMID is flushed, is too late.
#[test]
fn pk_029_a_page_of_a_block_that_was_not_invalidated() {
    let lines = recorded(Some(mutants::NO_TLBI), |cx, both| {
        let head = both.huge();
        let handle = both.other.handle;
        assert_eq!(both.share_guest(cx, N, head, GFN, 512), OK);
        assert!(both.guest_write(cx, N, GFN, 5));
        assert_eq!(both.call(cx, N, HostCall::HostUnshareGuest { handle, gfn: GFN, pages: 512 }), OK);
        assert_eq!(both.donate(cx, P, head + 9, GFN), OK);
        assert!(both.guest_write(cx, N, GFN, 6), "by the old translation");
        assert_eq!(both.call(cx, N, HostCall::VcpuPut), OK);
        for call in [HostCall::StartTeardownVm { handle }, HostCall::FinalizeTeardownVm { handle }] {
            assert_eq!(both.call(cx, N, call), OK);
        }
    });
    let found = Checker::check(&lines).unwrap_err();
    assert!(found.contains("TLBs may still have") && found.contains(r#""to":"NOPAGE""#), "{found}");
}

#[test]
fn frames_of_a_root_are_used_for_another() {
    let lines = recorded(None, |cx, both| {
        // A mark stays in the tree until it goes, and with it the tables above.
        let pfn = both.donated(cx, GFN);
        assert_eq!(both.force(cx, pfn), OK);
        let (handle, pgd) = (both.protected.handle, both.pgd_of(both.protected.handle));
        assert_eq!(both.call(cx, P, HostCall::VcpuPut), OK);
        for call in [HostCall::StartTeardownVm { handle }, HostCall::FinalizeTeardownVm { handle }] {
            assert_eq!(both.call(cx, P, call), OK);
        }
        let vm = both.vm_at(cx, true, 1, pgd);
        assert!(both.load(cx, P, vm.handle, 0));
        both.donated(cx, GFN);
    });
    Checker::check(&lines).unwrap();
}

#[test]
fn pages_of_the_dying_are_cleared_before_they_are_unmapped() {
    let lines = recorded(None, everything);
    let calls: Vec<&str> = lines.split(r#""event":"enter","call":"reclaim_dying_guest_page""#).skip(1).collect();
    let at = |call: &str, event: &str| call.lines().position(|line| line.contains(event));
    // Owned, shared back, taken by force.
    let order = calls.iter().take(3).map(|call| {
        let call = &call[..call.find(r#""event":"exit""#).unwrap()];
        (at(call, r#""event":"zero""#), at(call, r#""event":"pte","vmid":1"#))
    });
    let order: Vec<_> = order.collect();
    assert!(matches!(order[..], [(Some(zero), Some(pte)), (None, Some(_)), (None, None)] if zero < pte), "{order:?}");
}

#[test]
fn relaxing_permissions_of_nothing_invalidates() {
    let lines = recorded(None, |cx, both| {
        let call = HostCall::HostRelaxPermsGuest { gfn: GFN, prot: Prot::RWX };
        assert_eq!(both.call(cx, N, call), err(Errno::EAGAIN));
    });
    assert!(lines.contains(r#"{"cpu":1,"event":"tlbi","op":"ipas2e1","vmid":2,"ipa":"0x80200000"}"#));
}

#[test]
fn the_format() {
    // As docs/pkvm.md has it.
    let fields = |event: &Value| -> Vec<&[&str]> {
        match event.as_str().unwrap() {
            "enter" => vec![&["call"]],
            "exit" => vec![&["call", "ret"]],
            "lock" | "unlock" => vec![&["lock"], &["lock", "vmid"]],
            "root" => vec![&["vmid", "page", "pages", "level"]],
            "root-gone" => vec![&["vmid"]],
            "table" => vec![&["vmid", "page", "level"]],
            "table-gone" => vec![&["vmid", "page"]],
            "pte" => vec![&["vmid", "at", "level", "ipa", "old", "new"]],
            "tlbi" => vec![
                &["op", "vmid"],
                &["op", "vmid", "ipa"],
                &["op", "vmid", "ipa", "level"],
                &["op", "vmid", "ipa", "pages"],
            ],
            "dsb" => vec![&[]],
            "state" => vec![&["component", "page", "from", "to"]],
            "el2-map" => vec![&["page", "mapped"]],
            "zero" => vec![&["page"]],
            other => panic!("{other} is no event"),
        }
    };
    let lines = recorded(None, everything);
    let mut seen = BTreeSet::new();
    for line in lines.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let found: BTreeSet<&str> = record.as_object().unwrap().keys().map(String::as_str).collect();
        let with = |fields: &&[&str]| found == ["cpu", "event"].iter().chain(fields.iter()).copied().collect();
        assert_eq!(fields(&record["event"]).iter().filter(|fields| with(fields)).count(), 1, "{line}");
        seen.insert(record["event"].as_str().unwrap().to_string());
    }
    let expected = "dsb el2-map enter exit lock pte root root-gone state table table-gone tlbi unlock zero";
    assert_eq!(seen.into_iter().collect::<Vec<_>>().join(" "), expected);
    for line in [
        r#"{"cpu":0,"event":"enter","call":"host_donate_guest"}"#,
        r#"{"cpu":0,"event":"lock","lock":"vm","vmid":1}"#,
        r#"{"cpu":0,"event":"exit","call":"host_donate_guest","ret":0}"#,
        r#"{"cpu":3,"event":"tlbi","op":"ipas2e1is","vmid":1,"ipa":"0x80202000","level":3}"#,
        r#"{"cpu":3,"event":"tlbi","op":"ipas2e1is","vmid":2,"ipa":"0x80200000"}"#,
        r#"{"cpu":3,"event":"tlbi","op":"vmalls12e1is","vmid":1}"#,
    ] {
        assert!(lines.lines().any(|of| of == line), "{line}");
    }
    // A table in which nothing is broken any more: 512 pages come back as a block.
    let lines = recorded(None, |cx, both| {
        let (head, el2) = (both.huge(), both.pkvm.el2(cx, IDLE));
        el2.host_donate_hyp(head, 512).unwrap();
        el2.hyp_donate_host(head, 512).unwrap();
    });
    assert!(
        lines.contains(r#""op":"ripas2e1is","vmid":0,"ipa":"0x"#) && lines.contains(r#","pages":512}"#),
        "by range"
    );
    Checker::check(&lines).unwrap();
}
