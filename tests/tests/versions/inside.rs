//! What no answer shows: when pages are cleared, references that are forgotten, a window that no operation of a scenario opens.

use super::{machine, op, releases, run};
use gmem::KernelVersion;
use gmem::interp::{Sequential, World};
use gmem::kvm::ioctl;
use sim_kernel::mm::FrameFlags;
use sim_kernel::sched::{Chooser, Config, Random, Sim, Verdict};
use sim_kernel::{Cx, Pgoff};
use std::sync::Arc;

/// V11: what `fallocate` leaves behind is cleared already, or not yet.
#[test]
fn v11_when_pages_are_cleared() {
    for ((name, kernel), cleared) in releases([true, false, false, false, false]) {
        let mut machine = Sequential::new(machine(kernel));
        run(&mut machine, "create_vm vm0 sw_protected\ncreate_guest_memfd vm0 g0 size=4K\nfallocate g0 keep_size 0 4K");
        machine.with(|cx, world| {
            let memory = ioctl::peek_gmem(cx, world.process(), world.fd(&"g0".into())).unwrap();
            let pfn = memory.mapping().peek(Pgoff(0)).unwrap();
            let flags = world.process().host().phys().flags(pfn);
            assert_eq!(flags.contains(FrameFlags::UPTODATE), cleared, "V11 on Linux {name}");
        });
    }
}

/// V14: every access to a broken page takes a reference that nobody gives back.
#[test]
fn v14_references_to_broken_pages() {
    for ((name, kernel), leaked) in releases([3, 0, 0, 0, 0]) {
        let mut machine = Sequential::new(machine(kernel));
        let program = "
            create_vm vm0 sw_protected
            create_vcpu vm0 c0
            create_guest_memfd vm0 g0 size=4K
            mmap m0 len=4K
            set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=4K hva=m0 guest_memfd=g0
            set_memory_attributes vm0 0x200000 4K private
            guest_write c0 0x200000 1
        ";
        assert_eq!(run(&mut machine, program).last().unwrap().answer.to_string(), r#"{"exit": "hlt"}"#);
        let references = |cx: &Cx<'_>, world: &World| {
            let memory = ioctl::peek_gmem(cx, world.process(), world.fd(&"g0".into())).unwrap();
            let pfn = memory.mapping().peek(Pgoff(0)).unwrap();
            (world.process().host().phys().refcount(pfn), memory)
        };
        let before = machine.with(|cx, world| {
            let (_, memory) = references(cx, world);
            memory.memory_failure(cx, Pgoff(0)).unwrap_err();
            references(cx, world).0
        });
        for _ in 0..3 {
            let answer = run(&mut machine, "guest_read c0 0x200000")[0].answer.to_string();
            assert!(answer.contains("EHWPOISON"), "V14 on Linux {name}: {answer}");
        }
        let after = machine.with(|cx, world| references(cx, world).0);
        assert_eq!(after - before, leaked, "V14 on Linux {name}");
    }
}

/// V9: a slot is deleted while its file is being closed, and a page of the file fails. The failure is bracketed by an invalidation, whose
/// two ends look at the bindings: erased without `invalidate_lock`, they are gone in between.
fn failure_while_closing(kernel: KernelVersion, seed: u64) -> Verdict {
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    let (_, verdict) = sim.execute(&Config { seed, ..Config::default() }, |cx| {
        let world = Arc::new(World::new(cx, machine(kernel)));
        for line in [
            "create_vm vm0 sw_protected",
            "create_guest_memfd vm0 g0 size=4K",
            "mmap m0 len=4K",
            "set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=4K hva=m0 guest_memfd=g0",
            "fallocate g0 keep_size 0 4K",
        ] {
            world.execute(cx, &op(line));
        }
        let memory = ioctl::peek_gmem(cx, world.process(), world.fd(&"g0".into())).unwrap();
        let (close, delete) = (op("close g0"), op("set_user_memory_region2 vm0 slot=0 gpa=0x200000 size=0 hva=m0"));
        let (closer, deleter) = (Arc::clone(&world), world);
        cx.spawn("closer", move |cx| {
            closer.execute(cx, &close);
        });
        cx.spawn("deleter", move |cx| {
            deleter.execute(cx, &delete);
        });
        cx.spawn("failure", move |cx| {
            let _ = memory.memory_failure(cx, Pgoff(0));
        });
    });
    verdict
}

#[test]
fn v9_bindings_are_erased_under_the_lock() {
    let unbalanced =
        |verdict: &Verdict| verdict.to_string().contains("INV-301: the bindings changed inside an invalidation");
    for (release, kernel) in KernelVersion::ALL {
        let verdicts: Vec<_> = (0..4000).map(|seed| failure_while_closing(kernel, seed)).collect();
        let found = verdicts.iter().filter(|verdict| unbalanced(verdict)).count();
        let expected = ["6.12", "6.18", "6.18.44"].contains(&release);
        assert_eq!(found > 0, expected, "V9 on Linux {release}: {found}");
    }
}

/// V10: what a closing thread does between taking the file from the slots and zapping.
#[test]
fn v10_a_grace_period_in_release() {
    for ((name, kernel), waits) in releases([true, false, false, false, false]) {
        let mut sim = Sim::new(Chooser::Random(Random::new()));
        let config = Config { log: sim_kernel::sched::LogLevel::Full, ..Config::default() };
        let (_, verdict) = sim.execute(&config, |cx| {
            let world = World::new(cx, machine(kernel));
            for line in [
                "create_vm vm0 sw_protected",
                "create_guest_memfd vm0 g0 size=4K",
                "set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=4K hva=0x10000000 guest_memfd=g0",
            ] {
                world.execute(cx, &op(line));
            }
            cx.spawn("closer", move |cx| {
                world.execute(cx, &op("close g0"));
            });
        });
        assert!(verdict.is_completed(), "{verdict}");
        let log = sim.log_json();
        let synchronizes = log.lines().any(|line| line.contains("closer") && line.contains("synchronize"));
        assert_eq!(synchronizes, waits, "V10 on Linux {name}");
    }
}
