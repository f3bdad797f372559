//! Who keeps a guest_memfd: its descriptors and mappings, not its slots; and who may use it.

use super::super::Outcome;
use super::super::cases::{RW, With, each_file, gmem_region, set_private};
use super::super::expect::{ensure, equal, errno, ok};
use super::super::guest::{Program, filled, unexpected};
use super::super::race::Race;
use crate::kvm::process::Sharing;
use crate::kvm::uapi::*;
use crate::kvm::{guest_memfd::GmemFile, ioctl};
use crate::{ExitInfo, VcpuExit};
use sim_kernel::{Errno, PAGE_SIZE};
use sim_mmu::Gpa;

const GPA: u64 = 1 << 32;
const SIZE: u64 = 4 * PAGE_SIZE;

/// The fault of a private access to a page that has no memory any more.
const FAULT: ExitInfo = ExitInfo::MemoryFault { flags: KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa: Gpa(GPA), size: PAGE_SIZE };

pub(super) fn fault_after_close() -> Outcome {
    let mut race = Race::new(100);
    race.explore(
        KVM_X86_SW_PROTECTED_VM,
        |cx, _, vm, findings| {
            let args = kvm_create_guest_memfd { size: SIZE, ..Default::default() };
            let memory = ok("KVM_CREATE_GUEST_MEMFD", vm.create_guest_memfd(cx, args))?;
            ok("slot", vm.set_user_memory_region2(cx, gmem_region(0, GPA, SIZE, 0, &memory, 0)))?;
            set_private(cx, &vm, GPA, SIZE, true)?;
            let mut vcpu = ok("KVM_CREATE_VCPU", vm.create_vcpu(cx, 0))?;
            let program = {
                let mut program = Program::new();
                program.expect(GPA, 0).clone()
            };
            let (saw, racing) = (findings.clone(), program.clone());
            findings.spawn(cx, "close", move |cx| ok("close", memory.close(cx)));
            findings.spawn(cx, "vcpu", move |cx| {
                racing.load(cx, &mut vcpu);
                match ok("KVM_RUN", vcpu.run(cx))? {
                    VcpuExit::Hlt => saw.saw("access before the close"),
                    VcpuExit::MemoryFault { .. } => saw.saw("access after it"),
                    other => return Err(unexpected("expected the end or a memory fault", &other)),
                }
                Ok(())
            });
            Ok((vm, program))
        },
        |cx, _, (vm, program)| {
            let mut vcpu = ok("KVM_CREATE_VCPU", vm.create_vcpu(cx, 1))?;
            program.load(cx, &mut vcpu);
            ok("KVM_RUN", vcpu.run(cx))?;
            equal("the exit after the close", vcpu.exit_info(), FAULT)?;
            equal("its errno", vcpu.last_errno(), Some(Errno::EFAULT))
        },
    )?;
    race.finish(&["access before the close", "access after it"])
}

pub(super) fn mapped_after_close() -> Outcome {
    let mut race = Race::new(100);
    race.explore(
        KVM_X86_DEFAULT_VM,
        |cx, _, vm, findings| {
            let flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
            let args = kvm_create_guest_memfd { size: SIZE, flags, ..Default::default() };
            let memory = ok("KVM_CREATE_GUEST_MEMFD", vm.create_guest_memfd(cx, args))?;
            ok("slot", vm.set_user_memory_region2(cx, gmem_region(0, GPA, SIZE, 0, &memory, 0)))?;
            let mapping = ok("mmap", memory.mmap(cx, SIZE, RW, Sharing::Shared, 0))?;
            ok("host write", mapping.write_u64(cx, 0, filled(0x33)))?;
            let mut vcpu = ok("KVM_CREATE_VCPU", vm.create_vcpu(cx, 0))?;
            let saw = findings.clone();
            let fd = memory.as_raw_fd();
            findings.spawn(cx, "close", move |cx| ok("close", memory.close(cx)));
            findings.spawn(cx, "vcpu", move |cx| {
                let process = vm.process();
                let mut program = Program::new();
                program.expect(GPA, filled(0x33)).write(GPA + PAGE_SIZE, filled(0x44));
                let open = ioctl::peek_gmem(cx, process, fd).is_some();
                saw.saw(if open { "run begun before the close" } else { "run begun after it" });
                program.run_to_halt(cx, &mut vcpu)
            });
            Ok(mapping)
        },
        |cx, process, mapping| {
            let found = ok("host read after the close", mapping.read_u64(cx, PAGE_SIZE))?;
            equal("what the guest wrote", found, filled(0x44))?;
            ok("host write after the close", mapping.write_u64(cx, 2 * PAGE_SIZE, 1))?;
            let phys = process.host().phys();
            let used = phys.used_frames();
            ok("munmap", mapping.unmap(cx))?;
            ensure(phys.used_frames() + 3 <= used, "expected the pages to go with the last mapping")
        },
    )?;
    race.finish(&["run begun before the close", "run begun after it"])
}

pub(super) fn other_process() -> Outcome {
    each_file(With::Any, 4, |case, memory| {
        let cx = case.cx;
        let parent = case.process;
        let vcpu = ok("KVM_CREATE_VCPU", case.vm.create_vcpu(cx, 0))?;
        let child = parent.host().process(cx);
        let send = |what, fd| ok(format_args!("giving the child {what}"), parent.send_fd(cx, fd, &child));
        let vm_fd = send("the VM", case.vm.as_raw_fd())?;
        let vcpu_fd = send("the vCPU", vcpu.as_raw_fd())?;
        let gmem_fd = send("the guest_memfd", memory.as_raw_fd())?;

        let cap = ioctl::check_extension_on(cx, &child, vm_fd, Cap::GuestMemfd as u64);
        errno("KVM_CHECK_EXTENSION by the child", cap, Errno::EIO)?;
        let region =
            kvm_userspace_memory_region2 { guest_memfd: gmem_fd as u32, ..gmem_region(0, 0, SIZE, 0, memory, 0) };
        let slot = ioctl::set_user_memory_region2(cx, &child, vm_fd, &region);
        errno("KVM_SET_USER_MEMORY_REGION2 by the child", slot, Errno::EIO)?;
        errno("KVM_RUN by the child", ioctl::run(cx, &child, vcpu_fd), Errno::EIO)?;

        let mode = FALLOC_FL_KEEP_SIZE;
        ok("fallocate by the child", child.fallocate(cx, gmem_fd, mode, 0, SIZE as i64))?;
        let inode = ok("the file", memory.inode(cx))?;
        ensure(inode.mapping().peek(sim_kernel::Pgoff(3)).is_some(), "expected the child's fallocate to make pages")?;
        let mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
        ok("hole by the child", child.fallocate(cx, gmem_fd, mode, 0, SIZE as i64))?;

        // The child keeps the file, as any descriptor does.
        let view = |process: &crate::Process, fd| {
            process.fds().get(cx, fd).map(|file| {
                let is_gmem = file.downcast::<GmemFile>().is_some();
                file.put(cx);
                is_gmem
            })
        };
        ok("close by the parent", parent.close(cx, memory.as_raw_fd()))?;
        equal("the child's descriptor", view(&child, gmem_fd), Ok(true))?;
        child.exit(cx);
        Ok(())
    })
}
