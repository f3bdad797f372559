//! vCPUs on processors: loaded, put, and asked why they left their guest (`pkvm_load_hyp_vcpu`, `pkvm_put_hyp_vcpu`,
//! `__pkvm_vcpu_in_poison_fault`).

use super::access::AbortKind;
use super::el2::El2;
use super::mutants;
use super::pte::S2Level;
use super::types::{Handle, PageState};
use super::vm::{HypVcpu, HypVm};
use sim_kernel::{Errno, Pfn};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A VM that is used by a call, so that it cannot go (`get_pkvm_hyp_vm`); [`El2::put_vm`] ends that.
#[must_use = "the VM cannot be torn down until it is put"]
pub(super) struct InUse(pub(super) Arc<HypVm>);

impl El2<'_> {
    /// The VM with this handle.
    pub(super) fn get_vm(&self, handle: Handle) -> Option<InUse> {
        let vms = self.lock_vms();
        let vm = vms.vm(handle)?;
        vm.refs.fetch_add(1, Ordering::AcqRel);
        Some(InUse(vm))
    }

    pub(super) fn put_vm(&self, vm: InUse) {
        let _vms = self.lock_vms();
        vm.0.refs.fetch_sub(1, Ordering::AcqRel);
    }

    /// The vCPU that is loaded here, if it is protected or not as wanted.
    ///
    /// # Errors
    /// `EINVAL` if none is, or another kind.
    pub(super) fn loaded_vcpu(&self, protected: bool) -> Result<Arc<HypVcpu>, Errno> {
        let vcpu = self.hv.loaded(self.cpu).ok_or(Errno::EINVAL)?;
        if vcpu.vm.is_protected() == protected { Ok(vcpu) } else { Err(Errno::EINVAL) }
    }

    /// Loads a vCPU on this processor. Nothing happens if it cannot be: one is loaded here, or it is loaded elsewhere, or it or its VM is not there, or the VM is dying.
    pub(super) fn load_vcpu(&self, handle: Handle, index: u32) {
        if self.hv.loaded(self.cpu).is_some() {
            return;
        }
        let vms = self.lock_vms();
        let Some(vm) = vms.vm(handle) else { return };
        // K14: the guest would run while its pages are taken.
        if vm.is_dying() && !self.hv.is_off(mutants::K14) {
            return;
        }
        let Some(vcpu) = vm.vcpus.lock().get(&index).cloned() else { return };
        let mut loaded_on = vcpu.loaded_on.lock();
        if loaded_on.is_some() {
            return;
        }
        *loaded_on = Some(self.cpu);
        drop(loaded_on);
        vm.refs.fetch_add(1, Ordering::AcqRel);
        self.hv.cpus.lock()[self.cpu.0 as usize].loaded = Some(vcpu);
    }

    /// Takes the vCPU from this processor, if there is one.
    pub(super) fn put_vcpu(&self) {
        let Some(vcpu) = self.hv.cpus.lock()[self.cpu.0 as usize].loaded.take() else { return };
        let _vms = self.lock_vms();
        *vcpu.loaded_on.lock() = None;
        vcpu.vm.refs.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether the abort for which the loaded vCPU left its guest is of a page that was taken by force. The address is the abort's own, so that nobody learns of others.
    ///
    /// # Errors
    /// `EINVAL` if no vCPU is loaded, it did not leave for a translation abort, or there is a table, or nothing, above the last level.
    pub(super) fn vcpu_in_poison_fault(&self) -> Result<bool, Errno> {
        let vcpu = self.hv.loaded(self.cpu).ok_or(Errno::EINVAL)?;
        let fault = (*vcpu.fault.lock()).ok_or(Errno::EINVAL)?;
        if fault.kind != AbortKind::Translation && !self.hv.is_off(mutants::ORACLE) {
            return Err(Errno::EINVAL);
        }
        let guest = self.lock_vm(&vcpu.vm);
        let (slot, pte) = guest.table.root.leaf(&self.hv.phys, Pfn(fault.ipa.gfn().0))?;
        if slot.level != S2Level::LAST {
            return Err(Errno::EINVAL);
        }
        Ok(pte.state() == PageState::Poison)
    }
}
