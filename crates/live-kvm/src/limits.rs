//! What a process that runs foreign programs may take from its machine.

use std::io;

/// Lowers this process's limits: no core files, CPU seconds, descriptors; and puts it first in line should memory run out.
///
/// # Errors
/// If the kernel refuses a limit.
pub fn limit_process(cpu_seconds: u64, files: u64) -> io::Result<()> {
    for (resource, value) in [(libc::RLIMIT_CORE, 0), (libc::RLIMIT_CPU, cpu_seconds), (libc::RLIMIT_NOFILE, files)] {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the structure is written by the call, and lives.
        if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
        limit.rlim_cur = value.min(limit.rlim_max);
        // SAFETY: the structure is read by the call, and lives.
        if unsafe { libc::setrlimit(resource, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // The worker goes before anything else of the machine goes. A process may always raise its own score.
    std::fs::write("/proc/self/oom_score_adj", "1000")
}
