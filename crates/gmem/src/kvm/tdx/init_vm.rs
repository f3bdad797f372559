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
/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`.
pub const KVM_CPUID_FLAG_SIGNIFCANT_INDEX: u32 = 1 << 0;
/// `TDVMCALLINFO_SETUP_EVENT_NOTIFY_INTERRUPT`.
const TDVMCALLINFO_SETUP_EVENT_NOTIFY_INTERRUPT: u64 = 1 << 1;
/// Leaf of CPUID with features that KVM keeps from TDs, and those: HLE and RTM in EBX, WAITPKG in ECX.
const CPUID_FEATURES: u32 = 7;
const TSX: u32 = 1 << 4 | 1 << 11;
const WAITPKG: u32 = 1 << 5;

/// A value of CPUID (`struct kvm_cpuid_entry2`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TdxCpuidEntry {
    /// EAX of the query.
    pub function: u32,
    /// ECX of the query.
    pub index: u32,
    /// [`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`] if `index` matters; without it the entry is that of every index.
    pub flags: u32,
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

impl TdxCpuidEntry {
    /// `tdx_unsupported_cpuid`.
    fn is_unsupported(&self) -> bool {
        let [_, ebx, ecx, _] = self.registers;
        (self.function, self.index) == (CPUID_FEATURES, 0) && (ebx & TSX != 0 || ecx & WAITPKG != 0)
    }
}

/// `kvm_find_cpuid_entry2`.
fn find_cpuid_entry(entries: &[TdxCpuidEntry], (function, index): (u32, u32)) -> Option<&TdxCpuidEntry> {
    let is_it = |entry: &&TdxCpuidEntry| {
        let is_any_index = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0;
        entry.function == function && (is_any_index || entry.index == index)
    };
    entries.iter().find(is_it)
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
        let registers = [bits << 16 | 46, 0, 0, 0];
        let sizes = TdxCpuidEntry { function: CPUID_ADDRESS_SIZES, index: 0, flags: 0, registers };
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
    /// What user space can do of the calls that [`leaf::GET_TD_VM_CALL_INFO`](super::protocol::leaf::GET_TD_VM_CALL_INFO) tells of: R11 of its leaf 1.
    pub user_tdvmcallinfo_1_r11: u64,
    /// Leaves of CPUID that may be given values.
    pub cpuid: Vec<TdxCpuidEntry>,
}

impl TdxCapabilities {
    /// `tdx_get_capabilities`: what KVM and the module have in common, if there is room for it.
    ///
    /// # Errors
    /// `E2BIG`; `EIO` if they have nothing in common, with which KVM would have no TDs.
    pub(super) fn get(&mut self, config: &TdxConfig) -> Result<(), Errno> {
        if self.cpuid.len() < CPUID_CONFIG.len() {
            return Err(Errno::E2BIG);
        }
        let (supported_attrs, supported_xfam) = (supported_attrs(config), supported_xfam(config));
        if supported_attrs == 0 || supported_xfam == 0 {
            return Err(Errno::EIO);
        }
        let entry = |(function, index)| {
            let [eax, mut ebx, mut ecx, edx] = [u32::MAX; 4];
            if function == CPUID_FEATURES {
                (ebx, ecx) = (ebx & !TSX, ecx & !WAITPKG);
            }
            TdxCpuidEntry { function, index, flags: 0, registers: [eax, ebx, ecx, edx] }
        };
        *self = TdxCapabilities {
            supported_attrs,
            supported_xfam,
            user_tdvmcallinfo_1_r11: TDVMCALLINFO_SETUP_EVENT_NOTIFY_INTERRUPT,
            cpuid: CPUID_CONFIG.into_iter().map(entry).collect(),
        };
        Ok(())
    }
}

/// `tdx_get_supported_attrs`. The module here has none that must be set.
fn supported_attrs(config: &TdxConfig) -> u64 {
    config.attributes & SUPPORTED_ATTRIBUTES.bits()
}

/// `tdx_get_supported_xfam`: none if one is missing that must be set. KVM is taken to know all that the module does.
fn supported_xfam(config: &TdxConfig) -> u64 {
    if config.xfam & XFAM_FIXED1 == XFAM_FIXED1 { config.xfam } else { 0 }
}

/// `setup_tdparams`.
///
/// # Errors
/// `EBUSY` if there are vCPUs; `EINVAL` for attributes, XFAM, a width of addresses or a leaf of CPUID that there is not.
fn setup_tdparams(tdx: &KvmTdx, init: &TdxInitVm, max_vcpus: u64) -> Result<TdParams, Errno> {
    let config = tdx.host.tdx().config();
    if tdx.created_vcpus() != 0 {
        return Err(Errno::EBUSY);
    }
    if init.attributes & !supported_attrs(config) != 0 || init.xfam & !supported_xfam(config) != 0 {
        return Err(Errno::EINVAL);
    }
    let sizes = find_cpuid_entry(&init.cpuid, (CPUID_ADDRESS_SIZES, 0)).ok_or(Errno::EINVAL)?;
    let (eptp_controls, gpaw) = match sizes.registers[0] >> 16 & 0xff {
        48 => (EPTP_4_LEVELS, 0),
        52 if config.five_levels => (EPTP_5_LEVELS, CONFIG_GPAW),
        _ => return Err(Errno::EINVAL),
    };
    let copied: Vec<_> = CPUID_CONFIG.into_iter().filter_map(|leaf| find_cpuid_entry(&init.cpuid, leaf)).collect();
    // Otherwise there is an entry that the module would not take, or one that is there twice.
    if copied.iter().any(|entry| entry.is_unsupported()) || copied.len() != init.cpuid.len() {
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
            host.call(cx, Leaf::MngCreate, |seam| seam.mng_create(cx, Hpa::of(tdr), hkid))
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
            let added = host.call(cx, Leaf::MngAddcx, |seam| seam.mng_addcx(cx, Hpa::of(page), tdr));
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
