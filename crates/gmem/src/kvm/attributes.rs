//! Memory attributes: which guest frames are private (`KVM_SET_MEMORY_ATTRIBUTES`, `kvm->mem_attr_array`).
//!
//! Attributes belong to the VM, not to its slots. Changing them, a *conversion*, brackets the change of the array with an
//! invalidation, so that a fault that saw the old attribute cannot install a mapping afterwards. A conversion allocates, frees,
//! zeroes and copies nothing.

use super::host::Host;
use super::lpage_info::{LARGE_LEVELS, Mixed};
use super::memslots::{Memslot, MemslotSet};
use super::mutants::*;
use super::uapi::*;
use super::vm::Vm;
use sim_kernel::sched::ObjId;
use sim_kernel::xarray::{NodeShape, Value, XArray, XaViolation};
use sim_kernel::{Cx, Errno, PAGE_SIZE};
use sim_mmu::{FlushNeeded, Gfn, GfnRange, Gpa, Invalidation, MayYield, RootFilter};
use std::sync::Arc;

/// Nodes of an array that is checked: a conversion of 2^52 bytes reserves what the host has.
const NODES_MAX: u64 = 4096;

/// The attribute array of a VM: frame number to attribute bits, absent meaning 0.
#[derive(Debug)]
pub struct MemoryAttributes {
    array: XArray<Value>,
}

impl MemoryAttributes {
    /// No attributes.
    pub(crate) fn new(cx: &Cx<'_>, host: &Host) -> MemoryAttributes {
        let flags = host.xa_flags(cx, RC_55);
        MemoryAttributes { array: XArray::new_in(cx, "mem_attr_array", &host.nodes, flags) }
    }

    fn entry(value: u64) -> Option<Value> {
        (value != 0).then_some(Value(value))
    }

    /// `kvm_get_memory_attributes`: read without any lock.
    #[inline]
    #[track_caller]
    pub fn get(&self, cx: &Cx<'_>, gfn: Gfn) -> u64 {
        self.array.load(cx, gfn.0).map_or(0, |v| v.0)
    }

    /// What is wrong with the structure of the array (INV-701), if it has few nodes.
    pub fn check(&self) -> Vec<XaViolation> {
        self.array.check_small(NODES_MAX)
    }

    /// The object whose indexes are guest frames, as scheduling points name it: for reports.
    pub fn object(&self) -> ObjId {
        self.array.object()
    }

    /// The nodes of the array, parents before children, without scheduling points: for reports. None of an array with more nodes than
    /// one looks at.
    pub fn shape(&self) -> Vec<NodeShape> {
        if self.array.node_count() > NODES_MAX { Vec::new() } else { self.array.shape().collect() }
    }

    /// The frames from `start` to `last`, both included, that have attributes, as the array has them: first and last of an entry, and the
    /// attributes. The first entry only, without scheduling points: for reports.
    pub fn peek_entry(&self, start: Gfn, last: Gfn) -> Option<(Gfn, Gfn, u64)> {
        self.array.peek_entry(start.0, last.0).map(|(first, last, value)| (Gfn(first), Gfn(last), value.0))
    }

    /// The attribute without a scheduling point: under `slots_lock`, and for checkers.
    pub fn peek(&self, gfn: Gfn) -> u64 {
        self.array.peek(gfn.0).map_or(0, |v| v.0)
    }

    /// Whether the frame is private, without a scheduling point.
    pub fn is_private(&self, gfn: Gfn) -> bool {
        self.peek(gfn) & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0
    }

    /// Whether every frame of the range has this attribute, without a scheduling point.
    pub fn peek_all_equal(&self, cx: &Cx<'_>, range: GfnRange, value: u64) -> bool {
        self.array.peek_all_equal(cx, range.start.0, range.end.0 - 1, Self::entry(value))
    }

    /// Whether all frames of the range have the same attribute, looked at one by one without a scheduling point: for checkers.
    pub fn is_uniform(&self, range: GfnRange) -> bool {
        match self.peek(range.start) {
            0 => self.next_present(range.start, range.end).is_none(),
            value => (range.start.0..range.end.0).all(|gfn| self.peek(Gfn(gfn)) == value),
        }
    }

