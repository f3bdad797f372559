//! Races of an SNP guest that sequences do not show: faults that lead nowhere, and what Linux 7.3 does wrong.

use gmem::MachineConfig;
use gmem::kvm::ioctl;
use gmem::kvm::sev::{SevCmd, SevOp, SnpLaunchFinish, SnpLaunchStart, open_sev};
use gmem::kvm::uapi::KVM_X86_SNP_VM;
use gmem::scenario::parse;
use gmem::testing::race;
use sim_kernel::{Cx, Errno};
use std::collections::BTreeSet;

/// Searches, and the interleavings that each tries.
const SEARCHES: u64 = 20;
const EXECUTIONS: u64 = 100;

/// The guest's only operation, in a machine with a slot at 0x400000.
fn vain(operation: &str) -> String {
    let text = format!(
        "[machine]\nsnp = true\n[setup]\nrun = \"\"\"\ncreate_vm vm0 type=snp\nsev_init2 vm0\ncreate_vcpu vm0 c0\nmmap m0 len=16K
set_user_memory_region vm0 slot=0 gpa=0x400000 size=16K hva=m0\nsnp_launch_start vm0\nsnp_launch_finish vm0
\"\"\"\n[thread.guest]\nrun = \"{operation}\"\n"
    );
    let scenario = parse("vain.toml", &text).unwrap_or_else(|error| panic!("{}", error.render(false)));
    race::search(&scenario, 0, 1).expect("the vCPU tries for ever").message
}

/// After this set-up, which ends well, the operation never does.
pub(super) fn faults_for_ever(setup: &str, operation: &str) {
    let text = format!(
        "[machine]\nsnp = true\n[setup]\nrun = \"\"\"\n{setup}\n\"\"\"\n[thread.guest]\nrun = \"{operation}\"\n"
    );
    let scenario = parse("vain.toml", &text).unwrap_or_else(|error| panic!("{}", error.render(false)));
    let message = race::search(&scenario, 0, 1).unwrap_or_else(|| panic!("{operation} ends")).message;
    assert!(message.contains("guest that faults again and again"), "{operation}: {message}");
}

#[test]
fn an_access_that_would_be_emulated_and_may_not_is_a_vcpu_that_spins() {
    let message = vain("guest_read_shared c0 0x7fffffffff000");
    assert!(message.contains("guest that faults again and again"), "{message}");
}

#[test]
fn a_vcpu_that_gets_no_descriptor_is_never_launched() {
    let setup = |cx: &Cx<'_>| {
        // Numbers 0 to 2 are taken; /dev/kvm, the VM and /dev/sev fill the table.
        let config = MachineConfig { snp: true, files_max: 6, ..MachineConfig::default() };
        let m = crate::Machine::with(cx, KVM_X86_SNP_VM, config);
        let sev = open_sev(cx, &m.process).unwrap();
        let command = move |cx: &Cx<'_>, m: &crate::Machine, op| {
            ioctl::memory_encrypt_op(cx, &m.process, m.fd, &mut SevCmd::new(op, sev))
        };
        command(cx, &m, SevOp::Init2 { vmsa_features: 0, flags: 0, ghcb_version: 0 }).unwrap();
        let start = SnpLaunchStart { policy: 0x3_0000, ..SnpLaunchStart::default() };
        command(cx, &m, SevOp::SnpLaunchStart(start)).unwrap();
        let (creator, finisher) = (m.clone(), m.clone());
        cx.spawn("create", move |cx| {
            assert_eq!(ioctl::create_vcpu(cx, &creator.process, creator.fd, 0), Err(Errno::EMFILE));
        });
        cx.spawn("finish", move |cx| {
            let finish = SevOp::SnpLaunchFinish(SnpLaunchFinish::default());
            assert_eq!(command(cx, &finisher, finish), Ok(()));
        });
        m
    };
    crate::race(300, setup, |_, m| m.vm.check_invariants());
}

#[test]
fn r4_an_update_after_the_end_of_the_launch_races_with_the_first_touch() {
    let text = include_str!("../../../../../scenarios/snp/known/launch-after-finish.toml");
    let scenario = parse("launch-after-finish.toml", text).unwrap_or_else(|error| panic!("{}", error.render(false)));
    let failures = (0..SEARCHES).filter_map(|n| race::search(&scenario, n * EXECUTIONS, EXECUTIONS));
    let kinds: BTreeSet<String> = failures.map(|failure| failure.kind).collect();
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), ["SNP-INV-003", "SNP-INV-010"]);
}
