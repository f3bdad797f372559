//! Rules that no selftest of the kernel asserts, but its source has.

mod files;
mod invalidation;
mod lifetime;
mod memory;

use super::{Check, Outcome};

const fn test(id: &'static str, title: &'static str, run: fn() -> Outcome) -> Check {
    Check::test(id, "extras", title, run)
}

pub(super) const CHECKS: &[Check] = &[
    test("GX-01", "a slot with a descriptor that is closed is EBADF", files::closed),
    test("GX-02", "the identical request for an existing guest_memfd slot is EINVAL", files::identical),
    test("GX-03", "an overlap of guest addresses is reported before a bad descriptor", files::overlap_first),
    test(
        "GX-04",
        "a private access after the guest_memfd was closed is a memory fault with EFAULT",
        lifetime::fault_after_close,
    ),
    test("GX-05", "a mapping keeps a closed guest_memfd, for host and guest", lifetime::mapped_after_close),
    test("GX-06", "deleting a slot twice is EINVAL", files::double_delete),
    test("GX-07", "attributes where no slot is invalidate nothing", invalidation::slotless),
    test("GX-08", "attributes that are so already invalidate nothing", invalidation::repeated),
    test("GX-09", "a hole in a file that no slot binds invalidates nothing", invalidation::unbound),
    test("GX-10", "pre-faulting nothing is EINVAL and the structure comes back", memory::prefault_nothing),
    test("GX-11", "another process with the descriptors: ioctls are EIO, fallocate works", lifetime::other_process),
    test("GX-12", "an executable mapping is EPERM", files::executable),
    test("GX-13", "a broken page is EHWPOISON until a hole replaces it by a zero page", memory::poison),
    test("GX-14", "a shared access without host memory is EFAULT and exit reason 0", memory::no_vma),
    test("GX-15", "a slot deleted and created again shows the data of its guest_memfd", memory::recreated),
    test("GX-16", "fallocate without KEEP_SIZE is EOPNOTSUPP", files::change_size),
    test("GX-17", "the odd pages of a private 2 MiB range made shared are what the host sees", memory::odd_pages),
];
