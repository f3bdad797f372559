//! `fallocate` on what is no regular file.

use super::*;

#[test]
fn only_regular_files_can_be_allocated() {
    Sim::sequential().solo(|cx| {
        let m = Machine::new(cx, 0);
        let (vcpu, _) = m.vcpu(cx, 0);
        for fd in [m.kvm, m.fd, vcpu] {
            assert_eq!(m.process.fallocate(cx, fd, 0, 0, 4096), Err(Errno::ENODEV));
            assert_eq!(m.process.fallocate(cx, fd, 0, i64::MAX, 4096), Err(Errno::ENODEV), "before EFBIG");
            assert_eq!(m.process.fallocate(cx, fd, FALLOC_FL_PUNCH_HOLE, 0, 1), Err(Errno::EOPNOTSUPP));
        }
    });
}
