//! Runs that cannot go on: no memory at all, and no memory where the processor looks for an exception's handler.

use super::super::Outcome;
use super::super::cases::{anonymous, each_type, region};
use super::super::expect::{equal, ok};
use super::super::guest::{Program, unexpected};
use super::REGION;
use crate::kvm::uapi::*;
use crate::{DescriptorTable, ExitInfo, GuestInsn, VcpuExit};
use sim_mmu::{Gpa, Gva};

/// Where an x86 processor starts.
const RESET_VECTOR: u64 = 0xffff_fff0;
/// Where the selftest's memory is.
const CODE: u64 = 0x10_0000;
/// Where no memory is.
const UNMAPPED: u64 = 0xc000_0000;
/// The selftest provokes a general protection fault.
const GP_VECTOR: u8 = 13;

pub(super) fn zero_regions() -> Outcome {
    each_type(|case| {
        let mut vcpu = ok("KVM_CREATE_VCPU", case.vm.create_vcpu(case.cx, 0))?;
        vcpu.set_code_page(case.cx, Some(Gpa(RESET_VECTOR)));
        match ok("KVM_RUN", vcpu.run(case.cx))? {
            VcpuExit::InternalError => Ok(()),
            other => Err(unexpected("KVM_RUN: expected an internal error", &other)),
        }
    })
}

pub(super) fn mmio_during_vectoring() -> Outcome {
    each_type(|case| {
        let memory = anonymous(case.cx, case.process, REGION)?;
        ok("slot", case.vm.set_user_memory_region(case.cx, region(0, CODE, REGION, memory.addr().0)))?;
        let mut vcpu = ok("KVM_CREATE_VCPU", case.vm.create_vcpu(case.cx, 0))?;
        let mut program = Program::new();
        program.push(GuestInsn::Exception { vector: GP_VECTOR });
        program.load(case.cx, &mut vcpu);
        vcpu.set_code_page(case.cx, Some(Gpa(CODE)));
        vcpu.set_idt(case.cx, DescriptorTable { base: Gva(UNMAPPED), limit: 0xfff });
        match ok("KVM_RUN", vcpu.run(case.cx))? {
            VcpuExit::InternalError => {}
            other => return Err(unexpected("KVM_RUN: expected an internal error", &other)),
        }
        let gpa = Some(Gpa(UNMAPPED + 16 * u64::from(GP_VECTOR)));
        let expected = ExitInfo::InternalError { suberror: KVM_INTERNAL_ERROR_DELIVERY_EV, gpa, reason: None };
        equal("the exit", vcpu.exit_info(), expected)
    })
}
