//! A host that lets a guest fault at one instruction again and again: TD-049, TD-050.

use crate::machine::{GPA, LP, Machine, leave, with};
use sim_coco::tdx::exit::EPT_VIOLATION;
use sim_coco::tdx::{Entry, GuestStop, Hpa, Lp, SeptInfo, TdExit};
use sim_kernel::Cx;
use sim_mmu::{Gpa, Level};

const AT: SeptInfo = SeptInfo::page(GPA);
const BYTE: Gpa = Gpa(GPA.0 + 0x10);

/// The guest faults once, at the instruction where it is.
fn fault(cx: &Cx<'_>, machine: &Machine, tdvpr: Hpa, gpa: Gpa) {
    let mut guest = machine.enter(cx, tdvpr, LP);
    assert!(matches!(guest.read(cx, gpa, &mut [0]), Err(GuestStop::Exit(exit)) if exit.eeq_type() == 0));
}

fn enter_fails(cx: &Cx<'_>, machine: &Machine, tdvpr: Hpa) -> TdExit {
    match machine.tdx.on(LP).vp_enter(cx, tdvpr).unwrap() {
        Entry::Exit(exit) => exit,
        Entry::Inside(_) => panic!("the vCPU was entered"),
    }
}

#[test]
fn td_049_the_seventh_fault_is_remembered() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let list = || machine.tdx.peek_vp(tdvpr_pfn(tdvpr)).unwrap().epf_list;
        for i in 1..=6 {
            fault(cx, machine, tdvpr, BYTE);
            assert_eq!(machine.tdx.peek_vp(tdvpr_pfn(tdvpr)).unwrap().epf_count, i);
        }
        assert_eq!(list(), []);
        fault(cx, machine, tdvpr, BYTE);
        assert_eq!(list(), [BYTE]);
        // The vCPU is not entered before the address is mapped; nobody is counted.
        let exit = enter_fails(cx, machine, tdvpr);
        assert_eq!((exit.exit_reason(), exit.gpa), (EPT_VIOLATION, GPA));
        assert_eq!(machine.tdx.peek_td(crate::machine::pfn(tdr)).unwrap().epoch.refcount, [0, 0]);
        machine.aug(cx, tdr, GPA, Level::L4K);
        // Pending is not mapped either.
        assert_eq!(enter_fails(cx, machine, tdvpr).exit_reason(), EPT_VIOLATION);
        machine.tdx.force_sept_state(crate::machine::pfn(tdr), GPA.gfn(), Level::L4K, sim_coco::tdx::SeptState::Mapped);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.set_rip(4);
        leave(cx, guest);
        assert_eq!((list(), machine.tdx.peek_vp(tdvpr_pfn(tdvpr)).unwrap().epf_count), (vec![], 0));
        machine.tdx.force_sept_state(
            crate::machine::pfn(tdr),
            GPA.gfn(),
            Level::L4K,
            sim_coco::tdx::SeptState::Pending,
        );
    });
}

fn tdvpr_pfn(tdvpr: Hpa) -> sim_kernel::Pfn {
    crate::machine::pfn(tdvpr)
}

#[test]
fn progress_forgives() {
    with(|cx, machine| {
        let (_, tdvpr) = machine.running(cx);
        for i in 0..20 {
            let mut guest = machine.enter(cx, tdvpr, LP);
            guest.set_rip(i);
            assert!(guest.read(cx, BYTE, &mut [0]).is_err());
        }
        assert_eq!(machine.tdx.peek_vp(tdvpr_pfn(tdvpr)).unwrap().epf_list, []);
    });
}

/// A TD with two vCPUs: the first is stepped, the second accepts what the first needs.
fn two_vcpus(cx: &Cx<'_>, machine: &Machine) -> (Hpa, Hpa, Hpa) {
    let tdr = machine.building(cx);
    machine.table(cx, tdr, GPA, Level::L2M);
    let (first, second) = (machine.vcpu(cx, tdr, LP), machine.vcpu(cx, tdr, Lp(1)));
    machine.tdx.on(LP).mr_finalize(cx, tdr).unwrap();
    (tdr, first, second)
}

