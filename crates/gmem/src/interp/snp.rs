//! Operations on SNP VMs: the launch, and programs of their guests.
//!
//! A guest's program is what Linux does: a page-state change is `pvalidate` and a request to the hypervisor, in the order in which that is safe, and
//! what goes wrong ends the guest by the MSR protocol. The VMM's part is here too: it converts what it is asked to convert.

use super::guest::Run;
use super::tdx;
use super::world::{World, failed, with_detail};
use crate::kvm::ioctl;
use crate::kvm::sev::insn::SnpInsn;
use crate::kvm::sev::page::Request;
use crate::kvm::sev::protocol::ghcb::{exit, offset};
use crate::kvm::sev::protocol::msr::{MsrRequest, MsrResponse, PageOp, TermReason};
use crate::kvm::sev::protocol::psc::{MAX_ENTRY, PscEntry, PscHeader};
use crate::kvm::sev::{SevCmd, SevOp, SnpLaunchFinish, SnpLaunchStart, SnpLaunchUpdate, SnpPageType, open_sev};
use crate::kvm::vcpu::GuestInsn;
use crate::ops::{Answer, Detail, Name, SnpOp};
use sim_coco::snp::vmsa::{SevFeatures, offset as in_vmsa};
use sim_coco::snp::{RmpAdjust, Vmpl, VmplPerms};
use sim_kernel::fs::RawFd;
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE, PMD_SIZE};
use sim_mmu::Gpa;

/// Set in what `guest_vmgexit` reads if the hypervisor said an error.
const VMGEXIT_ERROR: u64 = 1 << 63;

/// Pages that one operation changes at most: each is several instructions of its program, and nobody has memory for more.
const PSC_PAGES_MAX: u64 = 1 << 16;

/// A field of a GHCB, which may be anywhere.
fn in_ghcb(ghcb: Gpa, offset: u64) -> Gpa {
    Gpa(ghcb.0.wrapping_add(offset))
}

fn page_size(huge: bool) -> u64 {
    if huge { PMD_SIZE } else { PAGE_SIZE }
}

/// A page that a guest's kernel has filled in as the VMSA of another of its processors: as much of it as matters here.
fn vmsa_page(features: SevFeatures, vmpl: u8) -> Box<[u8]> {
    let mut page = vec![0; PAGE_SIZE as usize].into_boxed_slice();
    page[in_vmsa::SEV_FEATURES..][..8].copy_from_slice(&features.bits().to_le_bytes());
    page[in_vmsa::VMPL] = vmpl;
    page
}

