//! What the process refuses, and what the kernel answers it. Without `/dev/kvm` the tests say so and end.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use live_kvm::{ARENA, Failure, GuestMode, Process, Region};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

const RW: i32 = 3;

/// Tests of one program share its address space, and where mappings lie is what they are about: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn process() -> Option<(MutexGuard<'static, ()>, Process)> {
    // A test that failed under the lock is reported by itself.
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    match Process::open(Path::new("/dev/kvm"), GuestMode::Protected32, 1 << 20) {
        Ok(process) => Some((alone, process)),
        Err(error) => {
            println!("skipped, because there is no KVM: {error}");
            None
        }
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Failure>, why: &str) {
    match result {
        Err(Failure::Refused(text)) => assert!(text.contains(why), "{text}"),
        other => panic!("{other:?} instead of a refusal: {why}"),
    }
}

#[test]
fn memory_of_the_program_is_out_of_reach() {
    let Some((_alone, mut process)) = process() else { return };
    let own = vec![7u8; 1 << 16];
    let address = own.as_ptr() as u64 & !0xfff;
    let why = "memory of the recorder itself";
    refused(process.munmap(address, 4096), why);
    refused(process.munmap(0, (1 << 47) - 4096), why);
    refused(process.mprotect(address, 1, 0), why);
    refused(process.madvise(address, 4096, 4), why);
    refused(process.mlock(address, 4096), why);
    refused(process.load(address), why);
    refused(process.store(address, 1), why);
    let vm = process.create_vm(0).unwrap();
    let region = Region { memory_size: 4096, userspace_addr: address, ..Region::default() };
    refused(process.set_user_memory_region(vm, &region), why);
    refused(process.set_user_memory_region2(vm, &region), why);
    assert!(own.iter().all(|byte| *byte == 7));
    refused(process.close(0), "a descriptor of the recorder itself");
    refused(process.close(process.kvm()), "a descriptor of the recorder itself");
}

#[test]
fn no_more_than_was_allowed() {
    let Some((_alone, mut process)) = process() else { return };
    let file = process.memfd_create(1 << 30, 0).unwrap();
    refused(process.fallocate(file, 0, 0, 2 << 20), "takes 1048576 at most");
    assert_eq!(process.fallocate(file, 0, 0, 1 << 20), Ok(()));
    refused(process.fallocate(file, 1, 1 << 30, 2 << 20), "takes 1048576 at most");
    refused(process.pwrite(file, 0, 2 << 20), "takes 1048576 at most");
    let map = process.mmap(None, 4 << 20, RW, false, 0, 4096).unwrap();
    refused(process.madvise(map, 4 << 20, 23), "takes 1048576 at most");
    refused(process.madvise(map, 4096, 100), "the real machine");
    refused(process.madvise(map, 4096, 101), "the real machine");
    refused(process.mlock(map, 4 << 20), "takes 1048576 at most");
    refused(process.mmap(None, 4096, RW, false, 0, 3), "3 is no alignment");
    refused(process.mincore(map, 1 << 46), "keeps a byte for 67108864 pages");
    // What is behind a guest_memfd is never allocated: the kernel may be asked.
    let vm = process.create_vm(0).unwrap();
    if let Ok(file) = process.create_guest_memfd(vm, 4096, 0) {
        assert_eq!(process.fallocate(file, 1, 0, 2 << 20), Err(Failure::Errno(22)));
    }
    // KVM keeps something for every page of a slot, but nothing of one that it refuses.
    let slot = |memory_size, userspace_addr| Region { memory_size, userspace_addr, ..Region::default() };
    refused(process.set_user_memory_region(vm, &slot(1 << 42, map)), "takes 1048576 at most");
    assert_eq!(process.set_user_memory_region(vm, &slot(1 << 44, map)), Err(Failure::Errno(22)));
    assert_eq!(process.set_user_memory_region(vm, &slot(4097, map)), Err(Failure::Errno(22)));
}

#[test]
fn ranges_that_wrap_are_the_kernels_to_refuse() {
    let Some((_alone, mut process)) = process() else { return };
    let map = process.mmap(None, 4096, RW, false, 0, 4096).unwrap();
    let (invalid, no_memory) = (Err(Failure::Errno(22)), Err(Failure::Errno(12)));
    for len in [u64::MAX, u64::MAX - 4095, 0u64.wrapping_sub(map)] {
        assert_eq!(process.munmap(map, len), invalid, "{len:#x}");
        assert_eq!(process.mprotect(map, len, 0), no_memory, "{len:#x}");
        assert_eq!(process.madvise(map, len, 4), invalid, "{len:#x}");
    }
    assert_eq!(process.store(map, 7), Ok(()), "nothing has changed");
}

#[test]
fn faults_are_answers() {
    let Some((_alone, mut process)) = process() else { return };
    let map = process.mmap(None, 8192, RW, false, 0, 1 << 21).unwrap();
    assert!(ARENA.contains(&map) && map.is_multiple_of(1 << 21));
    assert_eq!(process.store(map + 4, 0x1234_5678), Ok(()));
    assert_eq!(process.load(map + 4), Ok(0x1234_5678));
    assert_eq!(process.load(map + 8192), Err(Failure::Signal(11)));
    assert_eq!(process.store(map + 8190, 1), Err(Failure::Signal(11)));
    assert_eq!(process.load(0), Err(Failure::Signal(11)));
    let file = process.memfd_create(4096, 0).unwrap();
    let map = process.mmap(Some(file), 8192, RW, true, 0, 4096).unwrap();
    assert_eq!(process.load(map + 4096), Err(Failure::Signal(7)), "behind the end of the file");
    assert_eq!(process.mincore(map, 8192), Ok(vec![]));
    assert_eq!(process.store(map, 1), Ok(()));
    assert_eq!(process.mincore(map, 8192), Ok(vec![0]));
}

#[test]
fn a_place_is_used_again() {
    let Some((_alone, mut process)) = process() else { return };
    let first = process.mmap(None, 4096, RW, false, 0, 4096).unwrap();
    let second = process.mmap(None, 4096, RW, false, 0, 4096).unwrap();
    assert!(second < first);
    process.munmap(first, 4096).unwrap();
    assert_eq!(process.mmap(None, 4096, RW, false, 0, 4096), Ok(first));
}
