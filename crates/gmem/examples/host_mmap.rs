//! A guest_memfd that the host may touch: `GUEST_MEMFD_FLAG_MMAP` with `GUEST_MEMFD_FLAG_INIT_SHARED`.
//!
//! Guest and VMM share the pages of one file; the slot needs no memory of its own. Run with
//! `cargo run -p gmem --example host_mmap`.

use gmem::uapi::*;
use gmem::{Errno, Gpa, GuestInsn, Kvm, Machine, MachineConfig, Prot, Sharing, VcpuExit};

const SIZE: u64 = 0x4000;

fn main() -> Result<(), Errno> {
    Machine::new(MachineConfig::default()).run(|cx, process| {
        let vm = Kvm::new(cx, process)?.create_vm(cx)?;
        let flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
        println!("flags that this VM offers: {:#x}", vm.check_extension_int(cx, gmem::Cap::GuestMemfdFlags));
        let memory = vm.create_guest_memfd(cx, kvm_create_guest_memfd { size: SIZE, flags, ..Default::default() })?;
        let view = memory.mmap(cx, SIZE, Prot::READ | Prot::WRITE, Sharing::Shared, 0)?;
        vm.set_user_memory_region2(
            cx,
            kvm_userspace_memory_region2 {
                flags: KVM_MEM_GUEST_MEMFD,
                memory_size: SIZE,
                userspace_addr: view.addr().0,
                guest_memfd: memory.as_raw_fd() as u32,
                ..Default::default()
            },
        )?;

        view.write_u32(cx, 0x1000, 0xcafe).expect("the file is shared");
        let mut vcpu = vm.create_vcpu(cx, 0)?;
        vcpu.load_program(
            cx,
            &[GuestInsn::Read { gpa: Gpa(0x1000) }, GuestInsn::Write { gpa: Gpa(0x2000), value: 0xbeef }],
        );
        assert!(matches!(vcpu.run(cx)?, VcpuExit::Hlt));
        println!("the guest reads {:#x}", vcpu.get_regs(cx)?.rbx);
        println!("its VMM reads   {:#x}", view.read_u32(cx, 0x2000).expect("the file is shared"));

        memory.punch_hole(cx, 0, SIZE)?;
        println!("after a hole    {:#x}", view.read_u32(cx, 0x2000).expect("a new page is there"));
        println!("past the end    {:?}", memory.mmap(cx, 2 * SIZE, Prot::READ, Sharing::Shared, 0)?.read_u32(cx, SIZE));
        println!("private mapping {:?}", memory.mmap(cx, SIZE, Prot::READ, Sharing::Private, 0).map(|_| ()));
        vm.vm().check_invariants();
        Ok(())
    })
}
