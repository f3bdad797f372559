//! A guest that asks for conversions with `KVM_HC_MAP_GPA_RANGE`, and the loop of a VMM that performs them.
//!
//! Run with `cargo run -p gmem --example explicit_conversion`.

use gmem::uapi::*;
use gmem::{Errno, Gpa, GuestInsn, HypercallExit, Kvm, Machine, MachineConfig, Mapping, Prot, Sharing, VcpuExit, VmFd};
use sim_kernel::{Cx, PAGE_SIZE};

const SIZE: u64 = 0x4000;
/// Bit of the hypercall's third argument: the guest wants the range encrypted.
const KVM_MAP_GPA_RANGE_ENCRYPTED: u64 = 1 << 4;

/// What QEMU does at this exit: change the attributes and tell the guest how it went.
fn convert(cx: &Cx<'_>, vm: &VmFd, exit: HypercallExit<'_>) {
    let [address, pages, mode, ..] = exit.args;
    let private = mode & KVM_MAP_GPA_RANGE_ENCRYPTED != 0;
    let attributes = if private { KVM_MEMORY_ATTRIBUTE_PRIVATE } else { 0 };
    println!("the guest makes {pages} page(s) at {address:#x} {}", if private { "private" } else { "shared" });
    let converted =
        vm.set_memory_attributes(cx, kvm_memory_attributes { address, size: pages * PAGE_SIZE, attributes, flags: 0 });
    *exit.ret = converted.map_or_else(|errno| -i64::from(errno.number()) as u64, |()| 0);
}

fn main() -> Result<(), Errno> {
    Machine::new(MachineConfig::default()).run(|cx, process| {
        let vm = Kvm::new(cx, process)?.create_vm_with_type(cx, KVM_X86_SW_PROTECTED_VM)?;
        let hypercalls = 1 << KVM_HC_MAP_GPA_RANGE;
        let cap = gmem::Cap::ExitHypercall as u32;
        vm.enable_cap(cx, &kvm_enable_cap { cap, args: [hypercalls, 0, 0, 0], ..Default::default() })?;
        let private = vm.create_guest_memfd(cx, kvm_create_guest_memfd { size: SIZE, ..Default::default() })?;
        let shared = Mapping::anonymous(cx, process, SIZE, Prot::READ | Prot::WRITE, Sharing::Private)?;
        let region = kvm_userspace_memory_region2 {
            flags: KVM_MEM_GUEST_MEMFD,
            memory_size: SIZE,
            userspace_addr: shared.addr().0,
            guest_memfd: private.as_raw_fd() as u32,
            ..Default::default()
        };
        vm.set_user_memory_region2(cx, region)?;

        let gpa = Gpa(0x1000);
        let map = |mode| GuestInsn::Hypercall { nr: KVM_HC_MAP_GPA_RANGE, args: [gpa.0, 1, mode, 0] };
        let mut vcpu = vm.create_vcpu(cx, 0)?;
        vcpu.load_program(
            cx,
            &[
                map(KVM_MAP_GPA_RANGE_ENCRYPTED),
                GuestInsn::Write { gpa, value: 1 },
                map(0),
                GuestInsn::Write { gpa, value: 2 },
                map(KVM_MAP_GPA_RANGE_ENCRYPTED),
                GuestInsn::Read { gpa },
            ],
        );
        loop {
            match vcpu.run(cx)? {
                VcpuExit::Hypercall(exit) => convert(cx, &vm, exit),
                VcpuExit::Hlt => break,
                other => panic!("unexpected exit: {other:?}"),
            }
        }
        println!("shared memory holds {}", shared.read_u32(cx, gpa.0).expect("the mapping is readable"));
        println!("private memory holds {}", vcpu.get_regs(cx)?.rbx);
        vm.vm().check_invariants();
        Ok(())
    })
}
