//! SN-153 to SN-158, and the walk over any list, with any answers, beside a guest that changes it.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

const BYTES: u64 = 2032;
const P: PageOp = PageOp::Private;
const S: PageOp = PageOp::Shared;

/// A list in memory. `surprises` are writes of the guest: before the access with this number, a quadword becomes another.
#[derive(Clone, Default)]
struct List {
    words: Vec<u64>,
    surprises: Vec<(u32, u16, u64)>,
    accesses: u32,
}

impl List {
    fn new(cur_entry: u16, entries: &[PscEntry]) -> List {
        let end_entry = (entries.len() as u16).wrapping_sub(1);
        let header = PscHeader { cur_entry, end_entry, reserved: 0 };
        let mut words = vec![header.to_word()];
        words.extend(entries.iter().map(|entry| entry.to_word()));
        words.resize(1 + usize::from(MAX_COUNT), 0);
        List { words, ..List::default() }
    }

    fn header(&self) -> PscHeader {
        PscHeader::from_word(self.words[0])
    }

    fn access(&mut self) {
        for &(at, word, value) in &self.surprises {
            if at == self.accesses {
                self.words[usize::from(word)] = value;
            }
        }
        self.accesses += 1;
    }
}

impl PscBuffer for List {
    fn read(&mut self, word: u16) -> u64 {
        self.access();
        self.words[usize::from(word)]
    }

    fn write(&mut self, word: u16, value: u64) {
        self.access();
        self.words[usize::from(word)] = value;
    }
}

/// The whole walk with these answers of user space, which then says yes: the exits that succeeded, and the end.
fn walk(list: &mut List, answers: &[bool]) -> (Vec<PscExit>, Result<(), PscError>) {
    let mut answers = answers.iter().copied().chain(std::iter::repeat(true));
    let (mut psc, mut step) = Psc::begin(list, BYTES, PscRules::ALL);
    let mut done = Vec::new();
    loop {
        match step {
            PscStep::Done(result) => return (done, result),
            PscStep::Exit(exit) => {
                assert!(done.len() <= usize::from(MAX_COUNT), "there is no end");
                let converted = answers.next().unwrap();
                if converted {
                    done.push(exit);
                }
                step = psc.complete(list, converted, PscRules::ALL);
            }
        }
    }
}

fn small(gfn: u64, op: PageOp) -> PscEntry {
    PscEntry::new(Gfn(gfn), op, false)
}

fn huge(gfn: u64, op: PageOp) -> PscEntry {
    PscEntry::new(Gfn(gfn), op, true)
}

/// What user space sees of a list: gfn, pages, 2M flag.
fn exits(entries: &[PscEntry]) -> Vec<(u64, u64, bool)> {
    let (exits, result) = walk(&mut List::new(0, entries), &[]);
    assert_eq!(result, Ok(()));
    exits.into_iter().map(|exit| (exit.gfn.0, exit.npages, exit.says_2m)).collect()
}

#[test]
fn sn_153_neighbours_become_one_exit() {
    let ten: Vec<_> = (0..10).map(|i| small(0x100 + i, P)).collect();
    assert_eq!(exits(&ten), [(0x100, 10, false)]);
    assert_eq!(exits(&[huge(0x200, S), huge(0x400, S)]), [(0x200, 1024, true)]);
    assert_eq!(exits(&[small(1, P), small(3, P)]), [(1, 1, false), (3, 1, false)]);
    assert_eq!(exits(&[small(1, P), small(2, S)]), [(1, 1, false), (2, 1, false)]);
    assert_eq!(exits(&[small(0x1ff, P), huge(0x200, P)]), [(0x1ff, 1, false), (0x200, 512, true)]);
    assert_eq!(exits(&[huge(0x200, P), small(0x400, P)]), [(0x200, 512, true), (0x400, 1, false)]);
    // Downwards is not adjacent.
    assert_eq!(exits(&[small(2, P), small(1, P)]), [(2, 1, false), (1, 1, false)]);
}

#[test]
fn sn_154_a_failure_names_its_entry_and_the_guest_goes_on_from_there() {
    let mut list = List::new(0, &[small(1, P), small(3, P), small(5, P)]);
    let (done, result) = walk(&mut list, &[true, false]);
    assert_eq!((done.len(), result), (1, Err(PscError::Generic)));
    assert_eq!(exit_info_2(result), 0x100 << 32);
    assert_eq!(list.header().cur_entry, 1);
    let (done, result) = walk(&mut list, &[]);
    assert_eq!(result, Ok(()));
    assert_eq!(done.iter().map(|exit| exit.gfn.0).collect::<Vec<_>>(), [3, 5]);
    assert_eq!(list.header().cur_entry, 3);
    assert!(list.words[1..4].iter().all(|word| PscEntry::from_word(*word).cur_page == 1));
}

