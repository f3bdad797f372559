//! vCPUs when descriptors run out.

use super::*;

#[test]
fn a_vcpu_is_checked_before_its_descriptor_and_forgotten_without_one() {
    Sim::sequential().solo(|cx| {
        // Numbers 0 to 2 are taken; /dev/kvm, the VM and one vCPU fill the table.
        let m = Machine::with(cx, 0, MachineConfig { files_max: 6, ..MachineConfig::default() });
        let (first, _) = m.vcpu(cx, 0);
        let create = |id| ioctl::create_vcpu(cx, &m.process, m.fd, id);
        assert_eq!(create(1 << 32), Err(Errno::EINVAL));
        assert_eq!(create(0), Err(Errno::EEXIST));
        assert_eq!(create(1), Err(Errno::EMFILE));
        m.process.close(cx, first).unwrap();
        assert!(create(1).is_ok(), "the vCPU that got no descriptor was forgotten");
    });
}
