//! TD-070, TD-073 and TD-080 in detail: what user space is told of a TDG.VP.VMCALL or of a TD that cannot go on, and what becomes of its answer.

use super::{RUNNING, Script, TD, config};
use gmem::kvm::ioctl;
use gmem::kvm::tdx::insn::TdInsn;
use gmem::kvm::vcpu::{ExitInfo, GuestInsn};
use gmem::ops::{Answer, Exit};
use gmem::scenario::parse_line;
use sim_coco::tdx::{Lp, Status, StatusName};
use sim_mmu::Gpa;

const INVALID_OPERAND: u64 = 1 << 63;
const IO: u64 = 30;
const MMIO: u64 = 48;
/// A device, at its shared address.
const DEVICE: u64 = 1 << 47 | 0x40_0000;

impl Script {
    /// The guest asks; user space answers. The exit, and R10 and R11 afterwards.
    fn ask(&mut self, leaf: u64, operands: [u64; 4], answer: u64) -> (ExitInfo, u64, u64) {
        self.with(|cx, world| {
            let fd = world.fd(&"c0".into());
            let vcpu = ioctl::peek_vcpu(cx, world.process(), fd).unwrap();
            vcpu.set_program(cx, &[GuestInsn::Td(TdInsn::VmCall { leaf, operands })]);
            let (result, exit) = ioctl::run(cx, world.process(), fd).unwrap();
            assert_eq!(result, Ok(()));
            if exit != ExitInfo::Hlt {
                let end = ioctl::run_answered(cx, world.process(), fd, Some(answer)).unwrap();
                assert_eq!(end, (Ok(()), ExitInfo::Hlt));
            }
            let regs = vcpu.regs(cx);
            (exit, regs.rbx, regs.rax)
        })
    }
}

#[test]
fn td_073_ports_of_every_width_in_both_directions() {
    let mut script = Script::running();
    for len in [1_u8, 2, 4] {
        let cut = |value: u64| value & (u64::MAX >> (64 - 8 * u32::from(len)));
        let (exit, r10, _) = script.ask(IO, [len.into(), 1, 0x3f8, 0x1_2345_6789], 0);
        let data = cut(0x1_2345_6789) as u32;
        assert_eq!((exit, r10), (ExitInfo::Io { port: 0x3f8, len, data, is_write: true }, 0));
        // What is too large for a port is cut.
        let (exit, r10, r11) = script.ask(IO, [len.into(), 0, 0x1_03f8, 0], 0xfedc_ba98);
        assert_eq!((exit, r10), (ExitInfo::Io { port: 0x3f8, len, data: 0, is_write: false }, 0));
        assert_eq!(r11, cut(0xfedc_ba98));
    }
    for operands in [[8, 0, 0x3f8, 0], [3, 1, 0x3f8, 0], [0, 1, 0x3f8, 0], [1, 2, 0x3f8, 0], [1 << 32 | 1, 0, 0x3f8, 0]]
    {
        let (exit, r10, _) = script.ask(IO, operands, 0);
        assert_eq!((exit, r10), (ExitInfo::Hlt, INVALID_OPERAND), "{operands:x?}");
    }
    script.end();
}

#[test]
fn td_073_data_of_a_device_have_its_size() {
    let mut script = Script::running();
    let gpa = Gpa(0x40_0000);
    for len in [1_u32, 2, 4, 8] {
        let cut = u64::MAX >> (64 - 8 * len);
        // Bits 63:32 of size and direction are not looked at.
        let (exit, r10, r11) = script.ask(MMIO, [1 << 32 | u64::from(len), 1 << 32, DEVICE, 0], u64::MAX - 1);
        assert_eq!((exit, r10, r11), (ExitInfo::Mmio { gpa, len, data: 0, is_write: false }, 0, cut - 1));
        let (exit, r10, _) = script.ask(MMIO, [len.into(), 1, DEVICE, u64::MAX], 0);
        assert_eq!((exit, r10), (ExitInfo::Mmio { gpa, len, data: cut, is_write: true }, 0));
    }
    script.end();
}

#[test]
fn td_070_what_user_space_could_answer() {
    let mut script = Script::running();
    script.run(
        "guest_tdvmcall c0 get_td_vm_call_info r12=1     => hlt 0
         guest_tdvmcall c0 get_td_vm_call_info r12=2     => hlt 0x8000000000000000
         guest_tdvmcall c0 0x10002 r12=0x200000          => hlt 0x8000000000000000
         guest_tdvmcall c0 0x10002 r12=0x800000208000    => hlt 0x8000000000000003
         guest_tdvmcall c0 0x10004 r12=31                => hlt 0x8000000000000000
         guest_tdvmcall c0 0x10004 r12=256               => hlt 0x8000000000000000
         guest_tdvmcall c0 0x10004 r12=32                => hlt 0x8000000000000003",
    );
    script.end();
}

/// A VMM sees which of its mistakes it was.
#[test]
fn td_080_user_space_is_told_why_a_td_cannot_go_on() {
    let mut script = Script::new(config());
    script.run(TD);
    script.run("create_vcpu vm0 c1 index=1 => ok\ntdx_init_vcpu c1 => ok");
    script.run(RUNNING);
    // Later the module could not be told of the vCPU's Shared EPT, which breaks the VM.
    script.run("guest_read c0 0x200000 => hlt 7\nguest_read c1 0x200000 => hlt 7");
    let page = script.frame(0x20_0000);
    script.host(|cx, host| host.tdx().on(Lp(40)).host_write(cx, page, 0, &[9; 64]).unwrap());
    let mut why = |line: &str| {
        let step = parse_line(line).unwrap();
        match script.with(|cx, world| world.execute(cx, &step.op)) {
            Answer::Exit { exit: Exit::InternalError { data: Some(data), .. }, .. } => {
                Status::from_raw(data).expect("RAX").name
            }
            other => panic!("{other}"),
        }
    };
    assert_eq!(why("guest_read c0 0x200000"), StatusName::NonRecoverableTdNonAccessible);
    assert_eq!(why("guest_read c1 0x200000"), StatusName::TdFatal);
}
