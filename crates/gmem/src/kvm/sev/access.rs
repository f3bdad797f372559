//! What the processor does for an SNP guest, beside the translation: the RMP checks of every access, of the guest's tables too, and the key of its
//! contents. Not KVM.
//!
//! Simplified: the nested leaf that a guest's table was reached through counts as large as the table's page in the RMP; where paging is off, data accesses are private unless the program has asked for shared ones.

use super::check::{assert_access, assert_sealed};
use super::contents::GuestContents;
use crate::kvm::cpu::{AccessFault, Cpu, CpuExit};
use crate::kvm::exception::Exception;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use sim_coco::AccessKind;
use sim_coco::snp::{self, GuestCpu, GuestFault, NpfError, PageOperand, Snp, SnpAccess, VC_PAGE_NOT_VALIDATED};
use sim_kernel::{Cx, PAGE_SIZE, PAGES_PER_PMD, Pfn};
use sim_mmu::guest_paging::AccessMode;
use sim_mmu::walker::{ExitInfo1, MmuFault, WalkMemory};
use sim_mmu::{Access, Gpa, Gva, Level, Stage2Fault, TdpMmu};
use std::cell::Cell;

/// Vector of `#VC`.
pub(crate) const VC_VECTOR: u8 = 29;
/// Vector of `#UD`.
const UD_VECTOR: u8 = 6;
/// Error code of `#VC` for a nested page fault: MMIO.
const VC_NPF: u32 = 0x400;

/// Memory as the walk of an SNP guest's tables sees it: entries are private, and checked.
struct SnpMemory<'a> {
    mmu: &'a TdpMmu,
    snp: &'a Snp,
    contents: &'a GuestContents,
    cpu: GuestCpu,
    gva: Gva,
    /// The walk cannot go on because of this.
    fault: Cell<Option<GuestFault>>,
}

impl SnpMemory<'_> {
    fn table_access(&self, kind: AccessKind, entry: Gpa, table: Pfn) -> SnpAccess {
        let is_2m = matches!(self.snp.rmp().lookup(table), Some((_, Level::L2M)));
        let level = if is_2m { Level::L2M } else { Level::L4K };
        let access = SnpAccess::private(kind, entry, table).at_level(level).of_table();
        SnpAccess { gva: snp::Gva(self.gva.0), ..access }
    }
}

impl WalkMemory for SnpMemory<'_> {
    fn stage2_entry(&self, cx: &Cx<'_>, table: Pfn, level: Level, index: usize) -> u64 {
        self.mmu.stage2_entry(cx, table, level, index)
    }

    fn update_stage2_entry(&self, cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        self.mmu.update_stage2_entry(cx, table, index, old, new)
    }

    /// A table that may not be read ends the walk as if nothing were in it.
    fn guest_entry(&self, cx: &Cx<'_>, table: Pfn, entry: Gpa) -> u64 {
        let mut bytes = [0; 8];
        let access = self.table_access(AccessKind::Read, entry, table);
        match self.snp.guest_read(cx, &self.cpu, &access, &mut bytes) {
            Ok(()) => {
                assert_access(self.snp, &self.cpu, &access);
                u64::from_le_bytes(bytes)
            }
            Err(fault) => {
                if matches!(fault, GuestFault::NotValidated { .. }) {
                    self.contents.assert_not_validated(cx, self.snp.rmp(), entry.gfn(), table);
                }
                self.fault.set(Some(fault));
                0
            }
        }
    }

    fn update_guest_entry(&self, cx: &Cx<'_>, table: Pfn, entry: Gpa, old: u64, new: u64) -> Result<(), u64> {
        let (mut bytes, mut found) = ([0; 8], old);
        let access = self.table_access(AccessKind::Write, entry, table);
        let changed = self.snp.guest_modify(cx, &self.cpu, &access, &mut bytes, |bytes| {
            found = u64::from_le_bytes((&*bytes).try_into().expect("eight bytes"));
            if found == old {
                bytes.copy_from_slice(&new.to_le_bytes());
            }
        });
        if let Err(fault) = changed {
            self.fault.set(Some(fault));
            return Ok(());
        }
        assert_access(self.snp, &self.cpu, &access);
        self.contents.wrote(cx, entry, &bytes);
        if found == old { Ok(()) } else { Err(found) }
    }
}

