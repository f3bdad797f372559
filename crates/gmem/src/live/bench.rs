//! What a page of a guest_memfd costs in the real kernel: the four things that `bench::pages` measures of the simulator.
//!
//! The system calls themselves, on this thread, in the worker's process. A vCPU touches the pages in a loop of its own, so that one entry and
//! one exit are spread over all of them.

use std::path::Path;

use anyhow::Context;
use live_kvm::{GuestAccess, GuestMode, Left, Region};

use super::worker;
use crate::bench::pages::{Deed, GOAL};
use crate::bench::{Case, Meter};
use crate::kvm::uapi::{
    FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, KVM_MEM_GUEST_MEMFD,
};

/// Where the slot begins; below 4 GiB, where 32-bit code reaches.
const GPA: u64 = 1 << 30;
const PAGE: u64 = 4096;

/// Measures every deed that this kernel can do.
///
/// # Errors
/// If there is no such device, or it has no guest_memfd that can be mapped.
pub fn measure(meter: &mut dyn Meter, device: &Path, mode: GuestMode, pages: u64) -> anyhow::Result<()> {
    let len = pages * PAGE;
    let mut process = worker::open(device, mode, len.max(64 << 20))?;
    let vm = process.create_vm(0).context("KVM_CREATE_VM")?;
    let flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
    let gmem = process.create_guest_memfd(vm, len, flags).context("no guest_memfd that can be mapped")?;
    let address = process.mmap(Some(gmem), len, 3, true, 0, 2 << 20).context("mmap")?;
    let region = Region {
        slot: 0,
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: GPA,
        memory_size: len,
        userspace_addr: address,
        guest_memfd_offset: 0,
        guest_memfd: gmem as u32,
    };
    process.set_user_memory_region2(vm, &region).context("KVM_SET_USER_MEMORY_REGION2")?;
    let vcpu = process.create_vcpu(vm, 0, false).context("KVM_CREATE_VCPU")?;
    let (punch, keep) = (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE);
    let mut failure = None;
    for deed in Deed::ALL {
        let case = Case::new(GOAL, deed.name(true), pages, "page", pages).peer();
        let mut attempt = |timer: &mut crate::bench::Timer| -> anyhow::Result<()> {
            process.fallocate(gmem, punch, 0, len as i64)?;
            match deed {
                Deed::Allocate => timer.time(|| process.fallocate(gmem, keep, 0, len as i64))?,
                Deed::Punch => {
                    process.fallocate(gmem, keep, 0, len as i64)?;
                    timer.time(|| process.fallocate(gmem, punch, 0, len as i64))?;
                }
                Deed::TouchByVmm => timer.time(|| process.fill64(address, len, 1))?,
                Deed::TouchByVcpu => {
                    let touch = GuestAccess::Touch { gpa: GPA, pages: pages as u32 };
                    let run = timer.time(|| process.run_guest(vcpu, touch))?;
                    anyhow::ensure!(run.left == Left::Done, "the vCPU left the guest: {:?}", run.left);
                }
            }
            Ok(())
        };
        // What fails once is not measured: a body that did nothing would look fast.
        if let Err(error) = attempt(&mut crate::bench::Timer::new(|| std::time::Duration::ZERO)) {
            failure = failure.or(Some(error.context(deed.name(true))));
            continue;
        }
        meter.measure(case, &mut |timer| {
            if let Err(error) = attempt(timer) {
                panic!("{}: {error:#}", deed.name(true));
            }
        });
    }
    failure.map_or(Ok(()), Err)
}
