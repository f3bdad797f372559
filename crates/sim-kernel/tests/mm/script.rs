//! A small language for the rules of host memory: one operation a line, with its answer and the notifiers that it raised.
//!
//! ```text
//! mmap m 1024 rw align 512    -> ok
//! write m+5 7                 -> ok
//! dontneed m+5 1              -> ok ! m+5,1 m+0,512
//! ```
//! Addresses are a mapping's name and a page number, lengths are pages; after `!` come the ranges of the notifiers' starts.

use sim_kernel::fs::{File, FileOperations, Shmem};
use sim_kernel::mm::{Advice, GupFlags, HostLevel, Mm, MmapArgs, MmuNotifier, PhysMem, Prot};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno, Hva, HvaRange, PAGE_SIZE, Pgoff};
use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::sync::{Arc, Mutex};

use super::guest_file::GuestFile;

/// Writes down starts, and checks that ends match them like brackets.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) starts: Mutex<Vec<HvaRange>>,
    open: Mutex<Vec<HvaRange>>,
}

impl MmuNotifier for Recorder {
    fn invalidate_range_start(&self, _cx: &Cx<'_>, range: HvaRange) {
        self.starts.lock().unwrap().push(range);
        self.open.lock().unwrap().push(range);
    }

    fn invalidate_range_end(&self, _cx: &Cx<'_>, range: HvaRange) {
        assert_eq!(self.open.lock().unwrap().pop(), Some(range), "ends match starts");
    }
}

struct Machine {
    phys: Arc<PhysMem>,
    mm: Arc<Mm>,
    recorder: Arc<Recorder>,
    maps: BTreeMap<String, (Hva, u64)>,
    files: BTreeMap<String, Arc<File>>,
}

fn number(text: &str) -> u64 {
    match text {
        "max" => u64::MAX / PAGE_SIZE,
        _ => text.parse().unwrap_or_else(|_| panic!("a number, not {text}")),
    }
}

fn answer<T, E: Debug>(result: Result<T, E>, ok: impl Fn(T) -> String) -> String {
    match result {
        Ok(value) => ok(value),
        Err(error) => format!("{error:?}"),
    }
}

fn done<T>(_: T) -> String {
    "ok".to_string()
}

impl Machine {
    fn address(&self, text: &str) -> Hva {
        let (name, page) = text.split_once('+').unwrap_or((text, "0"));
        // `m+3.5` is half a page into page 3.
        let (page, half) = page.strip_suffix(".5").map_or((page, 0), |page| (page, PAGE_SIZE / 2));
        let base = self.maps.get(name).map_or(0, |map| map.0.0);
        Hva(base + number(page) * PAGE_SIZE + half)
    }

    fn name(&self, range: HvaRange) -> String {
        let pages = range.len() / PAGE_SIZE;
        let inside =
            |(_, map): &(&String, &(Hva, u64))| map.0 <= range.start && range.start < map.0 + map.1 * PAGE_SIZE;
        match self.maps.iter().find(inside) {
            Some((name, map)) => format!("{name}+{},{pages}", (range.start - map.0) / PAGE_SIZE),
            None => format!("{range:?}"),
        }
    }

