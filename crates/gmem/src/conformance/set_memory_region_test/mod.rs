//! `set_memory_region_test`: which slots are accepted, and what a running guest sees when its slots move and go.
//!
//! The region of most rows is 2 MiB.

mod add;
mod moving;
mod overlap;
mod vectoring;

use super::{Check, Outcome};
use sim_kernel::PMD_SIZE;

const SUITE: &str = "set_memory_region_test";

const fn test(id: &'static str, title: &'static str, run: fn() -> Outcome) -> Check {
    Check::test(id, SUITE, title, run)
}

/// R of the rows.
const REGION: u64 = PMD_SIZE;

pub(super) const CHECKS: &[Check] = &[
    test("GM-060", "KVM_RUN without a slot exits with an internal error", vectoring::zero_regions),
    test(
        "GM-061",
        "an exception whose descriptor lies where no memory is: internal error, delivery of an event, its address",
        vectoring::mmio_during_vectoring,
    ),
    test("GM-062", "the first version refuses each flag it does not know, those of the second too", add::v1_flags),
    test("GM-063", "the second version refuses each flag it does not know", add::v2_flags),
    test("GM-064", "a guest_memfd slot with dirty logging is EINVAL", add::gmem_dirty),
    test("GM-065", "a read-only guest_memfd slot is EINVAL", add::gmem_readonly),
    test("GM-066", "KVM_CAP_NR_MEMSLOTS is positive", add::nr_memslots),
    test("GM-067", "as many slots of 2 MiB can be created", add::add_max),
    test("GM-068", "the slot after the last is EINVAL", add::add_one_more),
    test("GM-070", "a slot with /dev/kvm as its guest_memfd is EINVAL", add::private_kvm),
    test("GM-071", "a slot with the VM as its guest_memfd is EINVAL", add::private_vm),
    test("GM-072", "a slot with an ordinary memfd as its guest_memfd is EINVAL", add::private_memfd),
    test("GM-073", "a slot with the guest_memfd of another VM is EINVAL", add::private_foreign),
    test("GM-074", "that guest_memfd is accepted in its own VM", add::private_own),
    test("GM-075", "the guest_memfd is closed and then its VM, both without an error", add::private_close),
    test("GM-076", "file offsets from 1 to 4095 are EINVAL", add::private_offsets),
    test("GM-077", "file offset 0 is accepted", add::private_offset_0),
    test("GM-080", "two slots on neighbouring ranges of one file", overlap::neighbours),
    test("GM-081", "the first is deleted with flags GUEST_MEMFD, size 0 and descriptor -1", overlap::delete),
    test("GM-082", "created again on the front of the other's file range it is EEXIST", overlap::front),
    test("GM-083", "created again on the back of the other's file range it is EEXIST", overlap::back),
    test("GM-084", "on a free file range at the front of the other's guest addresses it is EEXIST", overlap::gpa_front),
    test("GM-085", "on a free file range at the back of the other's guest addresses it is EEXIST", overlap::gpa_back),
    test("GM-090", "a guest that reads while its slot moves away and back never sees what is not its", moving::values),
    test("GM-091", "its exits meanwhile are reads of eight bytes at that address only", moving::exits),
    test("GM-092", "after the slot came back the guest reads the memory, without an exit", moving::restored),
    test(
        "GM-093",
        "a vCPU survives the deletion of the slot that it reads, and its reads become exits",
        moving::deleted,
    ),
    test("GM-094", "after the slot is created again the guest reads 0", moving::recreated),
    test(
        "GM-095",
        "when the slot with the code goes too, the run ends in a shutdown or an internal error inside the last loop",
        moving::code_deleted,
    ),
];
