//! The machine: the module's state, memory, and processors.

use super::config::TdxConfig;
use super::keys::{Kot, Wbcache};
use super::leaf::Leaf;
use super::lock::{Denied, Held, Lock, LockId, Mode, Side};
use super::memory::{DirtyLine, LineMemory, LineMeta};
use super::mutants;
use super::pamt::{PageType, Pamt, PamtAt, PamtEntry, PamtNode};
use super::sept::SeptEntry;
use super::status::{SeamFail, Seamcall, Status, StatusName};
use super::sys::SysState;
use super::td::{SEPT_ROOT, Td, TdInfo};
use super::tlb::TlbEntry;
use super::types::{Hkid, Lp, PageSize};
use super::vp::{LpState, Vp, VpInfo};
use sim_kernel::mm::PhysMem;
use sim_kernel::mm::phys::WORDS_PER_PAGE;
use sim_kernel::sched::{Access, ObjId};
use sim_kernel::{Cx, Mutant, MutantSet, Pfn};
use sim_mmu::{Gfn, PT_ENTRIES};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Something that happens to the next leaf that can meet it. For tests of what software does then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Injected {
    /// There are no random numbers: RND_NO_ENTROPY.
    NoEntropy,
    /// The key could not be made: KEY_GENERATION_FAILED.
    KeyGenerationFailed,
    /// The locks of the TD are somebody else's when this leaf wants its op_state: OPERAND_BUSY.
    Busy(Leaf),
    /// The host's call of the leaf fails before it does anything, after so many that do not. Only who calls by number knows: it asks [`Tdx::refuses`].
    Status {
        /// The leaf.
        leaf: Leaf,
        /// Calls that are not refused.
        after: u64,
        /// What RAX holds.
        status: Status,
    },
    /// An interrupt arrives after so many 4 KiB pages of an ACCEPT of 2 MiB.
    InterruptAcceptAfter(u64),
}

/// Everything that the module keeps.
#[derive(Debug)]
pub(super) struct State {
    pub(super) config: Arc<TdxConfig>,
    pub(super) mutants: MutantSet,
    pub(super) sys: SysState,
    pub(super) sys_lock: Lock,
    pub(super) pamt: Pamt,
    pub(super) memory: LineMemory,
    pub(super) kot: Kot,
    pub(super) ket: Vec<Lock>,
    pub(super) wbcache: Vec<Wbcache>,
    /// By the frame of the TDR.
    pub(super) tds: BTreeMap<Pfn, Td>,
    /// By the frame of the TDVPR.
    pub(super) vps: BTreeMap<Pfn, Vp>,
    pub(super) lps: BTreeMap<Lp, LpState>,
    pub(super) injected: Vec<Injected>,
}

impl State {
    #[inline]
    pub(super) fn is_off(&self, mutant: Mutant) -> bool {
        self.mutants.contains(mutant)
    }

    /// Whether this was injected; then it has happened.
    pub(super) fn happens(&mut self, what: Injected) -> bool {
        let at = self.injected.iter().position(|injected| *injected == what);
        at.is_some_and(|at| {
            self.injected.remove(at);
            true
        })
    }

    /// The next random draw.
    pub(super) fn draw(&mut self) -> Seamcall<()> {
        if self.happens(Injected::NoEntropy) { Err(StatusName::RndNoEntropy.into()) } else { Ok(()) }
    }

    /// A new page becomes what it is to be. TDX-INV-024 wants to know whether the host's caches had lines of it.
    pub(super) fn assign(&mut self, at: PamtAt, entry: PamtEntry) {
        self.memory.note_handed_over(at.base, at.size.pages());
        self.pamt.set(at, entry);
    }

    /// The pages of Secure EPTs, each with the entries that are not free, by index, whoever can read them. Without the mark that the host wants an entry.
    pub(super) fn tables(&self) -> impl Iterator<Item = (Pfn, Vec<(usize, u64)>)> {
        let roots = self.tds.values().filter_map(|td| td.tdcx.get(SEPT_ROOT).copied());
        let pages = self.pamt.entries().filter(|(_, entry)| entry.page_type == PageType::Ept).map(|(at, _)| at.base);
        roots.chain(pages).map(|table| {
            let entries = (0..PT_ENTRIES).map(|index| (index, self.memory.plain_word(table, index)));
            let entries = entries.map(|(index, word)| (index, SeptEntry(word).prioritised(false).0));
            (table, entries.filter(|(_, word)| *word != SeptEntry::FREE.0).collect())
        })
    }

