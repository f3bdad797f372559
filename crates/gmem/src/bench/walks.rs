//! The processor's part: hits (P1), misses that paging-structure caches serve (P2), cold walks (P3, P4), flushes (P8).
//!
//! Peers: a hash map as TLB, tables in a hash map, and the bare load.

use super::guest::{BASE, Guest, Vendor};
use super::memory::{Flat, Hashed, Memory, Simulated};
use super::{Case, Meter, Size};
use rustc_hash::FxHashMap;
use sim_kernel::sched::run_native;
use sim_mmu::Access;
use sim_mmu::processor::InveptType;
use sim_mmu::tlb::TlbConfig;
use sim_mmu::walker::{Ept, Npt};
use std::hint::black_box;
use std::sync::atomic::Ordering;

/// Accesses of a call of the body.
const BATCH: u64 = 4096;
/// Nothing but a TLB, too small to hit much.
const COLD: TlbConfig = TlbConfig { combined_sets: 1, ..TlbConfig::NONE };
/// Paging-structure caches, and a TLB that is too small.
const STRUCTURES: TlbConfig = TlbConfig {
    combined_sets: 1,
    guest_structure_slots: 1024,
    stage2_structure_slots: 1024,
    acceleration_slots: 4096,
    ..TlbConfig::NONE
};
/// Room for 4096 pages.
const HITS: TlbConfig = TlbConfig { combined_sets: 1024, acceleration_slots: 4096, ..TlbConfig::LARGE };

/// Pages of each set: 256 KiB, 16 MiB, 1 GiB.
fn sets(size: &Size) -> &'static [u64] {
    size.of(&[64, 4096, 262_144], &[64])
}

/// P1: eight bytes, translated and read.
pub(super) fn p1(meter: &mut dyn Meter, size: &Size) {
    const LIMIT: f64 = 2.5;
    for &pages in size.of(&[64, 4096][..], &[64]) {
        run_native(|cx| {
            let mut guest = Guest::<Npt, Flat>::new(cx, pages, 4, HITS);
            let note = guest.describe(cx);
            let words = pages * 512;
            let case = |name| Case::new("P1", name, pages, "access", BATCH);
            let mut at = 0;
            meter.measure(case("sequential").at_most(LIMIT).note(&note), &mut |timer| {
                timer.time(|| {
                    let mut sum = 0u64;
                    for _ in 0..BATCH {
                        let gva = BASE + at * 8;
                        at = if at + 1 == words { 0 } else { at + 1 };
                        let found = guest.processor.translate(cx, &guest.memory, gva, Access::Read).expect("mapped");
                        let word = guest.memory.word(found.pfn, (found.offset / 8) as usize);
                        sum = sum.wrapping_add(word.load(Ordering::Relaxed));
                    }
                    black_box(sum)
                });
            });
            meter.measure(case("random page").note(&note), &mut |timer| {
                timer.time(|| {
                    let mut sum = 0u64;
                    for _ in 0..BATCH {
                        sum ^= guest.translate_next(cx);
                    }
                    black_box(sum)
                });
            });
            let data = guest.memory.data();
            meter.measure(case("bare load").peer(), &mut |timer| {
                timer.time(|| {
                    let mut sum = 0u64;
                    for _ in 0..BATCH {
                        let word = &data[black_box(at) as usize];
                        at = if at + 1 == words { 0 } else { at + 1 };
                        sum = sum.wrapping_add(word.load(Ordering::Relaxed));
                    }
                    black_box(sum)
                });
            });
            let map: FxHashMap<(u16, u64), (u64, bool)> =
                (0..pages).map(|page| ((1, BASE.0 / 4096 + page), (page, true))).collect();
            meter.measure(case("hash map as TLB, random page").peer(), &mut |timer| {
                timer.time(|| {
                    let mut sum = 0u64;
                    for _ in 0..BATCH {
                        let (pfn, readable) = map[&(black_box(1), guest.next_gva().0 / 4096)];
                        assert!(readable);
                        sum ^= pfn;
                    }
                    black_box(sum)
                });
            });
        });
    }
}

