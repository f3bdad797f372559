//! The xarray against a naive interval map, under memory failure, and with readers that race a writer.

use proptest::prelude::*;
use sim_kernel::sched::{Config, Sim, Verdict};
use sim_kernel::xarray::{Handle, InsertError, Mark, NodeCache, Value, XArray, XaFlags};
use sim_kernel::{Cx, Errno};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

const MARKS: [Mark; 3] = [Mark::Mark0, Mark::Mark1, Mark::Mark2];

fn solo<R>(body: impl FnOnce(&Cx<'_>) -> R) -> R {
    Sim::sequential().solo(body)
}

#[track_caller]
fn assert_valid<E>(array: &XArray<E>) {
    let found: Vec<String> = array.check().iter().map(|v| v.to_string()).collect();
    assert!(found.is_empty(), "{found:#?}");
}

// ---- the model: entries as intervals, and the height of the tree ----

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    last: u64,
    /// Shift of the slots that it fills.
    shift: u32,
    /// `None` is a reservation.
    value: Option<u64>,
    marks: [bool; 3],
}

#[derive(Clone, Default, Debug)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    /// Shift of the top node, if the head is a node.
    top: Option<u32>,
}

/// Smallest shift of a node that holds the index.
fn fit(index: u64) -> u32 {
    (0..=60).step_by(6).find(|&s| index >> s < 64).expect("60 fits all")
}

/// The pieces of a range, by the rule and with wide numbers: `(first, last, shift)`.
fn pieces(first: u64, last: u64) -> Vec<(u64, u64, u32)> {
    let (mut at, end) = (u128::from(first), u128::from(last) + 1);
    let mut out = Vec::new();
    while at < end {
        let n = end - at;
        let level =
            (0..=10).rev().find(|l| at.is_multiple_of(1 << (6 * l)) && n >= 1 << (6 * l)).expect("level 0 fits");
        let unit = 1u128 << (6 * level);
        let k = (n / unit).min(64 - at / unit % 64);
        out.push((at as u64, (at + k * unit - 1) as u64, 6 * level as u32));
        at += k * unit;
    }
    out
}

impl Model {
    fn at(&self, index: u64) -> Option<(u64, Entry)> {
        self.entries.range(..=index).next_back().filter(|(_, e)| e.last >= index).map(|(&b, &e)| (b, e))
    }

    fn load(&self, index: u64) -> Option<u64> {
        self.at(index).and_then(|(_, e)| e.value)
    }

    fn overlapping(&self, first: u64, last: u64) -> Vec<(u64, Entry)> {
        let before = self.at(first).filter(|&(b, _)| b < first);
        before.into_iter().chain(self.entries.range(first..=last).map(|(&b, &e)| (b, e))).collect()
    }

    fn grow(&mut self, top: u32) {
        self.top = Some(self.top.map_or(top, |t| t.max(top)));
    }

    fn set(&mut self, index: u64, value: Option<u64>) {
        if let Some((base, _)) = self.at(index) {
            self.entries.get_mut(&base).expect("found").value = value;
            return;
        }
        let in_head = index == 0 && value.is_some() && self.top.is_none();
        if !in_head {
            self.grow(fit(index));
        }
        self.entries.insert(index, Entry { last: index, shift: 0, value, marks: [false; 3] });
    }

    fn reserve(&mut self, index: u64) {
        if self.at(index).is_none() {
            self.set(index, None);
        }
    }

    /// Slots of the top node that are in use.
    fn top_slots(&self) -> BTreeSet<u64> {
        let Some(top) = self.top else { return BTreeSet::new() };
        self.entries.iter().flat_map(|(b, e)| (b >> top)..=(e.last >> top)).collect()
    }

