//! Operations on SNP VMs: the launch, and programs of their guests.
//!
//! What a guest asks by its GHCB and a whole page-state change are code of its kernel ([`linux_guest`](crate::linux_guest)), as Linux does it; single instructions
//! are programs of their own.

use super::guest::Run;
use super::tdx;
use super::world::{World, failed, with_detail};
use crate::kvm::ioctl;
use crate::kvm::sev::insn::SnpInsn;
use crate::kvm::sev::protocol::ghcb::exit;
use crate::kvm::sev::protocol::msr::PageOp;
use crate::kvm::sev::{SevCmd, SevOp, SnpLaunchFinish, SnpLaunchStart, SnpLaunchUpdate, SnpPageType, open_sev};
use crate::kvm::vcpu::GuestInsn;
use crate::linux_guest::{Insn, Kernel, Place, Program, Refused, Request};
use crate::ops::{Answer, Detail, Name, SnpOp};
use sim_coco::snp::vmsa::{SevFeatures, offset as in_vmsa};
use sim_coco::snp::{RmpAdjust, Vmpl, VmplPerms};
use sim_kernel::fs::RawFd;
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE, PMD_SIZE};
use sim_mmu::Gpa;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Set in what `guest_vmgexit` reads if the hypervisor said an error.
const VMGEXIT_ERROR: u64 = 1 << 63;

/// Pages that one operation changes at most: each is several instructions, and nobody has memory for more.
const PSC_PAGES_MAX: u64 = 1 << 16;

