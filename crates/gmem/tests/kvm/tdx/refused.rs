//! What KVM does when a leaf fails (`spec` TD-060, TD-066, TD-074): each that KVM calls fails once, for a reason that is none of a lock's; those that find no random numbers
//! fail so often that KVM gives up. What user space hears, whether the VM is broken, what is lost, and whether anything is free that the module has.

use super::{RUNNING, Script, TD, config};
use expect_test::expect;
use gmem::MachineConfig;
use gmem::scenario::parse_line;
use sim_coco::tdx::{Injected, Leaf, Lp, StatusName};
use std::fmt::Write as _;
use std::sync::Arc;

/// After the launch: a page comes and goes, and the guest goes on.
const LIFE: &str = "
    guest_accept c0 0x201000            => hlt 0
    fallocate g0 punch_hole 4K 4K       => ok
    guest_read c0 0x200000              => hlt 7
";

impl Script {
    /// From now on the leaf fails so many times, after so many calls that do not.
    fn refuse(&mut self, leaf: Leaf, after: u64, name: StatusName, times: usize) {
        let module = self.host(|_, host| Arc::clone(host.tdx()));
        for i in 0..times {
            let after = if i == 0 { after } else { 0 };
            module.inject(Injected::Status { leaf, after, status: name.into() });
        }
    }

    /// The life of a TD, up to the first answer that it does not have when nothing fails; then the process ends.
    fn live(mut self) -> String {
        let mut out = "nothing fails".to_string();
        for line in [TD, RUNNING, LIFE].concat().lines().map(str::trim).filter(|line| !line.is_empty()) {
            let step = parse_line(line).unwrap();
            let answer = self.with(|cx, world| world.execute(cx, &step.op));
            if step.expect.is_some_and(|expected| expected.check(&answer).is_err()) {
                out = format!("{} {answer}", step.op.name());
                break;
            }
        }
        let vm = self.of_vm("vm0", |_, vm| Arc::clone(vm));
        self.with(|cx, world| world.process().exit(cx));
        let flushes = self.calls(Leaf::VpFlush);
        self.host(|_, host| {
            let (module, keyids, leaked) = (host.tdx(), host.peek_keyids().len(), host.leaked().len());
            let used = module.peek_used_pages();
            let freed = used.iter().filter(|(pfn, _, _)| !module.phys().is_allocated(*pfn)).count();
            let broken = if vm.is_bugged() { "broken" } else { "well" };
            write!(out, "; {broken}; flushed {flushes}, KeyIDs {keyids}, leaked {leaked}, freed {freed}").unwrap();
        });
        out
    }
}