    fn erase(&mut self, first: u64, last: u64) {
        let before = self.top_slots();
        for (base, _) in self.overlapping(first, last) {
            self.entries.remove(&base);
        }
        let after = self.top_slots();
        if after.is_empty() {
            self.top = None;
        } else if after.len() < before.len() {
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        while let Some(top) = self.top {
            if self.top_slots() != BTreeSet::from([0]) {
                return;
            }
            let leaf = self.entries.get(&0).is_some_and(|e| e.shift == top);
            if leaf && top > 0 {
                return;
            }
            self.top = if leaf { None } else { Some(top - 6) };
        }
    }

    fn set_range(&mut self, first: u64, last: u64, value: Option<u64>) {
        let order = last.checked_add(1).map_or(64, u64::trailing_zeros);
        let top = match last.checked_add(1) {
            None => 60,
            Some(end) if order > 0 && end.is_power_of_two() => fit(end),
            Some(_) => fit(last),
        };
        for (from, to, shift) in pieces(first, last) {
            if value.is_none() {
                self.erase(from, to);
                continue;
            }
            if from == to && from == 0 && last == 0 {
                self.set(0, value);
                continue;
            }
            let touched = self.overlapping(from, to);
            let mut new = Entry { last: to, shift, value, marks: [false; 3] };
            let mut base = from;
            for (b, e) in touched {
                base = base.min(b);
                new.last = new.last.max(e.last);
                if b <= from && e.last >= to {
                    new.shift = new.shift.max(e.shift);
                }
                new.marks = std::array::from_fn(|m| new.marks[m] || e.marks[m]);
                self.entries.remove(&b);
            }
            self.grow(top.max(shift));
            self.entries.insert(base, new);
        }
    }

    /// Nodes of the tree that holds these entries.
    fn nodes(&self) -> u64 {
        let Some(top) = self.top else { return 0 };
        let mut nodes = BTreeSet::from([(top, 0)]);
        for (&base, e) in &self.entries {
            nodes.extend((e.shift..=top).step_by(6).map(|s| (s, base.checked_shr(s + 6).unwrap_or(0))));
        }
        nodes.len() as u64
    }
}

fn compare(cx: &Cx<'_>, array: &XArray<Value>, model: &Model) -> Result<(), TestCaseError> {
    let violations: Vec<String> = array.check().iter().map(|v| v.to_string()).collect();
    prop_assert!(violations.is_empty(), "{:#?}", violations);
    prop_assert_eq!(array.node_count(), model.nodes(), "nodes of {:x?}", model);
    prop_assert_eq!(array.shape().next().map(|n| n.shift), model.top, "height of {:x?}", model);
    prop_assert_eq!(array.is_empty(cx), model.entries.is_empty());
    let seen: Vec<(u64, u64)> = array.iter(cx, 0, u64::MAX).map(|(i, v)| (i, v.0)).collect();
    let expected: Vec<(u64, u64)> = model.entries.iter().filter_map(|(&b, e)| e.value.map(|v| (b, v))).collect();
    prop_assert_eq!(&seen, &expected);
    for (&base, e) in &model.entries {
        for index in [base.wrapping_sub(1), base, base + (e.last - base) / 2, e.last, e.last.wrapping_add(1)] {
            prop_assert_eq!(array.load(cx, index).map(|v| v.0), model.load(index), "load {:#x}", index);
            prop_assert_eq!(array.peek(index).map(|v| v.0), model.load(index));
            for (m, mark) in MARKS.into_iter().enumerate() {
                let marked = model.at(index).is_some_and(|(_, e)| e.marks[m]);
                prop_assert_eq!(array.get_mark(cx, index, mark), marked, "mark {} of {:#x}", m, index);
            }
        }
        prop_assert_eq!(array.is_reserved(base), e.value.is_none());
    }
    for (m, mark) in MARKS.into_iter().enumerate() {
        prop_assert_eq!(array.is_marked(mark), model.entries.values().any(|e| e.marks[m]));
    }
    Ok(())
}

#[derive(Clone, Debug)]
enum Step {
    Store(u64, u64),
    Erase(u64),
    StoreRange(u64, u64, Option<u64>),
    StoreEach(u64, u64, Option<u64>),
    ReserveRange(u64, u64),
    Reserve(u64),
    Release(u64),
    Insert(u64, u64),
    CmpXchg(u64, Option<u64>, Option<u64>),
    Mark(u64, usize, bool),
    Look(u64, u64),
}

/// Indexes near the places where trees are cut.
fn index() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0u64..200,
        2 => 4080u64..4300,
        1 => 262_100u64..262_200,
        1 => (0u64..3).prop_map(|n| n << 40),
        1 => (0u64..70).prop_map(|n| u64::MAX - n),
    ]
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let length =
        prop_oneof![4 => 1u64..140, 2 => (1u64..70).prop_map(|n| n * 64), 1 => (1u64..5).prop_map(|n| n * 4096)];
    let aligned = (0u64..5, 1u64..200).prop_map(|(n, length)| (n * 64, length));
    prop_oneof![3 => (index(), length), 1 => aligned]
        .prop_map(|(first, length)| (first, first.saturating_add(length - 1)))
}