/// A page that a guest's kernel has filled in as the VMSA of another of its processors: as much of it as matters here.
fn vmsa_page(features: SevFeatures, vmpl: u8) -> Vec<u64> {
    let mut page = vec![0; PAGE_SIZE as usize];
    page[in_vmsa::SEV_FEATURES..][..8].copy_from_slice(&features.bits().to_le_bytes());
    page[in_vmsa::VMPL] = vmpl;
    page.chunks(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect()
}

/// A value of a field of 16 bits, or of none.
fn u16_or_max(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// The page state that a guest asks for.
fn page_op(number: u64) -> Result<PageOp, Errno> {
    u8::try_from(number).ok().and_then(PageOp::of).ok_or(Errno::EINVAL)
}

/// The whole pages of a range.
fn pages(gpa: u64, len: u64) -> Result<Range<Gpa>, Errno> {
    let (first, npages) = (gpa & !(PAGE_SIZE - 1), len.div_ceil(PAGE_SIZE));
    let end = (npages <= PSC_PAGES_MAX).then(|| first.checked_add(npages * PAGE_SIZE)).flatten();
    Ok(Gpa(first)..Gpa(end.ok_or(Errno::ENOMEM)?))
}

/// Instructions of an SNP guest; the last one leaves its result in `rbx`.
fn insns<const N: usize>(insns: [SnpInsn; N]) -> Run {
    Run { program: insns.map(GuestInsn::Snp).to_vec(), reads: true, ..Run::default() }
}

/// An access through a mapping without the C-bit.
fn through_shared(insn: GuestInsn) -> Run {
    Run { program: vec![GuestInsn::Snp(SnpInsn::SetShared { shared: true }), insn], ..Run::default() }
}

/// Code of the guest's kernel. Whoever is no SNP guest gets an instruction that he does not have.
fn kernel(program: Program) -> Run {
    Run { program: vec![GuestInsn::Snp(SnpInsn::Vmgexit)], kernel: Some(program), ..Run::default() }
}

/// A page is filled in, and becomes a VMSA.
fn make_vmsa(gpa: Gpa, page: Vec<u64>) -> Run {
    let rdx = RmpAdjust::new(Vmpl::new(1).expect("there are four"), VmplPerms::empty(), true);
    let program = Program::new(async move |cpu| {
        cpu.run(Insn::Copy(Place::private(gpa), page)).await?;
        cpu.run(Insn::Rmpadjust { gpa, rdx }).await.map(drop)
    });
    Run { reads: true, ..kernel(program) }
}

/// A request by the GHCB, with what comes of it.
fn vmgexit(ghcb: Gpa, request: Request) -> Run {
    let told = Arc::new(OnceLock::new());
    let tells = Arc::clone(&told);
    let program = Program::new(async move |cpu| {
        let answer = Kernel::new(cpu).hv_call(ghcb, request).await?;
        // The reason is in SW_EXITINFO2; that it is one is told by the mark.
        tells.get_or_init(|| answer.unwrap_or_else(|Refused(why)| why | VMGEXIT_ERROR));
        Ok(())
    });
    Run { reads: true, told, ..kernel(program) }
}

/// Another state of one page, by the GHCB MSR.
fn convert(gpa: u64, to: u64) -> Result<Run, Errno> {
    let (range, op) = (pages(gpa, PAGE_SIZE)?, page_op(to)?);
    Ok(kernel(Program::new(async move |cpu| Kernel::new(cpu).early_set_pages_state(range, op).await)))
}

/// Another state of a range, by lists in the GHCB.
fn psc(ghcb: Gpa, (gpa, len): (u64, u64), to: u64, huge: bool) -> Result<Run, Errno> {
    let (range, op) = (pages(gpa, len)?, page_op(to)?);
    Ok(kernel(Program::new(async move |cpu| {
        let kernel = Kernel { ghcb: Some(ghcb), ..Kernel::new(cpu) };
        if huge { kernel.set_pages_state(range, op).await } else { kernel.set_vmalloc_pages_state(range, op).await }
    })))
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
        if let Some(answer) = self.of_others(cx, op) {
            return answer;
        }
        let (vcpu, reply, run) = match op {
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
                (vcpu, 0, Ok(Run { reads: true, ..through_shared(GuestInsn::Read { gpa: Gpa(*gpa) }) }))
            }
            SnpOp::GuestWriteShared { vcpu, gpa, value } => {
                (vcpu, 0, Ok(through_shared(GuestInsn::Write { gpa: Gpa(*gpa), value: *value as u32 })))
            }
            SnpOp::GuestPvalidate { vcpu, gpa, size, validate } => {
                // What is no size of a page is in RCX as it is.
                let size = match *size {
                    PAGE_SIZE => 0,
                    PMD_SIZE => 1,
                    other => other,
                };
                (vcpu, 0, Ok(insns([SnpInsn::Pvalidate { gpa: Gpa(*gpa), size, validate: u32::from(*validate) }])))
            }
            SnpOp::GuestRmpadjust { vcpu, gpa, vmpl, perms, vmsa } => {
                let rdx = *vmpl.min(&0xff) | *perms.min(&0xff) << 8 | u64::from(*vmsa) << 16;
                (vcpu, 0, Ok(insns([SnpInsn::Rmpadjust { gpa: Gpa(*gpa), size: 0, rdx }])))
            }
            SnpOp::GuestMakeVmsa { vcpu, gpa, features, vmpl } => {
                let page = vmsa_page(SevFeatures::from_bits_retain(*features), (*vmpl).min(0xff) as u8);
                (vcpu, 0, Ok(make_vmsa(Gpa(*gpa), page)))
            }
            SnpOp::GuestGhcbMsr { vcpu, value, reply } => {
                let request = SnpInsn::WriteGhcbMsr { value: *value };
                (vcpu, *reply, Ok(insns([request, SnpInsn::Vmgexit, SnpInsn::ReadGhcbMsr])))
            }
            SnpOp::GuestVmgexit { vcpu, ghcb, code, info1, info2, rax, reply } => {
                // The length of the buffer for certificates; other events have none.
                let rbx = (*code == exit::EXT_GUEST_REQUEST).then_some(0);
                let request =
                    Request { code: *code, info_1: *info1, info_2: *info2, rax: Some(*rax), rbx, scratch: None };
                (vcpu, *reply, Ok(vmgexit(Gpa(*ghcb), request)))
            }
            SnpOp::GuestConvert { vcpu, gpa, to, reply } => (vcpu, *reply, convert(*gpa, *to)),
            SnpOp::GuestPsc { vcpu, ghcb, gpa, len, to, huge, reply } => {
                (vcpu, *reply, psc(Gpa(*ghcb), (*gpa, *len), *to, *huge))
            }
        };
        match run {
            Ok(run) => self.run_guest(cx, vcpu, Run { reply, ..run }),
            Err(errno) => failed(errno),
        }
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

    /// An operation on a guest of another kind, of what all kinds of guests do. `None` if it is an SNP guest's, or what only those do.
    fn of_others(&self, cx: &Cx<'_>, op: &SnpOp) -> Option<Answer> {
        let (SnpOp::GuestReadShared { vcpu, .. }
        | SnpOp::GuestWriteShared { vcpu, .. }
        | SnpOp::GuestConvert { vcpu, .. }) = op
        else {
            return None;
        };
        // Who is no vCPU is told so in any case.
        let handle = ioctl::peek_vcpu(cx, &self.process, self.fd(vcpu))?;
        if handle.vm().sev().is_some() {
            return None;
        }
        let gpaw = handle.vm().tdx().and_then(|tdx| tdx.gpaw());
        let access = |insn| if gpaw.is_some() { tdx::through_shared(insn) } else { vec![insn] };
        let run = match op {
            SnpOp::GuestReadShared { gpa, .. } => {
                Run { program: access(GuestInsn::Read { gpa: Gpa(*gpa) }), reads: true, ..Run::default() }
            }
            SnpOp::GuestWriteShared { gpa, value, .. } => {
                let insn = GuestInsn::Write { gpa: Gpa(*gpa), value: *value as u32 };
                Run { program: access(insn), ..Run::default() }
            }
            SnpOp::GuestConvert { gpa, to, reply, .. } => match gpaw {
                Some(gpaw) => Run { program: tdx::convert(gpaw, Gpa(*gpa), *to), reply: *reply, ..Run::default() },
                None => return Some(self.convert_by_hypercall(cx, vcpu, *gpa, *to, *reply)),
            },
            _ => unreachable!("the others are SNP guests'"),
        };
        Some(self.run_guest(cx, vcpu, run))
    }
}

fn firmware(error: u32) -> Detail {
    if error == 0 { Detail::None } else { Detail::Firmware { error: u64::from(error) } }
}
