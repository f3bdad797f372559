//! Every operation in every state of a page, and every call by every caller, as tables.

use crate::machine::{Answer, Both, EINVAL, EPERM, GFN, IDLE, Machine, N, OK, P, config, err};
use sim_coco::pkvm::{CallFail, HostCall, Owner, Pa, PageState, Prot};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::Gfn;

/// State of a page for everybody: a column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Is {
    /// The host's.
    A,
    /// Shared with the hypervisor.
    B,
    /// And pinned.
    Pinned,
    /// Shared with TrustZone.
    C,
    /// Shared with a VM that is not protected, once or twice.
    D,
    DTwice,
    /// The hypervisor's.
    E,
    /// Donated to the protected VM.
    F,
    /// Shared back by it.
    G,
    /// Nothing that there should be.
    Illegal,
}

/// The columns, with whether the guest's address is poisoned.
const COLUMNS: [(Is, bool); 9] = [
    (Is::A, false),
    (Is::B, false),
    (Is::Pinned, false),
    (Is::C, false),
    (Is::D, false),
    (Is::E, false),
    (Is::F, false),
    (Is::G, false),
    (Is::A, true),
];

const OTHER: Gfn = Gfn(GFN.0 + 7);

fn state(both: &Both, pfn: Pfn) -> (Is, bool) {
    use PageState::{NoPage, Owned, SharedBorrowed, SharedOwned};
    let view = both.view(pfn);
    let guests: Vec<PageState> = view.guests.iter().map(|guest| guest.state()).collect();
    let (host, hyp) = (view.host, view.hyp);
    let is = match (host.state, hyp.state, host.share_guest_count, &guests[..]) {
        (Owned, NoPage, 0, []) => Is::A,
        (SharedOwned, SharedBorrowed, 0, []) if hyp.refcount == 0 => Is::B,
        (SharedOwned, SharedBorrowed, 0, []) => Is::Pinned,
        (SharedOwned, NoPage, 0, []) => Is::C,
        (SharedOwned, NoPage, 1, [SharedBorrowed]) => Is::D,
        (SharedOwned, NoPage, 2, [SharedBorrowed, SharedBorrowed]) => Is::DTwice,
        (NoPage, Owned, 0, []) if host.pte.owner() == Some(Owner::Hyp) => Is::E,
        (NoPage, NoPage, 0, [Owned]) => Is::F,
        (SharedBorrowed, NoPage, 0, [SharedOwned]) => Is::G,
        _ => Is::Illegal,
    };
    let poisoned = both
        .pkvm
        .vm(both.protected.handle)
        .is_some_and(|vm| both.pkvm.guest_pte(&vm, GFN).is_some_and(|(pte, _)| pte.state() == PageState::Poison));
    (is, poisoned)
}

/// A page in a column's state: in its guest at `GFN`, where it is in one.
fn make(cx: &Cx<'_>, both: &Both, (is, poisoned): (Is, bool)) -> Pfn {
    let el2 = both.pkvm.el2(cx, IDLE);
    let pfn = both.page();
    // So that clearing is seen.
    assert!(both.host_write(cx, IDLE, pfn, 77));
    match is {
        Is::A if poisoned => {
            assert_eq!(both.donate(cx, P, pfn, GFN), OK);
            assert_eq!(both.force(cx, pfn), OK);
        }
        Is::A => {}
        Is::B => el2.host_share_hyp(pfn).unwrap(),
        Is::Pinned => {
            el2.host_share_hyp(pfn).unwrap();
            el2.pin_shared_mem(pfn, 1).unwrap();
        }
        Is::C => el2.host_share_ffa(pfn, 1).unwrap(),
        Is::D => assert_eq!(both.share_guest(cx, N, pfn, GFN, 1), OK),
        Is::DTwice | Is::Illegal => unreachable!("no column"),
        Is::E => el2.host_donate_hyp(pfn, 1).unwrap(),
        Is::F => assert_eq!(both.donate(cx, P, pfn, GFN), OK),
        Is::G => {
            assert_eq!(both.donate(cx, P, pfn, GFN), OK);
            el2.guest_share_host(&both.pkvm.loaded(P).unwrap(), GFN).unwrap();
        }
    }
    assert_eq!(state(both, pfn), (is, poisoned));
    pfn
}