fn short_range() -> impl Strategy<Value = (u64, u64)> {
    (index(), 1u64..150).prop_map(|(first, length)| (first, first.saturating_add(length - 1)))
}

fn value() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![2 => (1u64..5).prop_map(Some), 1 => Just(None)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (index(), 1u64..5).prop_map(|(i, v)| Step::Store(i, v)),
        2 => index().prop_map(Step::Erase),
        5 => (range(), value()).prop_map(|((a, b), v)| Step::StoreRange(a, b, v)),
        2 => (short_range(), value()).prop_map(|((a, b), v)| Step::StoreEach(a, b, v)),
        1 => short_range().prop_map(|(a, b)| Step::ReserveRange(a, b)),
        1 => index().prop_map(Step::Reserve),
        1 => index().prop_map(Step::Release),
        1 => (index(), 1u64..5).prop_map(|(i, v)| Step::Insert(i, v)),
        1 => (index(), value(), value()).prop_map(|(i, a, b)| Step::CmpXchg(i, a, b)),
        2 => (index(), 0usize..3, any::<bool>()).prop_map(|(i, m, on)| Step::Mark(i, m, on)),
        3 => range().prop_map(|(a, b)| Step::Look(a, b)),
    ]
}

fn apply(cx: &Cx<'_>, array: &XArray<Value>, model: &mut Model, step: &Step) -> Result<(), TestCaseError> {
    match *step {
        Step::Store(i, v) => {
            let old = model.load(i);
            prop_assert_eq!(array.store(cx, i, Some(Value(v))), Ok(old.map(Value)));
            model.set(i, Some(v));
        }
        Step::Erase(i) => {
            prop_assert_eq!(array.erase(cx, i), model.load(i).map(Value));
            model.erase(i, i);
        }
        Step::StoreRange(a, b, v) => {
            prop_assert_eq!(array.store_range(cx, a, b, v.map(Value)), Ok(()));
            model.set_range(a, b, v);
        }
        Step::StoreEach(a, b, v) => {
            prop_assert_eq!(array.store_each(cx, a, b, v.map(Value)), Ok(()));
            for i in a..=b {
                match v {
                    Some(_) => model.set(i, v),
                    None => model.erase(i, i),
                }
            }
            prop_assert!(array.all_equal(cx, a, b, v.map(Value)));
        }
        Step::ReserveRange(a, b) => {
            prop_assert_eq!(array.reserve_range(cx, a, b), Ok(()));
            (a..=b).for_each(|i| model.reserve(i));
        }
        Step::Reserve(i) => {
            prop_assert_eq!(array.reserve(cx, i), Ok(()));
            model.reserve(i);
        }
        Step::Release(i) => {
            array.release(cx, i);
            if model.at(i).is_some_and(|(_, e)| e.value.is_none()) {
                model.erase(i, i);
            }
        }
        Step::Insert(i, v) => {
            let expected = match model.at(i) {
                Some((_, e)) => Err(InsertError::Busy(e.value.map(Value))),
                None => Ok(()),
            };
            prop_assert_eq!(array.insert(cx, i, Value(v)), expected);
            if expected.is_ok() {
                model.set(i, Some(v));
            }
        }
        Step::CmpXchg(i, old, new) => {
            let found = model.at(i);
            prop_assert_eq!(array.cmpxchg(cx, i, old.map(Value), new.map(Value)), Ok(model.load(i).map(Value)));
            let reserved = found.is_some_and(|(_, e)| e.value.is_none());
            if model.load(i) == old && !reserved {
                match new {
                    Some(_) => model.set(i, new),
                    None => model.erase(i, i),
                }
            }
        }
        Step::Mark(i, m, on) => {
            if on {
                array.set_mark(cx, i, MARKS[m])
            } else {
                array.clear_mark(cx, i, MARKS[m])
            }
            if let Some((base, _)) = model.at(i) {
                model.entries.get_mut(&base).expect("found").marks[m] = on;
            }
        }
        Step::Look(a, b) => look(cx, array, model, a, b)?,
    }
    Ok(())
}

