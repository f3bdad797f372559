//! Page-state changes: SN-181 to SN-184, SN-188.

use super::host::{Cheat, Exit, Host, on_host};
use crate::kvm::sev::protocol::msr::{MsrRequest, PageOp, TermReason};
use crate::linux_guest::{Insn, Kernel, Place, Terminated};
use sim_coco::snp::{PageState, RmpSize};
use sim_kernel::{PAGE_SIZE, PMD_SIZE};
use sim_mmu::Gpa;
use std::ops::Range;

pub(super) const GHCB: Gpa = Gpa(0x8000);
const MB2: u64 = PMD_SIZE;

/// A kernel with its GHCB.
pub(super) async fn booted(mut kernel: Kernel) -> Result<Kernel, Terminated> {
    kernel.negotiate().await?;
    kernel.set_up_ghcb(GHCB).await?;
    Ok(kernel)
}

/// The order of what an instruction of each kind did, from the last GHCB registration on.
fn story(host: &Host<'_>) -> Vec<&'static str> {
    let names = host.log.iter().filter_map(|(_, insn)| match insn {
        Insn::Pvalidate { validate: true, .. } => Some("validate"),
        Insn::Pvalidate { validate: false, .. } => Some("rescind"),
        Insn::SetEncrypted(_, true) => Some("set C"),
        Insn::SetEncrypted(_, false) => Some("clear C"),
        Insn::Vmgexit => Some("exit"),
        _ => None,
    });
    let mut story: Vec<_> = names.collect();
    story.dedup();
    story
}

fn page(index: u64) -> Range<Gpa> {
    Gpa(index * PAGE_SIZE)..Gpa((index + 1) * PAGE_SIZE)
}

#[test]
fn sn_181_acceptance_is_given_up_before_and_given_after() {
    on_host(Gpa(MB2), |host| {
        let vcpu = host.vcpu(async |kernel| {
            let kernel = booted(kernel).await?;
            kernel.set_memory_decrypted(page(9)).await?;
            kernel.cpu.write(Place::shared(Gpa(9 * PAGE_SIZE)), 7).await?;
            kernel.set_memory_encrypted(page(9)).await?;
            kernel.cpu.write(Place::private(Gpa(9 * PAGE_SIZE)), 8).await
        });
        assert_eq!(host.run(vcpu), Ok(()));
        assert_eq!(host.outcome(vcpu), Some(Ok(())));
        let story = story(host);
        let change = ["rescind", "exit", "clear C", "set C", "exit", "validate"];
        assert!(story.ends_with(&change), "{story:?}");
        assert_eq!(host.peek(Gpa(9 * PAGE_SIZE)), 8);
        assert_eq!(host.state(Gpa(9 * PAGE_SIZE)), Some(PageState::GuestValid));
    });
}

/// PVALIDATE before the page is private: the page is not there. PVALIDATE after it was shared: neither.
#[test]
fn sn_181_the_other_order_faults() {
    for validate in [true, false] {
        on_host(Gpa(MB2), move |host| {
            host.convert(Gpa(9 * PAGE_SIZE), 1, PageOp::Shared);
            let vcpu = host.vcpu(async move |kernel| {
                let insn = Insn::Pvalidate { gpa: Gpa(9 * PAGE_SIZE), size: RmpSize::Size4K, validate };
                kernel.cpu.run(insn).await.map(drop)
            });
            assert_eq!(host.run(vcpu), Err(Exit::MemoryFault { gpa: Gpa(9 * PAGE_SIZE), private: true }));
        });
    }
}

fn terminated(reason: TermReason) -> Result<(), Exit> {
    Err(Exit::Terminated(MsrRequest::terminate(reason).encode()))
}

#[test]
fn sn_182_a_page_that_was_accepted_already_ends_the_guest() {
    on_host(Gpa(MB2), |host| {
        let vcpu = host.vcpu(async |kernel| booted(kernel).await?.set_pages_state(page(9), PageOp::Private).await);
        assert_eq!(host.run(vcpu), terminated(TermReason::Pvalidate));
    });
}

#[test]
fn sn_182_a_host_that_lies_about_sharing_is_caught_at_the_next_change() {
    on_host(Gpa(MB2), |host| {
        let vcpu = host.vcpu(async |kernel| {
            let kernel = booted(kernel).await?;
            kernel.cpu.run(Insn::Out { port: 1, value: 0 }).await?;
            kernel.set_memory_encrypted(page(20)).await
        });
        while host.log.last().is_none_or(|(_, insn)| !matches!(insn, Insn::Out { .. })) {
            host.step(vcpu).unwrap();
        }
        // The page stays shared, whatever the answer was.
        host.convert(Gpa(20 * PAGE_SIZE), 1, PageOp::Shared);
        host.cheat = Some(Cheat::Lies);
        assert_eq!(host.run(vcpu), Err(Exit::MemoryFault { gpa: Gpa(20 * PAGE_SIZE), private: true }));
    });
}

#[test]
fn sn_182_and_184_what_a_host_may_not_do_to_a_list_ends_the_guest() {
    for cheat in [Cheat::Error, Cheat::ReservedBits, Cheat::EndGrows, Cheat::Malformed] {
        on_host(Gpa(2 * MB2), move |host| {
            let vcpu = host.vcpu(async |kernel| {
                let kernel = booted(kernel).await?;
                kernel.cpu.run(Insn::Out { port: 1, value: 0 }).await?;
                kernel.set_pages_state(Gpa(20 * PAGE_SIZE)..Gpa(24 * PAGE_SIZE), PageOp::Private).await
            });
            while host.log.last().is_none_or(|(_, insn)| !matches!(insn, Insn::Out { .. })) {
                host.step(vcpu).unwrap();
            }
            host.cheat = Some(cheat);
            assert_eq!(host.run(vcpu), terminated(TermReason::Psc), "{cheat:?}");
        });
    }
}

/// Linux compares with where the list began, which is 0: a host that goes back is asked again, and again; what was converted twice is accepted once.
#[test]
fn sn_184_a_host_that_goes_back_to_the_beginning_is_asked_for_ever() {
    on_host(Gpa(2 * MB2), |host| {
        let vcpu = host.vcpu(async |kernel| {
            let kernel = booted(kernel).await?;
            kernel.set_pages_state(Gpa(20 * PAGE_SIZE)..Gpa(22 * PAGE_SIZE), PageOp::Private).await
        });
        host.cheat = Some(Cheat::CurBackwards);
        for _ in 0..2000 {
            host.step(vcpu).unwrap();
        }
        assert_eq!(host.outcome(vcpu), None);
        host.cheat = None;
        assert_eq!(host.run(vcpu), Ok(()));
    });
}

#[test]
fn a_host_that_pauses_is_asked_to_go_on() {
    on_host(Gpa(2 * MB2), |host| {
        host.cheat = Some(Cheat::Pauses);
        let vcpu = host.vcpu(async |kernel| {
            let kernel = booted(kernel).await?;
            // Not adjacent, so several batches: 2 MiB in the middle of small pages.
            kernel.set_pages_state(Gpa(MB2 - 2 * PAGE_SIZE)..Gpa(2 * MB2), PageOp::Private).await
        });
        assert_eq!(host.run(vcpu), Ok(()));
        let asked: Vec<_> = host.exits.iter().skip(1).map(|(gpa, npages, _)| (gpa.0 / PAGE_SIZE, *npages)).collect();
        assert_eq!(asked, [(510, 2), (512, 512)]);
    });
}

#[test]
fn sn_183_a_page_of_2m_that_the_host_has_in_small_ones_is_accepted_in_small_ones() {
    for gives_2m in [false, true] {
        on_host(Gpa(2 * MB2), move |host| {
            host.gives_2m = gives_2m;
            let vcpu = host.vcpu(async |kernel| {
                booted(kernel).await?.set_pages_state(Gpa(MB2)..Gpa(2 * MB2), PageOp::Private).await
            });
            assert_eq!(host.run(vcpu), Ok(()));
            let sizes = |wanted: RmpSize| {
                let is = |insn: &Insn| matches!(insn, Insn::Pvalidate { size, validate: true, .. } if *size == wanted);
                host.log.iter().filter(|(_, insn)| is(insn)).count()
            };
            // One try either way.
            assert_eq!((sizes(RmpSize::Size2M), sizes(RmpSize::Size4K)), (1, if gives_2m { 0 } else { 512 }));
            for i in [0, 1, 511] {
                assert_eq!(host.state(Gpa(MB2 + i * PAGE_SIZE)), Some(PageState::GuestValid));
            }
        });
    }
}

#[test]
fn memory_of_vmalloc_is_changed_in_small_pages_that_split_large_ones() {
    on_host(Gpa(2 * MB2), |host| {
        host.gives_2m = true;
        let vcpu = host.vcpu(async |kernel| {
            let kernel = booted(kernel).await?;
            kernel.set_pages_state(Gpa(MB2)..Gpa(2 * MB2), PageOp::Private).await?;
            kernel.set_vmalloc_pages_state(Gpa(MB2)..Gpa(MB2 + 70 * PAGE_SIZE), PageOp::Shared).await?;
            // The others are untouched.
            kernel.cpu.read(Place::private(Gpa(MB2 + 70 * PAGE_SIZE))).await.map(drop)
        });
        assert_eq!(host.run(vcpu), Ok(()));
        // 64 entries are a list.
        let asked: Vec<_> = host.exits.iter().skip(2).map(|(_, npages, _)| *npages).collect();
        assert_eq!(asked, [64, 6]);
    });
}

#[test]
fn sn_188_accepted_pages_are_touched_where_the_processor_needs_it() {
    for evicts_caches in [false, true] {
        on_host(Gpa(2 * MB2), move |host| {
            let vcpu = host.vcpu(async move |kernel| {
                let mut kernel = booted(kernel).await?;
                kernel.evicts_caches = evicts_caches;
                kernel.set_pages_state(Gpa(20 * PAGE_SIZE)..Gpa(23 * PAGE_SIZE), PageOp::Private).await
            });
            host.reads.clear();
            assert_eq!(host.run(vcpu), Ok(()));
            let touched: Vec<u64> = host.reads.iter().filter(|place| !place.shared).map(|place| place.gpa.0).collect();
            let expected = (20..23).flat_map(|page| [page * PAGE_SIZE, (page + 1) * PAGE_SIZE - 8]).collect();
            assert_eq!(touched, if evicts_caches { expected } else { vec![] });
        });
    }
}
