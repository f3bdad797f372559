//! A logical processor's memory management: registers, TLB and walker together translate a guest's accesses.
//!
//! A hit in the acceleration TLB is [`Processor::translate`]'s inlined part. Everything else is one step after another: the canonical check,
//! the architectural TLB, the walk, the fill; what a refused access invalidates on its way out.
//!
//! The TLB belongs to the processor, not to the vCPU: [`Processor::enter`] runs another vCPU on it, and what the tags keep apart
//! stays.

mod amd;
mod instructions;
mod intel;
mod registers;

pub use amd::TlbControl;
pub use instructions::InvpcidType;
pub use intel::{InveptType, InvvpidType, VmFail};

use crate::addr::{Gpa, Level};
use crate::guest_paging::{
    AccessMode, Cr4, FiveLevel, FourLevel, GpteMasks, GuestFault, GuestFormat, GuestMode, Gva, PageFault, PagingMode,
    PagingOff, PagingRegisters, Permissions, UnsupportedPaging,
};
use crate::spte::Access;
use crate::tlb::{Entry, Privilege, Tags, Tlb, TlbConfig, TlbTag};
use crate::walker::{
    AccessStage, GuestAdBeforeFinal, GuestContext, GuestLeaf, MmuFault, NoObserver, Origin, Problem, Refusal, Stage2,
    Stage2Access, Stage2Format, WalkMemory, WalkObserver, Walker,
};
use sim_kernel::{Cx, PAGE_SHIFT, PAGE_SIZE, Pfn};

/// What a vCPU brings to the processor that runs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestState {
    /// Its registers.
    pub registers: PagingRegisters,
    /// Its VPID or ASID.
    pub tag: TlbTag,
    /// Its stage 2.
    pub stage2: Stage2,
}

/// A translated byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translated {
    /// The 4 KiB frame.
    pub pfn: Pfn,
    /// The byte within it.
    pub offset: u64,
    /// An SEV guest's access to private memory.
    pub private: bool,
}

/// A logical processor.
///
/// Generic over stage 2's format; the guest's mode is chosen by its registers, memory by whoever asks.
#[derive(Debug)]
pub struct Processor<F: Stage2Format> {
    format: F,
    guest_format: GuestFormat,
    ad_before_final: GuestAdBeforeFinal,
    state: GuestState,
    // What the state comes to.
    mode: PagingMode,
    guest: GuestContext,
    access_mode: AccessMode,
    /// What explicit accesses may do by the entry that was asked about last: its [`Entry::rights_word`], and the answer by access.
    judged: Option<(u16, [bool; 3])>,
    tlb: Tlb,
    log: F::Log,
}

/// What a TLB entry says to an access.
enum Verdict<X> {
    Use,
    /// D is not known to be set.
    Walk,
    Refuse(MmuFault<X>),
}

impl<F: Stage2Format> Processor<F> {
    /// A processor that runs a vCPU.
    ///
    /// # Errors
    /// [`UnsupportedPaging`] if the vCPU uses paging outside long mode.
    ///
    /// # Panics
    /// If a size of the TLB is no power of two, or the guest's format contradicts itself.
    pub fn new(
        cx: &Cx<'_>,
        format: F,
        guest_format: GuestFormat,
        config: TlbConfig,
        state: GuestState,
    ) -> Result<Processor<F>, UnsupportedPaging> {
        let ad_before_final = GuestAdBeforeFinal::default();
        let mode = state.registers.mode()?;
        let mut processor = Processor {
            format,
            guest_format,
            ad_before_final,
            state,
            mode,
            guest: guest_context(&guest_format, &state.registers, ad_before_final),
            access_mode: AccessMode::Supervisor,
            judged: None,
            tlb: Tlb::new(cx, config),
            log: F::new_log(cx),
        };
        processor.load_tags();
        Ok(processor)
    }

    /// Runs another vCPU, or the same with another state, as a VM entry does: nothing is flushed.
    ///
    /// # Errors
    /// [`UnsupportedPaging`] if the vCPU uses paging outside long mode; then nothing has changed.
    pub fn enter(&mut self, state: GuestState) -> Result<(), UnsupportedPaging> {
        if state == self.state {
            return Ok(());
        }
        let mode = state.registers.mode()?;
        let same_registers = state.registers == self.state.registers;
        self.state = state;
        if same_registers {
            self.load_tags();
        } else {
            self.load(mode);
        }
        Ok(())
    }

    /// Everything that follows from the state.
    fn load(&mut self, mode: PagingMode) {
        self.mode = mode;
        self.guest = guest_context(&self.guest_format, &self.state.registers, self.ad_before_final);
        self.load_tags();
    }

