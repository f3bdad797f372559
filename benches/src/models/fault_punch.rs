//! `fault x punch`: a vCPU writes to a private page that exists and is not mapped, while the VMM punches a hole there, gives the
//! page back, and punches again.

use super::small_vm::SmallVm;
use gmem::kvm::vcpu::ExitInfo;
use sim_kernel::sched::{Config, Sim, Verdict};
use std::sync::Arc;

/// What the guest writes.
pub const VALUE: u32 = 0x5eed;

/// Which of the two was last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// The hole: the page is gone, and what was written with it.
    Punched,
    /// The fault: the page is there, mapped, and holds what was written.
    Written,
}

/// As [`run`], at its smallest: one fault, with all the tables that it needs yet to be made, and one punch.
///
/// # Panics
/// As [`run`].
pub fn run_once(sim: &mut Sim, config: &Config) -> Outcome {
    let (small, verdict) = sim.execute(config, |cx| {
        let small = Arc::new(SmallVm::new(cx));
        small.allocate(cx, 0, 1);
        let (guest, vmm) = (Arc::clone(&small), Arc::clone(&small));
        cx.spawn("vcpu", move |cx| {
            assert_eq!(guest.write(cx, 0, VALUE), (Ok(()), ExitInfo::Hlt));
        });
        cx.spawn("vmm", move |cx| vmm.punch(cx, 0, 1));
        small
    });
    judge(sim, small, &verdict, 0)
}

/// Runs one schedule on a VM built for it, and takes the VM down.
///
/// # Panics
/// If the page cache, stage 2 and the page's contents do not tell the same story, or the schedule did not complete.
pub fn run(sim: &mut Sim, config: &Config) -> Outcome {
    let (small, verdict) = sim.execute(config, |cx| {
        let small = Arc::new(SmallVm::new(cx));
        // The vCPU has a root and the tables around the page, so that the two sides take about as many steps.
        assert_eq!(small.write(cx, 1, VALUE), (Ok(()), ExitInfo::Hlt));
        small.allocate(cx, 0, 1);
        let guest = Arc::clone(&small);
        cx.spawn("vcpu", move |cx| {
            assert_eq!(guest.write(cx, 0, VALUE), (Ok(()), ExitInfo::Hlt));
        });
        let vmm = Arc::clone(&small);
        cx.spawn("vmm", move |cx| {
            vmm.punch(cx, 0, 1);
            vmm.allocate(cx, 0, 1);
            vmm.punch(cx, 0, 1);
        });
        small
    });
    judge(sim, small, &verdict, 1)
}

/// Looks at what an execution left, with so many other pages mapped, and takes the VM down.
fn judge(sim: &mut Sim, small: Arc<SmallVm>, verdict: &Verdict, others: u64) -> Outcome {
    assert_eq!(*verdict, Verdict::Completed);
    small.vm.check_invariants();
    let outcome = match small.private_word(0) {
        None => Outcome::Punched,
        Some(word) => {
            assert_eq!(word, VALUE, "a page that exists after the hole was made for the write");
            Outcome::Written
        }
    };
    let mapped = small.vm.mmu().pages().leafs;
    assert_eq!(
        mapped,
        [others + u64::from(outcome == Outcome::Written), 0, 0],
        "mapped iff it exists, beside the others"
    );
    let small = Arc::into_inner(small).expect("the tasks have ended");
    sim.solo(|cx| small.destroy(cx));
    outcome
}