#[test]
fn sn_155_headers_and_entries_that_are_wrong() {
    let end = |end_entry: u16, bytes: u64| {
        let mut list = List::new(0, &[small(1, P)]);
        list.words[0] = PscHeader { cur_entry: 0, end_entry, reserved: 0 }.to_word();
        Psc::begin(&mut list, bytes, PscRules::ALL).1
    };
    assert_eq!(end(MAX_COUNT, BYTES), PscStep::Done(Err(PscError::InvalidHeader)));
    assert_eq!(end(u16::MAX, BYTES), PscStep::Done(Err(PscError::InvalidHeader)));
    assert!(matches!(end(MAX_COUNT - 1, BYTES), PscStep::Exit(_)));
    // A header alone has room for nothing.
    for bytes in [8, 15] {
        assert_eq!(end(0, bytes), PscStep::Done(Err(PscError::InvalidHeader)));
    }
    assert!(matches!(end(0, 16), PscStep::Exit(_)));
    assert_eq!(PscError::InvalidHeader.code(), 0x1_0000_0001);

    assert_eq!(walk(&mut List::new(1, &[small(1, P)]), &[]), (vec![], Ok(())));
    assert_eq!(walk(&mut List::new(u16::MAX, &[small(1, P)]), &[]), (vec![], Ok(())));

    for wrong in [huge(0x201, P), PscEntry { cur_page: 513, ..huge(0x200, P) }, PscEntry { cur_page: 2, ..small(1, P) }]
    {
        let mut list = List::new(0, &[small(9, P), wrong]);
        let (done, result) = walk(&mut list, &[]);
        assert_eq!((done.len(), exit_info_2(result)), (1, 0x1_0000_0002));
        assert_eq!(list.header().cur_entry, 1);
    }
}

#[test]
fn sn_154_a_batch_without_an_answer_fails_the_next_list() {
    let mut list = List::new(0, &[PscEntry::new(Gfn(1), S, false)]);
    let (left, step) = Psc::begin(&mut list, BYTES, PscRules::ALL);
    assert!(matches!(step, PscStep::Exit(_)));
    let (_, next) = left.begin_again(&mut list, BYTES, PscRules::ALL);
    assert_eq!(next, PscStep::Done(Err(PscError::Generic)));
    // The header is looked at before.
    list.words[0] = PscHeader { cur_entry: 0, end_entry: MAX_COUNT, reserved: 0 }.to_word();
    let (_, next) = left.begin_again(&mut list, BYTES, PscRules::ALL);
    assert_eq!(next, PscStep::Done(Err(PscError::InvalidHeader)));
}

#[test]
fn sn_156_hints_are_done_without_an_exit() {
    let hint = |gfn: u64, op: u8| PscEntry { op, ..small(gfn, P) };
    let mut list = List::new(0, &[hint(1, 3), hint(2, 3), hint(3, 4), hint(9, 15), small(4, S)]);
    let (done, result) = walk(&mut list, &[]);
    assert_eq!((done.len(), result), (1, Ok(())));
    assert_eq!(list.header().cur_entry, 5);
    assert!(list.words[1..6].iter().all(|word| PscEntry::from_word(*word).cur_page == 1));
}

#[test]
fn sn_157_what_is_left_of_2m_says_2m_and_is_not_merged_as_such() {
    let part = PscEntry { cur_page: 100, ..huge(0x200, P) };
    assert_eq!(exits(&[part]), [(0x200 + 100, 412, true)]);
    assert_eq!(exits(&[part, huge(0x400, P)]), [(0x200 + 100, 412, true), (0x400, 512, true)]);
    // What really follows is not taken ...
    assert_eq!(exits(&[part, small(0x400, P)]), [(0x200 + 100, 412, true), (0x400, 1, false)]);
    // ... and a page inside of it is: the exit ends one page too late.
    assert_eq!(exits(&[part, small(0x200 + 412, P)]), [(0x200 + 100, 413, true)]);
    // What is done already is skipped.
    let all = PscEntry { cur_page: 512, ..huge(0x200, P) };
    let mut list = List::new(0, &[all, small(0x400, P)]);
    assert_eq!(walk(&mut list, &[]).0.len(), 1);
    assert_eq!(list.header().cur_entry, 2);
}

