//! Partial-order reduction, by which the races are searched, against all interleavings: what it calls equivalent gives the same. If a step were announced
//! on too little, an outcome would be missing.

use crate::machine::{GFN, IDLE, N, OK, P, ipa};
use crate::races::{Race, Setup, Task, guest_page, host_page};
use sim_coco::pkvm::{HostCall, Memcache, func, mutants};
use sim_kernel::MutantSet;
use sim_kernel::explore::StrategyKind;

const FORCE: Task = |cx, both, pfn| both.force(cx, pfn).is_ok().to_string();
const GUEST_WRITES: Task = |cx, both, _| both.guest_write(cx, P, GFN, 9).to_string();
const HOST_WRITES: Task = |cx, both, pfn| both.host_write(cx, IDLE, pfn, 8).to_string();
const SHARE: Task = |cx, both, _| format!("{:?}", both.pkvm.guest_hvc(cx, P, func::MEM_SHARE, [ipa(GFN).0, 0, 0]));
const DONATE: Task = |cx, both, pfn| both.call(cx, P, HostCall::HostDonateGuest { pfn, gfn: GFN }).is_ok().to_string();

const REPLACE: Task =
    |cx, both, _| both.protected.vcpus[0].replace_memcache(cx, &both.phys, Memcache::default()).nr_pages.to_string();
const FLUSH: Task =
    |cx, both, _| both.call(cx, IDLE, HostCall::TlbFlushVmid { handle: both.other.handle }).is_ok().to_string();
const OTHER_WRITES: Task = |cx, both, _| both.guest_write(cx, N, GFN, 9).to_string();

/// A page that the other VM cannot write any more, but for a translation that it has.
const PROTECTED: Setup = |cx, both| {
    let (pfn, handle) = (both.page(), both.other.handle);
    assert_eq!(both.share_guest(cx, N, pfn, GFN, 1), OK);
    assert!(both.guest_write(cx, N, GFN, 5));
    assert_eq!(both.call(cx, IDLE, HostCall::HostWrprotectGuest { handle, gfn: GFN, pages: 1 }), OK);
    pfn
};

#[test]
fn reduction_loses_no_outcome() {
    let all = MutantSet::EMPTY;
    let (guest, host): (Setup, Setup) = (guest_page, host_page);
    for (name, mutants, setup, tasks, expected) in [
        ("force, guest writes", all, guest, [FORCE, GUEST_WRITES], 2),
        ("share, host writes", all, guest, [SHARE, HOST_WRITES], 2),
        ("donate, host writes", all, host, [DONATE, HOST_WRITES], 2),
        ("donate, guest writes", all, host, [DONATE, GUEST_WRITES], 2),
        ("donate, the list is replaced", all, host, [DONATE, REPLACE], 3),
        ("flush, guest writes", all, PROTECTED, [FLUSH, OTHER_WRITES], 2),
        ("K5", all.with(mutants::K05), guest, [FORCE, GUEST_WRITES], 3),
        ("no TLBI", all.with(mutants::NO_TLBI), guest, [FORCE, GUEST_WRITES], 2),
    ] {
        let race = Race { mutants, setup, tasks };
        let (reduced, few) = race.outcomes(StrategyKind::Dpor);
        let (every, many) = race.outcomes(StrategyKind::Dfs);
        assert_eq!(reduced, every, "{name}: {few} executions of {many}");
        assert_eq!(reduced.len(), expected, "{name}: {reduced:?}");
        assert!(few <= many, "{name}: {few} executions of {many}");
    }
}
