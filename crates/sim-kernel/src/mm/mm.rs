//! The address space of a process (`struct mm_struct`) and what the calls on it take and answer.
//!
//! The calls are in files of their own: `mmap`, `mprotect`, `madvise`, `mincore`, `mlock`; accesses in `uaccess`, page faults in
//! `fault`, pinning in `gup`.
//!
//! Simplified: one page-table lock per process, no per-area locks, no swap, no `fork`.

use super::huge_memory::HugePageRules;
use super::notifier::{MmuNotifier, Notifiers};
use super::pgtable::PageTables;
use super::phys::PhysMem;
use super::vma::{Prot, VmaTree};
use crate::fs::File;
use crate::sync::{Mutex, RwLock};
use crate::{Cx, Errno, Pfn};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};

/// A signal that a memory access of the process raises.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Signal {
    /// `SIGSEGV`: no mapping, or one without the right.
    #[error("SIGSEGV")]
    Sigsegv,
    /// `SIGBUS`: a mapping, but the page cannot be had.
    #[error("SIGBUS")]
    Sigbus,
}

/// What `mmap` is asked for.
#[derive(Clone, Copy, Debug)]
pub struct MmapArgs<'a> {
    /// Bytes; rounded up to pages.
    pub len: u64,
    /// Rights.
    pub prot: Prot,
    /// `MAP_SHARED` rather than `MAP_PRIVATE`.
    pub shared: bool,
    /// The file, or nothing for anonymous memory. The mapping takes a reference of its own.
    pub file: Option<&'a Arc<File>>,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// The address is a multiple of this.
    pub align: u64,
}

/// What `madvise` is told (`MADV_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Advice {
    /// `MADV_DONTNEED`: drop the pages.
    Dontneed,
    /// `MADV_COLD`: the pages are not used soon.
    Cold,
    /// `MADV_PAGEOUT`: reclaim the pages.
    Pageout,
    /// `MADV_HUGEPAGE`: use huge pages.
    Hugepage,
    /// `MADV_NOHUGEPAGE`: do not.
    Nohugepage,
    /// `MADV_REMOVE`: punch a hole into the file.
    Remove,
    /// `MADV_COLLAPSE`: make huge pages now.
    Collapse,
    /// `MADV_POPULATE_READ`: fault the pages in as reads would.
    PopulateRead,
    /// `MADV_POPULATE_WRITE`: fault the pages in as writes would.
    PopulateWrite,
    /// `MADV_HWPOISON`: pretend a memory error.
    Hwpoison,
    /// `MADV_SOFT_OFFLINE`: stop using the frames.
    SoftOffline,
    /// `MADV_NORMAL`: nothing is known about the order of accesses.
    Normal,
    /// `MADV_SEQUENTIAL`: accesses come in ascending order.
    Sequential,
    /// `MADV_RANDOM`: accesses come in any order.
    Random,
    /// `MADV_WILLNEED`: accesses come soon.
    Willneed,
    /// `MADV_FREE`: the contents may be thrown away when memory is short.
    Free,
}

impl Advice {
    /// Every kind of advice with its name in lower case, without the prefix.
    pub const ALL: &'static [(&'static str, Advice)] = &[
        ("dontneed", Advice::Dontneed),
        ("cold", Advice::Cold),
        ("pageout", Advice::Pageout),
        ("hugepage", Advice::Hugepage),
        ("nohugepage", Advice::Nohugepage),
        ("remove", Advice::Remove),
        ("collapse", Advice::Collapse),
        ("populate_read", Advice::PopulateRead),
        ("populate_write", Advice::PopulateWrite),
        ("normal", Advice::Normal),
        ("sequential", Advice::Sequential),
        ("random", Advice::Random),
        ("willneed", Advice::Willneed),
        ("free", Advice::Free),
        ("hwpoison", Advice::Hwpoison),
        ("soft_offline", Advice::SoftOffline),
    ];

    /// The advice with this name, as in `populate_read`.
    pub fn from_name(name: &str) -> Option<Advice> {
        Advice::ALL.iter().find(|(n, _)| *n == name).map(|(_, advice)| *advice)
    }
}

/// How a page is pinned (`FOLL_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GupFlags {
    /// `FOLL_WRITE`: the page will be written.
    pub write: bool,
}

/// A page that the caller has a reference to, and must put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GupPage {
    /// The frame.
    pub pfn: Pfn,
    /// Whether the page table lets the process write it now.
    pub writable: bool,
}

/// Why a page could not be pinned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum GupError {
    /// `EFAULT`: no mapping, no right, or the access would have got `SIGBUS`.
    #[error("bad address")]
    Efault,
    /// `EHWPOISON`: the page is broken.
    #[error("hardware poison")]
    HwPoison,
    /// `ENOMEM`: no frame could be had.
    #[error("out of memory")]
    Oom,
    /// `EINTR`: the page had to be faulted in and a signal is pending.
    #[error("signal pending")]
    SignalPending,
}

