//! `KVM_TDX_INIT_MEM_REGION`: the first memory of a TD, page by page, copied from user space, added by the hook of the mirror, and measured if that is
//! wanted (`tdx_vcpu_init_mem_region`, `tdx_gmem_post_populate`).

use super::vcpu::tdx_state;
use super::vm::{KvmTdx, TdState};
use crate::kvm::guest_memfd::PopulateSource;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use sim_coco::tdx::{EXTEND_BYTES, Leaf};
use sim_kernel::{Cx, Errno, Hva, PAGE_SHIFT, PAGE_SIZE, Pfn};
use sim_mmu::{Gfn, Gpa};

/// `KVM_TDX_MEASURE_MEMORY_REGION`.
pub const KVM_TDX_MEASURE_MEMORY_REGION: u32 = 1 << 0;

/// `struct kvm_tdx_init_mem_region`; changed to what is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TdxInitMemRegion {
    /// Where the contents are.
    pub source_addr: Hva,
    /// Where they go.
    pub gpa: Gpa,
    /// Pages of 4 KiB.
    pub nr_pages: u64,
}

impl TdxInitMemRegion {
    /// Whether it is a range of private memory with a source.
    fn is_valid(&self, tdx: &KvmTdx) -> bool {
        let bytes = self.nr_pages << PAGE_SHIFT;
        let end = self.gpa.0.wrapping_add(bytes);
        self.source_addr.0.is_multiple_of(PAGE_SIZE)
            && self.source_addr.0 != 0
            && self.gpa.0.is_multiple_of(PAGE_SIZE)
            && self.nr_pages != 0
            && end > self.gpa.0
            && tdx.is_private_gpa(self.gpa)
            && tdx.is_private_gpa(Gpa(end - 1))
    }
}

impl Vcpu {
    /// `tdx_vcpu_init_mem_region`, under the locks of the commands. `region` is what is left afterwards, whatever the answer.
    ///
    /// # Errors
    /// `EINVAL` before `KVM_TDX_INIT_VCPU`, after `KVM_TDX_FINALIZE_VM`, for flags and ranges, where no guest_memfd is, and where memory is not private; `EINTR`; `EFAULT`, `EHWPOISON`,
    /// `ENOMEM`; `EIO` for a page that is there already, and if the VM is bugged by it.
    pub(super) fn tdx_vcpu_init_mem_region(
        &self,
        cx: &Cx<'_>,
        tdx: &KvmTdx,
        state: &mut VcpuState,
        flags: u32,
        region: &mut TdxInitMemRegion,
    ) -> Result<(), Errno> {
        let valid = self.vcpu_tdx().is_initialized()
            && tdx.peek_state() != TdState::Runnable
            && flags & !KVM_TDX_MEASURE_MEMORY_REGION == 0
            && region.is_valid(tdx);
        if !valid {
            return Err(Errno::EINVAL);
        }
        let measures = flags & KVM_TDX_MEASURE_MEMORY_REGION != 0;
        while region.nr_pages > 0 {
            if cx.signal_pending() {
                return Err(Errno::EINTR);
            }
            let source = PopulateSource { uaddr: region.source_addr, write: false };
            let mut post = |gfn: Gfn, pfn: Pfn, source: Option<Pfn>| {
                self.tdx_gmem_post_populate(cx, tdx, state, measures, gfn, pfn, source)
            };
            if self.vm.gmem_populate(cx, region.gpa.gfn(), 1, Some(source), &mut post)? != 1 {
                return Err(Errno::EIO);
            }
            region.source_addr = region.source_addr + PAGE_SIZE;
            region.gpa = Gpa(region.gpa.0 + PAGE_SIZE);
            region.nr_pages -= 1;
            cx.cond_resched();
        }
        Ok(())
    }

    /// `tdx_gmem_post_populate`.
    #[expect(clippy::too_many_arguments, reason = "the kernel has a structure for them")]
    fn tdx_gmem_post_populate(
        &self,
        cx: &Cx<'_>,
        tdx: &KvmTdx,
        state: &mut VcpuState,
        measures: bool,
        gfn: Gfn,
        pfn: Pfn,
        source: Option<Pfn>,
    ) -> Result<(), Errno> {
        let before = tdx.page_add_src.lock().replace(source.expect("a region has a source"));
        if before.is_some() {
            self.vm.bug(cx);
            return Err(Errno::EIO);
        }
        let mapped = self.tdx_map_private_pfn(cx, state, gfn, pfn);
        *tdx.page_add_src.lock() = None;
        mapped?;
        if !measures {
            return Ok(());
        }
        let tdr = tdx.tdr_hpa();
        for offset in (0..PAGE_SIZE).step_by(EXTEND_BYTES) {
            let gpa = Gpa(gfn.gpa().0 + offset);
            if tdx.host.call(cx, Leaf::MrExtend, |seam| seam.mr_extend(cx, gpa, tdr)).is_err() {
                self.vm.bug(cx);
                return Err(Errno::EIO);
            }
        }
        Ok(())
    }

    /// `kvm_tdp_mmu_map_private_pfn`.
    fn tdx_map_private_pfn(&self, cx: &Cx<'_>, state: &mut VcpuState, gfn: Gfn, pfn: Pfn) -> Result<(), Errno> {
        self.tdx_load_mmu(cx, state)?;
        let mirror = tdx_state(state).mirror.clone().expect("just loaded");
        let slot = self.vm.memslots.peek_active(0, |set| set.by_gfn(gfn).cloned()).ok_or(Errno::EINVAL)?;
        let view = self.vm.slot_view(&slot);
        self.vm.tdx().expect("a vCPU of a TD").pamt_topup(cx)?;
        let _srcu = self.vm.srcu.read(cx);
        let mapped = self.vm.mmu.map_private_pfn(cx, &mirror, gfn, pfn, &view, &*self.vm);
        self.tdx_check_thawed(cx, &mirror, gfn);
        mapped
    }
}
