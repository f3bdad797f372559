//! The whole subsystem beside a naive one: every answer, and all contents at the end.

use super::random::cases;
use gmem::interp::Sequential;
use gmem::ops::{Answer, Exit, Op};
use gmem::replay::Executor;
use gmem::scenario::parse_line;
use gmem::testing::reference::{OPS, Reference};
use gmem::testing::strategies::Ground;
use gmem::testing::swarm;
use gmem::testing::values::check_and_end;
use gmem::{MachineConfig, Stage2Kind};
use proptest::prelude::*;

/// Pages of the file.
const PAGES: u64 = 4;

fn op() -> impl Strategy<Value = Op> {
    Ground::narrow(PAGES).ops(OPS).prop_map(Reference::plain)
}

/// One line of the language.
fn line(text: &str) -> Op {
    parse_line(text).expect("the line is in the language").op
}

/// Entries that remember MMIO outlive the slots that are made over them, and an access that meets one is not taken for private (`PFERR_RSVD_MASK`):
/// the flat maps know nothing of either. Nested paging with 52 address bits has no reserved bits to make such entries of.
fn without_mmio_entries(machine: MachineConfig) -> MachineConfig {
    MachineConfig { memory: 64 << 20, stage2: Stage2Kind::Npt, maxphyaddr: 52, ..machine }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn the_machine_and_the_flat_maps_agree(
        machine in swarm::machine().prop_map(without_mmio_entries),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut reference = Reference::new(PAGES);
        let mut simulated = Sequential::new(machine);
        for op in reference.set_up() {
            prop_assert_eq!(simulated.execute(&op).answer, Answer::OK);
        }
        for op in &ops {
            let answer = simulated.execute(op).answer;
            if let Some(expected) = reference.execute(op) {
                prop_assert_eq!(answer, expected, "{}", gmem::scenario::print(op));
            }
        }
        for page in 0..16 {
            let op = line(&format!("host_read m0 {}K", page * 4));
            prop_assert_eq!(Some(simulated.execute(&op).answer), reference.execute(&op));
        }
        // All of the file, through one slot.
        for slot in reference.slots() {
            let gone = line(&format!("set_user_memory_region vm0 slot={slot} gpa=0 size=0 hva=0"));
            prop_assert_eq!(simulated.execute(&gone).answer, Answer::OK);
        }
        let size = PAGES * 4;
        for text in [
            format!("set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0 size={size}K hva=m0 guest_memfd=g0"),
            format!("set_memory_attributes vm0 0 {size}K private"),
        ] {
            prop_assert_eq!(simulated.execute(&line(&text)).answer, Answer::OK, "{}", text);
        }
        for (page, value) in (0..).zip(reference.file_contents()) {
            let read = line(&format!("guest_read c0 {:#x}", page * 4096u64));
            prop_assert_eq!(simulated.execute(&read).answer, Answer::exit(Exit::Hlt { value: Some(value) }));
        }
        simulated.with(check_and_end);
    }
}
