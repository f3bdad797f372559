//! SEAMCALL as an instruction: a leaf by its number, operands in registers. What the methods of [`Seam`] take as types is decoded here, and checked where the module
//! checks it before it looks at anything else.
//!
//! VP.ENTER is not here: what it leads to is no register but a vCPU in its TD ([`Seam::vp_enter`]). Leaves of the specification that are not modelled, and versions that a leaf has
//! not, are OPERAND_INVALID|RAX.

use super::leaf::Leaf;
use super::machine::Seam;
use super::mem_sept::SeptAdded;
use super::phymem::PageMetadata;
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::types::{Hkid, Hpa, SeptInfo};
use sim_kernel::Cx;
use sim_mmu::Gpa;

/// Registers before and after.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SeamRegisters {
    /// Leaf and version before, status after.
    pub rax: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// R8.
    pub r8: u64,
    /// R9.
    pub r9: u64,
    /// R10.
    pub r10: u64,
}

/// What a leaf leaves in RCX, RDX, R8 and R9.
type Outputs = [Option<u64>; 4];

const NOTHING: Outputs = [None; 4];

fn rcx(value: u64) -> Outputs {
    [Some(value), None, None, None]
}

fn metadata(page: PageMetadata) -> Outputs {
    let owner = page.owner.map_or(0, |owner| owner.0);
    [Some(page.page_type as u64), Some(owner), Some(page.size as u64), None]
}

const INVALID_LEAF: SeamFail = SeamFail::new(StatusName::OperandInvalid, OperandId::RAX);

/// The leaf in RAX, if it has that version, and RAX nothing else.
fn leaf_of(rax: u64) -> Seamcall<Leaf> {
    let leaf = Leaf::from_number(rax as u16).ok_or(INVALID_LEAF)?;
    let version = (rax >> 16) as u8;
    if rax >> 24 != 0 || version > leaf.version_max() { Err(INVALID_LEAF) } else { Ok(leaf) }
}

/// Whether RCX and RDX say afterwards what stands in an entry of the Secure EPT; if there is nothing to say they are 0.
fn has_entry_details(leaf: Leaf) -> bool {
    use Leaf::*;
    matches!(
        leaf,
        MemPageAdd
            | MemPageAug
            | MemSeptAdd
            | MemSeptRemove
            | MemSeptRd
            | MemPageRemove
            | MemPageRelocate
            | MemPagePromote
            | MemPageDemote
            | MemRangeBlock
            | MemRangeUnblock
            | MemRd
            | MemWr
            | MrExtend
    )
}

