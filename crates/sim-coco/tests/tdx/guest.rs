//! TDCALLs of a guest and its accesses: TD-040 to TD-048.

use crate::machine::{GPA, K, LP, config, info, leave, name, params, pfn, told, with, with_config};
use sim_coco::tdx::exit::{EPT_VIOLATION, EXTERNAL_INTERRUPT, TDCALL};
use sim_coco::tdx::{
    CONFIG_FLEXIBLE_PENDING_VE, CONFIG_NO_RBP_MOD, Entry, GuestStop, Injected, Lp, OperandId, SeptInfo, SeptState,
    Status, StatusName, TdAttributes, TdExit, TdParams, TdxConfig, VmCall,
};
use sim_mmu::{Gpa, Level};

const AT: SeptInfo = SeptInfo::page(GPA);
const LARGE: SeptInfo = SeptInfo::new(GPA, Level::L2M);

fn at_level(name: StatusName, level: u32) -> Status {
    Status { name, details: level }
}

/// The extended qualification of an accept that exits: required level, level, public state, whether it is a leaf.
fn extended(required: u64, level: u64, state: u64, leaf: u64) -> u64 {
    1 | (required | level << 3 | state << 6 | leaf << 14) << 32
}

fn exit_of<T: std::fmt::Debug>(stop: Result<T, GuestStop>) -> TdExit {
    match stop {
        Err(GuestStop::Exit(exit)) => exit,
        other => panic!("no exit: {other:?}"),
    }
}

#[test]
fn td_040_a_page_is_accepted_once_and_is_zero() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let page = machine.page();
        let seam = machine.tdx.on(LP);
        // What the host leaves in a page is not the guest's to read.
        seam.host_write(cx, pfn(page), 0, &[0xaa; 4096]).unwrap();
        seam.mem_page_aug(cx, AT, tdr, page).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert_eq!(guest.mem_page_accept(cx, AT), Ok(Ok(())));
        assert_eq!(machine.state(tdr, GPA, Level::L4K), Some(SeptState::Mapped));
        let mut bytes = [1; 4096];
        guest.read(cx, GPA, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4096]);
        guest.write_u64(cx, GPA, 3).unwrap();
        let again = guest.mem_page_accept(cx, AT).unwrap().unwrap_err();
        assert_eq!((again, again.is_error()), (at_level(StatusName::PageAlreadyAccepted, 0), false));
        assert_eq!(guest.read_u64(cx, GPA), Ok(3));
        leave(cx, guest);
    });
}

#[test]
fn td_041_sizes_that_do_not_fit() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert_eq!(guest.mem_page_accept(cx, LARGE), Ok(Err(at_level(StatusName::PageSizeMismatch, 1))));
        let next = Gpa(GPA.0 + (2 << 20));
        machine.aug(cx, tdr, next, Level::L2M);
        let exit = exit_of(guest.mem_page_accept(cx, SeptInfo::page(next)));
        assert_eq!(exit.extended, extended(0, 1, 2, 1));
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert_eq!(guest.mem_page_accept(cx, info(next, Level::L2M)), Ok(Ok(())));
        let small = guest.mem_page_accept(cx, SeptInfo::page(next));
        assert_eq!(small, Ok(Err(at_level(StatusName::PageAlreadyAccepted, 1))));
        leave(cx, guest);
    });
}

#[test]
fn td_042_accepting_what_is_not_there() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.set_rip(100);
        let exit = exit_of(guest.mem_page_accept(cx, AT));
        let expected = TdExit::violation(2, extended(0, 0, 0, 0), GPA);
        assert_eq!((exit, exit.exit_reason()), (expected, EPT_VIOLATION));
        machine.aug(cx, tdr, GPA, Level::L4K);
        machine.tdx.on(LP).mem_range_block(cx, AT, tdr).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        // The instruction is executed again.
        assert_eq!(guest.rip(), 100);
        assert_eq!(exit_of(guest.mem_page_accept(cx, AT)).extended, extended(0, 0, 3, 1));
        machine.tdx.on(LP).mem_track(cx, tdr).unwrap();
        machine.tdx.on(LP).mem_range_unblock(cx, AT, tdr).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert_eq!(guest.mem_page_accept(cx, AT), Ok(Ok(())));
        assert_eq!(guest.rip(), 104);
        leave(cx, guest);
    });
}