    /// A TD that was looked up and is locked.
    pub(super) fn td(&self, tdr: Pfn) -> &Td {
        self.tds.get(&tdr).expect("a page of type TDR is a TD")
    }

    pub(super) fn td_mut(&mut self, tdr: Pfn) -> &mut Td {
        self.tds.get_mut(&tdr).expect("a page of type TDR is a TD")
    }

    pub(super) fn vp(&self, tdvpr: Pfn) -> &Vp {
        self.vps.get(&tdvpr).expect("a page of type TDVPR is a vCPU")
    }

    pub(super) fn vp_mut(&mut self, tdvpr: Pfn) -> &mut Vp {
        self.vps.get_mut(&tdvpr).expect("a page of type TDVPR is a vCPU")
    }

    pub(super) fn lp_mut(&mut self, lp: Lp) -> &mut LpState {
        self.lps.get_mut(&lp).expect("there is such a processor")
    }

    pub(super) fn package(&self, lp: Lp) -> u32 {
        lp.0 / self.config.lps_per_package
    }

    fn lock_mut(&mut self, id: LockId) -> Option<&mut Lock> {
        Some(match id {
            LockId::Pamt(size, base) => self.pamt.lock_mut(size, base),
            LockId::OpState(tdr) => &mut self.tds.get_mut(&tdr)?.op_state_lock,
            LockId::Tree(tdr) => &mut self.tds.get_mut(&tdr)?.tree_lock,
            LockId::Epoch(tdr) => &mut self.tds.get_mut(&tdr)?.epoch_lock,
            LockId::Rtmr(tdr) => &mut self.tds.get_mut(&tdr)?.rtmr_lock,
            LockId::Kot => &mut self.kot.lock,
            LockId::Ket(package) => &mut self.ket[package as usize],
            LockId::Wbcache(package) => &mut self.wbcache[package as usize].lock,
            LockId::Sys => &mut self.sys_lock,
            LockId::Entry(_) => return None,
        })
    }

    /// Takes a lock for a leaf of the host.
    pub(super) fn take(&mut self, held: &mut Held<'_>, id: LockId, mode: Mode) -> Result<(), Denied> {
        self.take_as(held, id, mode, Side::Host)
    }

    pub(super) fn take_as(&mut self, held: &mut Held<'_>, id: LockId, mode: Mode, side: Side) -> Result<(), Denied> {
        let knows_priority = match id {
            LockId::Pamt(..) | LockId::OpState(_) => true,
            LockId::Tree(_) => self.config.tree_host_priority,
            _ => false,
        };
        match id {
            LockId::Entry(slot) => self.take_entry(slot, side)?,
            _ => self.lock_mut(id).expect("the TD exists").take(mode, side, knows_priority)?,
        }
        held.locks.push((id, mode));
        Ok(())
    }

    /// Gives a lock back. One of something that is gone is gone with it.
    pub(super) fn release(&mut self, id: LockId, mode: Mode) {
        match id {
            LockId::Entry(slot) => self.release_entry(slot),
            _ => {
                if let Some(lock) = self.lock_mut(id) {
                    lock.release(mode);
                }
            }
        }
    }

    /// Gives one lock back before the others.
    pub(super) fn release_early(&mut self, held: &mut Held<'_>, id: LockId) {
        if let Some(at) = held.locks.iter().rposition(|(of, _)| *of == id) {
            let (id, mode) = held.locks.remove(at);
            self.release(id, mode);
        }
    }

    /// Every lock of TDs and of the module that is held: for checkers.
    pub(super) fn held_locks(&self) -> Vec<(LockId, Lock)> {
        let of_tds = self.tds.iter().flat_map(|(tdr, td)| {
            [
                (LockId::OpState(*tdr), td.op_state_lock),
                (LockId::Tree(*tdr), td.tree_lock),
                (LockId::Epoch(*tdr), td.epoch_lock),
                (LockId::Rtmr(*tdr), td.rtmr_lock),
            ]
        });
        let kets = self.ket.iter().enumerate().map(|(i, lock)| (LockId::Ket(i as u32), *lock));
        let caches = self.wbcache.iter().enumerate().map(|(i, wbcache)| (LockId::Wbcache(i as u32), wbcache.lock));
        let global = [(LockId::Kot, self.kot.lock), (LockId::Sys, self.sys_lock)];
        let pamt = self.pamt.held_locks().map(|(at, lock)| (LockId::Pamt(at.size, at.base), lock));
        let all = of_tds.chain(kets).chain(caches).chain(global).chain(pamt);
        all.filter(|(_, lock)| !lock.is_free()).collect()
    }
}

