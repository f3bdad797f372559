//! Boot: what may be called when, and the hypervisor's own memory.

use crate::machine::{Answer, EINVAL, IDLE, Machine, OK, config, err};
use sim_coco::pkvm::{Band, CallFail, CpuId, HostCall, HostContext, HostOutcome, Pa, Touch};
use sim_kernel::Errno;
use sim_kernel::sched::Sim;

const REFUSED: Answer = Err(CallFail::NotSupported);

#[test]
fn pk_025_bands() {
    Sim::sequential().solo(|cx| {
        let machine = Machine::booting(cx, config());
        let pfn = machine.page();
        let share = || machine.call(cx, IDLE, HostCall::HostShareHyp { pfn });
        assert_eq!(HostCall::Init.band(), Band::Setup);
        assert_eq!([share(), machine.call(cx, IDLE, HostCall::ReserveVm)], [REFUSED; 2]);
        assert_eq!(machine.call(cx, IDLE, HostCall::Init), OK);
        assert_eq!(machine.call(cx, IDLE, HostCall::Init), EINVAL);
        machine.pkvm.drop_host_privileges();
        assert_eq!(machine.call(cx, IDLE, HostCall::Init), REFUSED);
        for cpu in (0..4).map(CpuId) {
            assert_eq!(machine.call(cx, cpu, HostCall::ProtFinalize), OK);
            assert_eq!(machine.call(cx, cpu, HostCall::ProtFinalize), err(Errno::EPERM));
        }
        assert_eq!(share(), OK);
        for number in [0, 1, 1000, u64::MAX] {
            assert_eq!(machine.call(cx, IDLE, HostCall::Undefined(number)), REFUSED);
        }
        machine.check();
    });
}

#[test]
fn the_carve_out_is_nobody_elses_once_a_processor_is_finalized() {
    Sim::sequential().solo(|cx| {
        let machine = Machine::booting(cx, config());
        // The first frames of a machine without anything else.
        let root = machine.pkvm.trace();
        assert!(root.is_empty(), "nothing is recorded unless asked for");
        machine.pkvm.host_call(cx, CpuId(0), HostCall::Init).unwrap();
        let own: Vec<_> = machine.pkvm.ownership().pages.into_keys().collect();
        assert!(own.len() > 30, "32 tables for 64 MiB, and some above");
        machine.pkvm.drop_host_privileges();
        machine.call(cx, CpuId(0), HostCall::ProtFinalize).unwrap();
        let touch = |cpu| machine.pkvm.host_touch(cx, cpu, HostContext::User, Pa::of(own[0]), Touch::Read);
        assert_eq!(touch(CpuId(0)), HostOutcome::SigSegv);
        assert!(matches!(touch(CpuId(1)), HostOutcome::Done(_)), "not under stage 2 yet");
        // The kernel cannot take the hypervisor's memory by force.
        let kernel = machine.pkvm.host_touch(cx, CpuId(0), HostContext::Kernel, Pa::of(own[0]), Touch::Write(1));
        assert_eq!(kernel, HostOutcome::Oops);
        machine.check();
    });
}