/// What a check's fault is to the vCPU.
fn fault_of(fault: GuestFault) -> AccessFault {
    match fault {
        GuestFault::Npf { error, gpa } => MmuFault::Stage2(CpuExit::Fault {
            fault: Stage2Fault { gpa, access: access_of(error), present: true, reserved: false },
            info1: ExitInfo1::from_bits_truncate(error.bits()),
        }),
        GuestFault::NotValidated { cr2 } => {
            let error = Some(VC_PAGE_NOT_VALIDATED as u32);
            MmuFault::Stage2(CpuExit::Exception(Exception { vector: VC_VECTOR, error, cr2: Some(Gva(cr2.0)) }))
        }
        GuestFault::Gp0 => MmuFault::Guest(sim_mmu::guest_paging::GuestFault::GeneralProtection),
        GuestFault::Ud => MmuFault::Stage2(CpuExit::Exception(Exception::of_vector(UD_VECTOR))),
    }
}

fn access_of(error: NpfError) -> Access {
    if error.contains(NpfError::ID) {
        Access::Exec
    } else if error.contains(NpfError::W) {
        Access::Write
    } else {
        Access::Read
    }
}

fn kind_of(access: Access) -> AccessKind {
    match access {
        Access::Read => AccessKind::Read,
        Access::Write => AccessKind::Write,
        Access::Exec => AccessKind::Fetch,
    }
}

impl Vcpu {
    fn snp_machine(&self, state: &VcpuState) -> (&Snp, GuestCpu) {
        let sev = self.vm.sev().expect("a vCPU of an SNP VM");
        let asid = sev.asid().expect("it runs, so INIT2 was called");
        (sev.host().snp(), self.guest_cpu(state, asid))
    }

    /// Where an access of the guest is, and what the checks must know of it.
    pub(super) fn snp_translate(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        mode: Option<AccessMode>,
        access: Access,
    ) -> Result<SnpAccess, AccessFault> {
        let (snp, cpu) = self.snp_machine(state);
        let contents = &self.vm.sev().expect("as above").contents;
        let memory = SnpMemory { mmu: &self.vm.mmu, snp, contents, cpu, gva, fault: Cell::new(None) };
        let found = state.cpu.translate_physical(cx, &memory, gva, mode, access);
        if let Some(fault) = memory.fault.take() {
            // Nothing of the walk is kept.
            state.cpu.flush_guest(cx);
            return Err(fault_of(fault));
        }
        let es = state.sev.as_deref().expect("as its VM");
        let shared = !state.has_paging() && es.shared_mapping && access != Access::Exec;
        match found {
            Ok((translated, gpa, level)) => {
                if self.vm.watches_guests() {
                    let phys = &self.vm.host.phys;
                    state.reached.entry(translated.pfn).or_insert_with(|| phys.generation(translated.pfn));
                }
                let private = SnpAccess::private(kind_of(access), gpa, translated.pfn).at_level(level);
                Ok(SnpAccess { gva: snp::Gva(gva.0), c_bit: translated.private && !shared, ..private })
            }
            // The processor tells the guest about MMIO, which asks for it by the GHCB.
            Err(MmuFault::Stage2(CpuExit::Fault { fault, .. })) if fault.reserved => {
                let exception = Exception { vector: VC_VECTOR, error: Some(VC_NPF), cr2: Some(gva) };
                Err(MmuFault::Stage2(CpuExit::Exception(exception)))
            }
            Err(MmuFault::Stage2(CpuExit::Fault { fault, info1 })) if shared => {
                Err(MmuFault::Stage2(CpuExit::Fault { fault, info1: info1 - ExitInfo1::ENC }))
            }
            Err(fault) => Err(fault),
        }
    }

    /// The part of an access of `bytes` bytes that is in the page of the first one.
    fn in_page(gva: Gva, bytes: usize) -> usize {
        bytes.min((PAGE_SIZE - gva.offset()) as usize)
    }

