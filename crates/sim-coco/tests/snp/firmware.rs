//! The firmware and its guests: SN-091, SN-092, SN-098 to SN-100, SN-109, the platform.

use crate::machine::{G, GPA, H, Machine, STATES, config, start, with, with_config};
use sim_coco::snp::firmware::{
    AsidUse, Command, FwStatus, GuestPolicy, GuestState, IdBlock, Injected, LaunchDigest, LaunchFinish, LaunchStart,
    LaunchUpdate, PageMove, PageType, PspFail, Shutdown,
};
use sim_coco::snp::{Asid, CpuId, PageState, RmpLayout, RmpSize, RmpUpdate, Snp, SnpConfig, Spa};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Faults, Pfn};
use std::sync::Arc;

pub(crate) fn status<T: std::fmt::Debug>(answer: Result<T, PspFail>) -> FwStatus {
    match answer {
        Err(PspFail::Status(status)) => status,
        other => panic!("not a status: {other:?}"),
    }
}

pub(crate) fn finish(gctx: Spa) -> LaunchFinish {
    LaunchFinish { gctx, id_block: None, host_data: [0; 32] }
}

/// A guest in this state; it is active if it can be.
fn guest_in(cx: &Cx<'_>, machine: &Machine, state: GuestState) -> Spa {
    if state == GuestState::Init {
        return Spa::of(machine.in_state(cx, PageState::Context));
    }
    let gctx = machine.launching(cx, G, GuestPolicy::USUAL | GuestPolicy::DEBUG);
    if state == GuestState::Running {
        machine.snp.snp_launch_finish(cx, &finish(gctx)).unwrap();
    }
    gctx
}

/// A command that names a guest, with everything else as it should be.
fn issue(cx: &Cx<'_>, machine: &Machine, command: Command, gctx: Spa) -> Result<(), PspFail> {
    let snp = &machine.snp;
    let page = |state| Spa::of(machine.in_state(cx, state));
    match command {
        Command::LaunchStart => snp.snp_launch_start(cx, &start(gctx, GuestPolicy::USUAL)),
        Command::Activate => snp.snp_activate(cx, gctx, H),
        Command::LaunchUpdate => {
            snp.snp_launch_update(cx, &LaunchUpdate::new(gctx, page(PageState::PreGuest), PageType::Zero))
        }
        Command::LaunchFinish => snp.snp_launch_finish(cx, &finish(gctx)),
        Command::GuestRequest => {
            snp.snp_guest_request(cx, gctx, page(PageState::Hypervisor), page(PageState::Firmware))
        }
        Command::DbgDecrypt => snp.snp_dbg_decrypt(cx, gctx, page(PageState::GuestValid), page(PageState::Firmware)),
        Command::DbgEncrypt => snp.snp_dbg_encrypt(cx, gctx, page(PageState::Hypervisor), page(PageState::GuestValid)),
        Command::PageMove => {
            let (src, dst) = (page(PageState::PreSwap), page(PageState::PreGuest));
            snp.snp_page_move(cx, &PageMove { gctx, page_size: RmpSize::Size4K, src, dst })
        }
        Command::GuestStatus => snp.snp_guest_status(cx, gctx).map(|_| ()),
        Command::Decommission => snp.snp_decommission(cx, gctx),
        other => panic!("{other:?} names no guest"),
    }
}

/// The commands that name a guest, and the states in which each is accepted (§4.2).
const BY_STATE: [(Command, [bool; 3]); 10] = [
    (Command::LaunchStart, [true, false, false]),
    (Command::Activate, [false, true, true]),
    (Command::LaunchUpdate, [false, true, false]),
    (Command::LaunchFinish, [false, true, false]),
    (Command::GuestRequest, [false, false, true]),
    (Command::DbgDecrypt, [false, true, true]),
    (Command::DbgEncrypt, [false, true, true]),
    (Command::PageMove, [false, true, true]),
    (Command::GuestStatus, [true, true, true]),
    (Command::Decommission, [true, true, true]),
];

