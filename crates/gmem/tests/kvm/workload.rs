//! Workloads of SNP guests, in small.

use gmem::workload::{Phase, PhaseReport, Report, Sizes, run};

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
