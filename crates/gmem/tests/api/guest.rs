//! Guest programs: loops, ports, eight-byte accesses, exceptions.

use super::*;
use gmem::uapi::exit::KVM_EXIT_IO;
use gmem::{CpuMode, DescriptorTable, ExitInfo, Gva, VcpuExit, VcpuFd};

/// Where no slot is.
const MMIO: u64 = 0x10_0000;
/// A page of a slot.
const PAGE: u64 = 0x2000;
/// "Present" in a gate.
const PRESENT: u64 = 1 << 47;

/// A default VM with memory of the host at 0, and a vCPU.
fn running(body: impl FnOnce(&Cx<'_>, &VmFd, &Mapping, &mut VcpuFd)) {
    on_machine(|cx, process| {
        let vm = Kvm::new(cx, process).unwrap().create_vm(cx).unwrap();
        let memory = anonymous(cx, process, SIZE);
        vm.set_user_memory_region(cx, region(&memory)).unwrap();
        let mut vcpu = vm.create_vcpu(cx, 0).unwrap();
        body(cx, &vm, &memory, &mut vcpu);
    });
}

fn read64(gpa: u64) -> GuestInsn {
    GuestInsn::Read64 { gpa: Gpa(gpa) }
}

fn write64(gpa: u64, value: u64) -> GuestInsn {
    GuestInsn::Write64 { gpa: Gpa(gpa), value }
}

#[test]
fn a_loop_ends_when_memory_changes() {
    running(|cx, _, memory, vcpu| {
        let again = GuestInsn::JumpEqual { value: 0, to: 0 };
        vcpu.load_program(cx, &[read64(PAGE), again, GuestInsn::Out { port: 7 }, GuestInsn::Jump { to: 9 }]);
        vcpu.set_kvm_immediate_exit(cx, 1);
        assert!(vcpu.run(cx).is_err());
        vcpu.set_kvm_immediate_exit(cx, 0);
        memory.write_u64(cx, PAGE, 5).unwrap();
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::IoOut(7, [5, 0, 0, 0]))));
        assert_eq!(vcpu.exit_info(), ExitInfo::Io { port: 7, len: 4, data: 5, is_write: true });
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Hlt)), "a place behind the program is its end");
        assert_eq!(KVM_EXIT_IO, 2);
    });
}

#[test]
fn a_value_is_loaded_and_cut_to_the_mode() {
    running(|cx, _, _, vcpu| {
        for (mode, expected) in [(CpuMode::Long64, u64::MAX), (CpuMode::Protected32, 0xffff_ffff)] {
            vcpu.set_cpu_mode(cx, mode);
            vcpu.load_program(cx, &[GuestInsn::Load { value: u64::MAX }]);
            assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Hlt)));
            assert_eq!(vcpu.get_regs(cx).unwrap().rbx, expected);
        }
    });
}

#[test]
fn eight_bytes_aligned_or_not() {
    running(|cx, _, memory, vcpu| {
        for gpa in [PAGE, PAGE + 3, PAGE + 0xffd] {
            vcpu.load_program(cx, &[write64(gpa, 0x0102_0304_0506_0708), read64(gpa)]);
            assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Hlt)));
            assert_eq!(vcpu.get_regs(cx).unwrap().rbx, 0x0102_0304_0506_0708);
            assert_eq!(memory.read_u64(cx, gpa), Ok(0x0102_0304_0506_0708));
        }
    });
}

#[test]
fn eight_bytes_where_no_memory_is() {
    running(|cx, _, _, vcpu| {
        vcpu.load_program(cx, &[read64(MMIO), write64(MMIO + 8, 0x1122_3344_5566_7788)]);
        match vcpu.run(cx).unwrap() {
            VcpuExit::MmioRead(MMIO, data) => data.copy_from_slice(&0x8070_6050_4030_2010_u64.to_le_bytes()),
            other => panic!("{other:?}"),
        }
        let written = 0x1122_3344_5566_7788_u64.to_le_bytes();
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::MmioWrite(gpa, data)) if gpa == MMIO + 8 && data == written));
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Hlt)));
        assert_eq!(vcpu.get_regs(cx).unwrap().rbx, 0x8070_6050_4030_2010);
    });
}

#[test]
fn an_exception_goes_to_its_handler() {
    running(|cx, _, memory, vcpu| {
        // Handler of vector 13: instruction 2. Its gate in 64-bit mode has 16 bytes.
        memory.write_u64(cx, PAGE + 13 * 16, PRESENT | 2).unwrap();
        vcpu.set_idt(cx, DescriptorTable { base: Gva(PAGE), limit: 0xfff });
        let program = [
            GuestInsn::Exception { vector: 13 },
            GuestInsn::Out { port: 1 },
            GuestInsn::Load { value: 3 },
            GuestInsn::Out { port: 2 },
        ];
        vcpu.load_program(cx, &program);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::IoOut(2, [3, 0, 0, 0]))));
    });
}

#[test]
fn gates_have_eight_bytes_in_protected_mode() {
    running(|cx, _, memory, vcpu| {
        memory.write_u64(cx, PAGE + 6 * 8, PRESENT | 1 << 48).unwrap();
        vcpu.set_idt(cx, DescriptorTable { base: Gva(PAGE), limit: 0xfff });
        vcpu.set_cpu_mode(cx, CpuMode::Protected32);
        vcpu.load_program(cx, &[GuestInsn::Exception { vector: 6 }]);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Hlt)));
        assert_eq!(vcpu.get_regs(cx).unwrap().rip, 0x1_0000, "the gate's high half is the offset's");
    });
}

#[test]
fn a_missing_handler_is_a_double_fault_then_a_shutdown() {
    running(|cx, _, memory, vcpu| {
        let program = [GuestInsn::Exception { vector: 13 }, GuestInsn::Out { port: 1 }];
        vcpu.load_program(cx, &program);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Shutdown)), "there is no table");

        vcpu.set_idt(cx, DescriptorTable { base: Gva(PAGE), limit: 0xfff });
        vcpu.load_program(cx, &program);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Shutdown)), "no gate is present");
        assert_eq!(vcpu.exit_info(), ExitInfo::Shutdown);

        memory.write_u64(cx, PAGE + 8 * 16, PRESENT | 1).unwrap();
        vcpu.load_program(cx, &program);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::IoOut(1, _))), "the double fault has a handler");

        vcpu.set_idt(cx, DescriptorTable { base: Gva(PAGE), limit: 8 * 16 + 14 });
        vcpu.load_program(cx, &program);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Shutdown)), "the table ends inside the gate");
    });
}

#[test]
fn a_table_in_no_memory_ends_the_run() {
    running(|cx, _, _, vcpu| {
        vcpu.set_idt(cx, DescriptorTable { base: Gva(MMIO), limit: 0xfff });
        vcpu.load_program(cx, &[GuestInsn::Exception { vector: 14 }]);
        for _ in 0..2 {
            assert!(matches!(vcpu.run(cx), Ok(VcpuExit::InternalError)));
            let exit = ExitInfo::InternalError {
                suberror: KVM_INTERNAL_ERROR_DELIVERY_EV,
                gpa: Some(Gpa(MMIO + 14 * 16)),
                reason: None,
            };
            assert_eq!(vcpu.exit_info(), exit, "once more with the MMIO entry in place");
        }
    });
}
