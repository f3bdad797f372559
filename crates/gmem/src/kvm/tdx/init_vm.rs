//! `KVM_TDX_INIT_VM`, `KVM_TDX_FINALIZE_VM` and `KVM_TDX_CAPABILITIES`: what a TD is, from what user space asks for to the module's TD_PARAMS, and
//! when its first memory is complete (`tdx_td_init`, `setup_tdparams`, `__tdx_td_init`, `tdx_td_finalize`, `tdx_get_capabilities`).

use super::vm::{KvmTdx, TdState};
use crate::kvm::vm::Vm;
use sim_coco::tdx::{
    CONFIG_GPAW, CONFIG_NO_RBP_MOD, EPTP_4_LEVELS, EPTP_5_LEVELS, Hpa, Leaf, Lp, StatusName, TdAttributes, TdParams,
    TdxConfig,
};
use sim_kernel::{Cx, Errno, PAGE_SHIFT, Pfn};

/// `KVM_MAX_CPUID_ENTRIES`.
const CPUID_ENTRIES_MAX: usize = 256;
/// Leaf of CPUID with the widths of addresses.
const CPUID_ADDRESS_SIZES: u32 = 0x8000_0008;
/// Leaves of CPUID whose values a TD may be given: topology, features, and the widths of addresses.
const CPUID_CONFIG: [(u32, u32); 4] = [(1, 0), (4, 0), (7, 0), (CPUID_ADDRESS_SIZES, 0)];
/// `KVM_SUPPORTED_TD_ATTRS`.
const SUPPORTED_ATTRIBUTES: TdAttributes = TdAttributes::SEPT_VE_DISABLE;
/// XFAM bits that are always set.
const XFAM_FIXED1: u64 = 3;

/// A value of CPUID (`struct kvm_cpuid_entry2`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TdxCpuidEntry {
    /// EAX of the query.
    pub function: u32,
    /// ECX of the query.
    pub index: u32,
    /// EAX, EBX, ECX, EDX.
    pub registers: [u32; 4],
}

/// `struct kvm_tdx_init_vm`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TdxInitVm {
    /// [`TdAttributes`].
    pub attributes: u64,
    /// Extended features.
    pub xfam: u64,
    /// Identity of non-owner-defined configuration.
    pub mrconfigid: [u8; 48],
    /// Identity of the owner.
    pub mrowner: [u8; 48],
    /// Identity of owner-defined configuration.
    pub mrownerconfig: [u8; 48],
    /// Whether the reserved fields and the padding are 0.
    pub is_clean: bool,
    /// `cpuid.nent`; the entries of a larger number are not looked at.
    pub nent: u32,
    /// The entries.
    pub cpuid: Vec<TdxCpuidEntry>,
}

impl Default for TdxInitVm {
    /// A TD as Linux wants it: an access to what is not accepted ends it; 48 bits of address.
    fn default() -> TdxInitVm {
        TdxInitVm::with_width(48)
    }
}

impl TdxInitVm {
    /// A TD with addresses of so many bits (GUEST_PHYS_ADDR_BITS of CPUID).
    pub fn with_width(bits: u32) -> TdxInitVm {
        let sizes = TdxCpuidEntry { function: CPUID_ADDRESS_SIZES, index: 0, registers: [bits << 16 | 46, 0, 0, 0] };
        TdxInitVm {
            attributes: TdAttributes::SEPT_VE_DISABLE.bits(),
            xfam: XFAM_FIXED1,
            mrconfigid: [0; 48],
            mrowner: [0; 48],
            mrownerconfig: [0; 48],
            is_clean: true,
            nent: 1,
            cpuid: vec![sizes],
        }
    }
}

/// `struct kvm_tdx_capabilities`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TdxCapabilities {
    /// Attributes that may be set.
    pub supported_attrs: u64,
    /// XFAM bits that may be set.
    pub supported_xfam: u64,
    /// Leaves of CPUID that may be given values.
    pub cpuid: Vec<TdxCpuidEntry>,
}

impl TdxCapabilities {
    /// What KVM and the module have in common.
    pub(super) fn of(config: &TdxConfig) -> TdxCapabilities {
        let entry = |(function, index)| TdxCpuidEntry { function, index, registers: [u32::MAX; 4] };
        TdxCapabilities {
            supported_attrs: config.attributes & SUPPORTED_ATTRIBUTES.bits(),
            supported_xfam: config.xfam | XFAM_FIXED1,
            cpuid: CPUID_CONFIG.into_iter().map(entry).collect(),
        }
    }
}

