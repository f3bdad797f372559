//! SN-152 to SN-159, SN-163, SN-166, SN-181, SN-182: what guests ask by VMGEXIT.

use super::Script;
use gmem::kvm::ioctl;
use gmem::kvm::kernel::KernelInsn;
use gmem::kvm::sev::insn::SnpInsn;
use gmem::kvm::sev::protocol::ghcb::{ValidBitmap, exit, offset};
use gmem::kvm::sev::protocol::msr::PageOp;
use gmem::kvm::sev::protocol::psc::{PscEntry, PscHeader};
use gmem::kvm::vcpu::{ExitInfo, GuestInsn};
use sim_kernel::{Errno, PAGE_SIZE};
use sim_mmu::{Gfn, Gpa};

/// Where the GHCB is.
const GHCB: Gpa = Gpa(0x20_8000);

/// The GHCB with a list of page-state changes, as it lies in memory.
fn asking_for(list: &[u64]) -> Box<[u8]> {
    let mut page = vec![0; PAGE_SIZE as usize];
    let mut put = |at: u64, word: u64| page[at as usize..][..8].copy_from_slice(&word.to_le_bytes());
    put(offset::SW_EXITCODE, exit::PSC);
    put(offset::SW_SCRATCH, GHCB.0 + offset::SHARED_BUFFER);
    let fields = [offset::SW_EXITCODE, offset::SW_EXITINFO1, offset::SW_EXITINFO2, offset::SW_SCRATCH];
    for (at, word) in (offset::VALID_BITMAP..).step_by(8).zip(ValidBitmap::of(&fields).0) {
        put(at, word);
    }
    for (at, word) in (offset::SHARED_BUFFER..).step_by(8).zip(list) {
        put(at, *word);
    }
    page[offset::PROTOCOL_VERSION as usize] = 2;
    page.into()
}

impl Script {
    /// A list of page-state changes by `c0`, of which the VMM answers each exit with the next of these: the exits, as address, pages and attributes.
    fn list(&mut self, entries: &[PscEntry], answers: &[u64]) -> Vec<(u64, u64, u64)> {
        let header = PscHeader { cur_entry: 0, end_entry: entries.len() as u16 - 1, reserved: 0 };
        let words: Vec<u64> =
            std::iter::once(header.to_word()).chain(entries.iter().map(|entry| entry.to_word())).collect();
        let page = asking_for(&words);
        self.with(|cx, world| {
            let vcpu = ioctl::peek_vcpu(cx, world.process(), world.fd(&"c0".into())).unwrap();
            vcpu.set_blocks(cx, vec![page]);
            let insns = [
                GuestInsn::Snp(SnpInsn::SetShared { shared: true }),
                GuestInsn::Kernel(KernelInsn::WriteBlock { gpa: GHCB, block: 0 }),
                GuestInsn::Snp(SnpInsn::WriteGhcbMsr { value: GHCB.0 }),
                GuestInsn::Snp(SnpInsn::Vmgexit),
            ];
            vcpu.set_program(cx, &insns);
            let (mut exits, mut answer) = (Vec::new(), None);
            let mut answers = answers.iter();
            loop {
                let (result, exit) = vcpu.run_answered(cx, answer);
                assert_eq!(result, Ok(()));
                let ExitInfo::Hypercall { nr: 12, args: [gpa, npages, attributes, 0], .. } = exit else {
                    assert_eq!(exit, ExitInfo::Hlt);
                    return exits;
                };
                exits.push((gpa, npages, attributes));
                answer = Some(*answers.next().expect("an answer for each exit"));
            }
        })
    }

    /// A quadword of the GHCB, as the VMM sees it.
    fn ghcb(&mut self, offset: u64) -> u64 {
        self.with(|cx, world| world.process().read_u64(cx, world.map(&"m0".into()) + 0x8000 + offset).unwrap())
    }
}

fn entry(gfn: u64, op: PageOp, is_2m: bool) -> PscEntry {
    PscEntry::new(Gfn(gfn), op, is_2m)
}

