//! Two slots on one file: neither their file ranges nor their guest addresses may overlap.

use super::super::Outcome;
use super::super::cases::{Case, each_type, gmem_region};
use super::super::expect::Failure;
use super::REGION as R;
use crate::GuestMemfd;
use crate::kvm::uapi::*;
use sim_kernel::Errno;

const GPA: u64 = 1 << 32;
const FIRST: u32 = 10;
const SECOND: u32 = 11;

/// A row about slots on the file ranges [0, 2R) and [2R, 4R) of a file of 5R.
fn both(row: impl Fn(&Case<'_, '_>, &GuestMemfd) -> Result<(), Failure>) -> Outcome {
    each_type(|case| {
        let memory = case.create(5 * R, 0)?;
        case.set_region2("first slot", gmem_region(FIRST, GPA, 2 * R, 0, &memory, 0))?;
        case.set_region2("second slot", gmem_region(SECOND, GPA + 2 * R, 2 * R, 0, &memory, 2 * R))?;
        row(case, &memory)
    })
}

fn delete_first(case: &Case<'_, '_>, memory: &GuestMemfd) -> Result<(), Failure> {
    let region = gmem_region(FIRST, GPA, 0, 0, memory, 0);
    case.set_region2("deletion", kvm_userspace_memory_region2 { guest_memfd: u32::MAX, ..region })
}

/// A row that deletes the first slot and asks for it again, elsewhere, which must be an overlap; at its old place it is accepted.
fn recreate(gpa: u64, offset: u64) -> Outcome {
    both(|case, memory| {
        delete_first(case, memory)?;
        let what = format_args!("slot at {gpa:#x} with file offset {offset:#x}").to_string();
        case.refuse_region2(what, gmem_region(FIRST, gpa, 2 * R, 0, memory, offset), Errno::EEXIST)?;
        case.set_region2("slot at its old place", gmem_region(FIRST, GPA, 2 * R, 0, memory, 0))
    })
}

pub(super) fn neighbours() -> Outcome {
    both(|_, _| Ok(()))
}

pub(super) fn delete() -> Outcome {
    both(delete_first)
}

pub(super) fn front() -> Outcome {
    recreate(GPA, R)
}

pub(super) fn back() -> Outcome {
    recreate(GPA, 3 * R)
}

pub(super) fn gpa_front() -> Outcome {
    recreate(GPA + R, 0)
}

pub(super) fn gpa_back() -> Outcome {
    recreate(GPA + 3 * R, 0)
}
