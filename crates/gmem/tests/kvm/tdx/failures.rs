//! TD-065, TD-066, TD-074 and TD-080 to TD-084: what KVM does when the module refuses, when the end of a TD fails, and of memory that host and guest both touch.

use super::{RUNNING, Script, TD, config};
use gmem::MachineConfig;
use gmem::kvm::ioctl;
use gmem::kvm::mutants::TDX_FREEID_BEFORE_CACHE_WB;
use gmem::kvm::tdx::{TdxCmd, TdxOp};
use sim_coco::tdx::{Hpa, Injected, Leaf, Lp, PageType, SeptState};
use sim_kernel::mm::PhysMem;
use sim_kernel::{MutantSet, Pfn};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A processor that no task of KVM has.
const ELSEWHERE: Lp = Lp(40);

impl Script {
    fn phys(&mut self) -> Arc<PhysMem> {
        self.module().phys()
    }

    /// The next so many calls of the leaf find a lock that somebody else has.
    fn busy(&mut self, leaf: Leaf, times: usize) {
        let module = self.module();
        (0..times).for_each(|_| module.inject(Injected::Busy(leaf)));
    }

    fn is_bugged(&mut self) -> bool {
        self.of_vm("vm0", |_, vm| vm.is_bugged())
    }

    /// What the TD consists of beside its memory: TDR, TDCS, tables, and the pages of its vCPUs.
    fn pages(&mut self) -> BTreeSet<Pfn> {
        let tdr = self.tdr();
        let used = self.module().peek_used_pages();
        let of_td = used.into_iter().filter(|(pfn, _, entry)| *pfn == tdr || entry.owner == Some(tdr));
        of_td.filter(|(_, _, entry)| entry.page_type != PageType::Reg).map(|(pfn, _, _)| pfn).collect()
    }

    /// The process ends. Pages that were leaked then.
    fn exit(&mut self) -> BTreeSet<Pfn> {
        self.with(|cx, world| world.process().exit(cx));
        self.host(|_, host| host.leaked().into_iter().collect())
    }
}

#[test]
fn td_065_an_addition_that_meets_a_lock_is_tried_again() {
    let mut script = Script::td();
    script.run("mmap m1 len=4K => ok");
    for leaf in [Leaf::MemSeptAdd, Leaf::MemPageAdd] {
        script.busy(leaf, 2);
    }
    script.run("tdx_init_mem_region c0 0x200000 m1 4K => ok");
    assert_eq!(script.calls(Leaf::MemPageAdd), 3);
    script.busy(Leaf::MrFinalize, 1);
    script.run("tdx_finalize_vm vm0 => EBUSY");
    assert!(!script.is_bugged());
    script.run("tdx_finalize_vm vm0 => ok");
    script.busy(Leaf::MemPageAug, 3);
    script.run(
        "guest_accept c0 0x201000       => hlt 0
         guest_read c0 0x201000         => hlt 0",
    );
    assert_eq!(script.calls(Leaf::MemPageAug), 4);
    // The mirror agrees, and no page of an attempt is left.
    script.end();
}

#[test]
fn td_066_a_removal_that_meets_a_lock_has_all_vcpus_leave_and_succeeds() {
    for leaf in [Leaf::MemRangeBlock, Leaf::MemTrack, Leaf::MemPageRemove] {
        let mut script = Script::running();
        script.run("guest_accept c0 0x201000 => hlt 0");
        script.busy(leaf, 1);
        script.run("fallocate g0 punch_hole 4K 4K => ok");
        assert_eq!(script.calls(leaf), 2, "{leaf:?}");
        assert_eq!(script.of_td(|tdx| tdx.kicks()), 2, "after TRACK, and before the second try");
        assert_eq!(script.sept(0x20_1000), Some(SeptState::Free));
        script.run("guest_read c0 0x200000 => hlt 7");
        script.end();
    }
}

#[test]
fn td_066_a_removal_that_meets_a_lock_twice_breaks_the_vm() {
    for (leaf, left) in [
        (Leaf::MemRangeBlock, SeptState::Mapped),
        (Leaf::MemTrack, SeptState::Blocked),
        (Leaf::MemPageRemove, SeptState::Blocked),
    ] {
        let mut script = Script::running();
        script.run("guest_accept c0 0x201000 => hlt 0");
        script.busy(leaf, 2);
        script.run("fallocate g0 punch_hole 4K 4K => ok");
        assert!(script.is_bugged(), "{leaf:?}");
        assert_eq!(script.sept(0x20_1000), Some(left), "the page is still the TD's");
        script.run("guest_read c0 0x200000 => EIO");
    }
}

