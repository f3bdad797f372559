//! Random calls against a naive model: a flat map from pages to values and rights, without areas, page tables or huge pages.
//!
//! Beside answers and values, a *shadow* is checked: a listener that pins pages as KVM does, forgets what notifiers tell it to
//! forget, and must never remember a translation that the process does not have any more.

use proptest::prelude::*;
use sim_kernel::fs::{File, Shmem};
use sim_kernel::mm::{Advice, GupFlags, Mm, MmapArgs, MmuNotifier, PhysMem, Prot, Signal};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno, Hva, HvaRange, PAGE_SIZE, Pfn};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Pages of the anonymous mapping: two blocks, and a bit.
const ANON: u64 = 1030;
/// Pages of the file and of its two mappings.
const FILE: u64 = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Anon,
    Shared,
    Private,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Read,
    Write(u32),
    Gup(bool),
    Munmap,
    Mprotect(Prot),
    Madvise(Advice),
    Mlock,
    Mincore,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    kind: Kind,
    first: u64,
    pages: u64,
    call: Call,
}

/// What a call answers, in one type.
type Answer = Result<Option<u32>, String>;

#[derive(Clone, Copy, Default)]
struct Page {
    prot: Prot,
    locked: bool,
    /// The page's own contents, unless it shows the file's.
    own: Option<u32>,
}

struct Model {
    pages: BTreeMap<(u8, u64), Page>,
    file: [u32; FILE as usize],
}

impl Model {
    fn page(&mut self, kind: Kind, page: u64) -> Option<&mut Page> {
        self.pages.get_mut(&(kind as u8, page))
    }

    fn value(&mut self, kind: Kind, page: u64) -> u32 {
        let own = self.page(kind, page).unwrap().own;
        own.unwrap_or(if kind == Kind::Anon { 0 } else { self.file[page as usize] })
    }

    fn access(&mut self, kind: Kind, page: u64, allowed: impl Fn(Prot) -> bool) -> Result<(), Signal> {
        if self.page(kind, page).is_some_and(|page| allowed(page.prot)) { Ok(()) } else { Err(Signal::Sigsegv) }
    }

    fn run(&mut self, step: Step) -> Answer {
        let Step { kind, first, pages, call } = step;
        let range = first..first + pages;
        match call {
            Call::Read => {
                self.access(kind, first, |prot| !prot.is_empty()).map_err(|signal| format!("{signal:?}"))?;
                Ok(Some(self.value(kind, first)))
            }
            Call::Write(value) => {
                self.access(kind, first, |prot| prot.contains(Prot::WRITE)).map_err(|signal| format!("{signal:?}"))?;
                if kind == Kind::Shared {
                    self.file[first as usize] = value;
                } else {
                    self.page(kind, first).unwrap().own = Some(value);
                }
                Ok(None)
            }
            Call::Gup(write) => {
                let right = if write { Prot::WRITE } else { Prot::READ };
                self.access(kind, first, |prot| prot.contains(right)).map_err(|_| "Efault".to_string())?;
                if write && kind == Kind::Private {
                    self.page(kind, first).unwrap().own = Some(self.value(kind, first));
                }
                Ok(Some(self.value(kind, first)))
            }
            call => self.on_pages(kind, range, call).map(|()| None).map_err(|errno| format!("{errno:?}")),
        }
    }