/// A host with TDX.
///
/// ```
/// use sim_coco::tdx::{Hkid, Hpa, Lifecycle, Lp, Tdmr, Tdx, TdxConfig};
/// use sim_kernel::{mm::PhysMem, sched::Sim};
/// use std::sync::Arc;
/// Sim::sequential().solo(|cx| {
///     let memory = Arc::new(PhysMem::new(cx, 1 << 20));
///     let tdx = Tdx::new(cx, Arc::clone(&memory), TdxConfig::new(Tdmr::below(256)));
///     tdx.bring_up(cx);
///     let (seam, tdr) = (tdx.on(Lp(0)), memory.alloc_zeroed().unwrap());
///     seam.mng_create(cx, Hpa::of(tdr), Hkid(33)).unwrap();
///     seam.mng_key_config(cx, Hpa::of(tdr)).unwrap();
///     assert_eq!(tdx.peek_td(tdr).unwrap().lifecycle, Lifecycle::KeysConfigured);
/// });
/// ```
pub struct Tdx {
    pub(super) config: Arc<TdxConfig>,
    pub(super) state: parking_lot::Mutex<State>,
    /// What leaves are announced on.
    object: ObjId,
    /// What accesses to bytes are announced on.
    bytes: ObjId,
}

impl Tdx {
    /// A host whose module was just loaded: nothing is initialised.
    ///
    /// # Panics
    /// If there is no such machine ([`TdxConfig::check`]).
    pub fn new(cx: &Cx<'_>, phys: Arc<PhysMem>, config: TdxConfig) -> Tdx {
        if let Err(why) = config.check() {
            panic!("no such machine: {why}");
        }
        let config = Arc::new(config);
        let mutants = mutants::chosen(cx);
        let bytes = phys.object();
        let state = State {
            mutants,
            sys: SysState::default(),
            sys_lock: Lock::default(),
            pamt: Pamt::new(&config),
            memory: LineMemory::new(phys, &config, &mutants),
            kot: Kot::new(&config),
            ket: vec![Lock::default(); config.packages as usize],
            wbcache: (0..config.packages).map(|_| Wbcache::default()).collect(),
            tds: BTreeMap::new(),
            vps: BTreeMap::new(),
            lps: (0..config.packages * config.lps_per_package).map(|lp| (Lp(lp), LpState::default())).collect(),
            injected: Vec::new(),
            config: Arc::clone(&config),
        };
        Tdx { config, state: parking_lot::Mutex::new(state), object: cx.new_object("tdx"), bytes }
    }

    /// What the machine is made of.
    pub fn config(&self) -> &TdxConfig {
        &self.config
    }