/// A value of a field of 16 bits, or of none.
fn u16_or_max(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// A program under construction.
#[derive(Default)]
struct Program {
    insns: Vec<GuestInsn>,
    blocks: Vec<Box<[u8]>>,
}

impl Program {
    fn snp(&mut self, insn: SnpInsn) {
        self.insns.push(GuestInsn::Snp(insn));
    }

    fn shared(&mut self, shared: bool) {
        self.snp(SnpInsn::SetShared { shared });
    }

    /// Ends the guest.
    fn terminate(&mut self, reason: TermReason) {
        self.snp(SnpInsn::WriteGhcbMsr { value: MsrRequest::terminate(reason).encode() });
        self.snp(SnpInsn::Vmgexit);
    }

    /// Ends the guest unless `rbx` is this.
    fn terminate_unless(&mut self, value: u64, reason: TermReason) {
        let to = self.insns.len() + 3;
        self.insns.push(GuestInsn::JumpEqual { value, to });
        self.terminate(reason);
    }

    /// `pvalidate` of one page; anything but success ends the guest.
    fn pvalidate(&mut self, gpa: Gpa, size: u64, validate: u32) {
        self.snp(SnpInsn::Pvalidate { gpa, size, validate });
        self.terminate_unless(0, TermReason::Pvalidate);
    }

    /// A page, or a part of one, written at once.
    fn write_block(&mut self, gpa: Gpa, bytes: Box<[u8]>) {
        self.snp(SnpInsn::WriteBlock { gpa, block: self.blocks.len() });
        self.blocks.push(bytes);
    }

    /// `vmgexit` with a request in the GHCB: the page is written at once, as what follows is read from it.
    fn vmgexit(&mut self, ghcb: Gpa, request: Box<[u8]>) {
        self.shared(true);
        self.write_block(ghcb, request);
        self.snp(SnpInsn::WriteGhcbMsr { value: ghcb.0 });
        self.snp(SnpInsn::Vmgexit);
    }
}

impl World {
    /// The descriptor of `/dev/sev`, opened when it is first needed; -1 if there is none.
    fn sev_fd(&self, cx: &Cx<'_>) -> RawFd {
        if let Some(fd) = self.names.lock().sev {
            return fd;
        }
        let fd = open_sev(cx, &self.process).unwrap_or(-1);
        self.names.lock().sev = Some(fd);
        fd
    }

    fn sev_cmd(&self, cx: &Cx<'_>, vm: &Name, cmd: &mut SevCmd) -> Result<(), Errno> {
        ioctl::memory_encrypt_op(cx, &self.process, self.fd(vm), cmd)
    }

    /// One operation of an SNP VM.
    pub(super) fn snp(&self, cx: &Cx<'_>, op: &SnpOp) -> Answer {
        if let Some(answer) = self.of_td(cx, op) {
            return answer;
        }
        let mut program = Program::default();
        // What the VMM replies, and whether `rbx` is worth telling.
        let (vcpu, reply, reads) = match op {
            SnpOp::SevInit2 { vm, vmsa_features, flags, ghcb_version } => {
                let flags = u32::try_from(*flags).unwrap_or(u32::MAX);
                let ghcb_version = u16::try_from(*ghcb_version).unwrap_or(u16::MAX);
                let init2 = SevOp::Init2 { vmsa_features: *vmsa_features, flags, ghcb_version };
                return self.encrypt_op(cx, vm, init2);
            }
            SnpOp::SnpLaunchStart { vm, policy, flags } => {
                let start = SnpLaunchStart { policy: *policy, flags: u16_or_max(*flags), ..SnpLaunchStart::default() };
                return self.encrypt_op(cx, vm, SevOp::SnpLaunchStart(start));
            }
            SnpOp::SnpLaunchUpdate { vm, gpa, hva, len, r#type, flags } => {
                let update = SnpLaunchUpdate {
                    gfn_start: Gpa(*gpa).gfn(),
                    uaddr: Hva(self.hva(hva)),
                    len: *len,
                    page_type: SnpPageType(u8::try_from(*r#type).unwrap_or(u8::MAX)),
                    flags: u16_or_max(*flags),
                };
                return self.launch_update(cx, vm, update);
            }
            SnpOp::SnpLaunchFinish { vm, flags } => {
                let finish = SnpLaunchFinish { flags: u16_or_max(*flags), ..SnpLaunchFinish::default() };
                return self.encrypt_op(cx, vm, SevOp::SnpLaunchFinish(finish));
            }
            SnpOp::GuestReadShared { vcpu, gpa } => {
                program.shared(true);
                program.insns.push(GuestInsn::Read { gpa: Gpa(*gpa) });
                (vcpu, 0, true)
            }
            SnpOp::GuestWriteShared { vcpu, gpa, value } => {
                program.shared(true);
                program.insns.push(GuestInsn::Write { gpa: Gpa(*gpa), value: *value as u32 });
                (vcpu, 0, false)
            }
            SnpOp::GuestPvalidate { vcpu, gpa, size, validate } => {
                // What is no size of a page is in RCX as it is.
                let size = match *size {
                    PAGE_SIZE => 0,
                    PMD_SIZE => 1,
                    other => other,
                };
                program.snp(SnpInsn::Pvalidate { gpa: Gpa(*gpa), size, validate: u32::from(*validate) });
                (vcpu, 0, true)
            }
            SnpOp::GuestRmpadjust { vcpu, gpa, vmpl, perms, vmsa } => {
                let rdx = *vmpl.min(&0xff) | *perms.min(&0xff) << 8 | u64::from(*vmsa) << 16;
                program.snp(SnpInsn::Rmpadjust { gpa: Gpa(*gpa), size: 0, rdx });
                (vcpu, 0, true)
            }
            SnpOp::GuestMakeVmsa { vcpu, gpa, features, vmpl } => {
                let features = SevFeatures::from_bits_retain(*features);
                program.write_block(Gpa(*gpa), vmsa_page(features, (*vmpl).min(0xff) as u8));
                let rdx = RmpAdjust::new(Vmpl::new(1).expect("there are four"), VmplPerms::empty(), true).0;
                program.snp(SnpInsn::Rmpadjust { gpa: Gpa(*gpa), size: 0, rdx });
                (vcpu, 0, true)
            }
            SnpOp::GuestGhcbMsr { vcpu, value, reply } => {
                program.msr_protocol(*value);
                (vcpu, *reply, true)
            }
            SnpOp::GuestVmgexit { vcpu, ghcb, code, info1, info2, rax, reply } => {
                let request = Request { code: *code, info1: *info1, info2: *info2, rax: *rax, scratch: None };
                program.vmgexit(Gpa(*ghcb), request.page(&[]));
                program.read_exit_info(Gpa(*ghcb));
                (vcpu, *reply, true)
            }
            SnpOp::GuestConvert { vcpu, gpa, to, reply } => {
                program.convert(Gpa(*gpa), *to);
                (vcpu, *reply, false)
            }
            SnpOp::GuestPsc { len, huge, .. } if len.div_ceil(page_size(*huge)) > PSC_PAGES_MAX => {
                return failed(Errno::ENOMEM);
            }
            SnpOp::GuestPsc { vcpu, ghcb, gpa, len, to, huge, reply } => {
                program.psc(Gpa(*ghcb), Gpa(*gpa), *len, *to, *huge);
                (vcpu, *reply, false)
            }
        };
        self.guest_snp(cx, program, vcpu, reply, reads)
    }

    /// `KVM_MEMORY_ENCRYPT_OP`.
    fn encrypt_op(&self, cx: &Cx<'_>, vm: &Name, op: SevOp) -> Answer {
        let mut cmd = SevCmd::new(op, self.sev_fd(cx));
        let result = self.sev_cmd(cx, vm, &mut cmd);
        with_detail(result, firmware(cmd.error))
    }

    /// As a VMM does it: until nothing is left.
    fn launch_update(&self, cx: &Cx<'_>, vm: &Name, update: SnpLaunchUpdate) -> Answer {
        let mut cmd = SevCmd::new(SevOp::SnpLaunchUpdate(update), self.sev_fd(cx));
        loop {
            let result = self.sev_cmd(cx, vm, &mut cmd);
            match cmd.op {
                SevOp::SnpLaunchUpdate(left) if result.is_ok() && left.len > 0 => {}
                _ => return with_detail(result, firmware(cmd.error)),
            }
        }
    }

    /// Runs a program of an SNP guest.
    fn guest_snp(&self, cx: &Cx<'_>, program: Program, vcpu: &Name, reply: u64, reads: bool) -> Answer {
        let Program { insns, blocks } = program;
        self.run_guest(cx, vcpu, Run { program: insns, blocks, reply, reads })
    }

    /// The same of a TD, of what both kinds of guests do. `None` if it is another guest's, or what only SNP guests do.
    fn of_td(&self, cx: &Cx<'_>, op: &SnpOp) -> Option<Answer> {
        let (vcpu, program, reply, reads) = match op {
            SnpOp::GuestReadShared { vcpu, gpa } => {
                (vcpu, tdx::through_shared(GuestInsn::Read { gpa: Gpa(*gpa) }), 0, true)
            }
            SnpOp::GuestWriteShared { vcpu, gpa, value } => {
                let insn = GuestInsn::Write { gpa: Gpa(*gpa), value: *value as u32 };
                (vcpu, tdx::through_shared(insn), 0, false)
            }
            SnpOp::GuestConvert { vcpu, gpa, to, reply } => {
                (vcpu, tdx::convert(self.gpaw(cx, vcpu)?, Gpa(*gpa), *to), *reply, false)
            }
            _ => return None,
        };
        self.gpaw(cx, vcpu)?;
        Some(self.run_guest(cx, vcpu, Run { program, reply, reads, ..Run::default() }))
    }
}

fn firmware(error: u32) -> Detail {
    if error == 0 { Detail::None } else { Detail::Firmware { error: u64::from(error) } }
}

impl Program {
    /// A request by the GHCB MSR, whose answer `rbx` becomes.
    fn msr_protocol(&mut self, request: u64) {
        self.snp(SnpInsn::WriteGhcbMsr { value: request });
        self.snp(SnpInsn::Vmgexit);
        self.snp(SnpInsn::ReadGhcbMsr);
    }

    /// Another state of one page, by the GHCB MSR.
    fn convert(&mut self, gpa: Gpa, to: u64) {
        let private = to == PageOp::Private as u64;
        if !private {
            self.pvalidate(gpa, 0, 0);
        }
        self.msr_protocol(MsrRequest::Psc { gpa, op: to as u8 }.encode());
        self.terminate_unless(MsrResponse::Psc { failed: false }.encode(), TermReason::Psc);
        if private {
            self.pvalidate(gpa, 0, 1);
        }
    }

    /// `rbx` becomes SW_EXITINFO2, or SW_EXITINFO1 with a mark if that is not 0.
    fn read_exit_info(&mut self, ghcb: Gpa) {
        self.insns.push(GuestInsn::Read64 { gpa: in_ghcb(ghcb, offset::SW_EXITINFO1) });
        let to = self.insns.len() + 4;
        self.insns.push(GuestInsn::JumpEqual { value: 0, to });
        // The reason is in SW_EXITINFO2; that it is one is told by the mark.
        self.insns.push(GuestInsn::Read64 { gpa: in_ghcb(ghcb, offset::SW_EXITINFO2) });
        self.snp(SnpInsn::OrRbx { value: VMGEXIT_ERROR });
        let end = self.insns.len() + 2;
        self.insns.push(GuestInsn::Jump { to: end });
        self.insns.push(GuestInsn::Read64 { gpa: in_ghcb(ghcb, offset::SW_EXITINFO2) });
    }

    /// `snp_set_memory_shared` and `_private`, without a limit of entries but that of a request: `pvalidate` before or after, and the request again and again until
    /// the hypervisor has done all of it.
    fn psc(&mut self, ghcb: Gpa, gpa: Gpa, len: u64, to: u64, huge: bool) {
        let private = to == PageOp::Private as u64;
        let entry = |gpa: Gpa| PscEntry { cur_page: 0, gfn: gpa.gfn(), op: to as u8, is_2m: huge };
        let step = page_size(huge);
        let pages: Vec<Gpa> = (0..len).step_by(step as usize).map(|at| Gpa(gpa.0.wrapping_add(at))).collect();
        for pages in pages.chunks(MAX_ENTRY) {
            if !private {
                pages.iter().for_each(|gpa| self.pvalidate(*gpa, u64::from(huge), 0));
            }
            let entries: Vec<u64> = pages.iter().map(|gpa| entry(*gpa).to_word()).collect();
            let end_entry = entries.len() as u16 - 1;
            let header = PscHeader { cur_entry: 0, end_entry, reserved: 0 };
            let done_header = PscHeader { cur_entry: end_entry + 1, ..header }.to_word();
            let list: Vec<u64> = std::iter::once(header.to_word()).chain(entries).collect();
            let request = Request {
                code: exit::PSC,
                info1: 0,
                info2: 0,
                rax: 0,
                scratch: Some(in_ghcb(ghcb, offset::SHARED_BUFFER)),
            };
            let page = request.page(&list);
            let valid: Box<[u8]> = page[offset::VALID_BITMAP as usize..][..16].into();
            self.vmgexit(ghcb, page);
            let vmgexit = self.insns.len() - 1;
            self.insns.push(GuestInsn::Read64 { gpa: in_ghcb(ghcb, offset::SHARED_BUFFER) });
            let at = self.insns.len();
            let (again, done) = (at + 5, at + 7);
            self.insns.push(GuestInsn::JumpEqual { value: done_header, to: done });
            self.insns.push(GuestInsn::Read64 { gpa: in_ghcb(ghcb, offset::SW_EXITINFO2) });
            self.insns.push(GuestInsn::JumpEqual { value: 0, to: again });
            self.terminate(TermReason::Psc);
            // Whoever asks again says again what is valid.
            self.write_block(in_ghcb(ghcb, offset::VALID_BITMAP), valid);
            self.insns.push(GuestInsn::Jump { to: vmgexit });
            assert_eq!(self.insns.len(), done, "the jump leads behind the end of the guest");
            self.shared(false);
            if private {
                pages.iter().for_each(|gpa| self.pvalidate(*gpa, u64::from(huge), 1));
            }
        }
    }
}