    /// What of it decides which cached translations are used.
    fn load_tags(&mut self) {
        let registers = self.state.registers;
        self.tlb.load(Tags {
            tag: self.state.tag,
            pcid: registers.cr3.pcid(registers.cr4),
            stage2: self.format.tag(&self.state.stage2),
            tags_physical: F::TAGS_PHYSICAL,
            global_pages: registers.cr4.contains(Cr4::PGE),
        });
        self.set_access_mode();
    }

    /// The mode of explicit accesses, and what the acceleration TLB calls it.
    fn set_access_mode(&mut self) {
        let PagingRegisters { cpl, ac, .. } = self.state.registers;
        let (mode, privilege) = match (cpl, ac) {
            (3, _) => (AccessMode::User, Privilege::User),
            (_, false) => (AccessMode::Supervisor, Privilege::Supervisor),
            (_, true) => (AccessMode::Supervisor, Privilege::SupervisorAc),
        };
        self.access_mode = mode;
        self.judged = None;
        self.tlb.set_privilege(privilege);
    }

    /// The vCPU's state, to keep while another one runs.
    pub const fn state(&self) -> &GuestState {
        &self.state
    }

    /// Stage 2's format and controls.
    pub const fn format(&self) -> &F {
        &self.format
    }

    /// Changes stage 2's controls. Cached translations stay; what accelerates them goes.
    pub fn set_format(&mut self, format: F) {
        self.format = format;
        self.load(self.mode);
    }

    /// Which bits a guest's leaf gets when stage 2 refuses the final address.
    pub fn set_ad_before_final(&mut self, policy: GuestAdBeforeFinal) {
        self.ad_before_final = policy;
        self.guest.ad_before_final = policy;
    }

    /// The TLB, to look at.
    pub const fn tlb(&self) -> &Tlb {
        &self.tlb
    }

    /// The page-modification log.
    pub const fn log(&mut self) -> &mut F::Log {
        &mut self.log
    }

    /// Translates an explicit access at the current privilege. The bytes must lie in one 4 KiB page.
    ///
    /// # Errors
    /// An exception in the guest, or an exit.
    #[inline]
    pub fn translate<M: WalkMemory>(
        &mut self,
        cx: &Cx<'_>,
        memory: &M,
        gva: Gva,
        access: Access,
    ) -> Result<Translated, MmuFault<F::Exit>> {
        match self.tlb.accelerated(gva, access) {
            Some((pfn, private)) => Ok(Translated { pfn, offset: gva.offset(), private }),
            None => self.translate_observed(cx, memory, gva, self.access_mode, access, &mut NoObserver),
        }
    }

    /// Translates an access of any mode without the acceleration TLB, and says what is done.
    ///
    /// # Errors
    /// An exception in the guest, or an exit.
    pub fn translate_observed<M: WalkMemory, O: WalkObserver>(
        &mut self,
        cx: &Cx<'_>,
        memory: &M,
        gva: Gva,
        mode: AccessMode,
        access: Access,
        observer: &mut O,
    ) -> Result<Translated, MmuFault<F::Exit>> {
        let entry = self.translate_entry(cx, memory, gva, mode, access, observer)?;
        Ok(self.translated(gva, &entry, access))
    }

    /// As [`Processor::translate_observed`] without an observer, with the guest-physical address and the level of stage 2's leaf: what checks by address
    /// ask for.
    ///
    /// # Errors
    /// An exception in the guest, or an exit.
    pub fn translate_physical<M: WalkMemory>(
        &mut self,
        cx: &Cx<'_>,
        memory: &M,
        gva: Gva,
        mode: Option<AccessMode>,
        access: Access,
    ) -> Result<(Translated, Gpa, Level), MmuFault<F::Exit>> {
        let mode = mode.unwrap_or(self.access_mode);
        let entry = self.translate_entry(cx, memory, gva, mode, access, &mut NoObserver)?;
        let gpa = Gpa(entry.gfn(gva.0 >> PAGE_SHIFT).0 << PAGE_SHIFT | gva.offset());
        Ok((self.translated(gva, &entry, access), gpa, entry.stage2_level()))
    }