    fn on_pages(&mut self, kind: Kind, mut range: std::ops::Range<u64>, call: Call) -> Result<(), Errno> {
        let mut hole = Ok(());
        let populates = matches!(call, Call::Madvise(Advice::PopulateRead | Advice::PopulateWrite));
        let stops = populates || matches!(call, Call::Mprotect(_) | Call::Mlock | Call::Mincore);
        for at in range.clone() {
            let mut value = self.page(kind, at).is_some().then(|| self.value(kind, at));
            let Some(page) = self.pages.get_mut(&(kind as u8, at)) else {
                hole = Err(Errno::ENOMEM);
                if stops {
                    return hole;
                }
                continue;
            };
            match call {
                Call::Munmap => {
                    self.pages.remove(&(kind as u8, at));
                }
                Call::Mprotect(prot) => {
                    page.prot = prot;
                    if page.locked && kind == Kind::Private && prot.contains(Prot::WRITE) {
                        page.own = value.take();
                    }
                }
                Call::Mlock => page.locked = true,
                Call::Madvise(Advice::Dontneed | Advice::Free | Advice::Cold | Advice::Pageout | Advice::Remove)
                    if page.locked =>
                {
                    return Err(Errno::EINVAL);
                }
                Call::Madvise(Advice::Free) if kind != Kind::Anon => return Err(Errno::EINVAL),
                Call::Madvise(Advice::Dontneed) => page.own = None,
                Call::Madvise(Advice::Remove) => match kind {
                    Kind::Anon => return Err(Errno::EINVAL),
                    Kind::Private => return Err(Errno::EACCES),
                    Kind::Shared => self.file[at as usize] = 0,
                },
                Call::Madvise(Advice::PopulateRead) if !page.prot.contains(Prot::READ) => return Err(Errno::EINVAL),
                Call::Madvise(Advice::PopulateWrite) if !page.prot.contains(Prot::WRITE) => return Err(Errno::EINVAL),
                Call::Madvise(Advice::PopulateWrite) if kind == Kind::Private => page.own = value,
                _ => {}
            }
        }
        match call {
            Call::Munmap => Ok(()),
            Call::Mlock => range.try_for_each(|at| {
                let value = self.value(kind, at);
                let page = self.page(kind, at).unwrap();
                if page.prot.is_empty() {
                    return Err(Errno::ENOMEM);
                }
                if kind == Kind::Private && page.prot.contains(Prot::WRITE) {
                    page.own = Some(value);
                }
                Ok(())
            }),
            _ => hole,
        }
    }
}

/// Translations as a second MMU holds them.
#[derive(Debug, Default)]
struct Shadow(Mutex<BTreeMap<Hva, (Pfn, bool)>>);

impl MmuNotifier for Shadow {
    fn invalidate_range_start(&self, _cx: &Cx<'_>, range: HvaRange) {
        self.0.lock().unwrap().retain(|hva, _| !(range.start <= *hva && *hva < range.end));
    }

    fn invalidate_range_end(&self, _cx: &Cx<'_>, _range: HvaRange) {}
}

struct Real {
    phys: Arc<PhysMem>,
    mm: Arc<Mm>,
    shadow: Arc<Shadow>,
    bases: [Hva; 3],
}

impl Real {
    fn run(&self, cx: &Cx<'_>, step: Step) -> Answer {
        let hva = self.bases[step.kind as usize] + step.first * PAGE_SIZE;
        let len = step.pages * PAGE_SIZE;
        let text = |errno: Errno| format!("{errno:?}");
        match step.call {
            Call::Read => self.mm.read_u32(cx, hva).map(Some).map_err(|signal| format!("{signal:?}")),
            Call::Write(value) => {
                self.mm.write_u32(cx, hva, value).map(|()| None).map_err(|signal| format!("{signal:?}"))
            }
            Call::Gup(write) => {
                let page = self.mm.get_user_page(cx, hva, GupFlags { write }).map_err(|error| format!("{error:?}"))?;
                self.shadow.0.lock().unwrap().insert(hva, (page.pfn, page.writable));
                let value = self.phys.read_u32(cx, page.pfn, 0);
                self.phys.put(cx, page.pfn);
                Ok(Some(value))
            }
            Call::Munmap => self.mm.munmap(cx, hva, len).map(|()| None).map_err(text),
            Call::Mprotect(prot) => self.mm.mprotect(cx, hva, len, prot).map(|()| None).map_err(text),
            Call::Madvise(advice) => self.mm.madvise(cx, hva, len, advice).map(|()| None).map_err(text),
            Call::Mlock => self.mm.mlock(cx, hva, len).map(|()| None).map_err(text),
            Call::Mincore => self.mm.mincore(cx, hva, len).map(|_| None).map_err(text),
        }
    }