#[test]
fn td_043_operands_of_accept() {
    with(|cx, machine| {
        let (_, tdvpr) = machine.running(cx);
        let mut guest = machine.enter(cx, tdvpr, LP);
        let invalid = Ok(Err(Status::of(StatusName::OperandInvalid, OperandId::RCX)));
        for at in [
            SeptInfo::new(Gpa(1 << 30), Level::L1G),
            SeptInfo(GPA.0 | 1 << 47),
            SeptInfo(GPA.0 | 1 << 4),
            SeptInfo((GPA.0 + 0x1000) | 1),
            SeptInfo(GPA.0 | 7),
        ] {
            assert_eq!(guest.mem_page_accept(cx, at), invalid, "{at:?}");
        }
        leave(cx, guest);
    });
}

#[test]
fn td_044_an_interrupted_accept_goes_on_where_it_was() {
    with(|cx, machine| {
        let tdr = machine.building(cx);
        let (first, second) = (machine.vcpu(cx, tdr, LP), machine.vcpu(cx, tdr, Lp(1)));
        let seam = machine.tdx.on(LP);
        seam.mr_finalize(cx, tdr).unwrap();
        machine.aug(cx, tdr, GPA, Level::L2M);
        let counter = || machine.tdx.peek_sept(pfn(tdr), GPA.gfn(), Level::L2M).unwrap().counter();
        let mut guest = machine.enter(cx, first, LP);
        guest.set_rip(8);
        machine.tdx.inject(Injected::InterruptAcceptAfter(7));
        let exit = exit_of(guest.mem_page_accept(cx, LARGE));
        assert_eq!((exit, counter()), (TdExit::reason(EXTERNAL_INTERRUPT), 7));
        assert_eq!(machine.state(tdr, GPA, Level::L2M), Some(SeptState::Pending));
        assert!(machine.tdx.ack_interrupt(LP));
        // SEPT.RD shows the counter, as module 1.5.01 does.
        assert_eq!(seam.mem_sept_rd(cx, LARGE, tdr).unwrap().rcx >> 12 & 0x1ff, 7);
        // A BLOCK loses it.
        seam.mem_range_block(cx, LARGE, tdr).unwrap();
        seam.mem_track(cx, tdr).unwrap();
        seam.mem_range_unblock(cx, LARGE, tdr).unwrap();
        assert_eq!(counter(), 0);
        let mut guest = machine.enter(cx, first, LP);
        assert_eq!(guest.rip(), 8);
        machine.tdx.inject(Injected::InterruptAcceptAfter(500));
        exit_of(guest.mem_page_accept(cx, LARGE));
        assert_eq!(counter(), 500);
        machine.tdx.ack_interrupt(LP);
        // The other vCPU finishes: twelve pages are left.
        let mut guest = machine.enter(cx, second, Lp(1));
        machine.tdx.inject(Injected::InterruptAcceptAfter(12));
        assert_eq!(guest.mem_page_accept(cx, LARGE), Ok(Ok(())));
        assert_eq!((machine.state(tdr, GPA, Level::L2M), counter()), (Some(SeptState::Mapped), 0));
        leave(cx, guest);
    });
}

