//! `private_mem_conversions_test`: vCPUs that convert their memory to private and back by hypercalls, beside each other.
//!
//! Two vCPUs have 2 MiB and a page each, from 4 GiB on, all in one guest_memfd that one slot or two slots bind. A guest's program and
//! what the VMM does at each of its reports are made together ([`script::Script`]). Of each page that a selftest fills, one word is used.

mod rows;
mod script;

use super::{Check, Outcome};

const SUITE: &str = "private_mem_conversions_test";

const fn test(id: &'static str, title: &'static str, run: fn() -> Outcome) -> Check {
    Check::test(id, SUITE, title, run)
}

pub(super) const CHECKS: &[Check] = &[
    test(
        "GM-110",
        "without attributes memory is shared: 0xaa that a guest writes is what guest and host read",
        rows::initial,
    ),
    test("GM-111", "0xcc that the host writes is what the guest reads", rows::host_writes),
    test(
        "GM-112",
        "a hypercall exits with number 12 and its arguments, and the guest gets the answer 0",
        rows::hypercall,
    ),
    test(
        "GM-113",
        "a page made private has what the guest writes then; the host's page keeps what was shared",
        rows::private,
    ),
    test("GM-114", "meanwhile every other page of the guest keeps 0xcc", rows::outside),
    test("GM-115", "made shared again, the page is what the guest writes for the host", rows::shared_again),
    test("GM-116", "and what the host writes for the guest", rows::host_to_guest),
    test("GM-117", "ranges of 2 MiB are converted, aligned or not, and their pages are usable", rows::large),
    test("GM-118", "the host still sees the shared pattern of a page that is private", rows::host_keeps),
    test("GM-119", "all this with memory allocated and freed at each conversion", rows::with_fallocate),
    test(
        "GM-120",
        "everything shared again and private memory freed: the next range finds none of the old data",
        rows::clean_slate,
    ),
    test("GM-121", "all private, freed, and written anew: it reads so", rows::fault_in),
    test("GM-122", "a hole in private memory reads as zeros, without an exit", rows::punched),
    test("GM-123", "so it does if nothing else was written", rows::punched_alone),
    test("GM-124", "every exit of every vCPU is a hypercall or a report", rows::exits),
    test("GM-125", "with VM and vCPUs closed, a hole in the whole file answers 0", rows::punch_after_close),
    test("GM-126", "and allocating the whole file answers 0", rows::allocate_after_close),
];