#[test]
fn sn_091_guest_states() {
    for (command, accepted) in BY_STATE {
        for (state, accepted) in [GuestState::Init, GuestState::Launch, GuestState::Running].into_iter().zip(accepted) {
            with(|cx, machine| {
                let gctx = guest_in(cx, machine, state);
                let answer = issue(cx, machine, command, gctx);
                let refused = answer == Err(PspFail::Status(FwStatus::InvalidGuestState));
                assert_eq!(refused, !accepted, "{command:?} in {state:?}: {answer:?}");
                // Not accepted means nothing happened.
                if refused {
                    assert_eq!(machine.snp.peek_guest(gctx, |guest| guest.state), Some(state));
                }
            });
        }
    }
    assert_eq!(FwStatus::InvalidGuestState.code(), 2);
}

#[test]
fn sn_092_which_pages_become_contexts() {
    with(|cx, machine| {
        for state in STATES {
            let page = Spa::of(machine.in_state(cx, state));
            let answer = machine.snp.snp_gctx_create(cx, page);
            if state == PageState::Firmware {
                assert_eq!(answer, Ok(()));
                assert_eq!(machine.state(page.pfn()), PageState::Context);
            } else {
                assert_eq!(status(answer), FwStatus::InvalidPageState, "{state:?}");
                assert_eq!(machine.state(page.pfn()), state);
            }
        }
        let head = machine.sized_in_state(cx, PageState::Firmware, RmpSize::Size2M);
        assert_eq!(status(machine.snp.snp_gctx_create(cx, Spa::of(head))), FwStatus::InvalidPageSize);
        assert_eq!(status(machine.snp.snp_gctx_create(cx, Spa(8))), FwStatus::InvalidAddress);
        assert_eq!(status(machine.snp.snp_gctx_create(cx, Spa(1 << 45))), FwStatus::InvalidAddress);
    });
}

#[test]
fn sn_098_decommission() {
    with(|cx, machine| {
        let gctx = guest_in(cx, machine, GuestState::Running);
        let page = machine.in_state(cx, PageState::GuestValid);
        machine.snp.snp_decommission(cx, gctx).unwrap();
        assert_eq!(machine.state(gctx.pfn()), PageState::Firmware);
        for (command, _) in BY_STATE {
            assert_eq!(status(issue(cx, machine, command, gctx)), FwStatus::InvalidGuest, "{command:?}");
        }
        // R24: its pages stay as they were, and the host takes them back.
        machine.assign(cx, page, RmpUpdate::HYPERVISOR);
    });
}

