//! The kernel of a TD (`gmem::linux_guest`), against a host and a module that answer what a test wants.

use gmem::kvm::tdx::protocol::{leaf, status};
use gmem::linux_guest::{Ends, Insn, Kernel, Program, TdFatal, Terminated, Trap, Unaccepted};
use sim_coco::tdx::StatusName::{PageAlreadyAccepted, PageSizeMismatch};
use sim_kernel::{PAGE_SIZE, PMD_SIZE};
use sim_mmu::{Gpa, Level};
use std::ops::Range;

const SHARED: u64 = 1 << 47;
const ACCEPTED: u64 = 0;

/// Runs code on a kernel that knows its shared bit; what it executed, and how it ended.
fn run<F>(code: impl FnOnce(Kernel) -> F, mut answer: impl FnMut(&Insn) -> Result<u64, Trap>) -> (Vec<Insn>, Ends<()>)
where
    F: Future<Output = Ends<()>> + Send + 'static,
{
    let mut program = Program::new(|cpu| code(Kernel { shared_bit: SHARED, ..Kernel::td(cpu) }));
    let (mut log, mut result) = (Vec::new(), Ok(0));
    while let Some(insn) = program.step(result) {
        result = answer(&insn);
        log.push(insn);
        assert!(log.len() < 100_000, "the kernel never ends");
    }
    (log, program.outcome().expect("it has ended"))
}

/// A host that does what it is asked, and a module with pages of this size.
fn honest(mapped: Level) -> impl FnMut(&Insn) -> Result<u64, Trap> {
    move |insn| match insn {
        Insn::TdAccept { level, .. } if *level != mapped => Ok(PageSizeMismatch.code()),
        _ => Ok(0),
    }
}

fn map_gpa(range: Range<u64>) -> Insn {
    Insn::TdVmCall { leaf: leaf::MAP_GPA, operands: [range.start, range.end - range.start, 0, 0] }
}

fn accept(gpa: u64, level: Level) -> Insn {
    Insn::TdAccept { gpa: Gpa(gpa), level }
}

const FATAL: Insn = Insn::TdVmCall { leaf: leaf::REPORT_FATAL_ERROR, operands: [0; 4] };

#[test]
fn a_mapping_is_private_only_while_the_page_is() {
    let range = Gpa(0x1000)..Gpa(0x3000);
    let (log, ended) = run(
        |kernel| async move {
            kernel.set_memory_decrypted(range.clone()).await?;
            kernel.set_memory_encrypted(range).await
        },
        honest(Level::L4K),
    );
    assert_eq!(ended, Ok(()));
    let expected = [
        Insn::SetEncrypted(Gpa(0x1000)..Gpa(0x3000), false),
        map_gpa(SHARED + 0x1000..SHARED + 0x3000),
        map_gpa(0x1000..0x3000),
        accept(0x1000, Level::L4K),
        accept(0x2000, Level::L4K),
        Insn::SetEncrypted(Gpa(0x1000)..Gpa(0x3000), true),
    ];
    assert_eq!(log, expected);
}

/// Answers of the host to MapGPA of 16 pages: status and R11. How often it was asked, and whether it succeeded in the end.
type Answers = (&'static str, &'static [(u64, u64)], usize, bool);

#[test]
fn map_gpa_is_tried_again_where_the_host_has_stopped() {
    const START: u64 = 0x10_0000;
    const R: u64 = status::RETRY;
    let cases: [Answers; 8] = [
        ("at once", &[(0, 0)], 1, true),
        ("with progress", &[(R, START + 0x4000), (R, START + 0x8000), (0, 0)], 3, true),
        ("twice without", &[(R, START), (R, START), (0, 0)], 3, true),
        ("three times without", &[(R, START), (R, START), (R, START), (0, 0)], 3, false),
        (
            "progress in between",
            &[(R, START), (R, START), (R, START + 0x1000), (R, START + 0x1000), (R, START + 0x1000), (0, 0)],
            6,
            true,
        ),
        ("before the range", &[(R, START - 0x1000), (0, 0)], 1, false),
        ("behind it", &[(R, START + 0x1_0000), (0, 0)], 1, false),
        ("refused", &[(status::INVALID_OPERAND, START), (0, 0)], 1, false),
    ];
    for (name, answers, asked, succeeds) in cases {
        let mut next = answers.iter();
        let mut r11 = 0;
        let (log, ended) = run(
            |kernel| async move { kernel.set_memory_encrypted(Gpa(START)..Gpa(START + 0x1_0000)).await },
            |insn| match insn {
                Insn::TdVmCall { leaf: leaf::MAP_GPA, .. } => {
                    let (status, next) = next.next().expect("no answer is left");
                    r11 = *next;
                    Ok(*status)
                }
                Insn::ReadRax => Ok(r11),
                Insn::TdAccept { .. } => Ok(ACCEPTED),
                _ => Ok(0),
            },
        );
        let calls = log.iter().filter(|insn| matches!(insn, Insn::TdVmCall { leaf: leaf::MAP_GPA, .. })).count();
        assert_eq!(calls, asked, "{name}");
        assert_eq!(ended, if succeeds { Ok(()) } else { Err(Terminated::Td(TdFatal::Convert)) }, "{name}");
        // It goes on where the host has stopped, up to the same end.
        let last = log.iter().rev().find_map(|insn| match insn {
            Insn::TdVmCall { leaf: leaf::MAP_GPA, operands } => Some(operands[0] + operands[1]),
            _ => None,
        });
        assert_eq!(last, Some(START + 0x1_0000), "{name}");
    }
}

