//! Races of an SNP guest that sequences do not show: faults that lead nowhere, and what Linux 7.3 does wrong.

use gmem::scenario::parse;
use gmem::testing::race;
use std::collections::BTreeSet;

/// Searches, and the interleavings that each tries.
const SEARCHES: u64 = 20;
const EXECUTIONS: u64 = 100;

/// The guest's only operation, in a machine with a read-only slot at 0x400000.
fn vain(operation: &str) -> String {
    let text = format!(
        "[machine]\nsnp = true\n[setup]\nrun = \"\"\"\ncreate_vm vm0 type=snp\nsev_init2 vm0\ncreate_vcpu vm0 c0\nmmap m0 len=16K
set_user_memory_region vm0 slot=0 flags=readonly gpa=0x400000 size=16K hva=m0\nsnp_launch_start vm0\nsnp_launch_finish vm0
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
    for operation in ["guest_write_shared c0 0x401000 1", "guest_read_shared c0 0x7fffffffff000"] {
        let message = vain(operation);
        assert!(message.contains("guest that faults again and again"), "{operation}: {message}");
    }
}

#[test]
fn r4_an_update_after_the_end_of_the_launch_races_with_the_first_touch() {
    let text = include_str!("../../../../../scenarios/snp/known/launch-after-finish.toml");
    let scenario = parse("launch-after-finish.toml", text).unwrap_or_else(|error| panic!("{}", error.render(false)));
    let failures = (0..SEARCHES).filter_map(|n| race::search(&scenario, n * EXECUTIONS, EXECUTIONS));
    let kinds: BTreeSet<String> = failures.map(|failure| failure.kind).collect();
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), ["SNP-INV-003", "SNP-INV-010"]);
}