fn look(cx: &Cx<'_>, array: &XArray<Value>, model: &Model, a: u64, b: u64) -> Result<(), TestCaseError> {
    let found: Vec<_> = model.overlapping(a, b).into_iter().filter(|(_, e)| e.value.is_some()).collect();
    let positions: Vec<(u64, Value)> =
        found.iter().map(|&(base, e)| (base.max(a), Value(e.value.expect("filtered")))).collect();
    prop_assert_eq!(array.find(cx, a, b), positions.first().copied());
    let after = positions.iter().copied().find(|&(i, _)| i > a);
    prop_assert_eq!(array.find_after(cx, a, b), after);
    let mut visited = Vec::new();
    array.for_each_range(cx, a, b, |i, v| visited.push((i, v)));
    prop_assert_eq!(&visited, &positions);
    for (m, mark) in MARKS.into_iter().enumerate() {
        let marked = found.iter().find(|(_, e)| e.marks[m]).map(|&(base, _)| base.max(a));
        prop_assert_eq!(array.find_marked(cx, a, b, mark).map(|(i, _)| i), marked);
    }
    for value in [None, Some(1), Some(2)] {
        let mut at = Some(a);
        let mut equal = true;
        for &(base, e) in &found {
            equal &= value.is_none_or(|_| at == Some(base.max(a))) && e.value == value;
            at = e.last.checked_add(1);
        }
        equal &= value.is_none() || at.is_none_or(|at| at > b);
        prop_assert_eq!(array.all_equal(cx, a, b, value.map(Value)), equal, "{:#x}..={:#x} all {:?}", a, b, value);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_an_interval_map(steps in prop::collection::vec(step(), 1..30)) {
        solo(|cx| {
            let cache = Arc::new(NodeCache::new());
            let array: XArray<Value> = XArray::new_in(cx, "xa", &cache, XaFlags::empty());
            let mut model = Model::default();
            for step in &steps {
                apply(cx, &array, &mut model, step)?;
                compare(cx, &array, &model)?;
                prop_assert_eq!(cache.used(), array.node_count());
                prop_assert_eq!(cache.allocated() as u64, array.node_count(), "nothing waits: there are no readers");
            }
            array.erase_each(cx, 0, u64::MAX);
            prop_assert!(array.is_empty(cx));
            prop_assert_eq!(cache.allocated(), 0);
            Ok(())
        })?;
    }

    /// The loops give the same tree whether a node is filled at a time or an index.
    #[test]
    fn loops_end_in_the_same_shape_under_a_scheduler(steps in prop::collection::vec(step(), 1..12)) {
        let run = |interleaved: bool| {
            let result = Arc::new(Mutex::new(None));
            let body = {
                let (steps, result) = (steps.clone(), Arc::clone(&result));
                move |cx: &Cx<'_>| {
                    let array: XArray<Value> = XArray::new(cx, "xa");
                    let mut model = Model::default();
                    let applied = steps.iter().try_for_each(|step| apply(cx, &array, &mut model, step));
                    let compared = applied.and_then(|()| compare(cx, &array, &model));
                    *result.lock().unwrap() = Some((shape(&array), compared));
                }
            };
            let mut sim = Sim::sequential();
            if interleaved {
                let (_, verdict) = sim.execute(&Config::default(), |cx| cx.spawn("writer", body));
                assert_eq!(verdict, Verdict::Completed);
            } else {
                sim.solo(body);
            }
            result.lock().unwrap().take().expect("it ran")
        };
        let (one, result) = run(false);
        result?;
        let (other, result) = run(true);
        result?;
        prop_assert_eq!(one, other);
    }

    /// Memory that runs out at any node leaves a valid array, holding for a range what a prefix of its pieces gives.
    #[test]
    fn failure_at_any_node_leaves_a_valid_array(steps in prop::collection::vec(step(), 1..10), spare in 0u64..6) {
        solo(|cx| {
            let cache = Arc::new(NodeCache::new());
            let array: XArray<Value> = XArray::new_in(cx, "xa", &cache, XaFlags::empty());
            let mut model = Model::default();
            for step in &steps {
                apply(cx, &array, &mut model, step)?;
            }
            for (first, last) in [(0, 0), (0, 63), (5, 200), (1, 512), (4000, 9000), (1 << 40, (1 << 40) + 70), (1, 4095)] {
                cache.set_limit(cache.used() + spare);
                let mut allowed = vec![model.clone()];
                for (from, to, _) in pieces(first, last) {
                    let mut next = allowed.last().expect("one is there").clone();
                    next.set_range(from, to, Some(7));
                    allowed.push(next);
                }
                let result = array.store_range(cx, first, last, Some(Value(7)));
                prop_assert!(result == Ok(()) || result == Err(Errno::ENOMEM));
                let violations = array.check();
                prop_assert!(violations.is_empty(), "{:#?}", violations);
                prop_assert_eq!(cache.used(), array.node_count());
                let probes = [0, 1, 4, 5, 63, 64, 191, 192, 200, 512, 513, 4000, 4095, 4096, 9000, 1 << 40, (1 << 40) + 70];
                let now: Vec<_> = probes.iter().map(|&i| array.load(cx, i).map(|v| v.0)).collect();
                let fits = allowed.iter().position(|m| probes.iter().map(|&i| m.load(i)).eq(now.iter().copied()));
                prop_assert!(fits.is_some(), "{:?} is no prefix", now);
                if result.is_ok() {
                    prop_assert_eq!(allowed.last().expect("one is there").load(last), Some(7));
                    prop_assert_eq!(array.load(cx, last), Some(Value(7)));
                }
                cache.set_limit(NodeCache::LIMIT_DEFAULT);
                array.store_range(cx, first, last, Some(Value(7))).expect("there is memory again");
                model.set_range(first, last, Some(7));
                compare(cx, &array, &model)?;
            }
            Ok(())
        })?;
    }

    /// What `reserve_range` computes is what it would have used up.
    #[test]
    fn reservation_needs_exactly_the_nodes_that_it_says(steps in prop::collection::vec(step(), 0..10), (first, last) in short_range()) {
        solo(|cx| {
            let run = |limit: Option<u64>| {
                let cache = Arc::new(NodeCache::new());
                let array: XArray<Value> = XArray::new_in(cx, "xa", &cache, XaFlags::empty());
                let mut model = Model::default();
                steps.iter().try_for_each(|step| apply(cx, &array, &mut model, step))?;
                let before = cache.used();
                cache.set_limit(limit.map_or(u64::MAX, |l| before + l));
                let result = array.reserve_range(cx, first, last);
                let stored = result.is_ok().then(|| array.store_each(cx, first, last, Some(Value(1))));
                prop_assert!(stored.is_none_or(|r| r.is_ok()), "a store after a reservation cannot fail");
                prop_assert!(array.check().is_empty());
                Ok((result, cache.used() - before))
            };
            let (result, used) = run(None)?;
            prop_assert_eq!(result, Ok(()));
            prop_assert_eq!(run(Some(used))?.0, Ok(()));
            if used > 0 {
                prop_assert_eq!(run(Some(used - 1))?, (Err(Errno::ENOMEM), 0));
            }
            Ok(())
        })?;
    }
}

