//! Operations on protected VMs that are the same in every scenario and not the same in any two machines: how a VM comes to be, gets memory, and is launched, as a VMM has it
//! that knows its kind (QEMU's `ConfidentialGuestSupport`); and what the guest's kernel does to convert a page (`set_memory_decrypted`, `set_memory_encrypted`).
//!
//! Each is a list of other operations, which are performed up to the first that fails. The VMM keeps in mind which memory is behind an address, and drops what a
//! conversion leaves without use: the private page, or the shared one.
//!
//! Simplified: no firmware is in what is launched, and a software-protected VM, which nothing measures, begins with empty private memory.

use super::guest::Run;
use super::world::World;
use crate::kvm::ioctl;
use crate::kvm::uapi::*;
use crate::kvm::vcpu::{GuestInsn, Vcpu};
use crate::kvm::vm::Vm;
use crate::ops::{Answer, Exit, FdRef, HvaRef, Name, Op, Prot, ProtectedOp, SnpOp, TdxOp};
use sim_coco::tdx::TdAttributes;
use sim_kernel::mm::Advice;
use sim_kernel::{Cx, Errno, PAGE_SIZE};
use std::ops::Range;
use std::sync::{Arc, Weak};

/// `KVM_MAP_GPA_RANGE_ENCRYPTED`.
const ENCRYPTED: u64 = 1 << 4;
/// What `to` is for private memory.
const TO_PRIVATE: u64 = 1;
/// `SNP_POLICY` as most guests have it.
const SNP_POLICY: u64 = 0x3_0000;
/// `KVM_SEV_SNP_PAGE_TYPE_NORMAL`.
const NORMAL: u64 = 1;
/// `KVM_TDX_MEASURE_MEMORY_REGION`.
const MEASURE: u64 = 1;
/// XFAM of a TD: x87 and SSE.
const XFAM: u64 = 3;
/// Width of a TD's addresses.
const WIDTH: u64 = 48;

/// Memory that the VMM has given a guest.
#[derive(Debug)]
pub(super) struct Region {
    vm: Weak<Vm>,
    gpa: Range<u64>,
    map: Name,
    fd: Name,
}

/// What protects a guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protection {
    Software,
    Snp,
    Tdx,
    Pkvm,
    /// pKVM as it is proposed, with guest_memfd.
    PkvmGmem,
}

impl World {
    /// What protects guests of this machine.
    fn protection(&self) -> Protection {
        let host = self.process.host();
        match host.pkvm() {
            Some(pkvm) if pkvm.backs_with_gmem() => Protection::PkvmGmem,
            Some(_) => Protection::Pkvm,
            None if host.sev().is_some() => Protection::Snp,
            None if host.tdx().is_some() => Protection::Tdx,
            None => Protection::Software,
        }
    }

    /// What protects this VM; a machine that protects guests can have other VMs too.
    fn protection_of(&self, cx: &Cx<'_>, vm: &Name) -> Protection {
        match self.vm(cx, vm) {
            Some(vm) if vm.sev().is_none() && vm.tdx().is_none() && vm.pkvm().is_none() => Protection::Software,
            _ => self.protection(),
        }
    }

    /// An operation on a protected VM.
    pub(super) fn protected(&self, cx: &Cx<'_>, op: &ProtectedOp) -> Answer {
        match op {
            ProtectedOp::CreateProtectedVm { vm } => self.in_turn(cx, create(self.protection(), vm)),
            ProtectedOp::AddGuestMemory { vm, slot, gpa, size, map, fd } => {
                let ops = add_memory(self.protection_of(cx, vm), vm, (*slot, *gpa, *size), map, fd);
                let answer = self.in_turn(cx, ops);
                if let (Answer::Ok { .. }, Some(vm)) = (&answer, self.vm(cx, vm)) {
                    let gpa = *gpa..gpa.saturating_add(*size);
                    let region = Region { vm: Arc::downgrade(&vm), gpa, map: map.clone(), fd: fd.clone() };
                    self.names.lock().regions.push(region);
                }
                answer
            }
            ProtectedOp::Launch { vm, gpa, len, hva } => {
                let vcpus = self.vcpus_of(cx, vm);
                self.in_turn(cx, launch(self.protection_of(cx, vm), vm, &vcpus, (*gpa, *len), hva))
            }
        }
    }

