//! `fault x conversion`: a vCPU writes to a private page while the VMM makes the page shared and private again.

use super::small_vm::SmallVm;
use gmem::kvm::uapi::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use gmem::kvm::vcpu::ExitInfo;
use sim_kernel::Errno;
use sim_kernel::sched::{Config, Sim, Verdict};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What the guest writes.
pub const VALUE: u32 = 0x5eed;

/// Where the write went, and how often the guest had to be run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// To the guest_memfd.
    Private,
    /// To the VMM's memory, in the time between the two conversions.
    Shared,
    /// To the guest_memfd, after an exit for memory whose attribute changed under the fault.
    PrivateAfterExit,
    /// To the VMM's memory, after such an exit.
    SharedAfterExit,
}

/// Runs one schedule on a VM built for it, and takes the VM down.
///
/// # Panics
/// If the write is in both memories or in none, a shared mapping is left, or the schedule did not complete.
pub fn run(sim: &mut Sim, config: &Config) -> Outcome {
    let exits = Arc::new(AtomicU32::new(0));
    let (small, verdict) = sim.execute(config, |cx| {
        let small = Arc::new(SmallVm::new(cx));
        let (guest, exits) = (Arc::clone(&small), Arc::clone(&exits));
        cx.spawn("vcpu", move |cx| {
            let mut answer = guest.write(cx, 0, VALUE);
            // The VMM's loop: the attribute changed under the fault, and by now it is what the VMM made it.
            while let (Err(Errno::EFAULT), ExitInfo::MemoryFault { gpa, .. }) = answer {
                assert_eq!(gpa, SmallVm::gpa(0));
                exits.fetch_add(1, Ordering::Relaxed);
                answer = guest.run(cx);
            }
            assert_eq!(answer, (Ok(()), ExitInfo::Hlt));
        });
        let vmm = Arc::clone(&small);
        cx.spawn("vmm", move |cx| {
            vmm.convert(cx, 0, 1, 0);
            vmm.convert(cx, 0, 1, KVM_MEMORY_ATTRIBUTE_PRIVATE);
        });
        small
    });
    assert_eq!(verdict, Verdict::Completed);
    small.vm.check_invariants();
    let small = Arc::into_inner(small).expect("the tasks have ended");
    let shared = sim.solo(|cx| {
        let shared = small.process.read_u32(cx, small.hva).expect("the VMM's own memory");
        let private = small.private_word(0).unwrap_or(0);
        assert_eq!([shared, private].iter().filter(|word| **word == VALUE).count(), 1, "one write in one memory");
        let leafs = small.vm.mmu().pages().leafs;
        assert!(leafs == [0, 0, 0] || leafs == [1, 0, 0], "one page was touched");
        assert!(shared != VALUE || leafs == [0, 0, 0], "the page that the guest wrote to is not the guest's any more");
        small.destroy(cx);
        shared == VALUE
    });
    match (shared, exits.load(Ordering::Relaxed) > 0) {
        (false, false) => Outcome::Private,
        (true, false) => Outcome::Shared,
        (false, true) => Outcome::PrivateAfterExit,
        (true, true) => Outcome::SharedAfterExit,
    }
}