/// `setup_tdparams`.
///
/// # Errors
/// `EBUSY` if there are vCPUs; `EINVAL` for attributes, XFAM, a width of addresses or a leaf of CPUID that there is not.
fn setup_tdparams(tdx: &KvmTdx, init: &TdxInitVm, max_vcpus: u64) -> Result<TdParams, Errno> {
    let config = tdx.host.tdx().config();
    let known = TdxCapabilities::of(config);
    if tdx.created_vcpus() != 0 {
        return Err(Errno::EBUSY);
    }
    if init.attributes & !known.supported_attrs != 0 || init.xfam & !known.supported_xfam != 0 {
        return Err(Errno::EINVAL);
    }
    let sizes = init.cpuid.iter().find(|entry| entry.function == CPUID_ADDRESS_SIZES).ok_or(Errno::EINVAL)?;
    let (eptp_controls, gpaw) = match sizes.registers[0] >> 16 & 0xff {
        48 => (EPTP_4_LEVELS, 0),
        52 if config.five_levels => (EPTP_5_LEVELS, CONFIG_GPAW),
        _ => return Err(Errno::EINVAL),
    };
    let copied = init.cpuid.iter().filter(|entry| CPUID_CONFIG.contains(&(entry.function, entry.index))).count();
    // An entry that the module would not take, or one that is there twice.
    let distinct = CPUID_CONFIG
        .iter()
        .filter(|leaf| init.cpuid.iter().any(|entry| (entry.function, entry.index) == **leaf))
        .count();
    if copied != init.cpuid.len() || distinct != copied {
        return Err(Errno::EINVAL);
    }
    Ok(TdParams {
        attributes: init.attributes,
        xfam: init.xfam | XFAM_FIXED1,
        max_vcpus: u16::try_from(max_vcpus).unwrap_or(u16::MAX),
        eptp_controls,
        config_flags: CONFIG_NO_RBP_MOD | gpaw,
        mrconfigid: init.mrconfigid,
        mrowner: init.mrowner,
        mrownerconfig: init.mrownerconfig,
        ..TdParams::default()
    })
}

impl Vm {
    /// `tdx_td_init`.
    ///
    /// # Errors
    /// `EINVAL` the second time, for flags, reserved fields, and what [`setup_tdparams`] or the module refuses, which `hw_error` then names; `E2BIG`; `EBUSY`; `ENOSPC` without a
    /// KeyID; `ENOMEM`; `EAGAIN` without random numbers; `EIO` if the VM is bugged by it.
    pub(super) fn tdx_td_init(
        &self,
        cx: &Cx<'_>,
        tdx: &KvmTdx,
        init: &TdxInitVm,
        flags: u32,
        hw_error: &mut u64,
    ) -> Result<(), Errno> {
        if tdx.peek_state() != TdState::Uninitialized || flags != 0 {
            return Err(Errno::EINVAL);
        }
        if init.nent as usize > CPUID_ENTRIES_MAX {
            return Err(Errno::E2BIG);
        }
        if !init.is_clean || init.nent as usize != init.cpuid.len() {
            return Err(Errno::EINVAL);
        }
        let params = setup_tdparams(tdx, init, self.max_vcpus())?;
        self.tdx_create_td(cx, tdx, &params, hw_error)?;
        let gpaw = params.gpaw();
        let levels = params.pwl() + 1;
        self.mmu.set_guest_width(levels, 1 << (gpaw.shared_bit() - PAGE_SHIFT));
        tdx.set_gpaw(gpaw);
        tdx.cpuid.set(init.cpuid.clone()).expect("INIT_VM succeeds once");
        tdx.set_state(cx, TdState::Initialized);
        Ok(())
    }

    /// `__tdx_td_init`: a KeyID, and the TD's pages. What fails after the TD was created takes everything apart again.
    fn tdx_create_td(&self, cx: &Cx<'_>, tdx: &KvmTdx, params: &TdParams, hw_error: &mut u64) -> Result<(), Errno> {
        let host = &tdx.host;
        *hw_error = 0;
        let hkid = host.keyid_alloc(cx)?;
        tdx.set_hkid(Some(hkid));
        let (tdr, tdcs) = match self.tdx_alloc_td(cx, tdx) {
            Ok(pages) => pages,
            Err(errno) => {
                tdx.hkid_free(cx);
                return Err(errno);
            }
        };
        let created = {
            let _global = host.tdx_lock.lock(cx);
            host.clflush_page(cx, tdr);
            host.call_for_entropy(cx, Leaf::MngCreate, |seam| seam.mng_create(cx, Hpa::of(tdr), hkid))
        };
        if let Err(fail) = created {
            if fail.name() != StatusName::RndNoEntropy {
                self.bug(cx);
            }
            host.free_pages(cx, tdcs.into_iter().chain([tdr]));
            tdx.hkid_free(cx);
            return Err(if fail.name() == StatusName::RndNoEntropy { Errno::EAGAIN } else { Errno::EIO });
        }
        tdx.pages.lock().tdr = Some(tdr);
        let mut left = tdcs;
        let built = self.tdx_build_td(cx, tdx, params, &mut left, hw_error);
        if built.is_err() {
            // Those that the module has not.
            host.free_pages(cx, left);
            self.tdx_mmu_release_hkid(cx, tdx);
            tdx.reclaim_td_control_pages(cx, self);
        }
        built
    }