    /// The guest, or the processor for it, reads or fetches bytes. Both pages are translated before either is read.
    pub(crate) fn snp_read(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        mode: Option<AccessMode>,
        access: Access,
        bytes: &mut [u8],
    ) -> Result<(), AccessFault> {
        let (first, rest) = bytes.split_at_mut(Self::in_page(gva, bytes.len()));
        let at = self.snp_translate(cx, state, gva, mode, access)?;
        let second = match rest.len() {
            0 => None,
            _ => Some(self.snp_translate(cx, state, Gva(gva.0.wrapping_add(first.len() as u64)), mode, access)?),
        };
        let (snp, cpu) = self.snp_machine(state);
        snp.guest_read(cx, &cpu, &at, first).map_err(|fault| self.snp_refused(cx, &mut state.cpu, &at, fault))?;
        self.has_read(cx, &cpu, &at, first);
        let Some(at) = second else { return Ok(()) };
        snp.guest_read(cx, &cpu, &at, rest).map_err(|fault| self.snp_refused(cx, &mut state.cpu, &at, fault))?;
        self.has_read(cx, &cpu, &at, rest);
        Ok(())
    }

    /// What the RMP's refusal of an access is to the vCPU. Through a large leaf, what is cached of that goes, as PSMASH drops it in all processors: KVM may have
    /// split the leaf, for which it flushes nothing. One of 4 KiB gets the same answer from a walk.
    fn snp_refused(&self, cx: &Cx<'_>, processor: &mut Cpu, access: &SnpAccess, fault: GuestFault) -> AccessFault {
        if matches!(fault, GuestFault::NotValidated { .. }) {
            let sev = self.vm.sev().expect("a vCPU of an SNP VM");
            sev.contents.assert_not_validated(cx, sev.host.snp().rmp(), access.gpa.gfn(), access.pfn);
        }
        if access.level > Level::L4K {
            processor.refused_after(access.gpa, Gva(access.gva.0));
        }
        fault_of(fault)
    }

    /// What must hold of a read that went through; part of its step.
    fn has_read(&self, cx: &Cx<'_>, cpu: &GuestCpu, at: &SnpAccess, bytes: &[u8]) {
        let sev = self.vm.sev().expect("a vCPU of an SNP VM");
        assert_access(sev.host.snp(), cpu, at);
        if at.is_private(cpu) {
            sev.contents.assert_read(cx, at.gpa, at.pfn, bytes);
        }
    }

    /// The same of a write.
    fn has_written(&self, cx: &Cx<'_>, cpu: &GuestCpu, at: &SnpAccess, bytes: &[u8]) {
        let sev = self.vm.sev().expect("a vCPU of an SNP VM");
        assert_access(sev.host.snp(), cpu, at);
        if at.is_private(cpu) {
            sev.contents.wrote(cx, at.gpa, bytes);
            if !cx.is_native() {
                assert_sealed(sev.host.snp(), cpu, at);
            }
        }
        self.vm.record_store(at.gpa.gfn());
    }

    /// The guest, or the processor for it, replaces bytes by a function of them: in one step if they are in one page.
    pub(crate) fn snp_modify(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        mode: Option<AccessMode>,
        bytes: &mut [u8],
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), AccessFault> {
        let split = Self::in_page(gva, bytes.len());
        let at = self.snp_translate(cx, state, gva, mode, Access::Write)?;
        if split == bytes.len() {
            let (snp, cpu) = self.snp_machine(state);
            snp.guest_modify(cx, &cpu, &at, bytes, change)
                .map_err(|fault| self.snp_refused(cx, &mut state.cpu, &at, fault))?;
            self.has_written(cx, &cpu, &at, bytes);
            return Ok(());
        }
        let next = self.snp_translate(cx, state, Gva(gva.0.wrapping_add(split as u64)), mode, Access::Write)?;
        let (snp, cpu) = self.snp_machine(state);
        let (first, rest) = bytes.split_at_mut(split);
        snp.guest_modify(cx, &cpu, &at, first, |_| {})
            .map_err(|fault| self.snp_refused(cx, &mut state.cpu, &at, fault))?;
        snp.guest_modify(cx, &cpu, &next, rest, |_| {})
            .map_err(|fault| self.snp_refused(cx, &mut state.cpu, &next, fault))?;
        change(bytes);
        let (first, rest) = bytes.split_at(split);
        snp.guest_write(cx, &cpu, &at, first).map_err(|fault| self.snp_refused(cx, &mut state.cpu, &at, fault))?;
        self.has_written(cx, &cpu, &at, first);
        snp.guest_write(cx, &cpu, &next, rest).map_err(|fault| self.snp_refused(cx, &mut state.cpu, &next, fault))?;
        self.has_written(cx, &cpu, &next, rest);
        Ok(())
    }

