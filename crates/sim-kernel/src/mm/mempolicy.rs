//! NUMA policies: from which nodes memory is taken (`mm/mempolicy.c`), `mbind`, `get_mempolicy`, and where a page lies (`move_pages`).
//!
//! Simplified: every task runs on node 0. Only files that say so keep a policy ([`FileOperations::set_policy`](crate::fs::FileOperations::set_policy)); other
//! memory takes one without effect and comes from node 0 first. `mbind` moves no pages, there is no policy of a task, and of the modes
//! only those that the C library had from the start exist.

use super::mm::Mm;
use crate::{Cx, Errno, Hva, HvaRange, PAGE_SIZE, Pgoff};
use std::collections::BTreeMap;
use std::ops::Range;

/// `MPOL_*`: how the nodes of a policy are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum MempolicyMode {
    /// `MPOL_DEFAULT`: no policy, the task's node first.
    #[default]
    Default = 0,
    /// `MPOL_PREFERRED`: the lowest node of the mask first.
    Preferred = 1,
    /// `MPOL_BIND`: no node but those of the mask.
    Bind = 2,
    /// `MPOL_INTERLEAVE`: the nodes of the mask in turn.
    Interleave = 3,
    /// `MPOL_LOCAL`: the task's node first.
    Local = 4,
}

/// A policy (`struct mempolicy`). The default is to have none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mempolicy {
    /// How the nodes are used.
    pub mode: MempolicyMode,
    /// The nodes, one bit each.
    pub nodes: u64,
}

/// Where one page may come from: the node to begin with, and those that are allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    pub(super) first: u32,
    pub(super) allowed: u64,
}

impl Placement {
    /// The task's node first, then any other.
    pub const LOCAL: Placement = Placement { first: 0, allowed: u64::MAX };
}

impl Mempolicy {
    /// `mpol_new`: the policy that these arguments of `mbind` ask for, on a host with `online` nodes.
    ///
    /// # Errors
    /// `EINVAL` for a mode that does not exist, nodes where there must be none, and none where there must be some.
    pub fn new(mode: u32, nodes: u64, online: u32) -> Result<Mempolicy, Errno> {
        let mode = match mode {
            0 => MempolicyMode::Default,
            1 => MempolicyMode::Preferred,
            2 => MempolicyMode::Bind,
            3 => MempolicyMode::Interleave,
            4 => MempolicyMode::Local,
            _ => return Err(Errno::EINVAL),
        };
        let there = nodes & ((1 << online) - 1);
        match mode {
            MempolicyMode::Default | MempolicyMode::Local if nodes != 0 => Err(Errno::EINVAL),
            MempolicyMode::Bind | MempolicyMode::Interleave if there == 0 => Err(Errno::EINVAL),
            // Preferring no node is to prefer the task's.
            MempolicyMode::Preferred if nodes == 0 => Ok(Mempolicy { mode: MempolicyMode::Local, nodes: 0 }),
            MempolicyMode::Preferred if there == 0 => Err(Errno::EINVAL),
            _ => Ok(Mempolicy { mode, nodes: there }),
        }
    }

    /// Where a page comes from; `interleave` counts pages for those modes that take nodes in turn.
    pub fn placement(self, interleave: u64) -> Placement {
        let lowest = self.nodes.trailing_zeros();
        match self.mode {
            MempolicyMode::Default | MempolicyMode::Local => Placement::LOCAL,
            MempolicyMode::Preferred => Placement { first: lowest, allowed: u64::MAX },
            MempolicyMode::Bind => Placement { first: lowest, allowed: self.nodes },
            MempolicyMode::Interleave => {
                let nth = interleave % u64::from(self.nodes.count_ones());
                let first = (0..64).filter(|node| self.nodes & (1 << node) != 0).nth(nth as usize);
                Placement { first: first.expect("fewer than the nodes of the mask"), allowed: u64::MAX }
            }
        }
    }
}

