//! vCPU descriptors: exits, answers, errors.

use super::*;
use gmem::{Cap, CpuMode, Errno, ExitInfo, GuestRegs, VcpuExit, VcpuFd};
use sim_kernel::Pgoff;

/// Where no slot is.
const MMIO: u64 = 0x10_0000;

fn with_hypercalls(cx: &Cx<'_>, vm: &VmFd) {
    let args = [1 << KVM_HC_MAP_GPA_RANGE, 0, 0, 0];
    vm.enable_cap(cx, &kvm_enable_cap { cap: Cap::ExitHypercall as u32, args, ..Default::default() }).unwrap();
}

fn assert_halts(cx: &Cx<'_>, vcpu: &mut VcpuFd) {
    match vcpu.run(cx) {
        Ok(VcpuExit::Hlt) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_empty_program_halts() {
    on_machine(|cx, process| {
        let mut vcpu = protected(cx, process).create_vcpu(cx, 3).unwrap();
        assert_halts(cx, &mut vcpu);
        assert_eq!(vcpu.last_errno(), None);
        assert_eq!(vcpu.exit_info(), ExitInfo::Hlt);
        assert_eq!(vcpu.vcpu().id(), 3);
        assert_eq!(vcpu.get_regs(cx), Ok(GuestRegs::default()));
    });
}

#[test]
fn data_of_an_mmio_read_reaches_the_register() {
    on_machine(|cx, process| {
        let mut vcpu = protected(cx, process).create_vcpu(cx, 0).unwrap();
        vcpu.load_program(cx, &[read(MMIO + 8)]);
        match vcpu.run(cx).unwrap() {
            VcpuExit::MmioRead(gpa, data) => {
                assert_eq!((gpa, data.len()), (MMIO + 8, 4));
                data.copy_from_slice(&[0x78, 0x56, 0x34, 0x12]);
            }
            other => panic!("{other:?}"),
        }
        assert_halts(cx, &mut vcpu);
        assert_eq!(vcpu.get_regs(cx).unwrap().rbx, 0x1234_5678);
    });
}

#[test]
fn an_unanswered_mmio_read_is_zero() {
    on_machine(|cx, process| {
        let mut vcpu = protected(cx, process).create_vcpu(cx, 0).unwrap();
        vcpu.load_program(cx, &[read(MMIO)]);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::MmioRead(MMIO, [0, 0, 0, 0]))));
        assert_halts(cx, &mut vcpu);
        assert_eq!(vcpu.get_regs(cx).unwrap().rbx, 0);
    });
}

#[test]
fn an_mmio_write_shows_its_data() {
    on_machine(|cx, process| {
        let mut vcpu = protected(cx, process).create_vcpu(cx, 0).unwrap();
        vcpu.load_program(cx, &[write(MMIO, 0x0102_0304)]);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::MmioWrite(MMIO, [4, 3, 2, 1]))));
        assert_halts(cx, &mut vcpu);
    });
}

#[test]
fn a_read_modify_write_exits_twice() {
    on_machine(|cx, process| {
        let mut vcpu = protected(cx, process).create_vcpu(cx, 0).unwrap();
        vcpu.load_program(cx, &[GuestInsn::Rmw { gpa: Gpa(MMIO), value: 2 }]);
        match vcpu.run(cx).unwrap() {
            VcpuExit::MmioRead(MMIO, data) => data.copy_from_slice(&40u32.to_le_bytes()),
            other => panic!("{other:?}"),
        }
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::MmioWrite(MMIO, [42, 0, 0, 0]))));
        assert_halts(cx, &mut vcpu);
    });
}

#[test]
fn a_new_program_forgets_the_exit() {
    on_machine(|cx, process| {
        let mut vcpu = protected(cx, process).create_vcpu(cx, 0).unwrap();
        vcpu.load_program(cx, &[read(MMIO)]);
        match vcpu.run(cx).unwrap() {
            VcpuExit::MmioRead(_, data) => data.fill(0xff),
            other => panic!("{other:?}"),
        }
        vcpu.load_program(cx, &[read(MMIO)]);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::MmioRead(MMIO, [0, 0, 0, 0]))));
    });
}

#[test]
fn the_answer_of_a_hypercall_reaches_the_register() {
    on_machine(|cx, process| {
        let vm = protected(cx, process);
        with_hypercalls(cx, &vm);
        let mut vcpu = vm.create_vcpu(cx, 0).unwrap();
        let call = GuestInsn::Hypercall { nr: KVM_HC_MAP_GPA_RANGE, args: [0x1000, 2, 16, 99] };
        for (mode, longmode, rax) in [(CpuMode::Long64, 1, u64::MAX - 21), (CpuMode::Protected32, 0, 0xffff_ffea)] {
            vcpu.set_cpu_mode(cx, mode);
            vcpu.load_program(cx, &[call]);
            match vcpu.run(cx).unwrap() {
                VcpuExit::Hypercall(exit) => {
                    assert_eq!((exit.nr, exit.longmode), (KVM_HC_MAP_GPA_RANGE, longmode));
                    assert_eq!(exit.args, [0x1000, 2, 16, 0, 0, 0]);
                    assert_eq!(*exit.ret, 0);
                    *exit.ret = -22i64 as u64;
                }
                other => panic!("{other:?}"),
            }
            assert_halts(cx, &mut vcpu);
            assert_eq!(vcpu.get_regs(cx).unwrap().rax, rax);
        }
    });
}