    #[inline(always)]
    fn translate_entry<M: WalkMemory, O: WalkObserver>(
        &mut self,
        cx: &Cx<'_>,
        memory: &M,
        gva: Gva,
        mode: AccessMode,
        access: Access,
        observer: &mut O,
    ) -> Result<Entry, MmuFault<F::Exit>> {
        if !self.mode.is_canonical(gva) {
            return Err(MmuFault::Guest(self.mode.not_canonical(false)));
        }
        if let Some(entry) = self.tlb.lookup(gva) {
            match self.judge(&entry, gva, mode, access) {
                Verdict::Use => {
                    observer.tlb_hit();
                    self.accelerate(gva, &entry);
                    return Ok(entry);
                }
                Verdict::Refuse(fault) if !self.tlb.config().rewalks_before_fault => {
                    let gpa = Gpa(entry.gfn(gva.0 >> PAGE_SHIFT).0 << PAGE_SHIFT);
                    self.refused(&fault, gpa, gva);
                    return Err(fault);
                }
                Verdict::Refuse(fault) => {
                    let gpa = Gpa(entry.gfn(gva.0 >> PAGE_SHIFT).0 << PAGE_SHIFT);
                    self.refused(&fault, gpa, gva);
                }
                // The entry makes room for the one that the walk fills, so that a page has one entry only.
                Verdict::Walk => self.tlb.replace(gva),
            }
        }
        observer.walk();
        let leaf = match self.mode {
            PagingMode::Off => self.walk::<PagingOff, M, O>(cx, memory, gva, mode, access, observer),
            PagingMode::FourLevel => self.walk::<FourLevel, M, O>(cx, memory, gva, mode, access, observer),
            PagingMode::FiveLevel => self.walk::<FiveLevel, M, O>(cx, memory, gva, mode, access, observer),
        }?;
        let entry = self.tlb.fill(cx, gva, &leaf);
        self.accelerate(gva, &entry);
        Ok(entry)
    }

    /// Translates an access that may cross into the next page, as many bytes as it has, at most 4096. The second translation
    /// is there if it does. Nothing is accessed unless both pages allow it.
    ///
    /// # Errors
    /// The first page's fault, or the second's; CR2 is the first byte on the page that faults.
    ///
    /// # Panics
    /// If there are no bytes, or more than 4096.
    pub fn translate_span<M: WalkMemory>(
        &mut self,
        cx: &Cx<'_>,
        memory: &M,
        gva: Gva,
        bytes: u64,
        access: Access,
    ) -> Result<(Translated, Option<Translated>), MmuFault<F::Exit>> {
        assert!((1..=PAGE_SIZE).contains(&bytes), "an access of {bytes} bytes");
        let first = self.translate(cx, memory, gva, access)?;
        if gva.offset() + bytes <= PAGE_SIZE {
            return Ok((first, None));
        }
        let next = Gva(gva.page().0.wrapping_add(PAGE_SIZE));
        Ok((first, Some(self.translate(cx, memory, next, access)?)))
    }

    #[inline(always)]
    fn walk<G: GuestMode, M: WalkMemory, O: WalkObserver>(
        &mut self,
        cx: &Cx<'_>,
        memory: &M,
        gva: Gva,
        mode: AccessMode,
        access: Access,
        observer: &mut O,
    ) -> Result<GuestLeaf, MmuFault<F::Exit>> {
        let mut walker = Walker {
            cx,
            memory,
            format: &self.format,
            stage2: &self.state.stage2,
            caches: &mut self.tlb,
            observer,
            log: &mut self.log,
        };
        let result = walker.walk::<G>(&self.guest, gva, mode, access);
        if let Err(fault) = &result
            && let Some(gpa) = invalidated_gpa::<F>(fault)
        {
            self.refused(fault, gpa, gva);
        }
        result
    }

    /// Somebody beside this MMU has refused an access after its translation: a nested page fault like any other, which invalidates what is cached of it.
    pub fn refused_after(&mut self, gpa: Gpa, gva: Gva) {
        self.tlb.stage2_fault(gpa, gva);
    }

    /// A refused access invalidates what covers it, and a #VE occupies its information area.
    #[cold]
    fn refused(&mut self, fault: &MmuFault<F::Exit>, gpa: Gpa, gva: Gva) {
        match fault {
            MmuFault::Guest(GuestFault::Page(_)) => self.tlb.page_fault(gva),
            MmuFault::Guest(_) => {}
            MmuFault::Stage2(exit) => {
                self.tlb.stage2_fault(gpa, gva);
                self.format.reported(exit);
            }
        }
    }

    /// Whether a cached translation allows an access.
    #[inline]
    fn judge(&self, entry: &Entry, gva: Gva, mode: AccessMode, access: Access) -> Verdict<F::Exit> {
        let rights = entry.stage1();
        if let Err(code) = self.guest.permissions.check(mode, access, rights, entry.key()) {
            return Verdict::Refuse(MmuFault::Guest(GuestFault::Page(PageFault { cr2: gva, code })));
        }
        let access = final_access(rights.is_user(), mode, access);
        if !self.format.permits(entry.stage2(), access) {
            return Verdict::Refuse(self.stale_refusal(entry, gva, access));
        }
        if access.is_write() && !entry.is_dirty() { Verdict::Walk } else { Verdict::Use }
    }