#[test]
fn td_045_a_page_that_was_not_accepted() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        machine.aug(cx, tdr, GPA, Level::L4K);
        let mut guest = machine.enter(cx, tdvpr, LP);
        let at = Gpa(GPA.0 + 0x123);
        let Err(GuestStop::Ve(info)) = guest.read(cx, at, &mut [0]) else { panic!("no #VE") };
        assert_eq!((info.exit_reason, info.gpa, info.qualification), (EPT_VIOLATION, at, 1));
        // Before the guest asks, the next is a double fault.
        assert_eq!(guest.write_u64(cx, GPA, 1), Err(GuestStop::DoubleFault));
        assert_eq!(guest.vp_veinfo_get(cx), Ok(Ok(info)));
        assert_eq!(guest.vp_veinfo_get(cx), Ok(Err(StatusName::NoValidVeInfo.into())));
        assert!(matches!(guest.write_u64(cx, GPA, 1), Err(GuestStop::Ve(info)) if info.qualification == 2));
        leave(cx, guest);
    });
}

#[test]
fn td_045_td_048_without_ve_the_host_hears_of_it() {
    with(|cx, machine| {
        let params = TdParams { attributes: TdAttributes::SEPT_VE_DISABLE.bits(), ..params() };
        let (tdr, tdvpr) = machine.running_with(cx, K, &params);
        machine.aug(cx, tdr, GPA, Level::L4K);
        let mut guest = machine.enter(cx, tdvpr, LP);
        let exit = exit_of(guest.write_u64(cx, Gpa(GPA.0 + 0x18), 1));
        // TD-048: without the offset.
        assert_eq!(exit, TdExit::violation(2, 6, GPA));
        assert_eq!((exit.eeq_type(), exit.gpa), (6, GPA));
        let mut guest = machine.enter(cx, tdvpr, LP);
        // The guest may not choose, unless its TD was made so.
        assert_eq!(name_of(guest.vp_wr_pending_ve_disable(cx, false)), StatusName::OperandInvalid);
        leave(cx, guest);
    });
    with(|cx, machine| {
        let attributes = TdAttributes::SEPT_VE_DISABLE.bits();
        let params = TdParams { attributes, config_flags: CONFIG_FLEXIBLE_PENDING_VE, ..params() };
        let (tdr, tdvpr) = machine.running_with(cx, K, &params);
        machine.aug(cx, tdr, GPA, Level::L4K);
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert_eq!(guest.vp_wr_pending_ve_disable(cx, false), Ok(Ok(())));
        assert!(matches!(guest.read_u64(cx, GPA), Err(GuestStop::Ve(_))));
        leave(cx, guest);
    });
}

fn name_of<T: std::fmt::Debug>(answer: Result<Result<T, Status>, GuestStop>) -> StatusName {
    answer.unwrap().map_or_else(|status| status.name, |_| StatusName::Success)
}

#[test]
fn td_047_a_host_that_is_kept_waiting_is_told() {
    let config = TdxConfig { hp_lock_timeout: 3, ..config() };
    with_config(config, |cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        machine.aug(cx, tdr, GPA, Level::L2M.down().unwrap());
        let mut guest = machine.enter(cx, tdvpr, LP);
        // What a BLOCK that met an ACCEPT leaves behind.
        machine.tdx.force_host_priority(pfn(tdr), GPA.gfn(), Level::L4K);
        for _ in 0..2 {
            assert_eq!(name_of(guest.mem_page_accept(cx, AT)), StatusName::OperandBusy);
        }
        // Another result in between, and it begins anew.
        assert_eq!(name_of(guest.vp_info(cx)), StatusName::Success);
        for _ in 0..2 {
            assert_eq!(name_of(guest.mem_page_accept(cx, AT)), StatusName::OperandBusy);
        }
        let exit = exit_of(guest.mem_page_accept(cx, AT));
        assert_eq!(exit, TdExit::of(StatusName::HostPriorityBusyTimeout, TDCALL));
        // The host has its lock; then guests may again.
        machine.tdx.on(LP).mem_range_block(cx, AT, tdr).unwrap();
        machine.tdx.on(LP).mem_track(cx, tdr).unwrap();
        machine.tdx.on(LP).mem_range_unblock(cx, AT, tdr).unwrap();
        machine.accept(cx, tdvpr, GPA, Level::L4K);
    });
}