#[test]
fn sn_158_a_list_that_changes_is_walked_by_the_copies() {
    // While user space works on the first entry, the header grows, moves back, and entries change.
    let mut list = List::new(0, &[small(1, P), small(3, P)]);
    let (mut psc, step) = Psc::begin(&mut list, BYTES, PscRules::ALL);
    assert!(matches!(step, PscStep::Exit(exit) if exit.gfn == Gfn(1)));
    list.words[0] = PscHeader { cur_entry: 0xffff, end_entry: 0xffff, reserved: 7 }.to_word();
    list.words[2] = huge(0x600, S).to_word();
    let step = psc.complete(&mut list, true, PscRules::ALL);
    assert!(matches!(step, PscStep::Exit(PscExit { gfn: Gfn(0x600), npages: 512, op: PageOp::Shared, .. })));
    list.words[2] = PscEntry { cur_page: 600, ..huge(0x600, S) }.to_word();
    assert_eq!(psc.complete(&mut list, true, PscRules::ALL), PscStep::Done(Ok(())));
    assert_eq!(list.header().cur_entry, 2);
}

#[test]
#[should_panic(expected = "SNP-INV-034: entry 253 of a list with room for 253 is used")]
fn sn_158_without_the_copy_of_end_the_walk_leaves_the_list() {
    let mut list = List::new(0, &[small(1, P)]);
    let rules = PscRules { keeps_end: false, ..PscRules::ALL };
    let (mut psc, mut step) = Psc::begin(&mut list, BYTES, rules);
    list.words[0] = PscHeader { cur_entry: 0, end_entry: 0xffff, reserved: 0 }.to_word();
    list.words[2..].fill(PscEntry { op: 3, ..small(1, P) }.to_word());
    while let PscStep::Exit(_) = step {
        step = psc.complete(&mut list, true, rules);
    }
}

#[test]
#[should_panic(expected = "SNP-INV-034")]
fn sn_155_without_the_check_of_room_the_walk_leaves_the_list() {
    let mut list = List::new(0, &[]);
    list.words[0] = PscHeader { cur_entry: 300, end_entry: 300, reserved: 0 }.to_word();
    Psc::begin(&mut list, BYTES, PscRules { checks_room: false, ..PscRules::ALL });
}

/// Entries that often are neighbours, are done in part, or are wrong.
fn entry() -> impl Strategy<Value = PscEntry> {
    let page = (0u64..12, 0u16..3).prop_map(|(gfn, cur_page)| PscEntry { cur_page, ..small(gfn, P) });
    let large = (0u64..4, prop::sample::select(vec![0u16, 0, 0, 1, 100, 511, 512, 513]), 0u64..8)
        .prop_map(|(i, cur_page, off)| PscEntry { cur_page, ..huge(i * 512 + u64::from(off == 7), P) });
    let edge = prop::sample::select(vec![511u64, 512, 412, 0x100_0000]).prop_map(|gfn| small(gfn, P));
    (prop_oneof![4 => page, 3 => large, 1 => edge], prop::sample::select(vec![1u8, 1, 1, 2, 2, 3, 4, 0, 15]))
        .prop_map(|(entry, op)| PscEntry { op, ..entry })
}

/// A run of neighbours, which random entries seldom make.
fn run() -> impl Strategy<Value = Vec<PscEntry>> {
    (0u64..3, 1u64..6, any::<bool>(), 0u16..2).prop_map(|(start, count, is_2m, done)| {
        let size = if is_2m { 512 } else { 1 };
        let mut run: Vec<_> = (0..count).map(|i| PscEntry::new(Gfn((start + i) * size), S, is_2m)).collect();
        run[0].cur_page = if done == 1 && is_2m { 300 } else { 0 };
        run
    })
}

fn entries() -> impl Strategy<Value = Vec<PscEntry>> {
    vec(prop_oneof![entry().prop_map(|entry| vec![entry]), run()], 1..12).prop_map(|runs| runs.concat())
}

fn pages(gfn: u64, npages: u64, op: u8) -> impl Iterator<Item = (u64, u8)> {
    (gfn..gfn + npages).map(move |gfn| (gfn, op))
}