    /// One access of four bytes: `change` gives the new value, or `None` for a read; returns the old one.
    pub(crate) fn snp_access(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        kind: Access,
        change: impl Fn(u32) -> Option<u32>,
    ) -> Result<u32, AccessFault> {
        let mut bytes = [0; 4];
        let mut old = 0;
        if kind != Access::Write {
            self.snp_read(cx, state, gva, None, kind, &mut bytes)?;
            return Ok(u32::from_le_bytes(bytes));
        }
        self.snp_modify(cx, state, gva, None, &mut bytes, |bytes| {
            old = u32::from_le_bytes((&*bytes).try_into().expect("four bytes"));
            bytes.copy_from_slice(&change(old).unwrap_or(old).to_le_bytes());
        })?;
        Ok(old)
    }

    /// What PVALIDATE looks at first, and whether that is the end of it.
    pub(super) fn snp_pvalidate_inputs(
        &self,
        state: &VcpuState,
        gva: Gva,
        size: u64,
        edx: u32,
    ) -> Result<Option<snp::Pvalidated>, AccessFault> {
        let (_, cpu) = self.snp_machine(state);
        Ok(snp::pvalidate_inputs(&cpu, snp::Gva(gva.0), size, edx).map_err(fault_of)?.err())
    }

    /// What RMPADJUST looks at first, and whether that is the end of it.
    pub(super) fn snp_rmpadjust_inputs(
        &self,
        state: &VcpuState,
        gva: Gva,
        size: u64,
        rdx: snp::RmpAdjust,
    ) -> Result<Option<snp::RmpFail>, AccessFault> {
        let (snp, cpu) = self.snp_machine(state);
        Ok(snp.rmpadjust_inputs(&cpu, snp::Gva(gva.0), size, rdx).map_err(fault_of)?.err())
    }

    /// The page that PVALIDATE and its like name: translated as for a read of one byte, and private whatever the mapping says.
    pub(super) fn snp_operand(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        size: u64,
    ) -> Result<PageOperand, AccessFault> {
        let es = state.sev.as_deref_mut().expect("a vCPU of an SNP VM");
        let shared = std::mem::replace(&mut es.shared_mapping, false);
        let found = self.snp_translate(cx, state, gva, None, Access::Read);
        state.sev.as_deref_mut().expect("as above").shared_mapping = shared;
        let at = found?;
        Ok(PageOperand { gva: at.gva, gpa: at.gpa, pfn: at.pfn, size })
    }

    pub(super) fn snp_pvalidate(
        &self,
        cx: &Cx<'_>,
        state: &VcpuState,
        operand: &PageOperand,
        edx: u32,
    ) -> Result<snp::Pvalidated, AccessFault> {
        let (snp, cpu) = self.snp_machine(state);
        let done = snp.pvalidate(cx, &cpu, operand, edx).map_err(fault_of)?;
        if done.result.is_ok() && !done.unchanged {
            let pages = if operand.size == 0 { 1 } else { PAGES_PER_PMD };
            self.vm.sev().expect("as above").contents.pvalidated(
                cx,
                snp.rmp(),
                operand.gpa.gfn(),
                operand.pfn,
                pages,
                edx != 0,
            );
        }
        Ok(done)
    }

    pub(super) fn snp_rmpadjust(
        &self,
        cx: &Cx<'_>,
        state: &VcpuState,
        operand: &PageOperand,
        rdx: snp::RmpAdjust,
    ) -> Result<Result<(), snp::RmpFail>, AccessFault> {
        let (snp, cpu) = self.snp_machine(state);
        let adjusted = snp.rmpadjust(cx, &cpu, operand, rdx).map_err(fault_of)?;
        let pages = if operand.size == 0 { 1 } else { PAGES_PER_PMD };
        self.vm.sev().expect("as above").contents.forget(cx, operand.gpa.gfn(), pages);
        // Another vCPU may have waited for the permission.
        self.vm.sev_wake_spinners(cx);
        Ok(adjusted)
    }
}