/// A page at the address, which the second vCPU accepts.
fn map(cx: &Cx<'_>, machine: &Machine, tdr: Hpa, second: Hpa, gpa: Gpa) {
    machine.aug(cx, tdr, gpa, Level::L4K);
    let mut guest = machine.enter(cx, second, Lp(1));
    guest.mem_page_accept(cx, SeptInfo::page(gpa)).unwrap().unwrap();
    leave(cx, guest);
}

#[test]
fn the_list_has_an_end_and_no_address_twice() {
    with(|cx, machine| {
        let (tdr, first, second) = two_vcpus(cx, machine);
        let at = |i: u64| Gpa(BYTE.0 + (i << 12));
        let list = || machine.tdx.peek_vp(tdvpr_pfn(first)).unwrap().epf_list;
        for _ in 0..6 {
            fault(cx, machine, first, at(0));
        }
        // One instruction that faults at one address after the other, as a REP does; each is mapped before the next.
        for i in 0..40 {
            fault(cx, machine, first, at(i));
            assert_eq!(list(), (0..=i.min(31)).map(at).collect::<Vec<_>>());
            map(cx, machine, tdr, second, at(i));
            if i == 5 {
                // A page of the list that goes while the vCPU is inside, and is not listed again.
                let mut guest = machine.enter(cx, first, LP);
                machine.tdx.on(Lp(1)).mem_range_block(cx, SeptInfo::page(at(3)), tdr).unwrap();
                assert!(guest.read(cx, at(3), &mut [0]).is_err());
                assert_eq!(list().len(), 6);
                machine.tdx.on(Lp(1)).mem_track(cx, tdr).unwrap();
                machine.tdx.on(Lp(1)).mem_range_unblock(cx, SeptInfo::page(at(3)), tdr).unwrap();
            }
        }
    });
}

#[test]
fn td_050_accepts_do_not_count() {
    with(|cx, machine| {
        let (_, tdvpr) = machine.running(cx);
        for _ in 0..20 {
            let mut guest = machine.enter(cx, tdvpr, LP);
            assert!(guest.mem_page_accept(cx, AT).is_err());
        }
        let info = machine.tdx.peek_vp(tdvpr_pfn(tdvpr)).unwrap();
        assert_eq!((info.epf_count, info.epf_list), (0, vec![]));
    });
}

#[test]
fn a_guest_that_wants_to_know_is_told() {
    with(|cx, machine| {
        let (tdr, first, second) = two_vcpus(cx, machine);
        let mut guest = machine.enter(cx, first, LP);
        guest.vm_wr_notify_zero_step(cx, true).unwrap().unwrap();
        leave(cx, guest);
        for _ in 0..7 {
            fault(cx, machine, first, BYTE);
        }
        map(cx, machine, tdr, second, BYTE);
        let next = Gpa(GPA.0 + 0x1000);
        machine.aug(cx, tdr, next, Level::L4K);
        // It leaves before it executes anything: the exception is still to come.
        let guest = machine.enter(cx, first, LP);
        leave(cx, guest);
        let mut guest = machine.enter(cx, first, LP);
        assert!(matches!(guest.read_u64(cx, GPA), Err(GuestStop::Ve(info)) if info.gpa == BYTE));
        assert_eq!(guest.read_u64(cx, GPA), Ok(0), "once");
        // Until it asks, another would be one too many.
        assert_eq!(guest.read_u64(cx, next), Err(GuestStop::DoubleFault));
        assert!(guest.vp_veinfo_get(cx).unwrap().is_ok());
        assert!(matches!(guest.read_u64(cx, next), Err(GuestStop::Ve(info)) if info.gpa == next));
        leave(cx, guest);
    });
}