#[test]
fn every_leaf_fails_once() {
    let mut table = String::new();
    for (leaf, after, name, times) in [
        (Leaf::MngCreate, 0, StatusName::TdFatal, 1),
        (Leaf::MngCreate, 0, StatusName::RndNoEntropy, 9),
        (Leaf::MngCreate, 0, StatusName::RndNoEntropy, 10),
        (Leaf::MngKeyConfig, 0, StatusName::KeyGenerationFailed, 1),
        (Leaf::MngKeyConfig, 0, StatusName::RndNoEntropy, 9),
        (Leaf::MngKeyConfig, 0, StatusName::RndNoEntropy, 10),
        (Leaf::MngAddcx, 2, StatusName::TdFatal, 1),
        (Leaf::MngAddcx, 2, StatusName::RndNoEntropy, 10),
        (Leaf::MngInit, 0, StatusName::TdFatal, 1),
        (Leaf::MngInit, 0, StatusName::OperandInvalid, 1),
        (Leaf::VpCreate, 0, StatusName::TdFatal, 1),
        (Leaf::VpAddcx, 2, StatusName::TdFatal, 1),
        (Leaf::VpInit, 0, StatusName::TdFatal, 1),
        (Leaf::MemSeptAdd, 1, StatusName::TdFatal, 1),
        (Leaf::MemPageAdd, 0, StatusName::TdFatal, 1),
        (Leaf::MrExtend, 5, StatusName::TdFatal, 1),
        (Leaf::MrFinalize, 0, StatusName::TdFatal, 1),
        (Leaf::MrFinalize, 0, StatusName::OperandBusy, 1),
        (Leaf::VpEnter, 0, StatusName::TdFatal, 1),
        (Leaf::MemPageAug, 0, StatusName::TdFatal, 1),
        (Leaf::MemRangeBlock, 0, StatusName::TdFatal, 1),
        (Leaf::MemTrack, 0, StatusName::TdFatal, 1),
        (Leaf::MemTrack, 0, StatusName::PreviousTlbEpochBusy, 1),
        (Leaf::MemPageRemove, 0, StatusName::TdFatal, 1),
        (Leaf::PhymemPageWbinvd, 0, StatusName::TdFatal, 1),
        (Leaf::VpFlush, 0, StatusName::VcpuNotAssociated, 1),
        (Leaf::VpFlush, 0, StatusName::TdFatal, 1),
        (Leaf::MngVpflushdone, 0, StatusName::TdFatal, 1),
        (Leaf::PhymemCacheWb, 0, StatusName::TdFatal, 1),
        (Leaf::MngKeyFreeid, 0, StatusName::TdFatal, 1),
        (Leaf::PhymemPageReclaim, 0, StatusName::TdFatal, 1),
    ] {
        let mut script = Script::new(config());
        script.refuse(leaf, after, name, times);
        writeln!(table, "{} {} x{times}: {}", leaf.name(), name.name(), script.live()).unwrap();
    }
    expect![[r#"
        TDH.MNG.CREATE TD_FATAL x1: tdx_init_vm {"errno": "EIO"}; broken; flushed 0, KeyIDs 0, leaked 0, freed 0
        TDH.MNG.CREATE RND_NO_ENTROPY x9: nothing fails; well; flushed 1, KeyIDs 0, leaked 0, freed 0
        TDH.MNG.CREATE RND_NO_ENTROPY x10: tdx_init_vm {"errno": "EAGAIN"}; well; flushed 0, KeyIDs 0, leaked 0, freed 0
        TDH.MNG.KEY.CONFIG KEY_GENERATION_FAILED x1: tdx_init_vm {"errno": "EIO"}; broken; flushed 0, KeyIDs 0, leaked 0, freed 0
        TDH.MNG.KEY.CONFIG RND_NO_ENTROPY x9: nothing fails; well; flushed 1, KeyIDs 0, leaked 0, freed 0
        TDH.MNG.KEY.CONFIG RND_NO_ENTROPY x10: tdx_init_vm {"errno": "EIO"}; broken; flushed 0, KeyIDs 0, leaked 0, freed 0
        TDH.MNG.ADDCX TD_FATAL x1: tdx_init_vm {"errno": "EIO"}; broken; flushed 0, KeyIDs 0, leaked 0, freed 0
        TDH.MNG.ADDCX RND_NO_ENTROPY x10: tdx_init_vm {"errno": "EAGAIN"}; well; flushed 0, KeyIDs 0, leaked 0, freed 0
        TDH.MNG.INIT TD_FATAL x1: tdx_init_vm {"errno": "EIO"}; broken; flushed 0, KeyIDs 0, leaked 0, freed 0
        TDH.MNG.INIT OPERAND_INVALID x1: tdx_init_vm {"errno": "EINVAL", "fw_error": 13835059154793791488}; well; flushed 0, KeyIDs 0, leaked 0, freed 0
        TDH.VP.CREATE TD_FATAL x1: tdx_init_vcpu {"errno": "EIO"}; broken; flushed 0, KeyIDs 0, leaked 0, freed 0
        TDH.VP.ADDCX TD_FATAL x1: tdx_init_vcpu {"errno": "EIO"}; broken; flushed 0, KeyIDs 0, leaked 0, freed 0
        TDH.VP.INIT TD_FATAL x1: tdx_init_vcpu {"errno": "EIO"}; broken; flushed 0, KeyIDs 0, leaked 0, freed 0
        TDH.MEM.SEPT.ADD TD_FATAL x1: tdx_init_mem_region {"errno": "EIO"}; broken; flushed 1, KeyIDs 0, leaked 0, freed 0
        TDH.MEM.PAGE.ADD TD_FATAL x1: tdx_init_mem_region {"errno": "EIO"}; broken; flushed 1, KeyIDs 0, leaked 0, freed 0
        TDH.MR.EXTEND TD_FATAL x1: tdx_init_mem_region {"errno": "EIO"}; broken; flushed 1, KeyIDs 0, leaked 0, freed 0
        TDH.MR.FINALIZE TD_FATAL x1: tdx_finalize_vm {"errno": "EIO", "fw_error": 16140907678745493504}; broken; flushed 1, KeyIDs 0, leaked 0, freed 0
        TDH.MR.FINALIZE OPERAND_BUSY x1: tdx_finalize_vm {"errno": "EBUSY", "fw_error": 9223374235878031360}; well; flushed 1, KeyIDs 0, leaked 0, freed 0
        TDH.VP.ENTER TD_FATAL x1: guest_accept {"exit": "internal_error", "suberror": 4, "data": 16140907678745493504}; well; flushed 1, KeyIDs 0, leaked 0, freed 0
        TDH.MEM.PAGE.AUG TD_FATAL x1: guest_accept {"errno": "EIO", "exit": "reason_0"}; broken; flushed 1, KeyIDs 0, leaked 0, freed 0
        TDH.MEM.RANGE.BLOCK TD_FATAL x1: guest_read {"errno": "EIO"}; broken; flushed 1, KeyIDs 0, leaked 1, freed 1
        TDH.MEM.TRACK TD_FATAL x1: guest_read {"errno": "EIO"}; broken; flushed 1, KeyIDs 0, leaked 1, freed 1
        TDH.MEM.TRACK PREVIOUS_TLB_EPOCH_BUSY x1: guest_read {"errno": "EIO"}; broken; flushed 1, KeyIDs 0, leaked 1, freed 1
        TDH.MEM.PAGE.REMOVE TD_FATAL x1: guest_read {"errno": "EIO"}; broken; flushed 1, KeyIDs 0, leaked 1, freed 1
        TDH.PHYMEM.PAGE.WBINVD TD_FATAL x1: guest_read {"errno": "EIO"}; broken; flushed 1, KeyIDs 0, leaked 0, freed 0
        TDH.VP.FLUSH VCPU_NOT_ASSOCIATED x1: nothing fails; broken; flushed 1, KeyIDs 1, leaked 16, freed 0
        TDH.VP.FLUSH TD_FATAL x1: nothing fails; broken; flushed 1, KeyIDs 1, leaked 16, freed 0
        TDH.MNG.VPFLUSHDONE TD_FATAL x1: nothing fails; broken; flushed 1, KeyIDs 1, leaked 16, freed 0
        TDH.PHYMEM.CACHE.WB TD_FATAL x1: nothing fails; broken; flushed 1, KeyIDs 1, leaked 16, freed 0
        TDH.MNG.KEY.FREEID TD_FATAL x1: nothing fails; broken; flushed 1, KeyIDs 1, leaked 16, freed 0
        TDH.PHYMEM.PAGE.RECLAIM TD_FATAL x1: nothing fails; well; flushed 1, KeyIDs 0, leaked 2, freed 0
    "#]].assert_eq(&table);
}

/// Every package has a key to configure, and caches to write back.
#[test]
fn each_package_is_seen_to() {
    let machine = || MachineConfig { tdx_packages: 2, ..config() };
    let mut script = Script::new(machine());
    script.run(&[TD, RUNNING, LIFE].concat());
    assert_eq!(script.calls(Leaf::MngKeyConfig), 2);
    // An interrupt of the second package's processor: what was begun there is resumed.
    script.host(|_, host| host.tdx().post_interrupt(Lp(64)));
    script.with(|cx, world| world.process().exit(cx));
    assert_eq!(script.calls(Leaf::PhymemCacheWb), 3);
    let (keyids, leaked) = script.host(|_, host| (host.peek_keyids(), host.leaked()));
    assert!(keyids.is_empty() && leaked.is_empty(), "{keyids:?}, {leaked:?}");

    // What fails on the second undoes what was done on the first.
    let mut script = Script::new(machine());
    script.refuse(Leaf::MngKeyConfig, 1, StatusName::KeyGenerationFailed, 1);
    script.run(
        "create_vm vm0 type=tdx             => ok
         tdx_init_vm vm0                    => EIO
         enable_cap vm0 exit_hypercall 0    => EIO",
    );
    script.end();
}
