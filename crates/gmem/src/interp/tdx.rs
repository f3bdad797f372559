//! Operations on TDs: how they are built, and programs of their guests.
//!
//! A guest's program does what Linux does: a conversion is MapGPA, again where the answer is to try again, and what becomes private is accepted; what goes wrong ends the
//! guest. The VMM's part is as for other guests: it converts what it is asked to convert.

use super::guest::Run;
use super::world::{World, failed, with_detail};
use crate::kvm::ioctl;
use crate::kvm::tdx::insn::TdInsn;
use crate::kvm::tdx::protocol::leaf;
use crate::kvm::tdx::{TdxCmd, TdxInitMemRegion, TdxInitVm, TdxOp as Command};
use crate::kvm::vcpu::GuestInsn;
use crate::ops::{Answer, Detail, TdxOp};
use sim_coco::tdx::Gpaw;
use sim_kernel::{Cx, Hva, PAGE_SIZE, PMD_SIZE};
use sim_mmu::Gpa;

/// States of a page, as conversions have them.
const PRIVATE: u64 = 1;
/// The size of a page of 4 KiB, as ACCEPT has it.
const ACCEPT_4K: u64 = 0;

impl World {
    /// Performs an operation of a TD.
    pub(super) fn tdx(&self, cx: &Cx<'_>, op: &TdxOp) -> Answer {
        match op {
            TdxOp::TdxInitVm { vm, attributes, xfam, width, flags } => {
                let init = TdxInitVm {
                    attributes: *attributes,
                    xfam: *xfam,
                    ..TdxInitVm::with_width(u32::try_from(*width).unwrap_or(u32::MAX) & 0xff)
                };
                let flags = u32::try_from(*flags).unwrap_or(u32::MAX);
                let mut cmd = TdxCmd { flags, ..TdxCmd::new(Command::InitVm(Box::new(init))) };
                let result = ioctl::memory_encrypt_op_tdx(cx, &self.process, self.fd(vm), &mut cmd);
                with_detail(result, module(cmd.hw_error))
            }
            TdxOp::TdxInitVcpu { vcpu, rcx, flags } => {
                let flags = u32::try_from(*flags).unwrap_or(u32::MAX);
                let mut cmd = TdxCmd { flags, ..TdxCmd::new(Command::InitVcpu { rcx: *rcx }) };
                let result = ioctl::memory_encrypt_op_vcpu(cx, &self.process, self.fd(vcpu), &mut cmd);
                with_detail(result, Detail::None)
            }
            TdxOp::TdxInitMemRegion { vcpu, gpa, hva, len, flags } => {
                let region =
                    TdxInitMemRegion { source_addr: Hva(self.hva(hva)), gpa: Gpa(*gpa), nr_pages: len / PAGE_SIZE };
                let flags = u32::try_from(*flags).unwrap_or(u32::MAX);
                let mut cmd = TdxCmd { flags, ..TdxCmd::new(Command::InitMemRegion(region)) };
                let result = ioctl::memory_encrypt_op_vcpu(cx, &self.process, self.fd(vcpu), &mut cmd);
                let left = match (&cmd.op, result) {
                    (Command::InitMemRegion(left), Err(_)) if left.nr_pages != region.nr_pages => {
                        Detail::Range { gpa: left.gpa.0, size: left.nr_pages * PAGE_SIZE }
                    }
                    _ => Detail::None,
                };
                with_detail(result, left)
            }
            TdxOp::TdxFinalizeVm { vm } => {
                let mut cmd = TdxCmd::new(Command::FinalizeVm);
                let result = ioctl::memory_encrypt_op_tdx(cx, &self.process, self.fd(vm), &mut cmd);
                with_detail(result, module(cmd.hw_error))
            }
            TdxOp::GuestAccept { vcpu, gpa, size } => {
                // What is no size of a page is in RCX as it is.
                let size = match *size {
                    PAGE_SIZE => 0,
                    PMD_SIZE => 1,
                    other => other,
                };
                let program = vec![GuestInsn::Td(TdInsn::Accept { gpa: Gpa(*gpa), size })];
                self.run_guest(cx, vcpu, Run { program, reads: true, ..Run::default() })
            }
            TdxOp::GuestMapGpa { vcpu, gpa, len, to, reply } => {
                let Some(gpaw) = self.gpaw(cx, vcpu) else { return failed(sim_kernel::Errno::EINVAL) };
                let gpa = if *to == PRIVATE { Gpa(*gpa) } else { gpaw.shared(Gpa(*gpa)) };
                let program = vec![GuestInsn::Td(map_gpa(gpa, *len))];
                self.run_guest(cx, vcpu, Run { program, reads: true, reply: *reply, ..Run::default() })
            }
            TdxOp::GuestTdvmcall { vcpu, leaf, r12, r13, r14, r15, reply } => {
                let program = vec![GuestInsn::Td(TdInsn::VmCall { leaf: *leaf, operands: [*r12, *r13, *r14, *r15] })];
                self.run_guest(cx, vcpu, Run { program, reads: true, reply: *reply, ..Run::default() })
            }
        }
    }

    /// Where the shared bit of a vCPU's TD is.
    pub(super) fn gpaw(&self, cx: &Cx<'_>, vcpu: &crate::ops::Name) -> Option<Gpaw> {
        let vcpu = ioctl::peek_vcpu(cx, &self.process, self.fd(vcpu))?;
        vcpu.vm().tdx().and_then(|tdx| tdx.gpaw())
    }
}

fn map_gpa(gpa: Gpa, len: u64) -> TdInsn {
    TdInsn::VmCall { leaf: leaf::MAP_GPA, operands: [gpa.0, len, 0, 0] }
}

fn module(hw_error: u64) -> Detail {
    if hw_error == 0 { Detail::None } else { Detail::Firmware { error: hw_error } }
}

/// The program of `guest_convert` in a TD with this width.
pub(super) fn convert(gpaw: Gpaw, gpa: Gpa, to: u64) -> Vec<GuestInsn> {
    let mut program = Vec::new();
    let fatal = GuestInsn::Td(TdInsn::VmCall { leaf: leaf::REPORT_FATAL_ERROR, operands: [0; 4] });
    let place = if to == PRIVATE { gpa } else { gpaw.shared(gpa) };
    program.push(GuestInsn::Td(map_gpa(place, PAGE_SIZE)));
    program.push(GuestInsn::JumpEqual { value: 0, to: 3 });
    program.push(fatal);
    if to == PRIVATE {
        program.push(GuestInsn::Td(TdInsn::Accept { gpa, size: ACCEPT_4K }));
        program.push(GuestInsn::JumpEqual { value: 0, to: 6 });
        program.push(fatal);
    }
    program
}

/// The program of an access to shared memory.
pub(super) fn through_shared(insn: GuestInsn) -> Vec<GuestInsn> {
    vec![GuestInsn::Td(TdInsn::SetShared { shared: true }), insn]
}