    fn tdx_alloc_td(&self, cx: &Cx<'_>, tdx: &KvmTdx) -> Result<(Pfn, Vec<Pfn>), Errno> {
        let tdr = tdx.host.alloc_page(cx)?;
        let tdcs = tdx.host.alloc_pages(cx, tdx.host.tdx().config().tdcs_pages.0 as usize);
        tdcs.map(|tdcs| (tdr, tdcs)).inspect_err(|_| tdx.host.free_page(cx, tdr))
    }

    /// The keys of all packages, the pages of TDCS, and TD_PARAMS. `left`: pages that the module has not been given.
    fn tdx_build_td(
        &self,
        cx: &Cx<'_>,
        tdx: &KvmTdx,
        params: &TdParams,
        left: &mut Vec<Pfn>,
        hw_error: &mut u64,
    ) -> Result<(), Errno> {
        let (host, tdr) = (&tdx.host, tdx.tdr_hpa());
        let config = host.tdx().config();
        for package in 0..config.packages {
            let lp = Lp(package * config.lps_per_package);
            let configured = host.call_on(cx, lp, Leaf::MngKeyConfig, |seam| seam.mng_key_config(cx, tdr));
            if configured.is_err() {
                self.bug(cx);
                return Err(Errno::EIO);
            }
        }
        left.reverse();
        while let Some(page) = left.pop() {
            host.clflush_page(cx, page);
            let added = host.call_for_entropy(cx, Leaf::MngAddcx, |seam| seam.mng_addcx(cx, Hpa::of(page), tdr));
            if let Err(fail) = added {
                left.push(page);
                if fail.name() == StatusName::RndNoEntropy {
                    return Err(Errno::EAGAIN);
                }
                self.bug(cx);
                return Err(Errno::EIO);
            }
            tdx.pages.lock().tdcs.push(page);
        }
        // The host's own: the module only reads it.
        let memory = host.phys().alloc_zeroed()?;
        let written = host.tdx().on(host.lp(cx)).host_write(cx, memory, 0, &params.to_bytes());
        written.expect("a page that was just allocated holds no poison");
        let inited = host.call(cx, Leaf::MngInit, |seam| seam.mng_init(cx, tdr, Hpa::of(memory)));
        host.phys().put(cx, memory);
        match inited {
            Ok(()) => Ok(()),
            Err(fail) if fail.name() == StatusName::OperandInvalid => {
                *hw_error = fail.status.raw();
                Err(Errno::EINVAL)
            }
            Err(_) => {
                self.bug(cx);
                Err(Errno::EIO)
            }
        }
    }

    /// `tdx_td_finalize`.
    ///
    /// # Errors
    /// `EINVAL` without a KeyID, and the second time; `EBUSY` if the module is; `EIO` if the VM is bugged by it, as without a vCPU.
    pub(super) fn tdx_td_finalize(&self, cx: &Cx<'_>, tdx: &KvmTdx, hw_error: &mut u64) -> Result<(), Errno> {
        if !tdx.is_hkid_assigned() || tdx.peek_state() == TdState::Runnable {
            return Err(Errno::EINVAL);
        }
        let tdr = tdx.tdr_hpa();
        if let Err(fail) = tdx.host.call(cx, Leaf::MrFinalize, |seam| seam.mr_finalize(cx, tdr)) {
            *hw_error = fail.status.raw();
            if fail.is_operand_busy() {
                return Err(Errno::EBUSY);
            }
            self.bug(cx);
            return Err(Errno::EIO);
        }
        tdx.set_state(cx, TdState::Runnable);
        // After the state: whoever sees that pre-faults are allowed sees a TD that runs.
        self.allow_pre_fault(cx);
        Ok(())
    }
}
