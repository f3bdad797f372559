//! A guest writes to private memory while the VMM punches a hole under it, in many random orders.
//!
//! Run with `cargo run -p gmem --example race_fault_against_punch [seeds]`.

use gmem::uapi::*;
use gmem::{Gpa, GuestInsn, Kvm, Machine, MachineConfig, Process, VcpuExit};
use gmem::{GuestMemfd, VcpuFd, VmFd};
use sim_kernel::Cx;
use std::collections::BTreeSet;
use std::sync::Arc;

const SIZE: u64 = 0x2000;

/// A VM whose whole memory is private.
fn boot(cx: &Cx<'_>, process: &Arc<Process>) -> gmem::api::Result<(VmFd, VcpuFd, GuestMemfd)> {
    let vm = Kvm::new(cx, process)?.create_vm_with_type(cx, KVM_X86_SW_PROTECTED_VM)?;
    let memory = vm.create_guest_memfd(cx, kvm_create_guest_memfd { size: SIZE, ..Default::default() })?;
    let region = kvm_userspace_memory_region2 {
        flags: KVM_MEM_GUEST_MEMFD,
        memory_size: SIZE,
        userspace_addr: 0x10_0000,
        guest_memfd: memory.as_raw_fd() as u32,
        ..Default::default()
    };
    vm.set_user_memory_region2(cx, region)?;
    let attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE;
    vm.set_memory_attributes(cx, kvm_memory_attributes { address: 0, size: SIZE, attributes, flags: 0 })?;
    let mut vcpu = vm.create_vcpu(cx, 0)?;
    // The guest's first access is quick, so that the hole often comes after it.
    vcpu.pre_fault_memory(cx, 0, SIZE, 0)?;
    Ok((vm, vcpu, memory))
}

fn main() {
    let seeds = std::env::args().nth(1).map_or(2_000, |n| n.parse().expect("a number of seeds"));
    let mut machine = Machine::new(MachineConfig::default());
    let (mut schedules, mut between) = (BTreeSet::new(), 0);
    for seed in 0..seeds {
        let execution = machine.explore_random(
            seed,
            |cx, process| {
                let (vm, mut vcpu, memory) = boot(cx, process).expect("the VM boots");
                let inspected = (vm.vm(), Arc::clone(vcpu.vcpu()));
                cx.spawn("vcpu", move |cx| {
                    let gpa = Gpa(0x1000);
                    vcpu.load_program(cx, &[GuestInsn::Write { gpa, value: 7 }, GuestInsn::Read { gpa }]);
                    assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Hlt)));
                });
                cx.spawn("punch", move |cx| memory.punch_hole(cx, 0, SIZE).expect("the range is whole pages"));
                inspected
            },
            |cx, _process, (vm, vcpu)| {
                vm.check_invariants();
                match vcpu.regs(cx).rbx {
                    7 => {}
                    0 => between += 1,
                    other => panic!("the guest reads {other}"),
                }
            },
        );
        execution.assert_completed();
        schedules.insert(execution.schedule().to_string());
    }
    println!("{seeds} seeds, {} different schedules, no invariant failed", schedules.len());
    println!("in {between} of them the hole came between the guest's write and its read");
}