    /// Performs operations up to the first that fails, whose answer it is.
    fn in_turn(&self, cx: &Cx<'_>, ops: Vec<Op>) -> Answer {
        let mut answers = ops.into_iter().map(|op| self.perform(cx, &op));
        answers.find(|answer| !matches!(answer, Answer::Ok { .. })).unwrap_or(Answer::OK)
    }

    /// The names of a VM's vCPUs, in the order of their numbers.
    fn vcpus_of(&self, cx: &Cx<'_>, vm: &Name) -> Vec<Name> {
        let Some(vm) = self.vm(cx, vm) else { return Vec::new() };
        let names: Vec<(Name, i32)> = self.names.lock().fds.iter().map(|(name, fd)| (name.clone(), *fd)).collect();
        let vcpu = |(name, fd)| {
            let vcpu = ioctl::peek_vcpu(cx, &self.process, fd).filter(|vcpu| Arc::ptr_eq(vcpu.vm(), &vm))?;
            Some((vcpu.id(), name))
        };
        let mut vcpus: Vec<_> = names.into_iter().filter_map(vcpu).collect();
        vcpus.sort();
        // A descriptor that was duplicated is the same vCPU.
        vcpus.dedup_by_key(|(id, _)| *id);
        vcpus.into_iter().map(|(_, name)| name).collect()
    }

    /// What the VMM does when it is asked to convert memory: attributes, and then what is not used any more goes, where it has the memory in mind. Returns what the guest is
    /// told.
    pub(super) fn map_gpa_range(&self, cx: &Cx<'_>, vcpu: &Arc<Vcpu>, [gpa, npages, attributes, _]: [u64; 4]) -> u64 {
        let to_private = attributes & ENCRYPTED != 0;
        let size = npages.wrapping_mul(PAGE_SIZE);
        let private = if to_private { KVM_MEMORY_ATTRIBUTE_PRIVATE } else { 0 };
        let args = kvm_memory_attributes { address: gpa, size, attributes: private, flags: 0 };
        let converted = vcpu.vm().set_memory_attributes(cx, &args);
        match converted.and_then(|()| self.drop_unused(cx, vcpu.vm(), gpa..gpa.saturating_add(size), to_private)) {
            Ok(()) => 0,
            Err(errno) => errno.number() as u64,
        }
    }

    fn drop_unused(&self, cx: &Cx<'_>, vm: &Arc<Vm>, pages: Range<u64>, private: bool) -> Result<(), Errno> {
        /// `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`.
        const PUNCH_HOLE: u32 = 3;
        let of_region = |region: &Region| {
            let is_its = region.vm.as_ptr() == Arc::as_ptr(vm);
            let (start, end) = (pages.start.max(region.gpa.start), pages.end.min(region.gpa.end));
            (is_its && start < end)
                .then(|| (region.map.clone(), region.fd.clone(), start - region.gpa.start, end - start))
        };
        let parts: Vec<_> = self.names.lock().regions.iter().filter_map(of_region).collect();
        for (map, fd, offset, len) in parts {
            if private {
                self.process.madvise(cx, self.address(&map, offset), len, Advice::Dontneed)?;
            } else {
                self.process.fallocate(cx, self.fd(&fd), PUNCH_HOLE, offset as i64, len as i64)?;
            }
        }
        Ok(())
    }

    /// A vCPU's guest converts a page where no hardware has a part in it: it asks the hypervisor, on pKVM the one that decides.
    pub(super) fn convert_by_hypercall(&self, cx: &Cx<'_>, vcpu: &Name, gpa: u64, to: u64, reply: u64) -> Answer {
        let answer = if self.process.host().pkvm().is_some() {
            self.guest_set_memory(cx, vcpu, gpa, PAGE_SIZE, to)
        } else {
            let attributes = if to == TO_PRIVATE { ENCRYPTED } else { 0 };
            let program = vec![GuestInsn::Hypercall { nr: KVM_HC_MAP_GPA_RANGE, args: [gpa, 1, attributes, 0] }];
            self.run_guest(cx, vcpu, Run { program, reply, answers: true, ..Run::default() })
        };
        match answer {
            // Linux has nothing to say if all is well.
            Answer::Exit { errno, exit: Exit::Hlt { value: Some(0) } } => {
                Answer::Exit { errno, exit: Exit::Hlt { value: None } }
            }
            other => other,
        }
    }
}