/// First index, shift and the used slots of a node; references to nodes are 0.
type Node = (u64, u32, Vec<(usize, u64)>);

/// The tree without the numbers of its nodes.
fn shape<E>(array: &XArray<E>) -> Vec<Node> {
    let strip = |slots: Vec<(usize, u64)>| slots.into_iter().map(|(s, w)| (s, if w > 4096 { 0 } else { w })).collect();
    array.shape().map(|n| (n.base, n.shift, strip(n.slots))).collect()
}

// ---- examples ----

#[test]
fn a_single_entry_at_0_stands_in_the_head() {
    solo(|cx| {
        let array: XArray<Value> = XArray::new(cx, "xa");
        assert_eq!(array.head_word(), 0);
        array.store(cx, 0, Some(Value(8))).unwrap();
        assert_eq!((array.head_word(), array.node_count()), (0x11, 0));
        array.store(cx, 1, Some(Value(8))).unwrap();
        assert_eq!(shape(&array), [(0, 0, vec![(0, 0x11), (1, 0x11)])]);
        array.erase(cx, 1);
        assert_eq!((array.head_word(), array.node_count()), (0x11, 0), "back in the head");
        array.erase(cx, 0);
        assert!(array.is_empty(cx));
    });
}

#[test]
fn a_large_entry_left_alone_does_not_become_the_head() {
    solo(|cx| {
        let array: XArray<Value> = XArray::new(cx, "xa");
        array.store_range(cx, 0, 63, Some(Value(8))).unwrap();
        array.store(cx, 64, Some(Value(8))).unwrap();
        array.erase(cx, 64);
        assert_eq!(shape(&array), [(0, 6, vec![(0, 0x11)])]);
        assert_eq!(array.load(cx, 63), Some(Value(8)));
    });
}

