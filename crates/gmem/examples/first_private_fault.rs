//! The first access to private memory: no page exists until the guest touches one.
//!
//! Run with `cargo run -p gmem --example first_private_fault`.

use gmem::uapi::*;
use gmem::{Errno, Gpa, GuestInsn, Kvm, Machine, MachineConfig, Mapping, Prot, Sharing, VcpuExit};
use sim_kernel::Pgoff;

const SIZE: u64 = 0x4000;

fn main() -> Result<(), Errno> {
    Machine::new(MachineConfig::default()).run(|cx, process| {
        let kvm = Kvm::new(cx, process)?;
        let vm = kvm.create_vm_with_type(cx, KVM_X86_SW_PROTECTED_VM)?;
        let private = vm.create_guest_memfd(cx, kvm_create_guest_memfd { size: SIZE, ..Default::default() })?;
        let shared = Mapping::anonymous(cx, process, SIZE, Prot::READ | Prot::WRITE, Sharing::Private)?;
        vm.set_user_memory_region2(
            cx,
            kvm_userspace_memory_region2 {
                slot: 0,
                flags: KVM_MEM_GUEST_MEMFD,
                guest_phys_addr: 0,
                memory_size: SIZE,
                userspace_addr: shared.addr().0,
                guest_memfd: private.as_raw_fd() as u32,
                ..Default::default()
            },
        )?;
        let attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE;
        vm.set_memory_attributes(cx, kvm_memory_attributes { address: 0, size: SIZE, attributes, flags: 0 })?;

        let inode = private.inode(cx)?;
        println!("before: page 1 of the guest_memfd is {:?}", inode.mapping().peek(Pgoff(1)));

        let mut vcpu = vm.create_vcpu(cx, 0)?;
        let gpa = Gpa(0x1000);
        vcpu.load_program(cx, &[GuestInsn::Write { gpa, value: 0x1234_5678 }, GuestInsn::Read { gpa }]);
        assert!(matches!(vcpu.run(cx)?, VcpuExit::Hlt));

        println!("after:  page 1 of the guest_memfd is {:?}", inode.mapping().peek(Pgoff(1)));
        println!("the guest reads     {:#x}", vcpu.get_regs(cx)?.rbx);
        println!("its VMM reads       {:#x}", shared.read_u32(cx, gpa.0).expect("the mapping is readable"));
        vm.vm().check_invariants();
        Ok(())
    })
}
