//! Hypercalls of guests (`kvm_handle_pvm_hvc64`; Documentation/virt/kvm/arm/hypercalls.rst): a protected VM asks how large its pages are, shares them, and
//! takes them back. Everything else is for the host.

use super::access::{AbortKind, GuestAbort, GuestStop};
use super::machine::Pkvm;
use super::pte::S2Level;
use super::types::CpuId;
use super::vm::HypVcpu;
use crate::AccessKind;
use sim_kernel::{Cx, Errno, PAGE_SIZE};
use sim_mmu::Gpa;

/// Numbers of functions (SMCCC, vendor-specific hypervisor service).
pub mod func {
    /// Which of these there are (`ARM_SMCCC_VENDOR_HYP_KVM_FEATURES_FUNC_ID`).
    pub const FEATURES: u32 = 0x8600_0000;
    /// Size of a page that can be shared.
    pub const MEMINFO: u32 = 0xc600_0002;
    /// Share a page with the host.
    pub const MEM_SHARE: u32 = 0xc600_0003;
    /// Take it back.
    pub const MEM_UNSHARE: u32 = 0xc600_0004;
    /// Declare an address to be a device's; not offered.
    pub const MMIO_GUARD: u32 = 0xc600_0007;
}

/// `SMCCC_RET_SUCCESS`.
pub const SMCCC_SUCCESS: i64 = 0;
/// `SMCCC_RET_NOT_SUPPORTED`.
pub const SMCCC_NOT_SUPPORTED: i64 = -1;
/// `SMCCC_RET_INVALID_PARAMETER`.
pub const SMCCC_INVALID_PARAMETER: i64 = -3;

/// What an HVC of a guest comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HvcResult {
    /// The hypervisor answered: x0 of the guest.
    Answered(i64),
    /// The call is the host's to handle.
    ToHost,
    /// The guest leaves, as if it had written to the page, and executes the call again when it is back: nothing was mapped there yet.
    Replay(GuestAbort),
}

impl Pkvm {
    /// The guest of the loaded vCPU executes HVC with these values in w0 and x1 to x3.
    ///
    /// # Errors
    /// [`GuestStop::NoVcpu`] if none is loaded, [`GuestStop::Dead`] if the machine panicked.
    #[track_caller]
    pub fn guest_hvc(&self, cx: &Cx<'_>, cpu: CpuId, function: u32, args: [u64; 3]) -> Result<HvcResult, GuestStop> {
        self.alive()?;
        let vcpu = self.loaded(cpu).ok_or(GuestStop::NoVcpu)?;
        *vcpu.fault.lock() = None;
        if !vcpu.vm.is_protected() {
            return Ok(HvcResult::ToHost);
        }
        Ok(match function {
            func::FEATURES => {
                let offered = [func::MEMINFO, func::MEM_SHARE, func::MEM_UNSHARE];
                let bits = offered.map(|function| 1_i64 << (function & 0xff));
                // Bit 0 is the call itself.
                HvcResult::Answered(bits.into_iter().fold(1, |all, bit| all | bit))
            }
            func::MEMINFO if args == [0; 3] => HvcResult::Answered(PAGE_SIZE as i64),
            func::MEMINFO => HvcResult::Answered(SMCCC_INVALID_PARAMETER),
            func::MEM_SHARE | func::MEM_UNSHARE => self.guest_mem(cx, cpu, &vcpu, function, args)?,
            _ => HvcResult::ToHost,
        })
    }

    #[track_caller]
    fn guest_mem(
        &self,
        cx: &Cx<'_>,
        cpu: CpuId,
        vcpu: &HypVcpu,
        function: u32,
        args: [u64; 3],
    ) -> Result<HvcResult, GuestStop> {
        let [ipa, rest @ ..] = args;
        let ipa = Gpa(ipa);
        if ipa.offset() != 0 || rest != [0; 2] {
            return Ok(HvcResult::Answered(SMCCC_INVALID_PARAMETER));
        }
        let share = function == func::MEM_SHARE;
        let call = if share { "guest_share_host" } else { "guest_unshare_host" };
        let done = self.enter(cx, cpu, call, |el2| {
            let gfn = ipa.gfn();
            if share { el2.guest_share_host(vcpu, gfn) } else { el2.guest_unshare_host(vcpu, gfn) }.map(|()| 0)
        })?;
        Ok(match done {
            Ok(_) => HvcResult::Answered(SMCCC_SUCCESS),
            Err(Errno::ENOENT) if share => {
                let (kind, level) = (AbortKind::Translation, S2Level::LAST);
                let abort = GuestAbort { ipa, kind, level, access: AccessKind::Write };
                *vcpu.fault.lock() = Some(abort);
                HvcResult::Replay(abort)
            }
            Err(_) => HvcResult::Answered(SMCCC_INVALID_PARAMETER),
        })
    }
}