/// The policies of a file's pages (`struct shared_policy`): of all its mappings, and for good. Setting and finding one is part of the caller's step.
///
/// ```
/// use sim_kernel::Pgoff;
/// use sim_kernel::mm::{Mempolicy, SharedPolicy};
/// let policies = SharedPolicy::default();
/// let bind = Mempolicy::new(2, 0b10, 2).unwrap();
/// policies.set(Pgoff(0)..Pgoff(4), bind);
/// policies.set(Pgoff(1)..Pgoff(2), Mempolicy::default());
/// assert_eq!([0, 1, 2, 4].map(|page| policies.get(Pgoff(page))), [Some(bind), None, Some(bind), None]);
/// ```
#[derive(Debug, Default)]
pub struct SharedPolicy {
    /// First page to end and policy; the ranges do not overlap.
    ranges: parking_lot::Mutex<BTreeMap<Pgoff, (Pgoff, Mempolicy)>>,
}

impl SharedPolicy {
    /// `mpol_set_shared_policy`: the pages have this policy; the default one is none.
    pub fn set(&self, pages: Range<Pgoff>, policy: Mempolicy) {
        let mut ranges = self.ranges.lock();
        let touched: Vec<_> =
            ranges.range(..pages.end).filter(|(_, (end, _))| *end > pages.start).map(|(&k, &v)| (k, v)).collect();
        for (start, (end, old)) in touched {
            ranges.remove(&start);
            if start < pages.start {
                ranges.insert(start, (pages.start, old));
            }
            if end > pages.end {
                ranges.insert(pages.end, (end, old));
            }
        }
        if policy != Mempolicy::default() {
            ranges.insert(pages.start, (pages.end, policy));
        }
    }

    /// `mpol_shared_policy_lookup`.
    pub fn get(&self, page: Pgoff) -> Option<Mempolicy> {
        let ranges = self.ranges.lock();
        ranges.range(..=page).next_back().filter(|(_, (end, _))| page < *end).map(|(_, (_, policy))| *policy)
    }
}

impl Mm {
    /// `mbind`: memory of the range comes from these nodes from now on.
    ///
    /// # Errors
    /// `EINVAL` for an address that is not page-aligned, and as [`Mempolicy::new`]; `EFAULT` if part of the range is not mapped.
    pub fn mbind(&self, cx: &Cx<'_>, start: Hva, len: u64, mode: u32, nodes: u64) -> Result<(), Errno> {
        if !start.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let pages = len.div_ceil(PAGE_SIZE);
        let end = pages.checked_mul(PAGE_SIZE).and_then(|len| start.0.checked_add(len)).ok_or(Errno::EINVAL)?;
        if end == start.0 {
            return Ok(());
        }
        let policy = Mempolicy::new(mode, nodes, self.phys.nodes())?;
        let tree = self.mmap_lock.write(cx);
        let range = HvaRange::new(start, Hva(end));
        if !tree.covers(range) {
            return Err(Errno::EFAULT);
        }
        let mut at = start;
        while at < range.end {
            let vma = tree.find(at).expect("the range is covered");
            let part = vma.range.clip(&HvaRange::new(at, range.end));
            if let (Some(backing), Some(first)) = (&vma.backing, vma.pgoff(part.start)) {
                let end = first + (part.end.page() - part.start.page());
                backing.file.operations().set_policy(cx, first..end, policy);
            }
            at = part.end;
        }
        Ok(())
    }

    /// `get_mempolicy` with `MPOL_F_ADDR`: the policy of the memory at an address.
    ///
    /// # Errors
    /// `EFAULT` if nothing is mapped there.
    pub fn get_mempolicy(&self, cx: &Cx<'_>, addr: Hva) -> Result<Mempolicy, Errno> {
        let tree = self.mmap_lock.read(cx);
        let vma = tree.find(addr).ok_or(Errno::EFAULT)?;
        let policy = match (&vma.backing, vma.pgoff(addr)) {
            (Some(backing), Some(pgoff)) => backing.file.operations().get_policy(cx, pgoff),
            _ => None,
        };
        Ok(policy.unwrap_or_default())
    }

    /// `move_pages` that moves nothing: the node on which the page at an address lies.
    ///
    /// # Errors
    /// `EFAULT` if nothing is mapped there; `ENOENT` if no page is.
    pub fn page_node(&self, cx: &Cx<'_>, addr: Hva) -> Result<u32, Errno> {
        let tree = self.mmap_lock.read(cx);
        tree.find(addr).ok_or(Errno::EFAULT)?;
        let pte = self.page_table_lock.lock(cx).pte(addr);
        if pte.is_none() { Err(Errno::ENOENT) } else { Ok(self.phys.node_of(pte.pfn())) }
    }
}