    /// First frame at or after `from` and before `end` that has an attribute other than 0, without a scheduling point.
    pub fn next_present(&self, from: Gfn, end: Gfn) -> Option<Gfn> {
        if from >= end {
            return None;
        }
        self.array.peek_find(from.0, end.0 - 1).map(|(index, _)| Gfn(index))
    }
}

impl Vm {
    /// `kvm_supported_mem_attributes`.
    pub fn supported_attributes(&self) -> u64 {
        if self.has_private_mem() { KVM_MEMORY_ATTRIBUTE_PRIVATE } else { 0 }
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    ///
    /// # Errors
    /// `EINVAL` for flags, unsupported attributes, an empty, wrapping or unaligned range; `ENOMEM` if the array cannot grow, and then
    /// nothing has changed.
    pub fn set_memory_attributes(self: &Arc<Vm>, cx: &Cx<'_>, args: &kvm_memory_attributes) -> Result<(), Errno> {
        cx.note("call", "KVM_SET_MEMORY_ATTRIBUTES");
        if args.flags != 0 || args.attributes & !self.supported_attributes() != 0 {
            return Err(Errno::EINVAL);
        }
        let end = args.address.wrapping_add(args.size);
        if args.size == 0 || end < args.address {
            return Err(Errno::EINVAL);
        }
        if !args.address.is_multiple_of(PAGE_SIZE) || !args.size.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let range = GfnRange { start: Gpa(args.address).gfn(), end: Gpa(end).gfn() };
        self.vm_set_mem_attributes(cx, range, args.attributes)
    }

    /// `kvm_vm_set_mem_attributes`: the conversion itself.
    fn vm_set_mem_attributes(self: &Arc<Vm>, cx: &Cx<'_>, range: GfnRange, value: u64) -> Result<(), Errno> {
        let (first, last) = (range.start.0, range.end.0 - 1);
        let array = &self.attributes.array;
        let _slots = (!cx.has_mutant(RC_52) && !cx.has_mutant(RC_53)).then(|| self.slots_lock.lock(cx));
        // What is checked of a large range: its first frames.
        let some = GfnRange::with_len(range.start, (range.end - range.start).min(64));

        // C1: nothing to do, and then nothing is done.
        if array.all_equal(cx, first, last, MemoryAttributes::entry(value)) {
            return Ok(());
        }
        // C2: make sure that storing cannot fail half way.
        if (value != 0 || self.kernel().reserves_to_clear_attributes()) && !cx.has_mutant(RC_54) {
            let before = self.attributes.next_present(some.start, some.end);
            let reserved = array.reserve_range(cx, first, last);
            let same = before == self.attributes.next_present(some.start, some.end);
            assert!(reserved.is_ok() || same, "INV-601: setting attributes of {range:?} failed, and some have changed");
            reserved?;
        }

        let invalidation = self.pre_set_memory_attributes(cx, range, value)?; // C3
        let stored = array.store_each(cx, first, last, MemoryAttributes::entry(value)); // C4
        assert!(stored.is_ok(), "INV-305: a conversion of {range:?} failed half way");
        self.post_set_memory_attributes(cx, range, value, invalidation); // C5
        let complete = self.attributes.peek_all_equal(cx, some, value);
        assert!(complete, "INV-305: a conversion of {range:?} succeeded and not all of it has the attribute");
        self.sev_wake_spinners(cx);
        Ok(())
    }

    /// The slots that intersect the range, in all address spaces, with the part of the range that each covers.
    fn slots_in(&self, cx: &Cx<'_>, range: GfnRange) -> Vec<(Arc<Memslot>, GfnRange)> {
        let mut found = Vec::new();
        for as_id in 0..self.address_spaces() {
            let look = |set: &MemslotSet| {
                for slot in set.in_gfn_range(range) {
                    found.push((Arc::clone(slot), slot.gfns().clip(&range)));
                }
            };
            if cx.has_mutant(RC_52) || cx.has_mutant(RC_53) {
                self.memslots.read(cx, as_id, look);
            } else {
                self.memslots.peek_active(as_id, look);
            }
        }
        found
    }

    /// Opens an invalidation over the converted frames and zaps them; nothing happens if no slot covers any of them. The inner `None`: it
    /// was ended already, which only a mutant does.
    ///
    /// # Errors
    /// `ENOMEM` if a large page of a TD had to be split, and nothing happened.
    fn pre_set_memory_attributes(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        range: GfnRange,
        value: u64,
    ) -> Result<Option<Option<Invalidation>>, Errno> {
        // What goes is what the memory was; where one tree has both, that makes no difference.
        let to_private = value & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0;
        let roots =
            if to_private != cx.has_mutant(ATTR_FILTER_INVERTED) { RootFilter::Shared } else { RootFilter::Private };
        let slots = self.slots_in(cx, range);
        if slots.is_empty() {
            return Ok(None);
        }
        let mut lock = self.mmu.mmu_lock.write(cx);
        if !to_private && !cx.has_mutant(TDX_NO_SPLIT) {
            // The rest of a page of which a part becomes shared is the guest's.
            for (_, part) in &slots {
                self.mmu.split_cross_boundary_leafs(cx, &mut lock, *part)?;
            }
        }
        let invalidation = self.mmu.invalidate.begin(cx, &mut lock);
        let mut flush = FlushNeeded::NONE;
        for (slot, part) in &slots {
            self.mmu.invalidate.add_range(cx, &mut lock, *part);
            if self.kernel().widens_conversions() && !cx.has_mutant(RC_29) {
                self.arch_pre_set_memory_attributes(cx, &mut lock, slot, *part);
            }
            let more = self.mmu.zap_leafs(cx, &mut lock, Some(slot.as_id), roots, *part, MayYield::Yes, &**self);
            flush = flush.merge(more);
        }
        flush.discharge(cx, &**self);
        if cx.has_mutant(RC_31) {
            self.mmu.invalidate.end(cx, &mut lock, invalidation);
            return Ok(Some(None));
        }
        Ok(Some(Some(invalidation)))
    }

    /// 4.1: a concurrent fault on an unconverted neighbour must not install a huge mapping that covers converting frames.
    fn arch_pre_set_memory_attributes(
        &self,
        cx: &Cx<'_>,
        lock: &mut sim_kernel::sync::RwLockWriteGuard<'_, ()>,
        slot: &Memslot,
        part: GfnRange,
    ) {
        for level in LARGE_LEVELS {
            let span = level.span();
            let block_of = |gfn: Gfn| Gfn(gfn.0 / span * span);
            let (head, tail) = (block_of(part.start), block_of(Gfn(part.end.0 - 1)));
            let mut widen = |start: Gfn| {
                let block = GfnRange::with_len(start, span);
                if !part.covers(&block) && slot.gfns().covers(&block) && !slot.lpage_info.is_mixed(start, level) {
                    self.mmu.invalidate.add_range(cx, lock, block);
                }
            };
            widen(head);
            if tail != head {
                widen(tail);
            }
        }
    }

    /// Closes the invalidation and says which blocks are mixed now.
    fn post_set_memory_attributes(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        range: GfnRange,
        value: u64,
        invalidation: Option<Option<Invalidation>>,
    ) {
        let Some(invalidation) = invalidation else { return };
        let slots = self.slots_in(cx, range);
        let mut lock = self.mmu.mmu_lock.write(cx);
        // INV-208: whatever was mapped with the old attribute is gone, and nothing came back.
        for (slot, part) in &slots {
            self.assert_unmapped(slot.as_id, *part);
        }
        if let Some(invalidation) = invalidation {
            self.mmu.invalidate.end(cx, &mut lock, invalidation);
        }
        if cx.has_mutant(RC_30) {
            drop(lock);
            lock = self.mmu.mmu_lock.write(cx);
        }
        let _lock = lock;
        for (slot, part) in &slots {
            self.update_mixed(cx, slot, *part, value);
        }
    }

    /// 4.3: MIXED of every block that the part touches, 2 MiB first, because 1 GiB uses the results.
    fn update_mixed(&self, cx: &Cx<'_>, slot: &Memslot, part: GfnRange, value: u64) {
        for level in LARGE_LEVELS {
            let span = level.span();
            let mut block = part.start.0 / span * span;
            while block < part.end.0 {
                let start = Gfn(block);
                let end = start + span;
                if part.start <= start && end <= part.end {
                    slot.lpage_info.set_mixed(start, level, Mixed::No);
                } else if slot.base_gfn <= start && end <= slot.gfns().end || cx.has_mutant(BUG_18) {
                    let mixed = slot.lpage_info.classify(cx, start, level, value, &self.attributes);
                    slot.lpage_info.set_mixed(start, level, mixed);
                }
                block += span;
            }
        }
    }
}