#[test]
fn a_vmcall_shows_what_its_mask_says() {
    with(|cx, machine| {
        let params = TdParams { config_flags: CONFIG_NO_RBP_MOD, ..params() };
        let (_, tdvpr) = machine.running_with(cx, K, &params);
        let mut guest = machine.enter(cx, tdvpr, LP);
        for mask in [1, 2, 1 << 4, 1 << 5, 1 << 32] {
            assert_eq!(name_of(guest.vp_vmcall(cx, VmCall { mask, ..VmCall::default() })), StatusName::OperandInvalid);
        }
        guest.set_rip(40);
        let mut call = VmCall::standard(0x10001, [1, 2, 3, 4]);
        call.registers[3] = 99;
        let exit = exit_of(guest.vp_vmcall(cx, call));
        assert_eq!((exit.exit_reason(), exit.status.name), (TDCALL, StatusName::Success));
        assert_eq!(machine.tdx.vmcall(pfn(tdvpr)), Some(VmCall::standard(0x10001, [1, 2, 3, 4])));
        // What the host answers, in the registers that were shown.
        let mut answer = [9; 16];
        answer[10] = 0;
        let Entry::Inside(mut guest) = machine.tdx.on(LP).vp_enter_with(cx, tdvpr, &answer).unwrap() else {
            panic!("not entered")
        };
        assert_eq!(guest.rip(), 44);
        assert_eq!(guest.vmcall_answer(), Some(VmCall { mask: 0xfc00, ..VmCall::standard(9, [9; 4]) }));
        assert_eq!(guest.vmcall_answer(), None);
        leave(cx, guest);
    });
}

/// The entry after the exit answers it, and no other.
#[test]
fn an_answer_stays_until_the_guest_looks() {
    with(|cx, machine| {
        let (_, tdvpr) = machine.running(cx);
        let mut guest = machine.enter(cx, tdvpr, LP);
        exit_of(guest.vp_vmcall(cx, VmCall::standard(0x10001, [1, 2, 3, 4])));
        let mut retry = [0; 16];
        retry[10] = 1;
        let Entry::Inside(guest) = machine.tdx.on(LP).vp_enter_with(cx, tdvpr, &retry).unwrap() else {
            panic!("not entered")
        };
        leave(cx, guest);
        assert_eq!(machine.tdx.vmcall(pfn(tdvpr)), None, "that exit was an interrupt");
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert_eq!(guest.vmcall_answer().unwrap().registers[10], 1);
        leave(cx, guest);
    });
}

#[test]
fn what_a_guest_learns_of_itself() {
    with(|cx, machine| {
        let (_, tdvpr) = machine.running(cx);
        let mut guest = machine.enter(cx, tdvpr, LP);
        let info = guest.vp_info(cx).unwrap().unwrap();
        assert_eq!((info.gpaw, info.num_vcpus, info.max_vcpus, info.vcpu_index), (48, 1, 4, 0));
        // Addresses beyond the width are the guest's own mistake.
        assert_eq!(guest.read_u64(cx, Gpa(1 << 48)), Err(GuestStop::PageFault));
        leave(cx, guest);
    });
}

#[test]
fn a_vcpu_that_is_beyond_recovery_is_not_entered_again() {
    with(|cx, machine| {
        let (_, tdvpr) = machine.running(cx);
        let mut guest = machine.enter(cx, tdvpr, LP);
        let exit = guest.exit_for_good(cx, sim_coco::tdx::exit::TRIPLE_FAULT);
        assert_eq!(exit.status.raw(), 0x4000_0001_0000_0002);
        assert_eq!(name(machine.tdx.on(LP).vp_enter(cx, tdvpr)), StatusName::VcpuStateIncorrect);
        assert_eq!(told(machine.tdx.on(LP).vp_flush(cx, tdvpr)), "SUCCESS");
    });
}
