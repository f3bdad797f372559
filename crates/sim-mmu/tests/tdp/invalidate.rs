//! The retry protocol: nesting, the hull, the sequence.

use sim_kernel::sched::Sim;
use sim_kernel::sync::RwLock;
use sim_mmu::{FlushNeeded, Gfn, GfnRange, MmuInvalidate};

fn range(start: u64, end: u64) -> GfnRange {
    GfnRange::new(Gfn(start), Gfn(end))
}

#[test]
fn overlapping_invalidations() {
    Sim::sequential().solo(|cx| {
        let lock = RwLock::new(cx, "mmu_lock", ());
        let state = MmuInvalidate::new(cx);
        let retry = |seq, gfn| {
            let unlocked = state.retry_gfn_lockless(cx, seq, Gfn(gfn));
            assert_eq!(state.retry_gfn(cx, &lock.read(cx), seq, Gfn(gfn)), unlocked);
            unlocked
        };
        let seq = state.seq(cx);
        assert!(!retry(seq, 10));
        let first = state.begin(cx, &mut lock.write(cx));
        state.add_range(cx, &mut lock.write(cx), range(10, 20));
        assert_eq!((retry(seq, 9), retry(seq, 10), retry(seq, 19), retry(seq, 20)), (false, true, true, false));
        let second = state.begin(cx, &mut lock.write(cx));
        state.add_range(cx, &mut lock.write(cx), range(30, 40));
        assert_eq!(state.range(), Some(range(10, 40)), "the hull, the gap included");
        assert!(retry(seq, 25) && retry(seq, 10) && !retry(seq, 40));
        state.end(cx, &mut lock.write(cx), first);
        assert_eq!((state.peek_seq(), state.in_progress()), (seq + 1, 1));
        assert!(retry(seq, 1000), "the sequence moved");
        let seq = state.seq(cx);
        assert!(retry(seq, 10) && !retry(seq, 1000), "the hull does not shrink while one is open");
        state.end(cx, &mut lock.write(cx), second);
        assert_eq!((state.peek_seq(), state.in_progress()), (seq + 1, 0));
        assert!(!retry(seq + 1, 10), "a stale range is ignored");
        let third = state.begin(cx, &mut lock.write(cx));
        state.add_range(cx, &mut lock.write(cx), range(5, 6));
        assert_eq!(state.range(), Some(range(5, 6)), "the range starts anew");
        state.end(cx, &mut lock.write(cx), third);
    });
}

#[test]
#[should_panic(expected = "INV-301")]
fn an_invalidation_must_end() {
    Sim::sequential().solo(|cx| {
        let lock = RwLock::new(cx, "mmu_lock", ());
        drop(MmuInvalidate::new(cx).begin(cx, &mut lock.write(cx)));
    });
}

#[test]
#[should_panic(expected = "INV-302")]
fn a_range_is_added_before_the_lock_is_released() {
    Sim::sequential().solo(|cx| {
        let lock = RwLock::new(cx, "mmu_lock", ());
        let state = MmuInvalidate::new(cx);
        let seq = state.seq(cx);
        let _open = state.begin(cx, &mut lock.write(cx));
        state.retry_gfn(cx, &lock.read(cx), seq, Gfn(0));
    });
}

#[test]
#[should_panic(expected = "INV-302")]
fn an_invalidation_has_a_range() {
    Sim::sequential().solo(|cx| {
        let lock = RwLock::new(cx, "mmu_lock", ());
        let state = MmuInvalidate::new(cx);
        let open = state.begin(cx, &mut lock.write(cx));
        state.end(cx, &mut lock.write(cx), open);
    });
}

#[test]
#[should_panic(expected = "INV-202")]
fn a_flush_that_is_owed_must_be_made() {
    drop(FlushNeeded::NONE.merge(FlushNeeded::new(true)));
}