    /// The shadow knows nothing that is not so, and no page is readable by shadow alone.
    fn check_shadow(&self, cx: &Cx<'_>) {
        let shadow = self.shadow.0.lock().unwrap().clone();
        for (hva, (pfn, writable)) in shadow {
            let page = self.mm.get_user_page_fast_only(cx, hva, writable);
            let page = page.unwrap_or_else(|| panic!("the shadow may still access {hva:?}"));
            assert_eq!(page.pfn, pfn, "the shadow has an old page at {hva:?}");
            self.phys.put(cx, pfn);
        }
    }
}

fn run(steps: &[Step]) {
    Sim::sequential().solo(|cx| {
        let phys = Arc::new(PhysMem::new(cx, 64 << 20));
        let mm = Mm::new(cx, Arc::clone(&phys));
        let shadow = Arc::new(Shadow::default());
        mm.register_notifier(cx, Arc::clone(&shadow) as Arc<dyn MmuNotifier>);
        let file = File::new(cx, Arc::new(Shmem::new(cx, Arc::clone(&phys), 1, FILE * PAGE_SIZE)));
        let map = |pages: u64, shared, file: Option<&Arc<File>>| {
            let args = MmapArgs { len: pages * PAGE_SIZE, prot: Prot::RW, shared, file, offset: 0, align: 1 << 21 };
            mm.mmap(cx, &args).unwrap()
        };
        let bases = [map(ANON, false, None), map(FILE, true, Some(&file)), map(FILE, false, Some(&file))];
        let real = Real { phys, mm, shadow, bases };
        let fresh = Page { prot: Prot::RW, ..Page::default() };
        let pages = [(Kind::Anon, ANON), (Kind::Shared, FILE), (Kind::Private, FILE)];
        let pages =
            pages.into_iter().flat_map(|(kind, n)| (0..n).map(move |page| ((kind as u8, page), fresh))).collect();
        let mut model = Model { pages, file: [0; FILE as usize] };
        for (n, step) in steps.iter().enumerate() {
            let answer = real.run(cx, *step);
            if matches!(step.call, Call::Madvise(Advice::Collapse)) {
                // What can collapse depends on page tables, which the model does not know; contents must not change.
            } else {
                assert_eq!(answer, model.run(*step), "step {n}: {step:?}");
            }
            real.check_shadow(cx);
        }
        real.mm.exit_mmap(cx);
        cx.task_work_run();
        file.put_sync(cx);
        assert_eq!(real.phys.used_frames(), real.phys.reserved_frames(), "frames leak");
        assert!(real.shadow.0.lock().unwrap().is_empty());
    });
}

fn prots() -> impl Strategy<Value = Prot> {
    prop_oneof![Just(Prot::RW), Just(Prot::RW), Just(Prot::READ), Just(Prot::empty()), Just(Prot::WRITE)]
}

fn calls() -> impl Strategy<Value = Call> {
    let advice = (0..Advice::ALL.len() - 2).prop_map(|i| Call::Madvise(Advice::ALL[i].1));
    prop_oneof![
        4 => Just(Call::Read),
        5 => (1..1000_u32).prop_map(Call::Write),
        5 => any::<bool>().prop_map(Call::Gup),
        1 => Just(Call::Munmap),
        3 => prots().prop_map(Call::Mprotect),
        5 => Just(Call::Madvise(Advice::Dontneed)),
        5 => advice,
        1 => Just(Call::Mlock),
        1 => Just(Call::Mincore),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let anon_range = prop_oneof![
        3 => (0..ANON, 1..4_u64),
        1 => Just((0, 512)),
        1 => Just((512, 512)),
        1 => Just((0, ANON)),
        1 => (0..ANON, 1..600_u64),
        2 => (508..516_u64, 1..4_u64),
    ];
    let range = prop_oneof![
        3 => anon_range.prop_map(|(first, pages)| (Kind::Anon, first, pages, ANON)),
        1 => (0..FILE, 1..FILE).prop_map(|(first, pages)| (Kind::Shared, first, pages, FILE)),
        1 => (0..FILE, 1..FILE).prop_map(|(first, pages)| (Kind::Private, first, pages, FILE)),
    ];
    (range, calls()).prop_map(|((kind, first, pages, limit), call)| {
        let first = first.min(limit - 1);
        Step { kind, first, pages: pages.min(limit - first), call }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_calls_agree_with_a_flat_model(steps in prop::collection::vec(steps(), 1..80)) {
        run(&steps);
    }
}