    /// SEAMCALLs of this processor.
    ///
    /// # Panics
    /// If there is no such processor.
    pub fn on(&self, lp: Lp) -> Seam<'_> {
        assert!(lp.0 < self.config.packages * self.config.lps_per_package, "there is no processor {}", lp.0);
        Seam { tdx: self, lp }
    }

    /// The frames.
    pub fn phys(&self) -> Arc<PhysMem> {
        Arc::clone(self.state.lock().memory.phys())
    }

    /// The scheduling point before a leaf. All leaves depend on each other: what they share is locks and page metadata of the whole machine. So does every later step
    /// of a leaf that takes, changes or gives back any of that ([`Tdx::changes`]).
    #[track_caller]
    pub(super) fn point(&self, cx: &Cx<'_>) {
        cx.point(Access::Rmw, self.object, 0);
    }

    /// The scheduling point of a step that reads what leaves change.
    #[track_caller]
    pub(super) fn point_read(&self, cx: &Cx<'_>) {
        cx.point(Access::Load, self.object, 0);
    }

    /// Between the locks of a leaf and what it changes: a point of its own where contention is wanted.
    #[track_caller]
    pub(super) fn window(&self, cx: &Cx<'_>) {
        if self.config.contention {
            cx.point(Access::Rmw, self.object, 0);
        }
    }

    /// The scheduling point of an access to bytes of a page.
    #[track_caller]
    pub(super) fn point_bytes(&self, cx: &Cx<'_>, access: Access, pfn: Pfn, offset: u64, bytes: usize) {
        let first = offset / 64 * 8;
        let end = (offset + bytes as u64).div_ceil(64) * 8;
        cx.point_range(access, self.bytes, pfn.0 * WORDS_PER_PAGE as u64 + first, end - first);
    }

    /// The scheduling point of a leaf that replaces whole pages.
    #[track_caller]
    pub(super) fn point_pages(&self, cx: &Cx<'_>, first: Pfn, pages: u64) {
        let words = WORDS_PER_PAGE as u64;
        cx.point_range(Access::Rmw, self.bytes, first.0 * words, pages * words);
    }

    /// The running step changes what leaves look at, though it was announced as less.
    pub(super) fn changes(&self, cx: &Cx<'_>) {
        cx.also(Access::Rmw, self.object, 0, 1);
    }

    /// The running step reads what leaves change, though it was announced as something else.
    pub(super) fn looks(&self, cx: &Cx<'_>) {
        cx.also(Access::Load, self.object, 0, 1);
    }

    /// The last step of a leaf that reads or writes bytes: its locks, entries and metadata change with it.
    #[track_caller]
    pub(super) fn commit_bytes(&self, cx: &Cx<'_>, access: Access, pfn: Pfn, offset: u64, bytes: usize) {
        self.point_bytes(cx, access, pfn, offset, bytes);
        self.changes(cx);
    }

    /// The last step of a leaf that replaces whole pages.
    #[track_caller]
    pub(super) fn commit_pages(&self, cx: &Cx<'_>, first: Pfn, pages: u64) {
        self.point_pages(cx, first, pages);
        self.changes(cx);
    }

    /// The running step wrote bytes of a frame. Leaves and translations read tables without saying so of their bytes.
    pub(super) fn wrote(&self, cx: &Cx<'_>, state: &State, pfn: Pfn) {
        if matches!(state.pamt.of_frame(pfn).1.page_type, PageType::Ept | PageType::Tdcx) {
            self.changes(cx);
        }
    }

    /// The running step shows which lines of a page are in a cache.
    pub(super) fn looks_at_caches(&self, cx: &Cx<'_>, first: Pfn, pages: u64) {
        if self.config.caches {
            let words = WORDS_PER_PAGE as u64;
            cx.also(Access::Load, self.bytes, first.0 * words, pages * words);
        }
    }

    /// Lets something happen to the next leaf that can meet it.
    pub fn inject(&self, injected: Injected) {
        self.state.lock().injected.push(injected);
    }

    /// Whether the next call of this leaf is refused, because that was injected ([`Injected::Status`]). Of several for one leaf the first comes first.
    pub fn refuses(&self, leaf: Leaf) -> Option<SeamFail> {
        let mut state = self.state.lock();
        let injected = &mut state.injected;
        let is_it = |injected: &Injected| matches!(injected, Injected::Status { leaf: of, .. } if *of == leaf);
        let at = injected.iter().position(is_it)?;
        match &mut injected[at] {
            Injected::Status { after: 0, status, .. } => {
                let fail = SeamFail { status: *status, ..SeamFail::bare(status.name) };
                injected.remove(at);
                Some(fail)
            }
            Injected::Status { after, .. } => {
                *after -= 1;
                None
            }
            _ => unreachable!("just looked for"),
        }
    }

    /// An interrupt of the host arrives at a processor, and waits until [`Tdx::ack_interrupt`]. No step of its own.
    ///
    /// # Panics
    /// If there is no such processor; so do the others that name one.
    pub fn post_interrupt(&self, lp: Lp) {
        self.state.lock().lp_mut(lp).interrupt = true;
    }

    /// The host serves the interrupt of a processor. Whether there was one.
    pub fn ack_interrupt(&self, lp: Lp) -> bool {
        std::mem::take(&mut self.state.lock().lp_mut(lp).interrupt)
    }

    /// What the module knows of a TD, by the frame of its TDR.
    pub fn peek_td(&self, tdr: Pfn) -> Option<TdInfo> {
        self.state.lock().tds.get(&tdr).map(Td::info)
    }

    /// All TDs, by the frames of their TDRs.
    pub fn peek_tds(&self) -> Vec<(Pfn, TdInfo)> {
        self.state.lock().tds.iter().map(|(tdr, td)| (*tdr, td.info())).collect()
    }

    /// What the module knows of a vCPU, by the frame of its TDVPR.
    pub fn peek_vp(&self, tdvpr: Pfn) -> Option<VpInfo> {
        self.state.lock().vps.get(&tdvpr).map(Vp::info)
    }

    /// Metadata of a frame: the size of the page that it is a part of, and its entry.
    pub fn peek_pamt(&self, pfn: Pfn) -> (PageSize, PamtEntry) {
        let (at, entry) = self.state.lock().pamt.of_frame(pfn);
        (at.size, entry)
    }

    /// The node of dynamic PAMT for the 2 MiB page that contains the frame.
    pub fn peek_pamt_node(&self, pfn: Pfn) -> Option<PamtNode> {
        self.state.lock().pamt.nodes.get(&PageSize::Size2M.base(pfn)).copied()
    }

    /// All of them, by the first frame of their 2 MiB page.
    pub fn peek_pamt_nodes(&self) -> BTreeMap<Pfn, PamtNode> {
        self.state.lock().pamt.nodes.clone()
    }

    /// Pages that are in use, by first frame, size and metadata.
    pub fn peek_used_pages(&self) -> Vec<(Pfn, PageSize, PamtEntry)> {
        let state = self.state.lock();
        let used = state
            .pamt
            .entries()
            .filter(|(_, entry)| !matches!(entry.page_type, PageType::Nda | PageType::Rsvd | PageType::Pamt));
        used.map(|(at, entry)| (at.base, at.size, entry)).collect()
    }

    /// What is known of a line of 64 bytes of a frame.
    pub fn peek_line(&self, pfn: Pfn, line: usize) -> LineMeta {
        self.state.lock().memory.line(pfn, line)
    }

    /// Lines in caches that memory has not.
    pub fn peek_dirty_lines(&self) -> Vec<DirtyLine> {
        self.state.lock().memory.dirty_lines()
    }

    /// The entry of a TD's Secure EPT for an address at a level, without its lock; `None` if the walk ends above.
    pub fn peek_sept(&self, tdr: Pfn, gfn: Gfn, level: sim_mmu::Level) -> Option<SeptEntry> {
        let state = self.state.lock();
        state.walk(tdr, gfn, level).ok().filter(|walk| walk.level == level).map(|walk| walk.entry.unlocked())
    }

    /// Translations that a processor remembers.
    pub fn peek_tlb(&self, lp: Lp) -> Vec<(Hkid, Gfn, TlbEntry)> {
        let mut state = self.state.lock();
        state.lp_mut(lp).tlb.entries().collect()
    }

    /// Translations that all processors remember, by processor.
    pub fn peek_tlbs(&self) -> Vec<(Lp, Hkid, Gfn, TlbEntry)> {
        let state = self.state.lock();
        let of = |(lp, processor): (&Lp, &LpState)| {
            let lp = *lp;
            processor.tlb.entries().map(move |(hkid, gfn, entry)| (lp, hkid, gfn, entry)).collect::<Vec<_>>()
        };
        state.lps.iter().flat_map(of).collect()
    }

    /// Everything that the module keeps, and all tables of TDs, as text: equal texts are equal states. Without what a leaf that was busy leaves: that the host wants the
    /// lock. Contents of other pages are not in it.
    pub fn snapshot(&self) -> String {
        let state = self.state.lock();
        let tables: Vec<_> = state.tables().collect();
        format!("{:?} {tables:x?}", *state)
    }
}

impl fmt::Debug for Tdx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Tdx").field("sys", &state.sys).field("tds", &state.tds.len()).finish_non_exhaustive()
    }
}

/// A processor that calls the module: one method for each leaf.
///
/// A method that fails has no effect, except where it says so.
#[derive(Clone, Copy, Debug)]
pub struct Seam<'a> {
    pub(super) tdx: &'a Tdx,
    pub(super) lp: Lp,
}

impl<'a> Seam<'a> {
    /// The processor.
    pub const fn lp(self) -> Lp {
        self.lp
    }

    /// The machine.
    pub const fn tdx(self) -> &'a Tdx {
        self.tdx
    }

    /// A leaf begins: its scheduling point, and whether the module is ready.
    #[track_caller]
    pub(super) fn begin(self, cx: &Cx<'_>) -> Seamcall<Held<'a>> {
        self.tdx.point(cx);
        self.tdx.state.lock().sys.check_ready()?;
        Ok(Held::new(self.tdx))
    }
}