#[test]
fn ranges_never_stand_in_the_head() {
    let shape_of = |first, last| {
        solo(|cx| {
            let array: XArray<Value> = XArray::new(cx, "xa");
            array.store_range(cx, first, last, Some(Value(8))).unwrap();
            assert_valid(&array);
            for index in [first, first + (last - first) / 2, last] {
                assert_eq!(array.load(cx, index), Some(Value(8)));
            }
            assert_eq!(array.load(cx, last + 1), None);
            let shape = shape(&array);
            array.store_range(cx, first, last, None).unwrap();
            assert!(array.is_empty(cx), "erasing what was stored is exact");
            shape
        })
    };
    assert_eq!(shape_of(0, 1), [(0, 0, vec![(0, 0x11), (1, 2)])]);
    assert_eq!(shape_of(0, 63), [(0, 6, vec![(0, 0x11)])]);
    let siblings = |slots: std::ops::Range<usize>, of: u64| slots.map(move |s| (s, of << 2 | 2));
    let entry_0_to_63 = (0, 0x11);
    let tail: Vec<_> = [(0, 0x11)].into_iter().chain(siblings(1..36, 0)).collect();
    assert_eq!(shape_of(0, 99), [(0, 6, vec![entry_0_to_63, (1, 0)]), (64, 0, tail)]);
    let eight: Vec<_> = [(0, 0x11)].into_iter().chain(siblings(1..8, 0)).collect();
    assert_eq!(shape_of(0, 511), [(0, 6, eight)]);
    let top: Vec<_> = [(0, 0), (1, 0x11)].into_iter().chain(siblings(2..8, 1)).chain([(8, 0)]).collect();
    let first: Vec<_> = [(1, 0x11)].into_iter().chain(siblings(2..64, 1)).collect();
    assert_eq!(shape_of(1, 512), [(0, 6, top), (0, 0, first), (512, 0, vec![(0, 0x11)])]);
}

#[test]
fn bindings_are_visited_once_per_piece_and_erased_as_a_whole() {
    solo(|cx| {
        let bindings: XArray<Handle> = XArray::new(cx, "bindings");
        bindings.store_range(cx, 5, 200, Some(Handle(0))).unwrap();
        let visits = |first, last| bindings.iter(cx, first, last).map(|(i, _)| i).collect::<Vec<_>>();
        assert_eq!(visits(0, u64::MAX), [5, 64, 192]);
        assert_eq!(visits(70, 191), [70]);
        assert_eq!(visits(10, 192), [10, 64, 192]);
        assert_eq!(bindings.find(cx, 70, 1000), Some((70, Handle(0))));
        assert_eq!(bindings.find_after(cx, 70, 1000), Some((192, Handle(0))));

        let array: XArray<Handle> = XArray::new(cx, "xa");
        array.store_range(cx, 0, 63, Some(Handle(1))).unwrap();
        array.store_range(cx, 10, 20, None).unwrap();
        assert!(array.is_empty(cx), "NULL over a part erases all 64");
        array.store_range(cx, 0, 63, Some(Handle(1))).unwrap();
        array.store(cx, 10, Some(Handle(2))).unwrap();
        assert_eq!((array.load(cx, 0), array.load(cx, 63)), (Some(Handle(2)), Some(Handle(2))));
    });
}

#[test]
fn a_reservation_is_invisible_and_makes_a_store_safe() {
    solo(|cx| {
        let cache = Arc::new(NodeCache::new());
        let array: XArray<Value> = XArray::new_in(cx, "attributes", &cache, XaFlags::empty());
        array.store(cx, 0, Some(Value(8))).unwrap();
        array.reserve_range(cx, 0, 0).unwrap();
        assert_eq!(array.head_word(), 0x11, "nothing to reserve");
        array.erase(cx, 0);
        array.reserve(cx, 0).unwrap();
        assert_eq!(shape(&array), [(0, 0, vec![(0, 0x406)])], "reserving forces a node");
        assert_eq!((array.load(cx, 0), array.find(cx, 0, u64::MAX), array.iter(cx, 0, 9).count()), (None, None, 0));
        assert!(!array.is_empty(cx));
        assert!(array.all_equal(cx, 0, 100, None));
        array.reserve(cx, 70).unwrap();
        cache.set_limit(0);
        assert_eq!(array.store(cx, 700_000, Some(Value(8))), Err(Errno::ENOMEM));
        assert_eq!(array.store(cx, 70, Some(Value(8))), Ok(None));
        assert_eq!(array.insert(cx, 0, Value(8)), Err(InsertError::Busy(None)));
        assert_eq!(array.insert(cx, 70, Value(8)), Err(InsertError::Busy(Some(Value(8)))));
        assert_eq!(Errno::from(array.insert(cx, 1 << 30, Value(8)).unwrap_err()), Errno::ENOMEM);
        assert_eq!(array.erase(cx, 0), None);
        assert_eq!(array.erase(cx, 70), Some(Value(8)));
        assert!(array.is_empty(cx));
    });
}