    #[cold]
    fn stale_refusal(&self, entry: &Entry, gva: Gva, access: Stage2Access) -> MmuFault<F::Exit> {
        let gpa = Gpa(entry.gfn(gva.0 >> PAGE_SHIFT).0 << PAGE_SHIFT | gva.offset());
        let private = self.is_private(entry, access.access);
        let (problem, rights) = (Problem::Denied, entry.stage2());
        let refusal = Refusal { gpa, access, problem, rights, convertible: false };
        MmuFault::Stage2(self.format.exit(&refusal, &Origin { gva, rights: entry.stage1(), private }))
    }

    /// Whether an access through an entry is private: fetches are, whatever the C-bit says.
    #[inline]
    fn is_private(&self, entry: &Entry, access: Access) -> bool {
        entry.is_private() || (self.guest.masks.has_c_bit() && access == Access::Exec)
    }

    #[inline]
    fn translated(&self, gva: Gva, entry: &Entry, access: Access) -> Translated {
        let private = self.is_private(entry, access);
        Translated { pfn: entry.pfn(gva.0 >> PAGE_SHIFT), offset: gva.offset(), private }
    }

    /// Puts into the acceleration TLB what an entry allows explicit accesses.
    #[inline]
    fn accelerate(&mut self, gva: Gva, entry: &Entry) {
        if !self.tlb.is_accelerated() {
            return;
        }
        let word = entry.rights_word();
        let allowed = match self.judged {
            Some((judged, allowed)) if judged == word => allowed,
            _ => {
                let allows = |access| {
                    // One private flag for all three: where a fetch differs from data, fetches are not accelerated.
                    (access != Access::Exec || self.is_private(entry, access) == entry.is_private())
                        && matches!(self.judge_quietly(entry, self.access_mode, access), Quiet::Use)
                };
                let allowed = [Access::Read, Access::Write, Access::Exec].map(allows);
                self.judged = Some((word, allowed));
                allowed
            }
        };
        self.tlb.accelerate(gva, entry, allowed);
    }

    #[inline]
    fn judge_quietly(&self, entry: &Entry, mode: AccessMode, access: Access) -> Quiet {
        let rights = entry.stage1();
        let ok = self.guest.permissions.check(mode, access, rights, entry.key()).is_ok()
            && self.format.permits(entry.stage2(), final_access(rights.is_user(), mode, access))
            && (access != Access::Write || entry.is_dirty());
        if ok { Quiet::Use } else { Quiet::Ask }
    }

    /// Asserts that the acceleration TLB has nothing that the architectural one would not give: a checker's walk over all entries.
    ///
    /// # Panics
    /// If it has.
    pub fn check_acceleration(&self) {
        for (gva, access, pfn, private) in self.tlb.accelerated_entries() {
            let entry = self.tlb.lookup(gva).unwrap_or_else(|| panic!("{gva:?} is accelerated and not in the TLB"));
            let allowed = matches!(self.judge_quietly(&entry, self.access_mode, access), Quiet::Use);
            assert!(allowed, "{access:?} of {gva:?} is accelerated and not allowed");
            let Translated { pfn: expected, private: is_private, .. } = self.translated(gva, &entry, access);
            assert_eq!((pfn, private), (expected, is_private), "{access:?} of {gva:?}");
        }
    }
}

/// Whether an entry may be used, without the reasons.
enum Quiet {
    Use,
    Ask,
}

/// The gpa that a fault of a walk invalidates: of a page fault none is needed, and a misconfiguration or a full log invalidates nothing.
fn invalidated_gpa<F: Stage2Format>(fault: &MmuFault<F::Exit>) -> Option<Gpa> {
    match fault {
        MmuFault::Guest(_) => Some(Gpa(0)),
        MmuFault::Stage2(exit) => F::violation(exit),
    }
}

#[inline]
fn final_access(user_address: bool, mode: AccessMode, access: Access) -> Stage2Access {
    Stage2Access { access, stage: AccessStage::Final { user_address, user_mode: mode == AccessMode::User } }
}

fn guest_context(
    format: &GuestFormat,
    registers: &PagingRegisters,
    ad_before_final: GuestAdBeforeFinal,
) -> GuestContext {
    let masks = GpteMasks::new(format, registers.efer.contains(crate::guest_paging::Efer::NXE));
    GuestContext {
        masks,
        permissions: Permissions::new(registers),
        table: masks.frame_of(registers.cr3.0),
        global_pages: registers.cr4.contains(Cr4::PGE),
        ad_before_final,
    }
}