/// How a VM comes to be, up to its first vCPU.
fn create(protection: Protection, vm: &Name) -> Vec<Op> {
    let create = |r#type| Op::CreateVm { vm: vm.clone(), r#type };
    // Without it KVM refuses conversions, instead of asking.
    let asks = Op::EnableCap { vm: vm.clone(), cap: Cap::ExitHypercall as u64, arg: 1 << KVM_HC_MAP_GPA_RANGE };
    match protection {
        Protection::Software => vec![create(KVM_X86_SW_PROTECTED_VM), asks],
        Protection::Snp => {
            let init = SnpOp::SevInit2 { vm: vm.clone(), vmsa_features: 0, flags: 0, ghcb_version: 2 };
            vec![create(KVM_X86_SNP_VM), Op::Snp(init), asks]
        }
        Protection::Tdx => {
            let attributes = TdAttributes::SEPT_VE_DISABLE.bits();
            let init = TdxOp::TdxInitVm { vm: vm.clone(), attributes, xfam: XFAM, width: WIDTH, flags: 0 };
            vec![create(KVM_X86_TDX_VM), Op::Tdx(init), asks]
        }
        Protection::Pkvm | Protection::PkvmGmem => vec![create(KVM_VM_TYPE_ARM_PROTECTED)],
    }
}

/// How a VM gets memory, all of it private: where shared and private pages are not the same, two memories behind one slot; on pKVM one.
fn add_memory(protection: Protection, vm: &Name, (slot, gpa, size): (u64, u64, u64), map: &Name, fd: &Name) -> Vec<Op> {
    let mmap = |file: Option<&Name>| Op::Mmap {
        map: map.clone(),
        fd: file.cloned(),
        len: size,
        prot: Prot::READ | Prot::WRITE,
        shared: file.is_some(),
        offset: 0,
        align: PAGE_SIZE,
    };
    let create = |flags| Op::CreateGuestMemfd { vm: vm.clone(), fd: fd.clone(), size, flags };
    let hva = || HvaRef::Map { map: map.clone(), offset: 0 };
    let region = Op::SetUserMemoryRegion2 {
        vm: vm.clone(),
        slot,
        flags: u64::from(KVM_MEM_GUEST_MEMFD),
        gpa,
        size,
        hva: hva(),
        guest_memfd: FdRef::Name(fd.clone()),
        guest_memfd_offset: 0,
    };
    match protection {
        Protection::Software | Protection::Snp | Protection::Tdx => {
            let attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE;
            let private = Op::SetMemoryAttributes { vm: vm.clone(), gpa, size, attributes, flags: 0 };
            vec![mmap(None), create(0), region, private]
        }
        Protection::Pkvm => {
            vec![mmap(None), Op::SetUserMemoryRegion { vm: vm.clone(), slot, flags: 0, gpa, size, hva: hva() }]
        }
        // Shared in the beginning, so that the VMM can write an image; a page is private from the guest's first touch on.
        Protection::PkvmGmem => {
            vec![create(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED), mmap(Some(fd)), region]
        }
    }
}

/// What is done between the last vCPU and the first run.
fn launch(protection: Protection, vm: &Name, vcpus: &[Name], (gpa, len): (u64, u64), hva: &HvaRef) -> Vec<Op> {
    match protection {
        Protection::Software | Protection::Pkvm | Protection::PkvmGmem => Vec::new(),
        Protection::Snp => {
            let (vm, hva, r#type) = (|| vm.clone(), hva.clone(), NORMAL);
            let start = SnpOp::SnpLaunchStart { vm: vm(), policy: SNP_POLICY, flags: 0 };
            let update = SnpOp::SnpLaunchUpdate { vm: vm(), gpa, hva, len, r#type, flags: 0 };
            [start, update, SnpOp::SnpLaunchFinish { vm: vm(), flags: 0 }].map(Op::Snp).to_vec()
        }
        Protection::Tdx => {
            let init = |vcpu: &Name| TdxOp::TdxInitVcpu { vcpu: vcpu.clone(), rcx: 0, flags: 0 };
            // Without a vCPU there is no descriptor, and KVM says so.
            let first = vcpus.first().unwrap_or(vm).clone();
            let region = TdxOp::TdxInitMemRegion { vcpu: first, gpa, hva: hva.clone(), len, flags: MEASURE };
            let rest = [region, TdxOp::TdxFinalizeVm { vm: vm.clone() }];
            vcpus.iter().map(init).chain(rest).map(Op::Tdx).collect()
        }
    }
}
