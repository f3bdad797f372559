//! Workloads of SNP guests and TDs, in small.

use gmem::workload::{Phase, PhaseReport, Platform, Report, Sizes, run};
use sim_coco::tdx::Leaf;

const MIB: u64 = 1 << 20;

fn small() -> Sizes {
    Sizes { conversions: 6, bounces: 3, kexec: true, ..Sizes::boot(2, 48 * MIB) }
}

fn phase(report: &Report, phase: Phase) -> PhaseReport {
    *report
        .phases
        .iter()
        .find(|row| row.phase == phase)
        .unwrap_or_else(|| panic!("{phase} was not reached: {report:?}"))
}

#[test]
fn a_guest_boots_runs_and_leaves_the_same_way_each_time() {
    let sizes = small();
    let report = run(&sizes, 7).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.phases.iter().map(|row| row.phase).collect::<Vec<_>>(), sizes.phases());
    // 4 MiB of firmware, 28 zero pages, secrets, CPUID, hashes, and one unmeasured.
    assert_eq!(phase(&report, Phase::W1).to_private, 1024 + 28 + 4);
    // All but the 32 pages of the launch, which were private before.
    let accepted = sizes.firmware_accept / 4096 - 32;
    assert_eq!((phase(&report, Phase::W3).to_private, phase(&report, Phase::W3).to_shared), (accepted, 1));
    let swiotlb = phase(&report, Phase::W6);
    assert_eq!(swiotlb.to_shared, sizes.swiotlb() / 4096);
    // Entries of 2 MiB that are neighbours are one exit.
    assert!(swiotlb.exits <= 2, "{swiotlb:?}");
    // As much back as was shared, over the whole of it.
    let shared: u64 = report.phases.iter().map(|row| row.to_shared).sum();
    let back: u64 = [Phase::W4, Phase::W8, Phase::W9].map(|id| phase(&report, id).to_private).iter().sum();
    let late: u64 = phase(&report, Phase::W7).to_shared;
    assert!(back + late >= shared, "{shared} pages were shared and {back} came back: {report:?}");

    let again = run(&sizes, 7).unwrap();
    assert_eq!((again.log_digest, again.steps, &again.phases), (report.log_digest, report.steps, &report.phases));
    let other = run(&sizes, 8).unwrap();
    assert!(other.is_complete(), "{other:?}");
    assert_ne!(other.log_digest, report.log_digest);
}

/// W1, W3, W5, W6, W7, W8 with 4 vCPUs and 1 GiB, twice: lazy acceptance takes all that the firmware has left.
#[test]
fn a_guest_of_1_gib_boots_the_same_way_twice() {
    let sizes = Sizes::boot(4, 1 << 30);
    let report = run(&sizes, 0).unwrap();
    assert!(report.is_complete(), "{report:?}");
    let back: u64 = report.phases.iter().map(|row| row.to_private).sum();
    let shared: u64 = report.phases.iter().map(|row| row.to_shared).sum();
    // Everything is accepted once, and conversions at run time come back; SWIOTLB, GHCBs, doorbells and clocks stay shared.
    let stays = sizes.swiotlb() / 4096 + 1 + 3 * 4;
    assert_eq!(back, (1 << 18) + 1024 + (shared - stays), "{report:?}");
    let again = run(&sizes, 0).unwrap();
    assert_eq!((again.log_digest, again.steps, again.phases), (report.log_digest, report.steps, report.phases));
}

/// Blocks of different vCPUs meet at their guard units.
#[test]
fn processors_that_accept_side_by_side_accept_each_page_once() {
    let sizes = Sizes { conversions: 0, firmware_accept: 32 * MIB, ..Sizes::boot(4, 64 * MIB) };
    for seed in 0..8 {
        let report = run(&sizes, seed).unwrap();
        assert!(report.is_complete(), "seed {seed}: {report:?}");
        let accepted = phase(&report, Phase::W6).to_private + phase(&report, Phase::W7).to_private;
        assert_eq!(accepted, 32 * MIB / 4096, "seed {seed}: {report:?}");
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let sizes = small();
    let wrong = [
        Sizes { vcpus: 0, ..sizes },
        Sizes { vcpus: 9, ..sizes },
        Sizes { memory: 47 * MIB, ..sizes },
        Sizes { memory: 8 * MIB, ..sizes },
        Sizes { memory: u64::MAX, ..sizes },
        Sizes { firmware_accept: 16 * MIB, ..sizes },
        Sizes { firmware_accept: 64 * MIB, ..sizes },
    ];
    for sizes in wrong {
        assert!(run(&sizes, 0).is_err(), "{sizes:?}");
    }
    assert_eq!(Sizes::boot(4, 1 << 30).check(), Ok(()));
    assert_eq!(Sizes::boot(1, 40 * MIB).check(), Ok(()));
}

fn small_td() -> Sizes {
    Sizes { platform: Platform::Tdx, ..small() }
}

#[test]
fn a_td_boots_runs_and_is_taken_apart_the_same_way_each_time() {
    let sizes = small_td();
    let report = run(&sizes, 7).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.phases.iter().map(|row| row.phase).collect::<Vec<_>>(), sizes.phases());
    assert_eq!(phase(&report, Phase::W2).to_private, 1024 + 32);
    // Memory is private from the beginning: nobody is asked.
    assert_eq!((phase(&report, Phase::W3).exits, phase(&report, Phase::W3).to_private), (0, 0));
    // In steps of 2 MiB, with an exit for each.
    let swiotlb = phase(&report, Phase::W6);
    assert_eq!((swiotlb.exits, swiotlb.to_shared), (sizes.swiotlb() >> 21, sizes.swiotlb() / 4096));
    let shared: u64 = report.phases.iter().map(|row| row.to_shared).sum();
    let back: u64 = report.phases.iter().skip(1).map(|row| row.to_private).sum();
    assert_eq!(back, shared, "{report:?}");

    let again = run(&sizes, 7).unwrap();
    assert_eq!((again.log_digest, again.steps, &again.phases), (report.log_digest, report.steps, &report.phases));
    assert_eq!(again.teardown, report.teardown);
    let other = run(&sizes, 8).unwrap();
    assert!(other.is_complete(), "{other:?}");
    assert_ne!(other.log_digest, report.log_digest);
}

