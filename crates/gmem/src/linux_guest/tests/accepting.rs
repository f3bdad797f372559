//! Unaccepted memory: SN-185 to SN-187.

use super::changing::booted;
use super::host::{Exit, Host, on_host};
use crate::kvm::sev::protocol::msr::{MsrRequest, TermReason};
use crate::linux_guest::{Insn, Kernel, Place, SigBus, Unaccepted};
use proptest::prelude::*;
use sim_coco::snp::PageState;
use sim_kernel::{PAGE_SIZE, PMD_SIZE};
use sim_mmu::Gpa;

/// Units of two pages, from 0x10000 on; the table is in launched memory.
const TABLE: Unaccepted =
    Unaccepted { phys_base: Gpa(0x1_0000), unit_size: 2 * PAGE_SIZE, units: 8, data: Gpa(0x3000) };
const END: Gpa = Gpa(PMD_SIZE);

fn unit(index: u64) -> Gpa {
    TABLE.phys_base + index * TABLE.unit_size
}

fn is_accepted(host: &Host<'_>, index: u64) -> bool {
    let pages = [unit(index), unit(index) + PAGE_SIZE];
    pages.into_iter().all(|gpa| host.state(gpa) == Some(PageState::GuestValid))
}

fn is_set(host: &Host<'_>, index: u64) -> bool {
    host.peek(TABLE.bitmap_word(index)) >> index & 1 != 0
}

/// The kernel, whose first processor also sets the table up.
async fn first(kernel: Kernel) -> Result<Kernel, crate::linux_guest::Terminated> {
    let mut kernel = booted(kernel).await?;
    kernel.init_unaccepted(&TABLE, 0).await?;
    kernel.unaccepted = Some(TABLE);
    Ok(kernel)
}

#[test]
fn sn_186_the_unit_behind_an_aligned_end_is_accepted_too() {
    on_host(END, |host| {
        let vcpu = host.vcpu(async |kernel| {
            let kernel = first(kernel).await?;
            kernel.accept_memory(unit(1)..unit(2)).await?;
            kernel.accept_memory(unit(4)..unit(4) + PAGE_SIZE).await?;
            assert!(kernel.contains_unaccepted_memory(unit(2)..unit(3)).await?, "its guard is not");
            assert!(!kernel.contains_unaccepted_memory(unit(4)..unit(4) + PAGE_SIZE).await?);
            // At the end of the table there is none.
            kernel.accept_memory(unit(7)..unit(8)).await
        });
        assert_eq!(host.run(vcpu), Ok(()));
        let accepted: Vec<u64> = (0..8).filter(|index| is_accepted(host, *index)).collect();
        assert_eq!(accepted, [1, 2, 4, 7]);
        assert!((0..8).all(|index| is_set(host, index) != is_accepted(host, index)));
    });
}

#[test]
fn sn_187_the_kernel_ends_and_a_task_does_not() {
    on_host(END, |host| {
        let vcpu = host.vcpu(async |kernel| {
            let kernel = first(kernel).await?;
            assert_eq!(kernel.cpu.run_user(Insn::Read(Place::private(unit(3)))).await, Err(SigBus));
            kernel.accept_memory(unit(3)..unit(3) + 8).await?;
            assert!(kernel.cpu.run_user(Insn::Read(Place::private(unit(3)))).await.is_ok());
            kernel.cpu.read(Place::private(unit(5))).await.map(drop)
        });
        let reason = MsrRequest::terminate(TermReason::Unspecified).encode();
        assert_eq!(host.run(vcpu), Err(Exit::Terminated(reason)));
    });
}

/// Two processors accept ranges, in any order of their instructions.
fn accept_together(ranges: [(u64, u64); 2], mut order: impl FnMut() -> usize, host: &mut Host<'_>) {
    let one = host.vcpu(async move |kernel| {
        let kernel = first(kernel).await?;
        kernel.cpu.run(Insn::Out { port: 1, value: 0 }).await?;
        kernel.accept_memory(unit(ranges[0].0)..unit(ranges[0].0) + ranges[0].1 * PAGE_SIZE).await
    });
    while !matches!(host.log.last(), Some((_, Insn::Out { .. }))) {
        host.step(one).unwrap();
    }
    host.convert(Gpa(0x9000), 1, crate::kvm::sev::protocol::msr::PageOp::Shared);
    let other = host.vcpu(async move |kernel| {
        let mut kernel = kernel;
        // Its page is shared already; without that, it would be the same as above.
        kernel.ghcb = None;
        kernel.unaccepted = Some(TABLE);
        kernel.accept_memory(unit(ranges[1].0)..unit(ranges[1].0) + ranges[1].1 * PAGE_SIZE).await
    });
    let mut running = vec![one, other];
    for _ in 0..100_000 {
        if running.is_empty() {
            break;
        }
        let at = order() % running.len();
        if !host.step(running[at]).unwrap() {
            running.remove(at);
        }
        // A bit goes when all of the unit is accepted, and not before.
        for index in 0..8 {
            assert!(is_set(host, index) || is_accepted(host, index), "unit {index} is used too early");
        }
    }
    assert!(running.is_empty(), "a processor waits for ever");
    assert_eq!([host.outcome(one), host.outcome(other)], [Some(Ok(())); 2]);
    for index in 0..8 {
        let validated = |gpa: Gpa| {
            let is = |insn: &Insn| matches!(insn, Insn::Pvalidate { gpa: at, validate: true, .. } if *at == gpa);
            host.log.iter().filter(|(_, insn)| is(insn)).count()
        };
        assert_eq!(validated(unit(index)), usize::from(is_accepted(host, index)), "unit {index}");
    }
}

#[test]
fn sn_185_two_processors_at_one_unit_accept_it_once() {
    on_host(END, |host| {
        let mut turn = 0;
        let order = || {
            turn += 1;
            turn
        };
        accept_together([(2, 2), (2, 2)], order, host);
        assert!(is_accepted(host, 2) && is_accepted(host, 3));
        assert!(host.log.iter().any(|(_, insn)| matches!(insn, Insn::SpinWhile { .. })), "nobody waited");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn sn_185_in_any_order_of_instructions(
        ranges in [(0u64..8, 1u64..5), (0u64..8, 1u64..5)],
        order in proptest::collection::vec(0usize..2, 40..400),
    ) {
        let order = std::sync::Arc::new(order);
        on_host(END, move |host| {
            let order = std::sync::Arc::clone(&order);
            let mut at = 0;
            let next = move || {
                at += 1;
                order[at % order.len()] + usize::from(at % 97 == 0)
            };
            accept_together(ranges, next, host);
        });
    }
}