#[test]
fn sn_153_neighbours_are_one_exit_and_no_others_are() {
    /// `KVM_MAP_GPA_RANGE_ENCRYPTED`, and 2 MiB.
    const PRIVATE: u64 = 1 << 4;
    const HUGE: u64 = 1;
    use PageOp::{Private, Shared};
    let small = |gfns: std::ops::Range<u64>, op| gfns.map(move |gfn| entry(gfn, op, false));
    let mut script = Script::running();
    let ten: Vec<_> = small(0x200..0x20a, Shared).collect();
    assert_eq!(script.list(&ten, &[0]), [(0x20_0000, 10, 0)], "ten pages");
    let gap: Vec<_> = small(0x200..0x203, Private).chain(small(0x204..0x206, Private)).collect();
    assert_eq!(script.list(&gap, &[0, 0]), [(0x20_0000, 3, PRIVATE), (0x20_4000, 2, PRIVATE)], "a gap");
    let backwards = [entry(0x202, Shared, false), entry(0x201, Shared, false)];
    assert_eq!(script.list(&backwards, &[0, 0]), [(0x20_2000, 1, 0), (0x20_1000, 1, 0)], "downwards");
    let ops: Vec<_> = small(0x200..0x202, Shared).chain(small(0x202..0x204, Private)).collect();
    assert_eq!(script.list(&ops, &[0, 0]), [(0x20_0000, 2, 0), (0x20_2000, 2, PRIVATE)], "another operation");
    let sizes = [entry(0x200, Shared, true), entry(0x400, Shared, true), entry(0x600, Shared, false)];
    assert_eq!(script.list(&sizes, &[0, 0]), [(0x20_0000, 1024, HUGE), (0x60_0000, 1, 0)], "another size");
    script.end();
}

#[test]
fn sn_154_a_refused_batch_names_its_first_entry() {
    let mut script = Script::running();
    let list = [0x200, 0x201, 0x203, 0x204].map(|gfn| entry(gfn, PageOp::Shared, false));
    // The second of two exits is refused: EAGAIN is nothing special.
    assert_eq!(script.list(&list, &[0, Errno::EAGAIN.number() as u64]).len(), 2);
    let header = PscHeader { cur_entry: 2, end_entry: 3, reserved: 0 };
    assert_eq!(script.ghcb(offset::SHARED_BUFFER), header.to_word());
    assert_eq!((script.ghcb(offset::SW_EXITINFO1), script.ghcb(offset::SW_EXITINFO2)), (0, 0x100 << 32));
    script.end();
}

#[test]
fn sn_163_what_is_valid_is_said_anew_with_each_request() {
    let mut script = Script::running();
    let answer = ValidBitmap::of(&[
        offset::RAX,
        offset::RBX,
        offset::RCX,
        offset::RDX,
        offset::SW_EXITINFO1,
        offset::SW_EXITINFO2,
    ]);
    let valid = |script: &mut Script| [0, 8].map(|at| script.ghcb(offset::VALID_BITMAP + at));
    script.run("guest_vmgexit c0 0x208000 hv_features    => hlt 3");
    assert_eq!(valid(&mut script), answer.0, "not the code of the event, nor the scratch area");
    // The same request without saying so again.
    script.with(|cx, world| {
        let vcpu = ioctl::peek_vcpu(cx, world.process(), world.fd(&"c0".into())).unwrap();
        let again = [GuestInsn::Snp(SnpInsn::WriteGhcbMsr { value: GHCB.0 }), GuestInsn::Snp(SnpInsn::Vmgexit)];
        vcpu.set_program(cx, &again);
        assert_eq!(vcpu.run(cx), (Ok(()), ExitInfo::Hlt));
    });
    assert_eq!((script.ghcb(offset::SW_EXITINFO1), script.ghcb(offset::SW_EXITINFO2)), (2, 4), "MISSING_INPUT");
    // A page of user space with an exit of its own: nothing is valid until the vCPU goes on.
    script.with(|cx, world| {
        let vcpu = ioctl::peek_vcpu(cx, world.process(), world.fd(&"c0".into())).unwrap();
        let list = PscEntry::new(Gfn(0x201), PageOp::Shared, false);
        let header = PscHeader { cur_entry: 0, end_entry: 0, reserved: 0 };
        vcpu.set_blocks(cx, vec![asking_for(&[header.to_word(), list.to_word()])]);
        let insns = [
            GuestInsn::Snp(SnpInsn::SetShared { shared: true }),
            GuestInsn::Kernel(KernelInsn::WriteBlock { gpa: GHCB, block: 0 }),
            GuestInsn::Snp(SnpInsn::WriteGhcbMsr { value: GHCB.0 }),
            GuestInsn::Snp(SnpInsn::Vmgexit),
        ];
        vcpu.set_program(cx, &insns);
        assert!(matches!(vcpu.run(cx).1, ExitInfo::Hypercall { .. }));
    });
    assert_eq!(valid(&mut script), [0, 0]);
    script.with(|cx, world| {
        let vcpu = ioctl::peek_vcpu(cx, world.process(), world.fd(&"c0".into())).unwrap();
        assert_eq!(vcpu.run_answered(cx, Some(0)), (Ok(()), ExitInfo::Hlt));
    });
    assert_eq!(valid(&mut script), answer.0);
    script.end();
}

