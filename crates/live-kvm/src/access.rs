//! One load or store by the process that may fault: four instructions whose signals are caught and counted as an answer.
//!
//! A handler for `SIGSEGV` and `SIGBUS` looks whether the interrupted instruction is one of them; if so, execution goes on at
//! another place with the signal's number. Any other fault of the program gets the default action.

use std::sync::Once;

use crate::{Failure, Result};

#[repr(C)]
struct Outcome {
    value: u64,
    signal: u64,
}

// `Outcome` is returned in rax and rdx. The handler finds rdx already set to the signal.
std::arch::global_asm!(
    ".pushsection .text",
    ".globl live_kvm_load32",
    "live_kvm_load32:",
    "mov eax, dword ptr [rdi]",
    "xor edx, edx",
    "ret",
    ".globl live_kvm_store32",
    "live_kvm_store32:",
    "mov dword ptr [rdi], esi",
    "xor eax, eax",
    "xor edx, edx",
    "ret",
    ".globl live_kvm_load64",
    "live_kvm_load64:",
    "mov rax, qword ptr [rdi]",
    "xor edx, edx",
    "ret",
    ".globl live_kvm_store64",
    "live_kvm_store64:",
    "mov qword ptr [rdi], rsi",
    "xor eax, eax",
    "xor edx, edx",
    "ret",
    ".globl live_kvm_faulted",
    "live_kvm_faulted:",
    "xor eax, eax",
    "ret",
    ".popsection",
);

unsafe extern "sysv64" {
    fn live_kvm_load32(address: u64) -> Outcome;
    fn live_kvm_store32(address: u64, value: u32) -> Outcome;
    fn live_kvm_load64(address: u64) -> Outcome;
    fn live_kvm_store64(address: u64, value: u64) -> Outcome;
    fn live_kvm_faulted();
}

extern "C" fn on_fault(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context to a handler with SA_SIGINFO, and nobody else looks at it meanwhile.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize] as usize;
    let accesses = [
        live_kvm_load32 as *const () as usize,
        live_kvm_store32 as *const () as usize,
        live_kvm_load64 as *const () as usize,
        live_kvm_store64 as *const () as usize,
    ];
    if accesses.contains(&rip) {
        registers[libc::REG_RDX as usize] = i64::from(signal);
        registers[libc::REG_RIP as usize] = live_kvm_faulted as *const () as usize as i64;
        return;
    }
    // Not ours: the instruction faults again, with the default action.
    // SAFETY: SIG_DFL is a valid disposition.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Installs the handler, once.
pub(crate) fn catch_faults() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is valid; the handler has the signature that SA_SIGINFO asks for and is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            for signal in [libc::SIGSEGV, libc::SIGBUS] {
                assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
            }
        }
    });
}

fn answer(outcome: Outcome) -> Result<u64> {
    match outcome.signal {
        0 => Ok(outcome.value),
        signal => Err(Failure::Signal(signal as i32)),
    }
}

/// Loads 32 bits from `address`, which must not be memory of this program.
pub(crate) fn load(address: u64) -> Result<u32> {
    // SAFETY: a fault is caught; what is read is memory of the trace, which Rust knows nothing of.
    answer(unsafe { live_kvm_load32(address) }).map(|value| value as u32)
}

/// Stores 32 bits at `address`, which must not be memory of this program.
pub(crate) fn store(address: u64, value: u32) -> Result<()> {
    // SAFETY: as above.
    answer(unsafe { live_kvm_store32(address, value) }).map(drop)
}

/// Loads 64 bits from `address`, which must not be memory of this program.
pub(crate) fn load64(address: u64) -> Result<u64> {
    // SAFETY: as above.
    answer(unsafe { live_kvm_load64(address) })
}

/// Stores 64 bits at `address`, which must not be memory of this program.
pub(crate) fn store64(address: u64, value: u64) -> Result<()> {
    // SAFETY: as above.
    answer(unsafe { live_kvm_store64(address, value) }).map(drop)
}
