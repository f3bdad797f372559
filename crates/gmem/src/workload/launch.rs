//! W1 and W2: a VM comes to be, with its vCPUs and its first memory, as QEMU does it for SNP guests and for TDs.

use super::guest::FEATURES;
use super::layout;
use super::vmm::Vmm;
use super::{Phase, PhaseReport, Platform, Sizes};
use crate::api::{Kvm, VcpuFd, VmFd};
use crate::kvm::ioctl;
use crate::kvm::process::Process;
use crate::kvm::sev::{
    MpState, SevCmd, SevOp, SnpLaunchFinish, SnpLaunchStart, SnpLaunchUpdate, SnpPageType, open_sev,
};
use crate::kvm::tdx::{KVM_TDX_MEASURE_MEMORY_REGION, TdxCmd, TdxInitMemRegion, TdxOp};
use crate::kvm::uapi::{Cap, KVM_HC_MAP_GPA_RANGE, KVM_X86_SNP_VM, KVM_X86_TDX_VM, kvm_enable_cap};
use crate::linux_guest::Program;
use sim_kernel::fs::RawFd;
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE};
use sim_mmu::Gpa;
use std::sync::Arc;

/// `GuestPolicy::USUAL`.
const POLICY: u64 = 0x3_0000;
/// Pages of the firmware.
const FIRMWARE_PAGES: u64 = 1024;

/// The VM with its memory and vCPUs, launched.
///
/// # Errors
/// As of the system calls.
pub(super) fn launch(
    cx: &Cx<'_>,
    process: &Arc<Process>,
    sizes: &Sizes,
    program: impl Fn(u32) -> Program,
) -> Result<(Vmm, Vec<VcpuFd>), Errno> {
    match sizes.platform {
        Platform::Snp => launch_snp(cx, process, sizes, program),
        Platform::Tdx => launch_td(cx, process, sizes, program),
    }
}

/// A VM that asks user space to convert memory.
fn new_vm(cx: &Cx<'_>, process: &Arc<Process>, vm_type: u64) -> Result<VmFd, Errno> {
    let vm = Kvm::new(cx, process)?.create_vm_with_type(cx, vm_type)?;
    let mut cap = kvm_enable_cap { cap: Cap::ExitHypercall as u32, flags: 0, args: [0; 4], pad: [0; 64] };
    cap.args[0] = 1 << KVM_HC_MAP_GPA_RANGE;
    vm.enable_cap(cx, &cap)?;
    Ok(vm)
}

fn launch_snp(
    cx: &Cx<'_>,
    process: &Arc<Process>,
    sizes: &Sizes,
    program: impl Fn(u32) -> Program,
) -> Result<(Vmm, Vec<VcpuFd>), Errno> {
    let vm = new_vm(cx, process, KVM_X86_SNP_VM)?;
    let sev = open_sev(cx, process)?;
    let command = |vm: &VmFd, op| vm.encrypt_op_sev(cx, &mut SevCmd::new(op, sev));
    command(&vm, SevOp::Init2 { vmsa_features: 0, flags: 0, ghcb_version: 2 })?;
    let vmm = Vmm::new(cx, process, vm, sizes)?;
    let mut vcpus = Vec::new();
    for id in 0..sizes.vcpus {
        let vcpu = vmm.vm.create_vcpu(cx, u64::from(id))?;
        vcpu.vcpu().set_kernel(cx, program(id));
        if id > 0 {
            vcpu.vcpu().set_mp_state(cx, MpState::Halted)?;
        }
        vcpus.push(vcpu);
    }
    command(&vmm.vm, SevOp::SnpLaunchStart(SnpLaunchStart { policy: POLICY, ..SnpLaunchStart::default() }))?;
    vmm.launch_pages(cx, sev, sizes)?;
    command(&vmm.vm, SevOp::SnpLaunchFinish(SnpLaunchFinish::default()))?;
    assert_eq!(FEATURES, 1, "INIT2 adds SNP_ACTIVE to no other features");
    Ok((vmm, vcpus))
}