#[test]
fn a_hypercall_that_user_space_did_not_ask_for_is_answered_by_kvm() {
    on_machine(|cx, process| {
        let mut vcpu = protected(cx, process).create_vcpu(cx, 0).unwrap();
        vcpu.load_program(cx, &[GuestInsn::Hypercall { nr: KVM_HC_MAP_GPA_RANGE, args: [0, 1, 0, 0] }]);
        assert_halts(cx, &mut vcpu);
        assert_eq!(vcpu.get_regs(cx).unwrap().rax, -1000i64 as u64);
    });
}

#[test]
fn a_memory_fault_is_ok_although_the_ioctl_failed() {
    on_machine(|cx, process| {
        let (vm, memory, _shared) = booted(cx, process);
        memory.close(cx).unwrap();
        let mut vcpu = vm.create_vcpu(cx, 0).unwrap();
        vcpu.load_program(cx, &[read(0x1004)]);
        let expected = VcpuExit::MemoryFault { flags: KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa: 0x1000, size: 0x1000 };
        assert_eq!(format!("{:?}", vcpu.run(cx).unwrap()), format!("{expected:?}"));
        assert_eq!(vcpu.last_errno(), Some(Errno::EFAULT));
        // The VMM converts, and the same instruction goes on.
        vm.set_memory_attributes(cx, attributes(0)).unwrap();
        assert_halts(cx, &mut vcpu);
        assert_eq!(vcpu.last_errno(), None);
    });
}

#[test]
fn a_broken_page_is_a_memory_fault_with_ehwpoison() {
    on_machine(|cx, process| {
        let (vm, memory, _shared) = booted(cx, process);
        memory.allocate(cx, 0x1000, 0x1000).unwrap();
        assert_eq!(memory.inode(cx).unwrap().memory_failure(cx, Pgoff(1)), Err(Errno::EBUSY));
        let mut vcpu = vm.create_vcpu(cx, 0).unwrap();
        vcpu.load_program(cx, &[write(0x1000, 1)]);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::MemoryFault { gpa: 0x1000, .. })));
        assert_eq!(vcpu.last_errno(), Some(Errno::EHWPOISON));
    });
}

#[test]
fn an_immediate_exit_completes_the_last_one_first() {
    on_machine(|cx, process| {
        let mut vcpu = protected(cx, process).create_vcpu(cx, 0).unwrap();
        vcpu.load_program(cx, &[read(MMIO), read(MMIO + 4)]);
        match vcpu.run(cx).unwrap() {
            VcpuExit::MmioRead(MMIO, data) => data.copy_from_slice(&9u32.to_le_bytes()),
            other => panic!("{other:?}"),
        }
        vcpu.set_kvm_immediate_exit(cx, 1);
        assert_eq!(vcpu.run(cx).unwrap_err(), Errno::EINTR);
        assert_eq!(vcpu.last_errno(), Some(Errno::EINTR));
        assert_eq!(vcpu.get_regs(cx).unwrap(), GuestRegs { rip: 1, rbx: 9, rax: 0, rsp: 0 });
        vcpu.set_kvm_immediate_exit(cx, 0);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::MmioRead(gpa, [0, 0, 0, 0])) if gpa == MMIO + 4));
    });
}

#[test]
fn a_pending_signal_is_eintr() {
    on_machine(|cx, process| {
        let mut vcpu = protected(cx, process).create_vcpu(cx, 0).unwrap();
        cx.send_signal(cx.task());
        assert_eq!(vcpu.run(cx).unwrap_err(), Errno::EINTR);
        cx.clear_signals();
        assert_halts(cx, &mut vcpu);
    });
}

#[test]
fn code_must_be_in_memory_if_it_is_fetched() {
    on_machine(|cx, process| {
        let (vm, _memory, _shared) = booted(cx, process);
        let mut vcpu = vm.create_vcpu(cx, 0).unwrap();
        vcpu.set_code_page(cx, Some(Gpa(MMIO)));
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::InternalError)));
        assert_eq!(
            vcpu.exit_info(),
            ExitInfo::InternalError { suberror: KVM_INTERNAL_ERROR_EMULATION, gpa: None, reason: None }
        );
        vcpu.set_code_page(cx, Some(Gpa(0x1000)));
        assert_halts(cx, &mut vcpu);
        vcpu.set_code_page(cx, None);
        assert_halts(cx, &mut vcpu);
    });
}

#[test]
fn pre_fault_maps_without_an_access() {
    on_machine(|cx, process| {
        let (vm, memory, _shared) = booted(cx, process);
        let mut vcpu = vm.create_vcpu(cx, 0).unwrap();
        assert_eq!(vcpu.pre_fault_memory(cx, 0x1000, 0x2000, 0), Ok(0));
        let inode = memory.inode(cx).unwrap();
        let pages: Vec<bool> = (0..4).map(|page| inode.mapping().peek(Pgoff(page)).is_some()).collect();
        assert_eq!(pages, [false, true, true, false]);
        assert_eq!(vcpu.pre_fault_memory(cx, SIZE - 0x1000, 0x3000, 0), Ok(0x2000), "the end is outside the slot");
        assert_eq!(vcpu.pre_fault_memory(cx, MMIO, 0x1000, 0), Err(Errno::ENOENT));
        for (gpa, size, flags) in [(0, 0x1000, 1), (1, 0x1000, 0), (0, 1, 0), (0, 0, 0)] {
            assert_eq!(vcpu.pre_fault_memory(cx, gpa, size, flags), Err(Errno::EINVAL));
        }
        vm.vm().check_invariants();
    });
}