#[test]
fn sn_099_and_sn_100_asids() {
    with_config(SnpConfig { cpus: 2, ..config() }, |cx, machine| {
        let snp = &machine.snp;
        let first = machine.launching(cx, G, GuestPolicy::USUAL);
        let second = machine.firmware_page(cx);
        snp.snp_gctx_create(cx, second).unwrap();
        snp.snp_launch_start(cx, &start(second, GuestPolicy::USUAL)).unwrap();
        assert_eq!(status(snp.snp_activate(cx, first, H)), FwStatus::Active);
        assert_eq!(status(snp.snp_activate(cx, second, G)), FwStatus::AsidOwned);
        let beyond = Asid(snp.config().asid_max + 1);
        for asid in [Asid::HOST, beyond] {
            assert_eq!(status(snp.snp_activate(cx, second, asid)), FwStatus::InvalidAsid);
        }
        assert_eq!(snp.peek_asid(G), Some(AsidUse::Bound { gctx: first.pfn() }));
        snp.snp_decommission(cx, first).unwrap();
        assert_eq!(snp.peek_asid(G), Some(AsidUse::Stale));
        // All processors, then the fabric, and nothing less (SNP-INV-023).
        assert_eq!(status(snp.snp_activate(cx, second, G)), FwStatus::WbinvdRequired);
        assert_eq!(status(snp.snp_df_flush(cx)), FwStatus::WbinvdRequired);
        snp.wbinvd(cx, CpuId(0));
        assert_eq!(status(snp.snp_df_flush(cx)), FwStatus::WbinvdRequired);
        snp.wbinvd(cx, CpuId(1));
        assert_eq!(status(snp.snp_activate(cx, second, G)), FwStatus::DfflushRequired);
        snp.snp_df_flush(cx).unwrap();
        assert_eq!(snp.peek_asid(G), None);
        snp.snp_activate(cx, second, G).unwrap();
        // A guest that never was active leaves no ASID behind.
        let third = machine.in_state(cx, PageState::Context);
        snp.snp_decommission(cx, Spa::of(third)).unwrap();
        snp.snp_df_flush(cx).unwrap();
    });
    with_config(SnpConfig { asid_max_snp: Some(1), ..config() }, |cx, machine| {
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        machine.snp.snp_decommission(cx, gctx).unwrap();
        let gctx = machine.firmware_page(cx);
        machine.snp.snp_gctx_create(cx, gctx).unwrap();
        machine.snp.snp_launch_start(cx, &start(gctx, GuestPolicy::USUAL)).unwrap();
        assert_eq!(status(machine.snp.snp_activate(cx, gctx, H)), FwStatus::InvalidConfig);
    });
}

#[test]
fn policies() {
    let usual = GuestPolicy::USUAL.bits();
    let rows = [
        (usual, None),
        (usual | GuestPolicy::DEBUG.bits(), None),
        (usual | 0x0137, None),
        (usual | 0x0138, Some(FwStatus::PolicyFailure)),
        (usual | 0x0200, Some(FwStatus::PolicyFailure)),
        (usual & !GuestPolicy::MBO.bits(), Some(FwStatus::InvalidParam)),
        (usual | 1 << 26, Some(FwStatus::InvalidParam)),
        (usual | GuestPolicy::MIGRATE_MA.bits(), Some(FwStatus::Unsupported)),
        (usual & !GuestPolicy::SMT.bits(), Some(FwStatus::PolicyFailure)),
        (usual | GuestPolicy::SINGLE_SOCKET.bits(), Some(FwStatus::PolicyFailure)),
        (usual | GuestPolicy::CIPHERTEXT_HIDING.bits(), Some(FwStatus::PolicyFailure)),
        (usual | GuestPolicy::AES_256_XTS.bits(), Some(FwStatus::PolicyFailure)),
    ];
    with_config(SnpConfig { sockets: 2, ..config() }, |cx, machine| {
        for (policy, expected) in rows {
            let gctx = Spa::of(machine.in_state(cx, PageState::Context));
            let start = LaunchStart { policy, ..start(gctx, GuestPolicy::USUAL) };
            let answer = machine.snp.snp_launch_start(cx, &start);
            assert_eq!(answer.err(), expected.map(PspFail::Status), "{policy:#x}");
            let state = if expected.is_some() { GuestState::Init } else { GuestState::Launch };
            assert_eq!(machine.snp.peek_guest(gctx, |guest| guest.state), Some(state));
        }
    });
}

