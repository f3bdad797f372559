//! NUMA policies of a file: what is asked for is reported, and pages lie where it says.

use super::super::Outcome;
use super::super::cases::{Case, With, each_flags_of};
use super::super::expect::{Failure, equal, errno, ok};
use super::PAGES;
use crate::{GuestMemfd, MachineConfig, Mapping};
use sim_kernel::mm::{Mempolicy, MempolicyMode};
use sim_kernel::{Errno, PAGE_SIZE};
use std::ops::Range;

const SIZE: u64 = PAGES * PAGE_SIZE;
const DEFAULT: u32 = MempolicyMode::Default as u32;
const BIND: u32 = MempolicyMode::Bind as u32;
const INTERLEAVE: u32 = MempolicyMode::Interleave as u32;
/// Masks of the two nodes.
const NODE0: u64 = 1 << 0;
const NODE1: u64 = 1 << 1;

/// A row about a mapped file on a host with two nodes.
fn mapped(with: With, row: impl Fn(&Case<'_, '_>, &GuestMemfd, &Mapping) -> Result<(), Failure>) -> Outcome {
    let config = MachineConfig { nodes: 2, ..MachineConfig::default() };
    each_flags_of(&config, with, |case, flags| {
        let memory = case.create(SIZE, flags)?;
        let mapping = case.map(&memory, SIZE)?;
        row(case, &memory, &mapping)
    })
}

fn mbind(case: &Case<'_, '_>, mapping: &Mapping, pages: Range<u64>, mode: u32, nodes: u64) -> Result<(), Failure> {
    let len = (pages.end - pages.start) * PAGE_SIZE;
    ok("mbind", case.process.mbind(case.cx, mapping.addr() + pages.start * PAGE_SIZE, len, mode, nodes))
}

/// Touches every page and looks where it lies.
fn expect_nodes(case: &Case<'_, '_>, mapping: &Mapping, expected: [u32; PAGES as usize]) -> Result<(), Failure> {
    for (at, node) in (0..SIZE).step_by(PAGE_SIZE as usize).zip(expected) {
        ok("host write", mapping.write_u64(case.cx, at, 1))?;
        let found = ok("move_pages", case.process.page_node(case.cx, mapping.addr() + at))?;
        equal(format_args!("node of page {}", at / PAGE_SIZE), found, node)?;
    }
    Ok(())
}

/// The pages are on node 0; then a hole, and policies for either half.
fn placing(row: impl Fn(&Case<'_, '_>, &GuestMemfd, &Mapping) -> Result<(), Failure>) -> Outcome {
    mapped(With::SharedMmap, |case, memory, mapping| {
        expect_nodes(case, mapping, [0; PAGES as usize])?;
        // What is there already stays where it is.
        mbind(case, mapping, 0..1, BIND, NODE0)?;
        mbind(case, mapping, 1..2, BIND, NODE1)?;
        expect_nodes(case, mapping, [0; PAGES as usize])?;
        ok("PUNCH_HOLE", memory.punch_hole(case.cx, 0, SIZE))?;
        mbind(case, mapping, 0..2, BIND, NODE1)?;
        mbind(case, mapping, 2..4, BIND, NODE0)?;
        expect_nodes(case, mapping, [1, 1, 0, 0])?;
        row(case, memory, mapping)
    })
}

pub(super) fn placed() -> Outcome {
    placing(|_, _, _| Ok(()))
}

pub(super) fn swapped() -> Outcome {
    placing(|case, memory, mapping| {
        ok("PUNCH_HOLE", memory.punch_hole(case.cx, 0, SIZE))?;
        mbind(case, mapping, 0..2, BIND, NODE0)?;
        mbind(case, mapping, 2..4, BIND, NODE1)?;
        expect_nodes(case, mapping, [0, 0, 1, 1])
    })
}

/// What `get_mempolicy` says of each page.
fn expect_policies(
    case: &Case<'_, '_>,
    mapping: &Mapping,
    pages: Range<u64>,
    expected: Mempolicy,
) -> Result<(), Failure> {
    for page in pages {
        let found = ok("get_mempolicy", case.process.get_mempolicy(case.cx, mapping.addr() + page * PAGE_SIZE))?;
        equal(format_args!("policy of page {page}"), found, expected)?;
    }
    Ok(())
}

pub(super) fn interleave() -> Outcome {
    mapped(With::Mmap, |case, _, mapping| {
        mbind(case, mapping, 0..2, INTERLEAVE, NODE0)?;
        let expected = Mempolicy { mode: MempolicyMode::Interleave, nodes: NODE0 };
        expect_policies(case, mapping, 0..2, expected)?;
        expect_policies(case, mapping, 2..4, Mempolicy::default())
    })
}

pub(super) fn bind() -> Outcome {
    mapped(With::Mmap, |case, _, mapping| {
        mbind(case, mapping, 2..4, BIND, NODE0)?;
        expect_policies(case, mapping, 2..4, Mempolicy { mode: MempolicyMode::Bind, nodes: NODE0 })?;
        expect_policies(case, mapping, 0..2, Mempolicy::default())
    })
}

pub(super) fn default() -> Outcome {
    mapped(With::Mmap, |case, _, mapping| {
        mbind(case, mapping, 0..2, INTERLEAVE, NODE0)?;
        mbind(case, mapping, 2..4, BIND, NODE0)?;
        mbind(case, mapping, 0..4, DEFAULT, 0)?;
        expect_policies(case, mapping, 0..4, Mempolicy::default())
    })
}

pub(super) fn invalid() -> Outcome {
    mapped(With::Mmap, |case, _, mapping| {
        errno("mbind", case.process.mbind(case.cx, mapping.addr(), SIZE, 999, NODE0), Errno::EINVAL)
    })
}