#[test]
fn td_074_a_td_ends_in_this_order() {
    let mut script = Script::running();
    let pages = script.pages().len();
    let called = script.with(|cx, world| {
        drop(cx.take_trace());
        world.process().exit(cx);
        super::leaves(&cx.take_trace())
    });
    let from = called.iter().position(|leaf| *leaf == Leaf::VpFlush).expect("there is a vCPU");
    let mut expected = vec![Leaf::VpFlush, Leaf::MngVpflushdone, Leaf::PhymemCacheWb, Leaf::MngKeyFreeid];
    expected.extend(vec![Leaf::PhymemPageReclaim; pages]);
    // Of the TDR, under the global KeyID.
    expected.push(Leaf::PhymemPageWbinvd);
    assert_eq!(called[from..], expected);
    assert!(script.host(|_, host| host.leaked()).is_empty());
}

/// Whatever keeps the KeyID from being freed: it is lost, and nothing of the TD is ever used again.
#[test]
fn td_074_without_its_keyid_nothing_of_a_td_is_reclaimed() {
    // A cache may have lines of it.
    let mutants = MutantSet::EMPTY.with(TDX_FREEID_BEFORE_CACHE_WB);
    let mut script = Script::new(MachineConfig { mutants, ..config() });
    script.run(TD);
    script.run(RUNNING);
    keeps_everything(script);
    // A vCPU that KVM does not know belongs to a processor.
    let mut script = Script::td();
    let tdvpr = vcpu_of_nobody(&mut script);
    script.with(|cx, world| {
        let module = Arc::clone(world.process().host().tdx().unwrap().tdx());
        for _ in 0..module.config().tdvps_tdcx {
            let page = Hpa::of(module.phys().alloc_zeroed().unwrap());
            module.on(ELSEWHERE).vp_addcx(cx, page, tdvpr).unwrap();
        }
        module.on(ELSEWHERE).vp_init(cx, tdvpr, 0, Some(77)).unwrap();
    });
    script.run(RUNNING);
    keeps_everything(script);
}

fn keeps_everything(mut script: Script) {
    let (pages, phys) = (script.pages(), script.phys());
    let leaked = script.exit();
    assert_eq!(script.calls(Leaf::PhymemPageReclaim), 0);
    assert_eq!(script.host(|_, host| host.peek_keyids()).len(), 1, "no TD gets it any more");
    assert!(pages.iter().all(|page| phys.is_allocated(*page)), "a page of a TD is free");
    assert!(leaked.is_subset(&pages));
    // All that KVM has given: the others are the test's own.
    assert!(leaked.len() >= 1 + 6 + 6 + 3, "{leaked:?}");
}

/// A TDVPR in the TD of which KVM knows nothing.
fn vcpu_of_nobody(script: &mut Script) -> Hpa {
    let tdr = Hpa::of(script.tdr());
    let page = Hpa::of(script.phys().alloc_zeroed().unwrap());
    script.with(|cx, world| {
        let module = Arc::clone(world.process().host().tdx().unwrap().tdx());
        module.on(ELSEWHERE).vp_create(cx, page, tdr).unwrap();
    });
    page
}

#[test]
fn td_074_a_page_that_cannot_be_reclaimed_is_leaked_and_the_others_are_not() {
    // The TDR, because it has pages left.
    let mut script = Script::td();
    vcpu_of_nobody(&mut script);
    script.run(RUNNING);
    let (tdr, phys) = (script.tdr(), script.phys());
    assert_eq!(script.exit(), BTreeSet::from([tdr]));
    assert!(phys.is_allocated(tdr));
    // Each of the others, because somebody was faster.
    let count = Script::running().pages().len();
    for at in 0..count {
        let mut script = Script::new(MachineConfig { tdx_terminate_vm: true, ..config() });
        script.run(TD);
        script.run(RUNNING);
        script.with(|cx, world| {
            let mut cmd = TdxCmd::new(TdxOp::TerminateVm);
            ioctl::memory_encrypt_op_tdx(cx, world.process(), world.fd(&"vm0".into()), &mut cmd).unwrap();
        });
        let (pages, tdr, phys) = (script.pages(), script.tdr(), script.phys());
        let page = *pages.iter().nth(at).unwrap();
        if page == tdr {
            continue;
        }
        script.with(|cx, world| {
            let module = Arc::clone(world.process().host().tdx().unwrap().tdx());
            module.on(ELSEWHERE).phymem_page_reclaim(cx, Hpa::of(page)).unwrap();
        });
        assert_eq!(script.exit(), BTreeSet::from([page]));
        assert!(phys.is_allocated(page));
        assert!(pages.iter().all(|other| *other == page || !phys.is_allocated(*other)), "only what failed is lost");
    }
}