/// One walk after the other, of pages in random order.
fn walks<F: Vendor, M: Memory>(
    meter: &mut dyn Meter,
    (levels, tlb): (u8, TlbConfig),
    sets: &[u64],
    case: impl Fn(u64) -> Case,
) {
    for &pages in sets {
        run_native(|cx| {
            let mut guest = Guest::<F, M>::new(cx, pages, levels, tlb);
            let note = guest.describe(cx);
            meter.measure(case(pages).note(note), &mut |timer| {
                timer.time(|| {
                    let mut sum = 0u64;
                    for _ in 0..BATCH {
                        sum ^= guest.translate_next(cx);
                    }
                    black_box(sum)
                });
            });
        });
    }
}

/// P2: with both fills.
pub(super) fn p2(meter: &mut dyn Meter, size: &Size) {
    let case = |name| move |pages| Case::new("P2", name, pages, "access", BATCH);
    let limited = |name| move |pages| Case::new("P2", name, pages, "access", BATCH).at_most(30.0);
    let sets = sets(size);
    walks::<Npt, Flat>(meter, (4, STRUCTURES), sets, limited("npt"));
    walks::<Ept, Flat>(meter, (4, STRUCTURES), sets, limited("ept"));
    walks::<Npt, Simulated>(meter, (4, STRUCTURES), sets, case("npt, host memory"));
    walks::<Npt, Flat>(meter, (4, TlbConfig::LARGE), sets, case("npt, all caches"));
    walks::<Npt, Hashed>(meter, (4, STRUCTURES), sets, |pages| case("npt, hash map")(pages).peer());
}

/// P3: with the fill.
pub(super) fn p3(meter: &mut dyn Meter, size: &Size) {
    let case = |name| move |pages| Case::new("P3", name, pages, "access", BATCH);
    let limit = |pages: u64| if pages <= 4096 { 90.0 } else { 250.0 };
    let limited = |name| move |pages| Case::new("P3", name, pages, "access", BATCH).at_most(limit(pages));
    let sets = sets(size);
    walks::<Npt, Flat>(meter, (4, COLD), sets, limited("npt"));
    walks::<Ept, Flat>(meter, (4, COLD), sets, limited("ept"));
    walks::<Npt, Simulated>(meter, (4, COLD), sets, case("npt, host memory"));
    walks::<Npt, Hashed>(meter, (4, COLD), sets, |pages| case("npt, hash map")(pages).peer());
}

/// P4: with the fill.
pub(super) fn p4(meter: &mut dyn Meter, size: &Size) {
    let case = |name| move |pages| Case::new("P4", name, pages, "access", BATCH);
    walks::<Npt, Flat>(meter, (5, COLD), sets(size), case("npt"));
    walks::<Ept, Flat>(meter, (5, COLD), sets(size), case("ept"));
}

/// P8: the processor's part, a flush that costs the same however much is cached, and KVM's.
pub(super) fn p8(meter: &mut dyn Meter, size: &Size) {
    const FLUSHES: u64 = 1024;
    for (name, and_access, tlb) in [
        ("invept, small TLB", "invept and an access, small TLB", TlbConfig::SMALL),
        ("invept, large TLB", "invept and an access, large TLB", TlbConfig::LARGE),
    ] {
        run_native(|cx| {
            let mut guest = Guest::<Ept, Flat>::new(cx, 4096, 4, tlb);
            guest.describe(cx);
            meter.measure(Case::new("P8", name, 4096, "flush", FLUSHES), &mut |timer| {
                timer.time(|| (0..FLUSHES).for_each(|_| guest.processor.invept(cx, InveptType::All)));
            });
            meter.measure(Case::new("P8", and_access, 4096, "flush", FLUSHES), &mut |timer| {
                timer.time(|| {
                    for _ in 0..FLUSHES {
                        guest.processor.invept(cx, InveptType::All);
                        black_box(guest.translate_next(cx));
                    }
                });
            });
        });
    }
    super::workloads::p8(meter, size);
}