#[test]
fn sn_109_what_the_owner_expects() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        let page = Spa::of(machine.in_state(cx, PageState::PreGuest));
        snp.snp_launch_update(cx, &LaunchUpdate::new(gctx, page, PageType::Zero)).unwrap();
        let digest = snp.peek_guest(gctx, |guest| guest.digest).unwrap();
        let block = IdBlock {
            digest,
            family_id: [0; 16],
            image_id: [0; 16],
            version: 1,
            guest_svn: 0,
            policy: GuestPolicy::USUAL.bits(),
        };
        let rows = [
            (IdBlock { digest: LaunchDigest::ZERO, ..block }, FwStatus::BadMeasurement),
            (IdBlock { policy: block.policy | 1 << 19, ..block }, FwStatus::PolicyFailure),
            (IdBlock { version: 2, ..block }, FwStatus::InvalidParam),
        ];
        for (block, expected) in rows {
            let finish = LaunchFinish { id_block: Some(block), ..finish(gctx) };
            assert_eq!(status(snp.snp_launch_finish(cx, &finish)), expected);
            assert_eq!(snp.peek_guest(gctx, |guest| guest.state), Some(GuestState::Launch));
        }
        let good = LaunchFinish { id_block: Some(block), host_data: [7; 32], ..finish(gctx) };
        snp.snp_launch_finish(cx, &good).unwrap();
        assert_eq!(snp.peek_guest(gctx, |guest| guest.host_data), Some([7; 32]));
        let told = (GuestPolicy::USUAL, Some(G), GuestState::Running);
        assert_eq!(snp.snp_guest_status(cx, gctx), Ok(told));
        // SNP-INV-019.
        let page = Spa::of(machine.in_state(cx, PageState::PreGuest));
        let late = snp.snp_launch_update(cx, &LaunchUpdate::new(gctx, page, PageType::Zero));
        assert_eq!(status(late), FwStatus::InvalidGuestState);
        assert_eq!(machine.state(page.pfn()), PageState::PreGuest);
        assert_eq!(snp.peek_guest(gctx, |guest| guest.digest), Some(digest));
    });
}

#[test]
fn from_reset_to_shutdown() {
    Sim::sequential().solo(|cx| {
        let phys = Arc::new(PhysMem::new(cx, 16 << 20));
        let snp = Snp::new(cx, Arc::clone(&phys), SnpConfig { cpus: 1, ..SnpConfig::new(RmpLayout::above(16 << 8)) });
        let page = phys.alloc_zeroed().unwrap();
        let gctx = Spa::of(page);
        assert_eq!(snp.rmpupdate(cx, page, RmpUpdate::FIRMWARE).unwrap_err().code(), None, "#UD");
        assert_eq!(status(snp.snp_df_flush(cx)), FwStatus::InvalidPlatformState);
        assert_eq!(status(snp.snp_init(cx, &[])), FwStatus::InvalidConfig, "SNP is not enabled");
        snp.set_snp_en(cx);
        assert_eq!(status(snp.snp_init(cx, &[])), FwStatus::WbinvdRequired);
        snp.wbinvd_all(cx);
        snp.wrmsr_vm_hsave_pa(cx, CpuId(0), Spa(0x1000)).unwrap();
        assert_eq!(status(snp.snp_init(cx, &[])), FwStatus::InvalidConfig, "a host save area");
        snp.wrmsr_vm_hsave_pa(cx, CpuId(0), Spa(0)).unwrap();
        snp.rmpupdate(cx, page, RmpUpdate::FIRMWARE).unwrap();
        assert_eq!(status(snp.snp_init(cx, &[])), FwStatus::RmpInitRequired);
        let again = Snp::new(cx, Arc::clone(&phys), SnpConfig { cpus: 1, ..SnpConfig::new(RmpLayout::above(16 << 8)) });
        let snp = again;
        snp.set_snp_en(cx);
        snp.wbinvd_all(cx);
        let fixed = Pfn(256)..Pfn(258);
        assert_eq!(status(snp.snp_init(cx, &[Pfn(1 << 30)..Pfn((1 << 30) + 1)])), FwStatus::InvalidAddress);
        snp.snp_init(cx, std::slice::from_ref(&fixed)).unwrap();
        assert_eq!(status(snp.snp_init(cx, &[])), FwStatus::InvalidPlatformState);
        assert_eq!(snp.rmp().state(fixed.start), Some(PageState::HvFixed));
        assert_eq!(status(snp.snp_df_flush(cx)), FwStatus::WbinvdRequired);
        snp.wbinvd_all(cx);
        snp.snp_df_flush(cx).unwrap();
        // A guest that is active keeps the platform up, and then its ASID does.
        snp.rmpupdate(cx, page, RmpUpdate::FIRMWARE).unwrap();
        snp.snp_gctx_create(cx, gctx).unwrap();
        snp.snp_launch_start(cx, &start(gctx, GuestPolicy::USUAL)).unwrap();
        snp.snp_activate(cx, gctx, G).unwrap();
        assert_eq!(status(snp.snp_shutdown(cx, Shutdown::default())), FwStatus::InvalidPlatformState);
        snp.snp_decommission(cx, gctx).unwrap();
        assert_eq!(status(snp.snp_shutdown(cx, Shutdown::default())), FwStatus::WbinvdRequired);
        snp.wbinvd_all(cx);
        assert_eq!(status(snp.snp_shutdown(cx, Shutdown::default())), FwStatus::DfflushRequired);
        snp.snp_df_flush(cx).unwrap();
        snp.snp_gctx_create(cx, gctx).unwrap();
        snp.snp_shutdown(cx, Shutdown { x86_snp_shutdown: true }).unwrap();
        assert_eq!(snp.rmp().state(page), Some(PageState::Firmware), "contexts are forgotten");
        assert!(!snp.is_enabled());
        snp.bring_up(cx).unwrap();
        assert_eq!(snp.rmp().state(page), Some(PageState::Hypervisor), "the RMP was zeroed");
        snp.check_invariants().unwrap();
    });
}

