//! MM-050 to MM-057, MM-034: the protocol between a vCPU's run loop and whoever flushes TLBs, in windows that a script of the schedule opens.

use super::*;
use gmem::kvm::vcpu::Request;
use parking_lot::Mutex;
use sim_kernel::sched::Access;
use sim_mmu::{Gfn, GfnRange, RemoteFlush};
use std::sync::OnceLock;

const GPA: u64 = 2 << 20;

/// Two mapped pages and vCPUs that have run, so that each has its root.
fn running(cx: &Cx<'_>, vcpus: u64) -> (Machine, Vec<Arc<Vcpu>>) {
    let m = Machine::new(cx, 0);
    let vcpus: Vec<_> = (0..vcpus).map(|id| m.vcpu(cx, id).1).collect();
    let hva = m.anonymous(cx, 2 * PAGE_SIZE);
    m.slot(cx, 0, 0, GPA, 2 * PAGE_SIZE, hva).unwrap();
    for vcpu in &vcpus {
        run(cx, vcpu, &[write(GPA), write(GPA + PAGE_SIZE)]);
    }
    (m, vcpus)
}

fn run(cx: &Cx<'_>, vcpu: &Vcpu, program: &[GuestInsn]) {
    vcpu.set_program(cx, program);
    assert_eq!(vcpu.run(cx).0, Ok(()));
}

