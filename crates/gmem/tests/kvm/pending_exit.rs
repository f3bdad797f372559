//! An exit that user space still handles, and a pre-fault in between that writes to the same run page.

use super::*;

#[test]
fn a_failing_prefault_does_not_disturb_a_pending_exit() {
    Sim::sequential().solo(|cx| {
        let m = Machine::new(cx, KVM_X86_SW_PROTECTED_VM);
        let (fd, vcpu) = m.vcpu(cx, 0);
        let private = kvm_memory_attributes {
            address: 0x9000,
            size: PAGE_SIZE,
            attributes: KVM_MEMORY_ATTRIBUTE_PRIVATE,
            flags: 0,
        };
        ioctl::set_memory_attributes(cx, &m.process, m.fd, &private).unwrap();
        vcpu.set_program(cx, &[read(0x5000)]);
        assert_eq!(vcpu.run(cx).0, Ok(()));
        let mut range = kvm_pre_fault_memory { gpa: 0x9000, size: PAGE_SIZE, ..Default::default() };
        assert_eq!(ioctl::pre_fault_memory(cx, &m.process, fd, &mut range), Err(Errno::EFAULT));
        // The memory fault lies over the data of the MMIO exit: its address is what the guest reads.
        assert_eq!(vcpu.run(cx).0, Ok(()));
        assert_eq!(vcpu.regs(cx).rbx, 0x9000);
    });
}