#[test]
fn absurd_ranges_are_answered_at_once() {
    solo(|cx| {
        let array: XArray<Value> = XArray::new(cx, "attributes");
        assert_eq!(array.reserve_range(cx, 0, 1 << 40), Err(Errno::ENOMEM));
        assert_eq!(array.reserve_range(cx, 0, u64::MAX), Err(Errno::ENOMEM));
        assert!(array.is_empty(cx));
        array.store(cx, 1 << 30, Some(Value(8))).unwrap();
        assert!(!array.all_equal(cx, 0, u64::MAX, None));
        array.erase_each(cx, 0, 1 << 40);
        assert!(array.is_empty(cx));
        array.store_range(cx, 0, u64::MAX, Some(Value(8))).unwrap();
        assert_valid(&array);
        assert_eq!(array.load(cx, u64::MAX), Some(Value(8)));
        assert!(array.all_equal(cx, 0, u64::MAX, Some(Value(8))));
    });
}

#[test]
fn a_range_without_a_path_to_its_end_stores_nothing() {
    solo(|cx| {
        let cache = Arc::new(NodeCache::new());
        let array: XArray<Value> = XArray::new_in(cx, "bindings", &cache, XaFlags::empty());
        // [1, 512] needs the top, the node of 512 and, last of all, the node of 1.
        cache.set_limit(1);
        assert_eq!(array.store_range(cx, 1, 512, Some(Value(1))), Err(Errno::ENOMEM));
        assert!(array.is_empty(cx));
        // Enough for the way to 4160 and the node of 1, not for the node of 4096 after them.
        cache.set_limit(4);
        assert_eq!(array.store_range(cx, 1, 8200, Some(Value(1))), Err(Errno::ENOMEM));
        assert_eq!((array.load(cx, 1), array.load(cx, 63), array.load(cx, 64)), (None, None, None));
        cache.set_limit(5);
        assert_eq!(array.store_range(cx, 1, 8200, Some(Value(1))), Ok(()));
        array.store_range(cx, 1, 8200, None).unwrap();
        cache.set_limit(4);
        array.store(cx, 8200, Some(Value(2))).unwrap();
        assert_eq!(array.store_range(cx, 70, 8200, Some(Value(1))), Err(Errno::ENOMEM), "no node for 70");
        assert_eq!(array.load(cx, 8200), Some(Value(2)));
        array.store_range(cx, 128, 8200, Some(Value(1))).unwrap();
        assert_eq!(array.store_range(cx, 64, 70, Some(Value(1))), Err(Errno::ENOMEM));
        assert_valid(&array);
        assert_eq!(array.store_range(cx, 7, 3, None), Err(Errno::EINVAL));
    });
}

#[test]
fn an_array_gives_its_nodes_back_to_a_shared_cache() {
    let cache = Arc::new(NodeCache::new());
    solo(|cx| {
        let kept: XArray<Value> = XArray::new_in(cx, "kept", &cache, XaFlags::empty());
        kept.store(cx, 5, Some(Value(1))).unwrap();
        let dropped: XArray<Value> = XArray::new_in(cx, "dropped", &cache, XaFlags::empty());
        dropped.store_each(cx, 0, 10_000, Some(Value(1))).unwrap();
        assert_eq!(cache.used(), 1 + dropped.node_count());
        drop(dropped);
        assert_eq!((cache.used(), cache.allocated()), (1, 1));
        assert_valid(&kept);
        assert_eq!(kept.load(cx, 5), Some(Value(1)));
    });
}