impl Seam<'_> {
    /// The leaf in RAX, with operands in the other registers. Registers that the leaf says nothing about stay as they were; of leaves that have details of an entry, RCX and RDX
    /// hold them on failure, and are 0 where there is nothing to say.
    ///
    /// ```
    /// use sim_coco::tdx::{Leaf, Lp, SeamRegisters, StatusName, Tdmr, Tdx, TdxConfig};
    /// use sim_kernel::{mm::PhysMem, sched::Sim};
    /// use std::sync::Arc;
    /// Sim::sequential().solo(|cx| {
    ///     let tdx = Tdx::new(cx, Arc::new(PhysMem::new(cx, 1 << 20)), TdxConfig::new(Tdmr::below(256)));
    ///     let before = SeamRegisters { rax: u64::from(Leaf::MngCreate.number()), ..SeamRegisters::default() };
    ///     assert_eq!(tdx.on(Lp(0)).seamcall(cx, before).rax, StatusName::SysNotReady.code());
    /// });
    /// ```
    pub fn seamcall(self, cx: &Cx<'_>, regs: SeamRegisters) -> SeamRegisters {
        let mut after = regs;
        let leaf = match leaf_of(regs.rax) {
            Ok(leaf) => leaf,
            Err(fail) => return SeamRegisters { rax: fail.status.raw(), ..regs },
        };
        if has_entry_details(leaf) {
            (after.rcx, after.rdx) = (0, 0);
        }
        match self.dispatch(cx, leaf, &regs) {
            Ok(outputs) => {
                after.rax = 0;
                let slots = [&mut after.rcx, &mut after.rdx, &mut after.r8, &mut after.r9];
                for (slot, value) in slots.into_iter().zip(outputs) {
                    *slot = value.unwrap_or(*slot);
                }
            }
            Err(fail) => {
                after.rax = fail.status.raw();
                if fail.name() == StatusName::InterruptedRestartable {
                    // As it was, so that the same can be called again.
                    (after.rcx, after.rdx) = (regs.rcx, regs.rdx);
                } else if has_entry_details(leaf) {
                    (after.rcx, after.rdx) = (fail.rcx, fail.rdx);
                } else if leaf == Leaf::PhymemPageReclaim {
                    (after.rcx, after.rdx, after.r8) = (fail.rcx, fail.rdx, fail.r8);
                }
            }
        }
        after
    }

    fn dispatch(self, cx: &Cx<'_>, leaf: Leaf, regs: &SeamRegisters) -> Seamcall<Outputs> {
        let version = (regs.rax >> 16) as u8;
        let (info, gpa) = (SeptInfo(regs.rcx), Gpa(regs.rcx));
        let (page, tdr, r8) = (Hpa(regs.rcx), Hpa(regs.rdx), Hpa(regs.r8));
        match leaf {
            Leaf::VpEnter => return Err(INVALID_LEAF),
            Leaf::MngCreate => {
                let hkid = u16::try_from(regs.rdx).map(Hkid);
                let Ok(hkid) = hkid else {
                    self.begin(cx)?;
                    return Err(SeamFail::new(StatusName::OperandInvalid, OperandId::RDX));
                };
                self.mng_create(cx, page, hkid)?;
            }
            Leaf::MngKeyConfig => self.mng_key_config(cx, page)?,
            Leaf::MngAddcx => self.mng_addcx(cx, page, tdr)?,
            Leaf::MngInit => self.mng_init(cx, page, tdr)?,
            Leaf::MngVpflushdone => self.mng_vpflushdone(cx, page)?,
            Leaf::MngKeyFreeid => self.mng_key_freeid(cx, page)?,
            Leaf::MemPageAdd => self.mem_page_add(cx, info, tdr, r8, Hpa(regs.r9))?,
            Leaf::MemPageAug => self.mem_page_aug(cx, info, tdr, r8)?,
            Leaf::MemSeptAdd => {
                let added = self.mem_sept_add(cx, info, tdr, r8)?;
                // Version 1 says which of the pages it did not use.
                let unused = if added == SeptAdded::Existing { regs.r8 | 1 << 63 } else { u64::MAX };
                return Ok([None, None, (version > 0).then_some(unused), None]);
            }
            Leaf::MemSeptRemove => return self.mem_sept_remove(cx, info, tdr).map(|page| rcx(page.0)),
            Leaf::MemSeptRd => {
                let details = self.mem_sept_rd(cx, info, tdr)?;
                return Ok([Some(details.rcx), Some(details.rdx), None, None]);
            }
            Leaf::MemPageRemove => return self.mem_page_remove(cx, info, tdr).map(|page| rcx(page.0)),
            Leaf::MemPageRelocate => return self.mem_page_relocate(cx, info, tdr, r8).map(|page| rcx(page.0)),
            Leaf::MemPagePromote => return self.mem_page_promote(cx, info, tdr).map(|done| rcx(done.sept.0)),
            Leaf::MemPageDemote => {
                let pamt = [Hpa(regs.r9), Hpa(regs.r10)];
                self.mem_page_demote(cx, info, tdr, r8, self.tdx.config.dynamic_pamt.then_some(pamt))?;
            }
            Leaf::MemRangeBlock => self.mem_range_block(cx, info, tdr)?,
            Leaf::MemRangeUnblock => self.mem_range_unblock(cx, info, tdr)?,
            Leaf::MemTrack => self.mem_track(cx, page)?,
            Leaf::MemRd => return self.mem_rd(cx, gpa, tdr).map(|data| [None, None, Some(data), None]),
            Leaf::MemWr => return self.mem_wr(cx, gpa, tdr, regs.r8).map(|old| [None, None, Some(old), None]),
            Leaf::MrExtend => self.mr_extend(cx, gpa, tdr)?,
            Leaf::MrFinalize => self.mr_finalize(cx, page)?,
            Leaf::VpCreate => self.vp_create(cx, page, tdr)?,
            Leaf::VpAddcx => self.vp_addcx(cx, page, tdr)?,
            Leaf::VpInit => self.vp_init(cx, page, regs.rdx, (version > 0).then_some(regs.r8))?,
            Leaf::VpFlush => self.vp_flush(cx, page)?,
            Leaf::PhymemPageRdmd => {
                let read = self.phymem_page_rdmd(cx, page)?;
                let [type_, owner, size, _] = metadata(read);
                return Ok([type_, owner, size, Some(read.bepoch)]);
            }
            Leaf::PhymemPageReclaim => return self.phymem_page_reclaim(cx, page).map(metadata),
            Leaf::PhymemCacheWb => {
                if regs.rcx > 1 {
                    self.begin(cx)?;
                    return Err(SeamFail::new(StatusName::OperandInvalid, OperandId::RCX));
                }
                self.phymem_cache_wb(cx, regs.rcx == 1)?;
            }
            Leaf::PhymemPageWbinvd => self.phymem_page_wbinvd(cx, page)?,
            Leaf::PhymemPamtAdd => self.phymem_pamt_add(cx, info, [tdr, r8])?,
            Leaf::PhymemPamtRemove => {
                let [first, second] = self.phymem_pamt_remove(cx, info)?;
                return Ok([None, Some(first.0), Some(second.0), None]);
            }
            Leaf::SysInit => self.sys_init(cx)?,
            Leaf::SysConfig => self.sys_config(cx)?,
            Leaf::SysKeyConfig => self.sys_key_config(cx)?,
            Leaf::SysTdmrInit => {
                return self.sys_tdmr_init(cx, page).map(|next| [None, Some(next.0), None, None]);
            }
            Leaf::SysShutdown => self.sys_shutdown(cx)?,
        }
        Ok(NOTHING)
    }
}