#[test]
fn the_largest_page_is_tried_first() {
    let accepts = |range: Range<u64>, mapped: Level| {
        let (log, ended) = run(
            |kernel| async move { kernel.arch_accept_memory(Gpa(range.start)..Gpa(range.end)).await },
            honest(mapped),
        );
        assert_eq!(ended, Ok(()), "{mapped:?}");
        let levels = |wanted: Level| {
            log.iter().filter(|insn| matches!(insn, Insn::TdAccept { level, .. } if *level == wanted)).count()
        };
        [Level::L1G, Level::L2M, Level::L4K].map(levels)
    };
    // 1 GiB is a call in vain; so is 2 MiB where the host has small pages, once for each of them.
    assert_eq!(accepts(0..1 << 30, Level::L2M), [1, 512, 0]);
    assert_eq!(accepts(0..PMD_SIZE, Level::L4K), [0, 1, 512]);
    assert_eq!(accepts(0x1000..PMD_SIZE + 0x1000, Level::L4K), [0, 0, 512]);
    assert_eq!(accepts(PMD_SIZE - 0x1000..2 * PMD_SIZE, Level::L4K), [0, 1, 513]);
}

#[test]
fn a_page_that_was_accepted_before_ends_the_guest() {
    let (log, ended) = run(
        |kernel| async move { kernel.arch_accept_memory(Gpa(0)..Gpa(2 * PAGE_SIZE)).await },
        |insn| match insn {
            Insn::TdAccept { gpa: Gpa(PAGE_SIZE), .. } => Ok(PageAlreadyAccepted.code()),
            _ => Ok(0),
        },
    );
    assert_eq!(ended, Err(Terminated::Td(TdFatal::Accept)));
    assert_eq!(log.last(), Some(&FATAL));
}

#[test]
fn ve_about_private_memory_ends_the_guest() {
    let place = gmem::linux_guest::Place::private(Gpa(0x5000));
    let (log, ended) = run(
        |kernel| async move { kernel.cpu.read(place).await.map(drop) },
        |insn| if *insn == Insn::Read(place) { Err(Trap::Ve { gpa: Gpa(0x5000) }) } else { Ok(0) },
    );
    assert_eq!(ended, Err(Terminated::Td(TdFatal::Ve)));
    assert_eq!(log, [Insn::Read(place), FATAL]);
}

#[test]
fn a_td_insists_that_pending_memory_raises_no_ve() {
    const SEPT_VE_DISABLE: u64 = 1 << 28;
    let refused = sim_coco::tdx::StatusName::OperandInvalid.code();
    // Attributes; what the module says to the guest's own choice; whether it goes on.
    for (attributes, chosen, goes_on) in [(SEPT_VE_DISABLE, refused, true), (0, 0, true), (0, refused, false)] {
        let (_, ended) = run(
            |mut kernel| async move {
                kernel.set_up_td().await?;
                assert_eq!(kernel.shared_bit, 1 << 51);
                Ok(())
            },
            |insn| match insn {
                Insn::TdVpInfo => Ok(52),
                Insn::ReadRax => Ok(attributes),
                Insn::TdSetPendingVeDisable => Ok(chosen),
                _ => Ok(0),
            },
        );
        assert_eq!(ended, if goes_on { Ok(()) } else { Err(Terminated::Td(TdFatal::SeptVe)) });
    }
}

/// A unit is accepted with the one behind it, which a load of a word may reach; what was accepted is not accepted again.
#[test]
fn unaccepted_memory_is_accepted_once() {
    let table = Unaccepted { phys_base: Gpa(0), unit_size: Unaccepted::UNIT, units: 8, data: Gpa(0x1000) };
    let mut memory = std::collections::BTreeMap::from([(0x1008, 0xf0_u64)]);
    let (log, ended) = run(
        |mut kernel| async move {
            kernel.unaccepted = Some(table);
            kernel.accept_memory(Gpa(4 * PMD_SIZE)..Gpa(5 * PMD_SIZE)).await?;
            kernel.accept_memory(Gpa(5 * PMD_SIZE)..Gpa(6 * PMD_SIZE)).await
        },
        move |insn| match insn {
            Insn::TdAccept { .. } => Ok(ACCEPTED),
            Insn::Read(place) => Ok(memory.get(&place.gpa.0).copied().unwrap_or(0)),
            Insn::Write(place, value) => Ok(memory.insert(place.gpa.0, *value).map_or(0, |_| 0)),
            Insn::Release(gpa, value) => Ok(memory.insert(gpa.0, *value).map_or(0, |_| 0)),
            _ => Ok(0),
        },
    );
    assert_eq!(ended, Ok(()));
    let accepted: Vec<_> = log.into_iter().filter(|insn| matches!(insn, Insn::TdAccept { .. })).collect();
    assert_eq!(accepted, [4, 5, 6].map(|unit| accept(unit * PMD_SIZE, Level::L2M)));
}