/// Which task runs, and until when. Beyond the last turn, and where the task cannot run, any other does.
type Turn = (u8, fn(&Ready<'_>, &Vcpu) -> bool);

/// A strategy that follows a script about a vCPU, which the set-up names.
struct Script {
    vcpu: Arc<OnceLock<Arc<Vcpu>>>,
    turns: &'static [Turn],
    turn: usize,
}

impl Strategy for Script {
    fn begin(&mut self, _seed: u64) {
        self.turn = 0;
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let vcpu = self.vcpu.get().expect("the set-up names it");
        while let Some((task, until)) = self.turns.get(self.turn) {
            let task = TaskId(*task);
            if ready.runnable.contains(task) && !until(ready, vcpu) {
                return Ok(task);
            }
            self.turn += 1;
        }
        Ok(ready.runnable.nth(0))
    }
}

const VCPU: u8 = 1;
const OTHER: u8 = 2;

fn in_guest(_: &Ready<'_>, vcpu: &Vcpu) -> bool {
    vcpu.is_in_guest()
}

/// Requests were looked at, and the mode is not stored yet.
fn about_to_enter(ready: &Ready<'_>, _: &Vcpu) -> bool {
    let next = ready.pending(TaskId(VCPU));
    next.access == Access::Store && next.site.file().ends_with("kvm/vcpu.rs")
}

fn never(_: &Ready<'_>, _: &Vcpu) -> bool {
    false
}

/// What is left after a vCPU has written twice while `other` did something.
struct Left {
    /// Of the VM: requests, and those for which a vCPU was called.
    remote: (u64, u64),
    /// Flushes of the vCPU.
    own: u64,
    /// Whether the vCPU was in the guest when the other task had ended.
    inside: bool,
}

/// Runs a vCPU and another task by a script.
fn scripted(turns: &'static [Turn], other: fn(&Cx<'_>, &Machine)) -> Left {
    let named = Arc::new(OnceLock::new());
    let script = Script { vcpu: Arc::clone(&named), turns, turn: 0 };
    let mut sim = Sim::new(Chooser::Custom(Box::new(script)));
    let config = Config { steps_max: 200_000, log: LogLevel::Off, ..Config::default() };
    let (state, verdict) = sim.execute(&config, |cx| {
        let (m, vcpus) = running(cx, 1);
        // Something that is logged, whose log can be read.
        let hva = m.anonymous(cx, PAGE_SIZE);
        m.slot(cx, 1, KVM_MEM_LOG_DIRTY_PAGES, 2 * GPA, PAGE_SIZE, hva).unwrap();
        run(cx, &vcpus[0], &[]);
        let vcpu = Arc::clone(&vcpus[0]);
        named.set(Arc::clone(&vcpu)).expect("one execution");
        let before = (m.vm.remote_tlb_flushes(), vcpu.tlb_flushes(cx));
        let inside = Arc::new(Mutex::new(false));
        let (runner, seen, machine) = (Arc::clone(&vcpu), Arc::clone(&inside), m.clone());
        cx.spawn("vcpu", move |cx| run(cx, &runner, &[write(GPA), write(GPA + PAGE_SIZE)]));
        cx.spawn("other", move |cx| {
            other(cx, &machine);
            *seen.lock() = vcpu.is_in_guest();
        });
        (m, vcpus, before, inside)
    });
    assert_eq!(verdict, Verdict::Completed, "{verdict}");
    let (m, vcpus, (remote, own), inside) = state;
    sim.solo(|cx| {
        let now = m.vm.remote_tlb_flushes();
        Left {
            remote: (now.0 - remote.0, now.1 - remote.1),
            own: vcpus[0].tlb_flushes(cx) - own,
            inside: *inside.lock(),
        }
    })
}

fn flush(cx: &Cx<'_>, m: &Machine) {
    m.vm.flush_remote_tlbs(cx);
}

/// Kicks all vCPUs and waits for none: what reading a log begins with.
fn kick(cx: &Cx<'_>, m: &Machine) {
    assert_eq!(ioctl::get_dirty_log(cx, &m.process, m.fd, 1), Ok(vec![0]));
}

#[test]
fn mm_050_a_flush_of_vcpus_outside_waits_at_each() {
    Sim::sequential().solo(|cx| {
        let (m, vcpus) = running(cx, 2);
        let before = m.vm.remote_tlb_flushes();
        let own: Vec<u64> = vcpus.iter().map(|vcpu| vcpu.tlb_flushes(cx)).collect();
        m.vm.flush_remote_tlbs(cx);
        assert_eq!(m.vm.remote_tlb_flushes(), (before.0 + 1, before.1), "nobody had to be called");
        for (vcpu, own) in vcpus.iter().zip(own) {
            assert_eq!(vcpu.peek_requests(), Request::TlbFlush as u64);
            assert_eq!(vcpu.tlb_flushes(cx), own, "before it enters");
            run(cx, vcpu, &[read(GPA)]);
            assert_eq!((vcpu.peek_requests(), vcpu.tlb_flushes(cx)), (0, own + 1));
        }
    });
}

#[test]
fn mm_051_a_vcpu_in_the_guest_is_called_out_of_it() {
    let left = scripted(&[(VCPU, in_guest), (OTHER, never)], flush);
    assert_eq!((left.remote, left.own, left.inside), ((1, 1), 1, false));
}

#[test]
fn mm_052_a_vcpu_that_was_kicked_is_waited_for_and_not_kicked_again() {
    // The kick leaves the vCPU where it is, and a second one does not wait for it either.
    let left = scripted(&[(VCPU, in_guest), (OTHER, never)], |cx, m| {
        kick(cx, m);
        kick(cx, m);
    });
    assert_eq!((left.remote, left.own, left.inside), ((0, 0), 0, true));
    let left = scripted(&[(VCPU, in_guest), (OTHER, never)], |cx, m| {
        kick(cx, m);
        flush(cx, m);
    });
    assert_eq!((left.remote, left.own, left.inside), ((1, 1), 1, false));
}

#[test]
fn mm_053_who_flushes_gets_the_request_and_no_call() {
    Sim::sequential().solo(|cx| {
        let (m, vcpus) = running(cx, 1);
        let before = m.vm.remote_tlb_flushes();
        // The vCPU's own task, between two visits to the guest.
        m.vm.flush_remote_tlbs(cx);
        assert_eq!(m.vm.remote_tlb_flushes(), (before.0 + 1, before.1));
        assert_eq!(vcpus[0].peek_requests(), Request::TlbFlush as u64);
    });
}

#[test]
fn mm_054_a_flush_of_everything_includes_that_of_the_current_root() {
    Sim::sequential().solo(|cx| {
        let (_m, vcpus) = running(cx, 1);
        let own = vcpus[0].tlb_flushes(cx);
        vcpus[0].make_request(cx, Request::TlbFlushCurrent);
        vcpus[0].make_request(cx, Request::TlbFlush);
        run(cx, &vcpus[0], &[read(GPA)]);
        assert_eq!((vcpus[0].peek_requests(), vcpus[0].tlb_flushes(cx)), (0, own + 1));
    });
}

#[test]
fn mm_055_an_entry_is_given_up_when_a_request_comes_before_the_mode() {
    let left = scripted(&[(VCPU, about_to_enter), (OTHER, never)], flush);
    assert_eq!(
        (left.remote, left.own, left.inside),
        ((1, 0), 1, false),
        "nobody is called, and the vCPU sees it in time"
    );
}

#[test]
fn mm_057_taking_a_range_away_flushes_everything() {
    Sim::sequential().solo(|cx| {
        let (m, vcpus) = running(cx, 1);
        let own = vcpus[0].tlb_flushes(cx);
        m.vm.zap_gfn_range(cx, GfnRange::with_len(Gfn(GPA / PAGE_SIZE), 1));
        assert_eq!(vcpus[0].peek_requests(), Request::TlbFlush as u64, "the same request");
        run(cx, &vcpus[0], &[read(GPA + PAGE_SIZE)]);
        assert_eq!(vcpus[0].tlb_flushes(cx), own + 1);
    });
}

#[test]
fn mm_034_what_the_handler_of_an_rmp_fault_zaps() {
    Sim::sequential().solo(|cx| {
        let m = Machine::new(cx, 0);
        let (_, vcpu) = m.vcpu(cx, 0);
        let hva = m.anonymous(cx, 4 << 20);
        // Small pages: from the middle of one block to the middle of the next.
        m.process.mprotect(cx, hva + (1 << 20), PAGE_SIZE, Prot::READ).unwrap();
        m.process.mprotect(cx, hva + (3 << 20), PAGE_SIZE, Prot::READ).unwrap();
        m.slot(cx, 0, 0, GPA, 4 << 20, hva).unwrap();
        let first = Gfn((GPA + (1 << 20)) / PAGE_SIZE);
        let pages = [first.0 - 1, first.0, first.0 + 511, first.0 + 512];
        run(cx, &vcpu, &pages.map(|page| read(page * PAGE_SIZE)));
        let mapped = || {
            let mut mapped = Vec::new();
            m.vm.mmu().for_each_leaf(|leaf| mapped.push(leaf.gfn.0));
            mapped.sort_unstable();
            mapped
        };
        assert_eq!(mapped(), pages);
        let (before, seq) = (m.vm.remote_tlb_flushes(), m.vm.mmu().invalidate.peek_seq());
        // 512 frames from the one that faulted on, not the block around it.
        m.vm.zap_gfn_range(cx, GfnRange::with_len(first, 512));
        assert_eq!(mapped(), [pages[0], pages[3]]);
        assert_eq!((m.vm.remote_tlb_flushes().0, m.vm.mmu().invalidate.peek_seq()), (before.0 + 1, seq + 1));
        m.vm.zap_gfn_range(cx, GfnRange::with_len(first, 512));
        assert_eq!(m.vm.remote_tlb_flushes().0, before.0 + 1, "nothing was there");
    });
}