impl GupError {
    /// The error number that a system call makes of it.
    pub fn errno(self) -> Errno {
        match self {
            GupError::Efault => Errno::EFAULT,
            GupError::HwPoison => Errno::EHWPOISON,
            GupError::Oom => Errno::ENOMEM,
            GupError::SignalPending => Errno::EINTR,
        }
    }
}

/// The size at which a process's page table maps an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum HostLevel {
    /// A 4 KiB page, or nothing.
    Page4K,
    /// A huge page or the huge zero page.
    Page2M,
}

/// The address space of one process.
///
/// ```
/// use sim_kernel::mm::{Advice, HostLevel, Mm, MmapArgs, PhysMem, Prot, Signal};
/// use sim_kernel::sched::Sim;
/// use std::sync::Arc;
///
/// Sim::sequential().solo(|cx| {
///     let mm = Mm::new(cx, Arc::new(PhysMem::new(cx, 16 << 20)));
///     let args = MmapArgs { len: 4 << 20, prot: Prot::RW, shared: false, file: None, offset: 0, align: 2 << 20 };
///     let hva = mm.mmap(cx, &args)?;
///     mm.write_u32(cx, hva, 7).unwrap();
///     assert_eq!(mm.host_mapping_level(cx, hva), HostLevel::Page2M);
///     mm.madvise(cx, hva, 4096, Advice::Dontneed)?;
///     assert_eq!(mm.read_u32(cx, hva), Ok(0));
///     mm.munmap(cx, hva, 4096)?;
///     assert_eq!(mm.read_u32(cx, hva), Err(Signal::Sigsegv));
///     Ok::<(), sim_kernel::Errno>(())
/// }).unwrap();
/// ```
pub struct Mm {
    pub(super) phys: Arc<PhysMem>,
    /// The zero page.
    pub(super) zero: Pfn,
    pub(super) huge_pages: HugePageRules,
    /// Written by calls that change areas, read by faults.
    pub(super) mmap_lock: RwLock<VmaTree>,
    /// A leaf: nothing is acquired inside, so it may be taken under KVM's `mmu_lock`.
    pub(super) page_table_lock: Mutex<PageTables>,
    pub(super) notifiers: Notifiers,
    /// Changes under `mmap_lock`.
    pub(super) locked_vm: AtomicU64,
    pub(super) me: Weak<Mm>,
}

impl Mm {
    /// An empty address space on this host's memory, where the zero page exists from now on, with huge pages wherever they fit.
    ///
    /// # Panics
    /// If the host has no frame for the zero page.
    pub fn new(cx: &Cx<'_>, phys: Arc<PhysMem>) -> Arc<Mm> {
        Mm::with_huge_pages(cx, phys, HugePageRules::default())
    }

    /// The same on a host with these rules for transparent huge pages.
    ///
    /// # Panics
    /// As [`Mm::new`].
    pub fn with_huge_pages(cx: &Cx<'_>, phys: Arc<PhysMem>, huge_pages: HugePageRules) -> Arc<Mm> {
        let zero = phys.zero_page().expect("a host has a frame for its zero page");
        Arc::new_cyclic(|me| Mm {
            phys,
            zero,
            huge_pages,
            mmap_lock: RwLock::new(cx, "mmap_lock", VmaTree::default()),
            page_table_lock: Mutex::new(cx, "page_table_lock", PageTables::new()),
            notifiers: Notifiers::new(cx),
            locked_vm: AtomicU64::new(0),
            me: Weak::clone(me),
        })
    }

    /// The host's memory.
    pub fn phys(&self) -> &Arc<PhysMem> {
        &self.phys
    }

    /// `mmu_notifier_register`: from now on the listener is told of every change of translations.
    pub fn register_notifier(&self, cx: &Cx<'_>, notifier: Arc<dyn MmuNotifier>) {
        // `mmap_lock` for writing: no invalidation of a call on the address space is half-way while the list changes.
        let _tree = self.mmap_lock.write(cx);
        self.notifiers.register(cx, notifier);
    }

    /// `mmu_notifier_unregister`: returns when no call of the listener runs any more. An invalidation that was started is not
    /// ended for it.
    ///
    /// # Panics
    /// If it is not registered.
    pub fn unregister_notifier(&self, cx: &Cx<'_>, notifier: &Arc<dyn MmuNotifier>) {
        self.notifiers.unregister(cx, notifier);
    }
}

impl fmt::Debug for Mm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mm").field("mmap_lock", &self.mmap_lock).field("notifiers", &self.notifiers).finish()
    }
}