    fn run(&mut self, cx: &Cx<'_>, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mm = Arc::clone(&self.mm);
        let hva = words.get(1).map_or(Hva(0), |word| self.address(word));
        let len = || number(words[2]).wrapping_mul(PAGE_SIZE);
        match words[0] {
            "mmap" => {
                let option = |name: &str| words.iter().position(|word| *word == name).map(|at| words[at + 1]);
                let prot = if words[3] == "-" { Prot::empty() } else { Prot::from_letters(words[3]).unwrap() };
                let args = MmapArgs {
                    len: len(),
                    prot,
                    shared: words.contains(&"shared"),
                    file: option("file").map(|name| &self.files[name]),
                    offset: option("offset").map_or(0, number).wrapping_mul(PAGE_SIZE),
                    align: option("align").map_or(512, number) * PAGE_SIZE,
                };
                let result = mm.mmap(cx, &args);
                if let Ok(hva) = result {
                    assert_eq!(hva.0 % args.align, 0);
                    self.maps.insert(words[1].to_string(), (hva, number(words[2])));
                }
                answer(result, done)
            }
            "memfd" | "gmem" => {
                let shmem = Shmem::new(cx, Arc::clone(&self.phys), 1, len());
                let operations: Arc<dyn FileOperations> =
                    if words[0] == "gmem" { Arc::new(GuestFile(shmem)) } else { Arc::new(shmem) };
                self.files.insert(words[1].to_string(), File::new(cx, operations));
                done(())
            }
            "ftruncate" => answer(self.files[words[1]].operations().truncate(cx, len()), done),
            "punch" | "allocate" => {
                let mode = if words[0] == "punch" { 3 } else { 1 };
                let operations = self.files[words[1]].operations();
                answer(operations.fallocate(cx, mode, number(words[2]) * PAGE_SIZE, number(words[3]) * PAGE_SIZE), done)
            }
            "unmap" => {
                // What a truncation does with one page; nobody else is there that the folio lock would keep away.
                self.files[words[1]].operations().i_mmap().unwrap().unmap_page(cx, Pgoff(number(words[2])));
                done(())
            }
            "refs" => self.files[words[1]].references().to_string(),
            "mappings" => self.files[words[1]].operations().i_mmap().unwrap().mapping_count(cx).to_string(),
            "munmap" => answer(mm.munmap(cx, hva, len()), done),
            "mlock" => answer(mm.mlock(cx, hva, len()), done),
            "mprotect" => {
                let prot = if words[3] == "-" { Prot::empty() } else { Prot::from_letters(words[3]).unwrap() };
                answer(mm.mprotect(cx, hva, len(), prot), done)
            }
            "mincore" => answer(mm.mincore(cx, hva, len()), |resident| {
                (0..len().div_ceil(4096)).map(|page| if resident.contains(&page) { '1' } else { '0' }).collect()
            }),
            "read" => answer(mm.read_u32(cx, hva), |value| value.to_string()),
            "write" => answer(mm.write_u32(cx, hva, number(words[2]) as u32), done),
            "gup" => {
                let page = mm.get_user_page(cx, hva, GupFlags { write: words[2] == "w" });
                answer(page, |page| {
                    self.phys.put(cx, page.pfn);
                    if page.writable { "rw" } else { "r" }.to_string()
                })
            }
            "fast" => mm.get_user_page_fast_only(cx, hva, words[2] == "w").map_or("none".to_string(), |page| {
                self.phys.put(cx, page.pfn);
                if page.writable { "rw" } else { "r" }.to_string()
            }),
            "level" => match mm.host_mapping_level(cx, hva) {
                HostLevel::Page4K => "4K".to_string(),
                HostLevel::Page2M => "2M".to_string(),
            },
            "free" => {
                // Leaves so many frames that later allocations fail.
                let keep = number(words[1]);
                while self.phys.free_frames() > keep {
                    let _ = self.phys.alloc().unwrap();
                }
                done(())
            }
            advice => {
                let advice = Advice::from_name(advice).unwrap_or_else(|| panic!("an operation, not {line}"));
                answer(mm.madvise(cx, hva, len(), advice), done)
            }
        }
    }
}

fn render(call: &dyn Display, answer: &str, notifiers: &[String]) -> String {
    match notifiers {
        [] => format!("{call} -> {answer}"),
        _ => format!("{call} -> {answer} ! {}", notifiers.join(" ")),
    }
}

/// Runs a script and compares every line; at the end nothing may be left but the zero pages and what `free` took.
pub(crate) fn check(script: &str) {
    Sim::sequential().solo(|cx| {
        let phys = Arc::new(PhysMem::new(cx, 64 << 20));
        let mm = Mm::new(cx, Arc::clone(&phys));
        let recorder = Arc::new(Recorder::default());
        mm.register_notifier(cx, Arc::clone(&recorder) as Arc<dyn MmuNotifier>);
        let mut machine = Machine { phys, mm, recorder, maps: BTreeMap::new(), files: BTreeMap::new() };
        let mut expected = String::new();
        let mut seen = String::new();
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let Some((call, _)) = line.split_once("->") else { panic!("no answer in {line}") };
            let call = call.split_whitespace().collect::<Vec<_>>().join(" ");
            let answer = machine.run(cx, &call);
            cx.task_work_run();
            let starts = std::mem::take(&mut *machine.recorder.starts.lock().unwrap());
            let notifiers: Vec<String> = starts.into_iter().map(|range| machine.name(range)).collect();
            seen += &(render(&call, &answer, &notifiers).trim().to_string() + "\n");
            expected += &(line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n");
        }
        assert!(seen == expected, "\nseen:\n{seen}\nexpected:\n{expected}");
        machine.mm.exit_mmap(cx);
        cx.task_work_run();
        for file in machine.files.values() {
            assert_eq!(file.references(), 1, "areas give back their references");
            file.put_sync(cx);
        }
        if !script.contains("free ") {
            assert_eq!(machine.phys.used_frames(), machine.phys.reserved_frames(), "frames leak");
        }
        assert!(machine.mm.mmap(cx, &MmapArgs { len: 0, ..anonymous() }) == Err(Errno::EINVAL));
    });
}

fn anonymous() -> MmapArgs<'static> {
    MmapArgs { len: PAGE_SIZE, prot: Prot::RW, shared: false, file: None, offset: 0, align: PAGE_SIZE }
}
