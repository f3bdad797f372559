//! The same hypervisor on threads: processors that meet wait for each other, and nothing is left half done.

use crate::machine::{Both, GFN, IDLE, N, OK, P, config};
use sim_coco::pkvm::{CallFail, CpuId, HostCall, HostContext, Pa, Touch};
use sim_kernel::sched::run_native;
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::Gfn;
use std::sync::Arc;

const ROUNDS: u64 = 300;

/// Gives a page to the protected VM, uses and shares it, and has it taken back by force; each round at another address, because those before are poisoned.
fn protected(cx: &Cx<'_>, both: &Both, cpu: CpuId, base: u64, pfn: Pfn) {
    let vcpu = both.pkvm.loaded(cpu).unwrap();
    for round in 0..ROUNDS {
        let gfn = Gfn(GFN.0 + base + round);
        if both.donate(cx, cpu, pfn, gfn) != OK {
            continue;
        }
        // Somebody may have taken it by now.
        both.guest_write(cx, cpu, gfn, round);
        let el2 = both.pkvm.el2(cx, cpu);
        if el2.guest_share_host(&vcpu, gfn).is_ok() {
            assert!(both.host_write(cx, cpu, pfn, round));
            el2.guest_unshare_host(&vcpu, gfn).unwrap();
        }
        both.pkvm.host_touch(cx, cpu, HostContext::Kernel, Pa::of(pfn), Touch::Read);
    }
}

/// Shares pages with the other VM, and touches those that others give away.
fn other(cx: &Cx<'_>, both: &Both, pfns: &[Pfn]) {
    let handle = both.other.handle;
    for round in 0..ROUNDS {
        let gfn = Gfn(GFN.0 + round % 4);
        for pfn in pfns {
            match both.share_guest(cx, N, *pfn, gfn, 1) {
                Ok(_) => {
                    both.guest_write(cx, N, gfn, 1 << 32 | round);
                    assert_eq!(both.call(cx, N, HostCall::HostUnshareGuest { handle, gfn, pages: 1 }), OK);
                }
                Err(fail) => assert_eq!(fail, CallFail::Errno(Errno::EPERM)),
            }
            both.pkvm.host_touch(cx, N, HostContext::Kernel, Pa::of(*pfn), Touch::Write(round));
        }
    }
}

#[test]
fn processors_that_meet() {
    let both = run_native(|cx| {
        let both = Arc::new(Both::new(cx, config()));
        assert!(both.load(cx, IDLE, both.protected.handle, 1));
        let pfns = [both.page(), both.page()];
        for (cpu, base, pfn) in [(P, 0, pfns[0]), (IDLE, 0x1000, pfns[1])] {
            let both = Arc::clone(&both);
            cx.spawn("protected", move |cx| protected(cx, &both, cpu, base, pfn));
        }
        let third = Arc::clone(&both);
        cx.spawn("other", move |cx| other(cx, &third, &pfns));
        both
    });
    both.check();
}