#[test]
fn sn_152_one_page_by_the_msr() {
    let mut script = Script::running();
    script.run(
        "guest_ghcb_msr c0 0x0020000000201014     => hlt 0x15
         guest_read c0 0x201000                   => memory_fault private 0x201000
         guest_ghcb_msr c0 0x0010000000201014     => hlt 0x15
         guest_pvalidate c0 0x201000              => hlt 0
         guest_ghcb_msr c0 0x0030000000201014     => hlt 0x8000000000000015
         guest_ghcb_msr c0 0x0020000000201014 reply=22 => hlt 0x8000000000000015
         guest_ghcb_msr c0 0x0020000000201014 reply=11 => hlt 0x8000000000000015
         guest_ghcb_msr c0 0x0020000000201014 reply=1  => EINVAL
         enable_cap vm0 exit_hypercall 0          => ok
         guest_ghcb_msr c0 0x0020000000201014     => hlt 0x8000000000000015",
    );
    script.end();
}

#[test]
fn sn_163_requests_by_the_msr() {
    let mut script = Script::running();
    script.run(
        "guest_ghcb_msr c0 0x002                  => hlt 0x0002000133000001
         guest_ghcb_msr c0 0x010                  => hlt 0xfffffffffffff011
         guest_ghcb_msr c0 0x080                  => hlt 0x3081
         guest_ghcb_msr c0 0x016                  => hlt 0x016
         guest_ghcb_msr c0 0x0000000140000004     => hlt 0x40000005
         guest_ghcb_msr c0 0x999                  => hlt 0x999
         guest_ghcb_msr c0 0x20a012               => hlt 0x20a013
         guest_ghcb_msr c0 0x0010000000208012     => hlt 0x0010000000208013
         guest_vmgexit c0 0x208000 hv_features    => hlt 0x8000000000000001",
    );
    script.end();
}

#[test]
fn sn_166_a_guest_that_ends_itself() {
    let mut script = Script::running();
    script.run(
        "guest_ghcb_msr c0 0x100                  => system_event 0x100
         guest_ghcb_msr c0 0x21100                => system_event 0x21100
         guest_vmgexit c0 0x208000 term_request   => system_event 0x208000",
    );
    script.end();
}

#[test]
fn sn_163_a_ghcb_that_is_not_registered_and_events_that_there_are_not() {
    let mut script = Script::running();
    script.run(
        "guest_vmgexit c0 0x20a000 hv_features    => hlt 0x8000000000000001
         guest_vmgexit c0 0x208000 hv_features    => hlt 3
         guest_vmgexit c0 0x208000 0x80000099     => hlt 0x8000000000000006
         guest_vmgexit c0 0x208000 psc            => hlt 0x8000000000000004
         guest_vmgexit c0 0x208000 0x8000ffff     => EINVAL
         guest_vmgexit c0 0x208000 hv_features    => hlt 3",
    );
    script.end();
}

#[test]
fn sn_153_a_range_becomes_shared_and_private_again() {
    let mut script = Script::running();
    // Eight pages that the guest has accepted.
    for page in 0..8 {
        script.run(&format!("guest_pvalidate c0 {:#x} => hlt 0", 0x20_0000 + page * 0x1000));
    }
    script.run(
        "guest_psc c0 0x208000 0x200000 32K shared  => hlt
         guest_write_shared c0 0x207000 5           => hlt
         guest_psc c0 0x208000 0x200000 32K private => hlt
         guest_write c0 0x207000 6                  => hlt
         guest_read c0 0x207000                     => hlt 6",
    );
    script.end();
}

#[test]
fn sn_154_sn_182_a_refused_list_ends_the_guest() {
    let mut script = Script::running();
    script.run(
        "guest_pvalidate c0 0x201000              => hlt 0
         guest_psc c0 0x208000 0x201000 4K shared reply=22 => system_event 0x11100
         guest_pvalidate c0 0x202000              => hlt 0
         guest_convert c0 0x202000 shared reply=11 => system_event 0x11100",
    );
    script.end();
}

