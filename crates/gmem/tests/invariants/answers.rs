//! Checks of answers.

use gmem::Errno;
use gmem::invariants::api_results::{inv_602, inv_605};
use gmem::kvm::uapi::kvm_pre_fault_memory;
use gmem::kvm::vcpu::ExitInfo;
use sim_mmu::Gpa;

#[test]
fn a_memory_fault_exit_comes_with_an_error_and_names_a_page() {
    let exit = |flags, gpa, size| ExitInfo::MemoryFault { flags, gpa: Gpa(gpa), size };
    assert_eq!(inv_602(Err(Errno::EFAULT), exit(8, 0x1000, 0x1000)), Ok(()));
    assert_eq!(inv_602(Ok(()), ExitInfo::Hlt), Ok(()));
    for (result, exit) in [
        (Ok(()), exit(8, 0x1000, 0x1000)),
        (Err(Errno::EFAULT), exit(9, 0x1000, 0x1000)),
        (Err(Errno::EFAULT), exit(0, 0x1004, 0x1000)),
        (Err(Errno::EFAULT), exit(0, 0x1000, 0x2000)),
    ] {
        assert!(inv_602(result, exit).unwrap_err().starts_with("KVM_RUN answers"), "{exit:?}");
    }
}

#[test]
fn a_pre_fault_makes_progress_or_fails() {
    let range = |gpa, size| kvm_pre_fault_memory { gpa, size, ..Default::default() };
    let before = range(0x1000, 0x3000);
    assert_eq!(inv_605(&before, &range(0x4000, 0), Ok(())), Ok(()));
    assert_eq!(inv_605(&before, &before, Err(Errno::ENOENT)), Ok(()));
    for (after, result) in [
        (before, Ok(())),
        (range(0x2000, 0x2000), Err(Errno::ENOENT)),
        (range(0x2000, 0x3000), Ok(())),
        (range(0x1000, 0x2000), Ok(())),
    ] {
        assert!(inv_605(&before, &after, result).is_err(), "{after:?}");
    }
}