/// What a cell says: the answer, and the state afterwards where that is another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cell {
    To(Is),
    No(Errno),
}
use Cell::{No, To};

const PERM: Cell = No(Errno::EPERM);
const NOENT: Cell = No(Errno::ENOENT);
const AGAIN: Cell = No(Errno::EAGAIN);
const POISON: Cell = No(Errno::EHWPOISON);

type Operation = fn(&Cx<'_>, &Both, Pfn) -> Answer;

fn plain(done: Result<(), Errno>) -> Answer {
    done.map(|()| 0).map_err(CallFail::from)
}

/// Ends the VM in which the page would be, as far as the host must before it takes pages.
fn reclaim_dying(cx: &Cx<'_>, both: &Both, pfn: Pfn) -> Answer {
    let (cpu, handle) = if state(both, pfn).0 == Is::D { (N, both.other.handle) } else { (P, both.protected.handle) };
    assert_eq!(both.call(cx, cpu, HostCall::VcpuPut), OK);
    assert_eq!(both.call(cx, cpu, HostCall::StartTeardownVm { handle }), OK);
    both.call(cx, cpu, HostCall::ReclaimDyingGuestPage { handle, gfn: GFN })
}

/// Rows: an operation, and its cells in the order of [`COLUMNS`].
const ROWS: [(&str, Operation, [Cell; 9]); 18] = [
    (
        "host_share_hyp",
        |cx, both, pfn| both.call(cx, IDLE, HostCall::HostShareHyp { pfn }),
        [To(Is::B), PERM, PERM, PERM, PERM, PERM, PERM, PERM, To(Is::B)],
    ),
    (
        "host_unshare_hyp",
        |cx, both, pfn| both.call(cx, IDLE, HostCall::HostUnshareHyp { pfn }),
        [PERM, To(Is::A), No(Errno::EBUSY), PERM, PERM, PERM, PERM, PERM, PERM],
    ),
    (
        "pin",
        |cx, both, pfn| plain(both.pkvm.el2(cx, IDLE).pin_shared_mem(pfn, 1)),
        [PERM, To(Is::Pinned), To(Is::Pinned), PERM, PERM, PERM, PERM, PERM, PERM],
    ),
    (
        "host_donate_hyp",
        |cx, both, pfn| plain(both.pkvm.el2(cx, IDLE).host_donate_hyp(pfn, 1)),
        [To(Is::E), PERM, PERM, PERM, PERM, PERM, PERM, PERM, To(Is::E)],
    ),
    (
        "hyp_donate_host",
        |cx, both, pfn| plain(both.pkvm.el2(cx, IDLE).hyp_donate_host(pfn, 1)),
        [PERM, PERM, PERM, PERM, PERM, To(Is::A), PERM, PERM, PERM],
    ),
    (
        "host_share_ffa",
        |cx, both, pfn| plain(both.pkvm.el2(cx, IDLE).host_share_ffa(pfn, 1)),
        [To(Is::C), PERM, PERM, PERM, PERM, PERM, PERM, PERM, To(Is::C)],
    ),
    (
        // Does not tell whom the host shares the page with: the proxy of FF-A calls has to.
        "host_unshare_ffa",
        |cx, both, pfn| plain(both.pkvm.el2(cx, IDLE).host_unshare_ffa(pfn, 1)),
        [PERM, To(Is::Illegal), To(Is::Illegal), To(Is::A), To(Is::Illegal), PERM, PERM, PERM, PERM],
    ),
    (
        "host_share_guest, same address",
        |cx, both, pfn| both.share_guest(cx, N, pfn, GFN, 1),
        [To(Is::D), PERM, PERM, PERM, PERM, PERM, PERM, PERM, To(Is::D)],
    ),
    (
        "host_share_guest, another address",
        |cx, both, pfn| both.share_guest(cx, N, pfn, OTHER, 1),
        [To(Is::D), PERM, PERM, PERM, To(Is::DTwice), PERM, PERM, PERM, To(Is::D)],
    ),
    (
        "host_unshare_guest",
        |cx, both, _| {
            let call = HostCall::HostUnshareGuest { handle: both.other.handle, gfn: GFN, pages: 1 };
            both.call(cx, IDLE, call)
        },
        [NOENT, NOENT, NOENT, NOENT, To(Is::A), NOENT, NOENT, NOENT, NOENT],
    ),
    (
        "host_donate_guest, same address",
        |cx, both, pfn| both.donate(cx, P, pfn, GFN),
        [To(Is::F), PERM, PERM, PERM, PERM, PERM, PERM, PERM, PERM],
    ),
    (
        "host_donate_guest, another address",
        |cx, both, pfn| both.donate(cx, P, pfn, OTHER),
        [To(Is::F), PERM, PERM, PERM, PERM, PERM, PERM, PERM, To(Is::F)],
    ),
    (
        "guest_share_host",
        |cx, both, _| plain(both.pkvm.el2(cx, P).guest_share_host(&both.pkvm.loaded(P).unwrap(), GFN)),
        [NOENT, NOENT, NOENT, NOENT, NOENT, NOENT, To(Is::G), PERM, POISON],
    ),
    (
        "guest_unshare_host",
        |cx, both, _| plain(both.pkvm.el2(cx, P).guest_unshare_host(&both.pkvm.loaded(P).unwrap(), GFN)),
        [NOENT, NOENT, NOENT, NOENT, NOENT, NOENT, PERM, To(Is::F), POISON],
    ),
    (
        "force_reclaim",
        |cx, both, pfn| both.force(cx, pfn),
        [AGAIN, AGAIN, AGAIN, AGAIN, AGAIN, PERM, To(Is::A), AGAIN, AGAIN],
    ),
    ("reclaim_dying", reclaim_dying, [NOENT, NOENT, NOENT, NOENT, PERM, NOENT, To(Is::A), To(Is::A), To(Is::A)]),
    (
        "the host reads",
        |cx, both, pfn| both.host_read(cx, IDLE, pfn).map(|_| 0).ok_or(CallFail::Errno(Errno::EFAULT)),
        {
            const FAULT: Cell = No(Errno::EFAULT);
            [To(Is::A), To(Is::B), To(Is::Pinned), To(Is::C), To(Is::D), FAULT, FAULT, To(Is::G), To(Is::A)]
        },
    ),
    (
        "a device writes",
        |cx, both, pfn| {
            both.pkvm.device_access(cx, Pa::of(pfn), sim_coco::pkvm::Touch::Write(1));
            OK
        },
        [To(Is::A), To(Is::B), To(Is::Pinned), To(Is::C), To(Is::D), To(Is::E), To(Is::F), To(Is::G), To(Is::A)],
    ),
];

#[test]
fn pk_001_every_operation_in_every_state() {
    for (name, operation, cells) in ROWS {
        for (column, cell) in COLUMNS.into_iter().zip(cells) {
            Sim::sequential().solo(|cx| {
                let both = Both::new(cx, config());
                let pfn = make(cx, &both, column);
                let before = both.pkvm.ownership();
                let answer = operation(cx, &both, pfn);
                let at = format!("{name} in {column:?}");
                match cell {
                    To(is) => {
                        assert_eq!(answer, OK, "{at}");
                        let poisoned = column.1 || name == "force_reclaim";
                        assert_eq!(state(&both, pfn), (is, poisoned), "{at}");
                    }
                    No(errno) => {
                        assert_eq!(answer, err(errno), "{at}");
                        // Of everything, but for pages that a memcache was refilled with, and vCPUs that were put.
                        let after = both.pkvm.ownership();
                        assert!(before.pages.iter().all(|(pfn, page)| after.pages.get(pfn) == Some(page)), "{at}");
                        assert_eq!(after.poisoned, before.poisoned, "{at}");
                        let refills = name.starts_with("host_donate_guest") || name.starts_with("host_share_guest");
                        assert!(refills || after.pages.len() == before.pages.len(), "{at}");
                    }
                }
                if cell != To(Is::Illegal) {
                    both.check();
                }
                // Contents: cleared where a guest had the page for itself, kept wherever else.
                let written = if name == "a device writes" { 1 } else { 77 };
                let cleared = column.1 || cell == To(Is::A) && column.0 == Is::F;
                let cleared = cleared && name != "a device writes";
                assert_eq!(both.phys.peek_u64(pfn, 0), if cleared { 0 } else { written }, "{at}");
            });
        }
    }
}

#[test]
fn a_second_share_is_taken_back_first() {
    Sim::sequential().solo(|cx| {
        let both = Both::new(cx, config());
        let pfn = make(cx, &both, (Is::D, false));
        assert_eq!(both.share_guest(cx, N, pfn, OTHER, 1), OK);
        for (gfn, is) in [(OTHER, Is::D), (GFN, Is::A)] {
            let handle = both.other.handle;
            assert_eq!(both.call(cx, IDLE, HostCall::HostUnshareGuest { handle, gfn, pages: 1 }), OK);
            assert_eq!(state(&both, pfn), (is, false));
        }
        both.check();
    });
}

/// Calls that need a certain kind of VM, with operands that would do: by a processor with the protected VM's vCPU, the other's, and none.
fn callers(both: &Both, pfn: Pfn) -> Vec<(HostCall, [Answer; 3])> {
    let (protected, other) = (both.protected.handle, both.other.handle);
    let gfn = GFN;
    let prot = Prot::RWX;
    vec![
        (HostCall::HostDonateGuest { pfn, gfn }, [OK, EINVAL, EINVAL]),
        (HostCall::HostShareGuest { pfn, gfn, pages: 1, prot }, [EINVAL, OK, EINVAL]),
        (HostCall::HostRelaxPermsGuest { gfn, prot }, [EINVAL, err(Errno::EAGAIN), EINVAL]),
        (HostCall::HostMkyoungGuest { gfn }, [EINVAL, OK, EINVAL]),
        (HostCall::HostUnshareGuest { handle: protected, gfn, pages: 1 }, [EINVAL; 3]),
        (HostCall::HostUnshareGuest { handle: other, gfn, pages: 1 }, [err(Errno::ENOENT); 3]),
        (HostCall::HostWrprotectGuest { handle: protected, gfn, pages: 1 }, [EINVAL; 3]),
        (HostCall::HostWrprotectGuest { handle: other, gfn, pages: 1 }, [OK; 3]),
        (HostCall::HostTestClearYoungGuest { handle: protected, gfn, pages: 1, mkold: true }, [EINVAL; 3]),
        (HostCall::HostTestClearYoungGuest { handle: other, gfn, pages: 1, mkold: true }, [OK; 3]),
        (HostCall::TlbFlushVmid { handle: protected }, [OK; 3]),
        (HostCall::TlbFlushVmid { handle: other }, [OK; 3]),
        (HostCall::ReclaimDyingGuestPage { handle: protected, gfn }, [EINVAL; 3]),
        (HostCall::VcpuInPoisonFault, [EINVAL; 3]),
    ]
}

#[test]
fn pk_005_pk_026_every_call_by_every_caller() {
    let rows = Sim::sequential().solo(|cx| {
        let both = Both::new(cx, config());
        callers(&both, Pfn(0)).len()
    });
    for row in 0..rows {
        for (i, cpu) in [P, N, IDLE].into_iter().enumerate() {
            Sim::sequential().solo(|cx| {
                let both = Both::new(cx, config());
                // A memcache that lasts.
                both.top_up(cx, &both.protected.vcpus[0]);
                both.top_up(cx, &both.other.vcpus[0]);
                let (call, answers) = callers(&both, both.page()).swap_remove(row);
                assert_eq!(both.call(cx, cpu, call.clone()), answers[i], "{call:?} on {cpu:?}");
                both.check();
            });
        }
    }
}

#[test]
fn pk_002_pins() {
    Sim::sequential().solo(|cx| {
        let machine = Machine::new(cx, config());
        let el2 = machine.pkvm.el2(cx, IDLE);
        let pfn = machine.shared(cx);
        let unshare = || machine.call(cx, IDLE, HostCall::HostUnshareHyp { pfn });
        el2.pin_shared_mem(pfn, 1).unwrap();
        el2.pin_shared_mem(pfn, 1).unwrap();
        el2.unpin_shared_mem(pfn, 1);
        assert_eq!(unshare(), err(Errno::EBUSY));
        assert!(machine.view(pfn).hyp.mapped);
        el2.unpin_shared_mem(pfn, 1);
        assert!(!machine.view(pfn).hyp.mapped);
        assert_eq!(unshare(), OK);
        machine.check();
        // Nobody pins what is not there.
        el2.unpin_shared_mem(pfn, 1);
        let dead = machine.call(cx, IDLE, HostCall::HostShareHyp { pfn });
        assert!(matches!(dead, Err(CallFail::Panic(_))), "{dead:?}");
    });
}

#[test]
fn ranges_and_regions() {
    use crate::machine::{DEVICE, NOMAP, RAM_PAGES};
    Sim::sequential().solo(|cx| {
        let both = Both::new(cx, config());
        let el2 = both.pkvm.el2(cx, IDLE);
        let head = both.huge();
        for (pfn, pages, answer) in [
            (head, 0, EINVAL),
            (head, u64::MAX, EINVAL),
            (Pfn(u64::MAX), 1, EINVAL),
            (Pfn(1 << 60), 1, EINVAL),
            // Beyond what the host's stage 2 translates.
            (Pfn(1 << 28), 1, EINVAL),
            (Pfn((1 << 28) - 1), 2, EINVAL),
            // In a gap, which is no memory; out of it; and memory that is not the kernel's.
            (DEVICE, 1, EPERM),
            (DEVICE, 9, EPERM),
            (NOMAP, 1, EPERM),
            (Pfn(NOMAP.0 - 1), 2, EINVAL),
            (Pfn(RAM_PAGES - 1), 2, EINVAL),
            (head, 3, OK),
        ] {
            assert_eq!(plain(el2.host_donate_hyp(pfn, pages)), answer, "{pages} from {pfn:?}");
        }
        assert_eq!(plain(el2.hyp_donate_host(head, 4)), EPERM);
        assert_eq!(plain(el2.hyp_donate_host(head, 3)), OK);
        // Who does not ask for numbers that there are finds a gap, whatever it wants.
        for pfn in [DEVICE, Pfn(1 << 28)] {
            let share = HostCall::HostShareGuest { pfn, gfn: GFN, pages: 1, prot: Prot::RWX };
            assert_eq!(both.call(cx, IDLE, HostCall::HostShareHyp { pfn }), EPERM);
            assert_eq!(plain(el2.pin_shared_mem(pfn, 1)), EPERM);
            assert_eq!(both.call(cx, N, share), if pfn == DEVICE { EPERM } else { EINVAL });
            assert_eq!(plain(el2.host_share_ffa(pfn, 1)), if pfn == DEVICE { EPERM } else { EINVAL });
            assert_eq!(plain(el2.hyp_donate_host(pfn, 1)), if pfn == DEVICE { EPERM } else { EINVAL });
        }
        both.check();
    });
}
