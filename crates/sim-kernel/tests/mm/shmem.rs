//! Memory files: reading, writing, resizing, holes, seals.

use sim_kernel::fs::{FileOperations, Seals, Shmem};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno, Pgoff};
use std::sync::Arc;

fn with_file(size: u64, body: impl Fn(&Cx<'_>, &Shmem)) {
    Sim::sequential().solo(|cx| {
        let phys = Arc::new(PhysMem::new(cx, 1 << 20));
        let file = Shmem::new(cx, Arc::clone(&phys), 7, size);
        body(cx, &file);
        file.release(cx);
        assert_eq!(phys.used_frames(), 0, "frames leak");
    });
}

#[test]
fn what_is_written_is_read_wherever_it_lies() {
    with_file(0, |cx, file| {
        let bytes: Vec<u8> = (0..=255).cycle().take(9001).collect();
        for offset in [0, 1, 3, 4094, 8191] {
            assert_eq!(file.write_at(cx, offset, &bytes), Ok(9001));
            assert_eq!(file.read_at(cx, offset, 9001).as_deref(), Ok(&bytes[..]));
            assert_eq!(file.read_at(cx, offset + 9000, 100).unwrap()[0], bytes[9000]);
        }
        assert_eq!(file.stat(cx).size, 8191 + 9001);
        assert_eq!(file.read_at(cx, 1 << 40, 5), Ok(vec![]));
        assert_eq!(file.write_at(cx, u64::MAX - 1, &[1, 2]), Err(Errno::EFBIG));
    });
}

#[test]
fn a_shrunk_and_grown_file_has_zeroes_beyond_the_old_end() {
    with_file(8192, |cx, file| {
        file.write_at(cx, 0, &[0xff; 8192]).unwrap();
        file.truncate(cx, 4099).unwrap();
        file.truncate(cx, 8192).unwrap();
        let bytes = file.read_at(cx, 4096, 6).unwrap();
        assert_eq!(bytes, [0xff, 0xff, 0xff, 0, 0, 0]);
        assert_eq!(file.truncate(cx, 1 << 63), Err(Errno::EINVAL));
    });
}

#[test]
fn holes_forget_whole_pages_and_zero_the_rest() {
    with_file(3 * 4096, |cx, file| {
        file.write_at(cx, 0, &[0xff; 3 * 4096]).unwrap();
        file.fallocate(cx, 3, 4094, 4096 + 4).unwrap();
        assert_eq!(file.stat(cx).blocks, 16, "the middle page is gone");
        assert_eq!(file.read_at(cx, 4092, 4).unwrap(), [0xff, 0xff, 0, 0]);
        assert_eq!(file.read_at(cx, 8190, 6).unwrap(), [0, 0, 0, 0, 0xff, 0xff]);
        file.fallocate(cx, 3, 10, 2).unwrap();
        assert_eq!(file.read_at(cx, 8, 6).unwrap(), [0xff, 0xff, 0, 0, 0xff, 0xff]);
        assert_eq!(file.fallocate(cx, 8, 0, 4096), Err(Errno::EOPNOTSUPP));
    });
}

#[test]
fn allocated_pages_are_resident_once_they_have_contents() {
    with_file(4096, |cx, file| {
        file.fallocate(cx, 0, 0, 2 * 4096).unwrap();
        assert_eq!(file.stat(cx).size, 2 * 4096);
        let resident = |file: &Shmem| file.resident_pages(cx, Pgoff(0)..Pgoff(u64::MAX));
        assert_eq!(resident(file), []);
        assert_eq!(file.read_at(cx, 0, 1), Ok(vec![0]));
        assert_eq!(resident(file), [], "it was read as a hole");
        assert_eq!(file.write_at(cx, 1, &[7]), Ok(1));
        assert_eq!(file.read_at(cx, 0, 3), Ok(vec![0, 7, 0]));
        assert_eq!(resident(file), [Pgoff(0)]);
        file.fallocate(cx, 1, 2 * 4096, 4096).unwrap();
        assert_eq!(file.stat(cx).size, 2 * 4096, "the size is kept");
    });
}

#[test]
fn seals_keep_the_size() {
    with_file(4096, |cx, file| {
        file.add_seals(cx, Seals::SHRINK | Seals::GROW).unwrap();
        assert_eq!(file.truncate(cx, 0), Err(Errno::EPERM));
        assert_eq!(file.truncate(cx, 4097), Err(Errno::EPERM));
        assert_eq!(file.truncate(cx, 4096), Ok(()));
        assert_eq!(file.write_at(cx, 4095, &[1, 2]), Err(Errno::EPERM));
        assert_eq!(file.write_at(cx, 4094, &[1, 2]), Ok(2));
        assert_eq!(file.fallocate(cx, 0, 0, 8192), Err(Errno::EPERM));
        file.add_seals(cx, Seals::SEAL).unwrap();
        assert_eq!(file.add_seals(cx, Seals::GROW), Err(Errno::EPERM));
    });
}
