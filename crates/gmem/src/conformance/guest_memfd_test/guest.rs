//! A default VM whose memory is a file that the host may map, without any other memory behind the slot.

use super::super::Outcome;
use super::super::cases::{Case, gmem_region, on_vm};
use super::super::expect::{Failure, ensure, ok, word};
use super::super::guest::{Program, filled};
use super::PAGES;
use crate::GuestMemfd;
use crate::kvm::uapi::*;
use sim_kernel::PAGE_SIZE;

const SIZE: u64 = PAGES * PAGE_SIZE;
const GPA: u64 = 4 << 30;
const SHARED: u64 = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;

pub(super) fn flags() -> Outcome {
    on_vm(KVM_X86_DEFAULT_VM, |case| {
        let offered = case.offered_flags();
        ensure(offered & SHARED == SHARED, format_args!("expected at least {SHARED:#x}, found {offered:#x}"))?;
        Ok(format!("default VM offers {offered:#x}"))
    })
}

/// A row about the file in its slot.
fn bound(row: impl Fn(&Case<'_, '_>, &GuestMemfd) -> Result<(), Failure>) -> Outcome {
    on_vm(KVM_X86_DEFAULT_VM, |case| {
        let memory = case.create(SIZE, SHARED)?;
        case.set_region2("slot at 4 GiB, userspace_addr NULL", gmem_region(10, GPA, SIZE, 0, &memory, 0))?;
        row(case, &memory)?;
        Ok("default VM".to_string())
    })
}

/// Fills the file through a mapping that is then gone, and lets the guest read it and write it.
fn guest_runs(case: &Case<'_, '_>, memory: &GuestMemfd) -> Result<(), Failure> {
    let mapping = case.map(memory, SIZE)?;
    for at in (0..SIZE).step_by(8) {
        ok("host write", mapping.write_u64(case.cx, at, filled(0xaa)))?;
    }
    ok("munmap", mapping.unmap(case.cx))?;
    let mut program = Program::new();
    for at in (0..SIZE).step_by(8) {
        program.expect(GPA + at, filled(0xaa));
    }
    for at in (0..SIZE).step_by(8) {
        program.write(GPA + at, filled(0xff));
    }
    program.run_to_halt(case.cx, &mut ok("KVM_CREATE_VCPU", case.vm.create_vcpu(case.cx, 0))?)
}

pub(super) fn bind() -> Outcome {
    bound(|_, _| Ok(()))
}

pub(super) fn host_to_guest() -> Outcome {
    bound(guest_runs)
}

pub(super) fn guest_to_host() -> Outcome {
    bound(|case, memory| {
        guest_runs(case, memory)?;
        let mapping = case.map(memory, SIZE)?;
        for at in (0..SIZE).step_by(8) {
            word(format_args!("offset {at:#x}"), ok("host read", mapping.read_u64(case.cx, at))?, filled(0xff))?;
        }
        Ok(())
    })
}