/// The pages that the entries ask for, one entry after the other without any merging, up to the first that is wrong; and whether Linux's comparison of an
/// entry that is done in part with its successor takes the wrong one.
fn naive(cur: u16, entries: &[PscEntry]) -> (Vec<(u64, u8)>, Result<(), PscError>, bool) {
    let mut asked = Vec::new();
    let mut quirk = false;
    for (i, entry) in entries.iter().enumerate().skip(usize::from(cur)) {
        let done = u64::from(entry.cur_page);
        if done > entry.npages() || !entry.gfn.0.is_multiple_of(entry.npages()) {
            return (asked, Err(PscError::InvalidEntry), quirk);
        }
        let left = entry.npages() - done;
        if PageOp::of(entry.op).is_some() {
            asked.extend(pages(entry.gfn.0 + done, left, entry.op));
        }
        let next = entries.get(i + 1).filter(|next| !next.is_2m && next.cur_page == 0 && next.op == entry.op);
        quirk |= done > 0 && left > 0 && next.is_some_and(|next| next.gfn == entry.gfn + left);
    }
    (asked, Ok(()), quirk)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, max_global_rejects: 100_000, ..ProptestConfig::default() })]

    /// SNP-INV-034: what user space is asked, in order, is what the guest asks, page by page.
    #[test]
    fn snp_inv_034_each_page_is_asked_for_once(cur in 0u16..4, entries in entries()) {
        let (asked, expected, quirk) = naive(cur, &entries);
        prop_assume!(!quirk);
        let (exits, result) = walk(&mut List::new(cur, &entries), &[]);
        let seen: Vec<_> = exits.iter().flat_map(|exit| pages(exit.gfn.0, exit.npages, exit.op as u8)).collect();
        prop_assert_eq!(seen, asked);
        prop_assert_eq!(result, expected);
    }

    /// With an answer that is no, what was done is a beginning of what was asked, and a second request does exactly the rest.
    #[test]
    fn snp_inv_034_a_retry_does_the_rest(entries in entries(), answers in vec(any::<bool>(), 0..8)) {
        let (asked, expected, quirk) = naive(0, &entries);
        prop_assume!(!quirk && expected == Ok(()));
        let mut list = List::new(0, &entries);
        let mut seen = Vec::new();
        let mut result = Err(PscError::Generic);
        for answers in [&answers[..], &[]] {
            let (exits, end) = walk(&mut list, answers);
            seen.extend(exits.iter().flat_map(|exit| pages(exit.gfn.0, exit.npages, exit.op as u8)));
            prop_assert!(asked.starts_with(&seen), "{seen:?} of {asked:?}");
            result = end;
            if end == Ok(()) {
                break;
            }
        }
        prop_assert_eq!(seen, asked);
        prop_assert_eq!(result, Ok(()));
    }

    /// Whatever the buffer holds and whatever the guest writes meanwhile: the walk ends, after at most as many exits as there is room for, and uses nothing
    /// beyond (the list's index would panic). Each exit is as long as its entries.
    #[test]
    fn sn_158_any_list_that_changes_at_any_time_is_walked_within_bounds(
        mut words in vec(any::<u64>(), 254),
        header in prop_oneof![any::<u64>(), (0u64..300, 0u64..300).prop_map(|(cur, end)| cur | end << 16)],
        sane in vec(entry(), 0..253),
        surprises in vec((0u32..800, 0u16..254, prop_oneof![any::<u64>(), entry().prop_map(PscEntry::to_word)]), 0..60),
        answers in vec(prop::bool::weighted(0.97), 0..253),
        bytes in prop_oneof![Just(BYTES), 8u64..BYTES],
    ) {
        words[0] = header;
        for (word, entry) in words[1..].iter_mut().zip(sane) {
            *word = entry.to_word();
        }
        words.truncate((bytes / WORD) as usize);
        let room = words.len() - 1;
        let surprises = surprises.into_iter().filter(|(_, word, _)| usize::from(*word) < words.len()).collect();
        let mut list = List { words, surprises, accesses: 0 };
        let mut answers = answers.into_iter().chain(std::iter::repeat(true));
        let (mut psc, mut step) = Psc::begin(&mut list, bytes, PscRules::ALL);
        let (mut exits, mut merged) = (0, 0);
        while let PscStep::Exit(exit) = step {
            exits += 1;
            merged += usize::from(psc.batch_size());
            prop_assert!(merged <= room, "{exits} exits for {merged} entries");
            prop_assert!(exit.npages >= 1 && exit.npages <= 512 * u64::from(psc.batch_size()));
            step = psc.complete(&mut list, answers.next().unwrap(), PscRules::ALL);
        }
    }
}
