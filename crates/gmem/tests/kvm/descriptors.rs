//! Ioctls on descriptors of the wrong kind, and from the wrong process.

use super::*;

#[test]
fn an_unknown_ioctl_is_answered_by_the_kind_of_descriptor() {
    Sim::sequential().solo(|cx| {
        let m = Machine::new(cx, 0);
        let (vcpu, _) = m.vcpu(cx, 0);
        let gmem = m.gmem(cx, PAGE_SIZE, 0);
        let dirty_log = |fd| ioctl::get_dirty_log(cx, &m.process, fd, 0).unwrap_err();
        assert_eq!(dirty_log(gmem), Errno::ENOTTY);
        assert_eq!(dirty_log(vcpu), Errno::EINVAL);
        assert_eq!(dirty_log(m.kvm), Errno::EINVAL);
        assert_eq!(ioctl::run(cx, &m.process, m.fd), Err(Errno::ENOTTY));
        assert_eq!(ioctl::run(cx, &m.process, m.kvm), Err(Errno::EINVAL));
        assert_eq!(ioctl::create_vm(cx, &m.process, m.fd, 0), Err(Errno::ENOTTY));
        assert_eq!(ioctl::create_vm(cx, &m.process, vcpu, 0), Err(Errno::EINVAL));
        assert_eq!(ioctl::check_extension_on(cx, &m.process, vcpu, 3), Err(Errno::EINVAL));
    });
}

#[test]
fn the_address_space_is_tested_before_the_ioctl() {
    Sim::sequential().solo(|cx| {
        let m = Machine::new(cx, 0);
        let other = m.process.host().process(cx);
        let file = m.process.fds().get(cx, m.fd).unwrap();
        let fd = other.fds().install(cx, file).unwrap();
        assert_eq!(ioctl::get_dirty_log(cx, &other, fd, 0), Err(Errno::EIO));
        assert_eq!(ioctl::run(cx, &other, fd), Err(Errno::EIO), "before the ioctl turns out to be unknown");
        assert_eq!(ioctl::create_vm(cx, &other, fd, 0), Err(Errno::EIO));
    });
}