#[test]
fn sn_106_a_command_that_does_not_answer_is_the_last() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        let page = machine.in_state(cx, PageState::Firmware);
        snp.inject(cx, Command::Decommission, Injected::Status(FwStatus::ResourceLimit));
        assert_eq!(snp.snp_decommission(cx, gctx), Err(FwStatus::ResourceLimit.into()));
        assert_eq!(machine.state(gctx.pfn()), PageState::Context, "no effect");
        // The third command from now.
        snp.inject_faults(cx, &Faults { firmware: 3, ..Faults::default() });
        assert!(snp.snp_guest_status(cx, gctx).is_ok());
        assert!(snp.snp_guest_status(cx, gctx).is_ok());
        assert_eq!(snp.snp_decommission(cx, gctx), Err(PspFail::NoAnswer));
        assert_eq!(machine.state(gctx.pfn()), PageState::Context, "no effect");
        assert_eq!(snp.snp_decommission(cx, gctx), Err(PspFail::Dead));
        assert_eq!(snp.snp_page_reclaim(cx, Spa::of(page), RmpSize::Size4K), Err(PspFail::Dead));
        assert_eq!(snp.snp_df_flush(cx), Err(PspFail::Dead));
        // The hardware is not.
        machine.assign(cx, machine.page(), RmpUpdate::guest(G, GPA));
    });
    with(|cx, machine| {
        machine.snp.inject(cx, Command::DfFlush, Injected::NoAnswer);
        assert_eq!(machine.snp.snp_df_flush(cx), Err(PspFail::NoAnswer));
        assert_eq!(machine.snp.snp_df_flush(cx), Err(PspFail::Dead));
    });
}

#[test]
fn gpas_in_the_digest_are_those_of_the_rmp() {
    with(|cx, machine| {
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        let pfn = machine.page();
        machine.assign(cx, pfn, RmpUpdate::guest(G, sim_mmu::Gpa(u64::MAX)).immutable());
        let update = LaunchUpdate::new(gctx, Spa::of(pfn), PageType::Vmsa);
        machine.snp.snp_launch_update(cx, &update).unwrap();
        let digest = machine.snp.peek_guest(gctx, |guest| guest.digest.to_string()).unwrap();
        assert!(digest.starts_with("f4577da9b848673216afc390"), "VMSA zero page: {digest}");
        assert_ne!(machine.entry(pfn).gpa, GPA);
    });
}