fn launch_td(
    cx: &Cx<'_>,
    process: &Arc<Process>,
    sizes: &Sizes,
    program: impl Fn(u32) -> Program,
) -> Result<(Vmm, Vec<VcpuFd>), Errno> {
    let vm = new_vm(cx, process, KVM_X86_TDX_VM)?;
    let command = |vm: &VmFd, op| ioctl::memory_encrypt_op_tdx(cx, process, vm.as_raw_fd(), &mut TdxCmd::new(op));
    command(&vm, TdxOp::InitVm(Box::default()))?;
    let vmm = Vmm::new(cx, process, vm, sizes)?;
    let mut vcpus = Vec::new();
    for id in 0..sizes.vcpus {
        let vcpu = vmm.vm.create_vcpu(cx, u64::from(id))?;
        let mut init = TdxCmd::new(TdxOp::InitVcpu { rcx: 0 });
        ioctl::memory_encrypt_op_vcpu(cx, process, vcpu.as_raw_fd(), &mut init)?;
        vcpu.vcpu().set_kernel(cx, program(id));
        vcpus.push(vcpu);
    }
    vmm.add_regions(cx, &vcpus[0], sizes)?;
    command(&vmm.vm, TdxOp::FinalizeVm)?;
    Ok((vmm, vcpus))
}

/// The TD dies before its memory is closed.
///
/// # Errors
/// `EINVAL` if KVM has no such command.
pub(super) fn terminate_td(cx: &Cx<'_>, process: &Process, vm: &VmFd) -> Result<(), Errno> {
    ioctl::memory_encrypt_op_tdx(cx, process, vm.as_raw_fd(), &mut TdxCmd::new(TdxOp::TerminateVm))
}

impl Vmm {
    /// W1.
    fn launch_pages(&self, cx: &Cx<'_>, sev: RawFd, sizes: &Sizes) -> Result<(), Errno> {
        let firmware = layout::firmware(sizes.memory);
        let mut pieces = vec![(firmware.start, FIRMWARE_PAGES, SnpPageType::NORMAL)];
        pieces.extend(layout::ZERO.map(|(gpa, pages)| (gpa, pages, SnpPageType::ZERO)));
        pieces.extend([
            (layout::SECRETS, 1, SnpPageType::SECRETS),
            (layout::CPUID, 1, SnpPageType::CPUID),
            (layout::HASHES, 1, SnpPageType::NORMAL),
            (layout::UNMEASURED, 1, SnpPageType::UNMEASURED),
        ]);
        let mut count = PhaseReport { phase: Phase::W1, exits: 0, to_private: 0, to_shared: 0 };
        for (gpa, pages, page_type) in pieces {
            let uaddr = self.uaddr(gpa);
            let update = SnpLaunchUpdate { gfn_start: gpa.gfn(), uaddr, len: pages * PAGE_SIZE, page_type, flags: 0 };
            let mut cmd = SevCmd::new(SevOp::SnpLaunchUpdate(update), sev);
            loop {
                self.vm.encrypt_op_sev(cx, &mut cmd)?;
                count.exits += 1;
                match cmd.op {
                    SevOp::SnpLaunchUpdate(left) if left.len > 0 => {}
                    _ => break,
                }
            }
            count.to_private += pages;
        }
        self.counts.lock().push(count);
        Ok(())
    }

    /// W2: the firmware, measured; and the memory that it works in before it has accepted any, which is not.
    fn add_regions(&self, cx: &Cx<'_>, vcpu: &VcpuFd, sizes: &Sizes) -> Result<(), Errno> {
        let launched = layout::LAUNCHED;
        let regions = [
            (layout::firmware(sizes.memory).start, FIRMWARE_PAGES, KVM_TDX_MEASURE_MEMORY_REGION),
            (launched.start, (launched.end.0 - launched.start.0) / PAGE_SIZE, 0),
        ];
        let mut count = PhaseReport { phase: Phase::W2, exits: 0, to_private: 0, to_shared: 0 };
        for (gpa, nr_pages, flags) in regions {
            let region = TdxInitMemRegion { source_addr: self.uaddr(gpa), gpa, nr_pages };
            let mut cmd = TdxCmd { flags, ..TdxCmd::new(TdxOp::InitMemRegion(region)) };
            ioctl::memory_encrypt_op_vcpu(cx, &self.process, vcpu.as_raw_fd(), &mut cmd)?;
            count.exits += 1;
            count.to_private += nr_pages;
        }
        self.counts.lock().push(count);
        Ok(())
    }

    /// Where the VMM has shared memory of an address.
    fn uaddr(&self, gpa: Gpa) -> Hva {
        let (slot, offset) = self.slot(gpa);
        Hva(slot.map.addr().0 + offset)
    }
}