#[test]
fn td_080_a_line_that_the_host_wrote_ends_the_td() {
    let mut script = Script::td();
    script.run(
        "create_vcpu vm0 c1 index=1     => ok
         tdx_init_vcpu c1               => ok",
    );
    script.run(RUNNING);
    script.run(
        "guest_read c0 0x200000         => hlt 7
         guest_read c1 0x200000         => hlt 7",
    );
    let (tdr, page) = (script.tdr(), script.frame(0x20_0000));
    script.host(|cx, host| host.tdx().on(ELSEWHERE).host_write(cx, page, 0, &[9; 64]).unwrap());
    script.run(
        "guest_read c0 0x200000         => internal_error
         guest_read c1 0x200000         => internal_error",
    );
    assert!(script.module().peek_td(tdr).unwrap().fatal);
}

#[test]
fn td_081_the_host_reads_a_fixed_value() {
    let mut script = Script::running();
    script.run("guest_write c0 0x200000 9 => hlt");
    let page = script.frame(0x20_0000);
    let mut bytes = [1; 64];
    script.host(|cx, host| host.tdx().on(ELSEWHERE).host_read(cx, page, 0, &mut bytes).unwrap());
    assert_eq!(bytes, [0; 64]);
    script.run("guest_read c0 0x200000 => hlt 9");
    script.end();
}

/// On processors with the erratum a partial write poisons a TD's line; a page that KVM gave back is no TD's.
#[test]
fn td_082_a_partial_write_after_the_page_has_left() {
    for erratum in [false, true] {
        let mut script = Script::new(MachineConfig { tdx_erratum: erratum, ..config() });
        script.run(TD);
        script.run(RUNNING);
        let page = script.frame(0x20_0000);
        let write_and_read = |script: &mut Script| {
            script.host(|cx, host| {
                let seam = host.tdx().on(ELSEWHERE);
                seam.host_write_direct(cx, page, 0, &[5; 8]).unwrap();
                let mut bytes = [0; 8];
                seam.host_read(cx, page, 0, &mut bytes).map(|()| bytes)
            })
        };
        script.run("fallocate g0 punch_hole 0 4K => ok");
        assert_eq!(write_and_read(&mut script), Ok([5; 8]), "erratum: {erratum}");
        script.run("guest_accept c0 0x201000 => hlt 0");
        let page = script.frame(0x20_1000);
        let while_private = script.host(|cx, host| {
            let seam = host.tdx().on(ELSEWHERE);
            seam.host_write_direct(cx, page, 8, &[5; 8]).unwrap();
            seam.host_read(cx, page, 0, &mut [0; 8]).is_err()
        });
        assert_eq!(while_private, erratum);
    }
}

#[test]
fn td_084_a_page_that_comes_back_is_the_hosts() {
    for erratum in [false, true] {
        let mut script = Script::new(MachineConfig { tdx_erratum: erratum, ..config() });
        script.run(TD);
        script.run(RUNNING);
        let (page, phys) = (script.frame(0x20_0000), script.phys());
        script.run(
            "fallocate g0 punch_hole 0 4K    => ok
             mmap m9 len=256K                => ok",
        );
        assert!(!phys.is_allocated(page));
        for offset in (0..256 << 10).step_by(4096) {
            script.run(&format!("host_write m9 {offset} 0x55 => ok"));
        }
        assert!(phys.is_allocated(page), "the process has it now");
        for offset in (0..256 << 10).step_by(4096) {
            script.run(&format!("host_read m9 {offset} => ok 0x55"));
        }
        let mut bytes = [0; 8];
        script.host(|cx, host| host.tdx().on(ELSEWHERE).host_read(cx, page, 0, &mut bytes).unwrap());
        assert_eq!(u64::from_le_bytes(bytes), 0x55);
        script.end();
    }
}

/// A fault that is told again and again that a lock is busy, while nobody executes a leaf that could have it: its own tries are no reason to go on (INV-506).
#[test]
#[should_panic(expected = "INV-506")]
fn a_lock_that_nobody_has_is_no_reason_to_try_for_ever() {
    let mut script = Script::running();
    script.busy(Leaf::MemPageAug, 100);
    script.run("guest_accept c0 0x201000 => hlt 0");
}