/// Each page that leaves a TD which has its key costs three leaves, a flush of caches, and a kick.
#[test]
fn a_td_that_is_closed_gives_each_page_back_with_a_kick() {
    let sizes = Sizes { conversions: 0, bounces: 0, kexec: false, ..small_td() };
    let report = run(&sizes, 0).unwrap();
    assert!(report.is_complete(), "{report:?}");
    let teardown = report.teardown.unwrap();
    // All of memory but the SWIOTLB, and the firmware.
    let pages = (sizes.memory - sizes.swiotlb()) / 4096 + 1024;
    for leaf in [Leaf::MemRangeBlock, Leaf::MemTrack, Leaf::MemPageRemove] {
        assert_eq!(teardown.of(leaf), Some(pages), "{leaf:?}: {teardown:?}");
    }
    assert_eq!(teardown.kicks, pages);
    // The TDR has its own, with the global KeyID.
    assert_eq!(teardown.of(Leaf::PhymemPageWbinvd), Some(pages + 1));
}

/// Without a key nobody can run: one leaf for each page, and no kick.
#[test]
fn a_td_that_was_terminated_gives_its_pages_back_without_a_kick() {
    let live = Sizes { conversions: 0, bounces: 0, kexec: false, ..small_td() };
    let terminated = run(&Sizes { terminate: true, ..live }, 0).unwrap();
    assert!(terminated.is_complete(), "{terminated:?}");
    let (live, terminated) = (run(&live, 0).unwrap().teardown.unwrap(), terminated.teardown.unwrap());
    let pages = live.of(Leaf::MemPageRemove).unwrap();
    for leaf in [Leaf::MemRangeBlock, Leaf::MemTrack, Leaf::MemPageRemove] {
        assert_eq!(terminated.of(leaf), Some(0), "{leaf:?}");
    }
    // What the TD consists of is reclaimed either way.
    let consists = live.of(Leaf::PhymemPageReclaim).unwrap();
    assert_eq!(terminated.of(Leaf::PhymemPageReclaim), Some(pages + consists));
    assert_eq!((terminated.kicks, terminated.of(Leaf::PhymemPageWbinvd)), (0, Some(1)));
    assert_eq!(live.total() - terminated.total(), 3 * pages);
}

/// The guest accepts in the largest pages that fit, so that with leaves of 2 MiB little is left to be mapped in small ones, and little to be taken away one by one.
#[test]
fn a_td_with_pages_of_2m_boots_with_fewer_exits_and_ends_with_fewer_seamcalls() {
    let small = Sizes { large_pages: false, ..small_td() };
    let [small, large] = [small, Sizes { large_pages: true, ..small }].map(|sizes| run(&sizes, 0).unwrap());
    assert!(large.is_complete(), "{large:?}");
    let (small, large) = (small.teardown.unwrap(), large.teardown.unwrap());
    for leaf in [Leaf::MemRangeBlock, Leaf::MemTrack, Leaf::MemPageRemove] {
        assert!(large.of(leaf).unwrap() * 4 < small.of(leaf).unwrap(), "{leaf:?}: {large:?}, {small:?}");
    }
    assert!(large.kicks * 4 < small.kicks, "{large:?}, {small:?}");
    // Whatever the size, caches are written back by pages of 4 KiB.
    assert_eq!(large.of(Leaf::PhymemPageWbinvd), small.of(Leaf::PhymemPageWbinvd));
}

/// Locks of the module that are met: whoever is told that it is busy tries again, and everybody ends (INV-506 is checked throughout).
#[test]
fn a_td_boots_though_leaves_meet() {
    let sizes = Sizes { contention: true, conversions: 8, bounces: 2, ..Sizes::boot(4, 48 * MIB) };
    let sizes = Sizes { platform: Platform::Tdx, ..sizes };
    for seed in 0..3 {
        let report = run(&sizes, seed).unwrap();
        assert!(report.is_complete(), "seed {seed}: {report:?}");
    }
}

/// W2, W3, W6, W7, W8 with 8 vCPUs and 1 GiB, twice.
#[test]
fn a_td_of_1_gib_boots_the_same_way_twice() {
    let sizes = Sizes { platform: Platform::Tdx, ..Sizes::boot(8, 1 << 30) };
    let report = run(&sizes, 0).unwrap();
    assert!(report.is_complete(), "{report:?}");
    let again = run(&sizes, 0).unwrap();
    assert_eq!((again.log_digest, again.steps, again.phases), (report.log_digest, report.steps, report.phases));
    assert_eq!(again.teardown, report.teardown);
}