#[test]
fn sn_153_after_an_answer_that_is_none_it_is_the_next_list_that_fails() {
    let mut script = Script::running();
    for page in 0..3 {
        script.run(&format!("guest_pvalidate c0 {:#x} => hlt 0", 0x20_0000 + page * 0x1000));
    }
    script.run(
        "guest_psc c0 0x208000 0x200000 4K shared reply=1 => EINVAL
         guest_psc c0 0x208000 0x201000 4K shared => system_event 0x11100
         guest_psc c0 0x208000 0x202000 4K shared => hlt",
    );
    script.end();
}

#[test]
fn sn_163_a_vmmcall_is_the_guests_own_affair() {
    let mut script = Script::running();
    script.run("guest_hypercall c0 map_gpa_range [0x201000, 1, 0] => system_event 0x100");
    script.end();
}

#[test]
fn sn_163_a_ghcb_that_is_not_to_be_written_is_no_ghcb() {
    for (prot, answer) in [("rw", "system_event 0x400000"), ("r", "hlt 0x400000")] {
        let mut script = Script::running();
        script.run(
            "mmap m1 len=4K                       => ok
             set_user_memory_region vm0 slot=1 gpa=0x400000 size=4K hva=m1 => ok
             guest_ghcb_msr c0 0x400012           => hlt 0x400013",
        );
        script.with(|cx, world| {
            let valid = ValidBitmap::of(&[offset::SW_EXITCODE, offset::SW_EXITINFO1, offset::SW_EXITINFO2]);
            let words = [
                (offset::VALID_BITMAP, valid.0[0]),
                (offset::VALID_BITMAP + 8, valid.0[1]),
                (offset::SW_EXITCODE, exit::TERM_REQUEST),
            ];
            for (at, word) in words {
                world.process().write_u64(cx, world.map(&"m1".into()) + at, word).unwrap();
            }
        });
        script.run(&format!("mprotect m1 0 4K {prot} => ok\nguest_ghcb_msr c0 0x400000           => {answer}"));
        script.end();
    }
}

#[test]
fn sn_182_a_second_acceptance_ends_the_guest() {
    let mut script = Script::running();
    script.run(
        "guest_pvalidate c0 0x201000              => hlt 0
         guest_convert c0 0x201000 private        => system_event 0x21100
         guest_convert c0 0x202000 shared         => system_event 0x21100",
    );
    script.end();
}

#[test]
fn sn_181_the_order_of_acceptance_and_request() {
    let mut script = Script::running();
    // Validating before the request: the page is shared, and KVM asks the VMM.
    script.run(
        "guest_pvalidate c0 0x209000              => memory_fault private 0x209000
         guest_convert c0 0x209000 private        => hlt
         guest_write c0 0x209000 1                => hlt
         guest_convert c0 0x209000 shared         => hlt
         guest_read_shared c0 0x209000            => hlt 0",
    );
    script.end();
}

#[test]
fn sn_152_nobody_is_asked_unless_user_space_wants_it() {
    let mut script = Script::running();
    script.run(
        "enable_cap vm0 exit_hypercall 0          => ok
         guest_pvalidate c0 0x201000              => hlt 0
         guest_psc c0 0x208000 0x201000 4K shared => system_event 0x11100",
    );
    script.end();
}

#[test]
fn sn_183_a_list_of_2m_is_validated_in_4k_where_the_rmp_has_those() {
    let mut script = Script::new(gmem::MachineConfig::default());
    // 2 MiB of private memory, all of it accepted; the GHCB lies behind.
    script.run(
        "create_vm vm0 type=snp                                   => ok
         sev_init2 vm0                                            => ok
         create_vcpu vm0 c0                                       => ok
         enable_cap vm0 exit_hypercall 4096                       => ok
         mmap m0 len=4M                                           => ok
         create_guest_memfd vm0 g0 size=4M                        => ok
         set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=4M hva=m0 guest_memfd=g0 => ok
         snp_launch_start vm0                                     => ok
         snp_launch_finish vm0                                    => ok
         guest_ghcb_msr c0 0x400012                               => hlt 0x400013
         guest_psc c0 0x400000 0x200000 2M private huge=on        => hlt
         guest_write c0 0x3ff000 6                                => hlt
         guest_read c0 0x3ff000                                   => hlt 6
         guest_psc c0 0x400000 0x200000 2M shared huge=on         => hlt
         guest_read_shared c0 0x3ff000                            => hlt 0",
    );
    script.end();
}
