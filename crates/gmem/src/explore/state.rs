//! The state that a race is about, in words: for the guest frames that a scenario touches, the attribute, the slot, the page in the
//! file's cache, the stage-2 entry; for the VM, the counters of the invalidation protocol.
//!
//! Read without scheduling points, so that looking changes nothing.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use sim_kernel::fs::File;
use sim_kernel::mm::FrameFlags;
use sim_kernel::sched::Op as Visible;
use sim_kernel::{Cx, PAGE_SHIFT, Pfn, Pgoff};
use sim_mmu::Gfn;

use crate::interp::World;
use crate::kvm::guest_memfd::GmemFile;
use crate::kvm::ioctl;
use crate::kvm::uapi::KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS;
use crate::kvm::vcpu::{Request, Vcpu};
use crate::kvm::vm::Vm;
use crate::ops::{FdRef, Name, Op};
use crate::scenario::{Scenario, Step};

/// Guest frames that are looked at, at most.
const FRAMES_MAX: usize = 6;

/// One value that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What: `gfn 0x200 SPTE`.
    pub what: String,
    /// The value before.
    pub from: String,
    /// The value after.
    pub to: String,
}

impl Change {
    /// What differs between two looks at the same things.
    pub fn between(before: &[(String, String)], after: &[(String, String)]) -> Vec<Change> {
        let pairs = before.iter().zip(after).filter(|(before, after)| before.1 != after.1);
        pairs
            .map(|(before, after)| Change { what: before.0.clone(), from: before.1.clone(), to: after.1.clone() })
            .collect()
    }
}

/// What is looked at.
///
/// Weak references: whoever looks must not keep alive what the simulation lets go.
#[derive(Debug)]
pub struct Watch {
    vms: Vec<(Name, Weak<Vm>, Vec<Gfn>)>,
    vcpus: Vec<(Name, Weak<Vcpu>)>,
    /// The files by name, and the pages of each that back the frames: also after a slot is gone.
    files: Vec<(Name, Weak<File>, Vec<Pgoff>)>,
}

impl Watch {
    /// Everything that the threads of `scenario` are about, as far as the set-up has made it.
    pub fn new(cx: &Cx<'_>, scenario: &Scenario, world: &World) -> Watch {
        let steps: Vec<&Step> = scenario.steps().collect();
        let frames = frames(scenario);
        let vms = world.vms(cx).into_iter().map(|(name, vm)| {
            let own = frames.iter().filter(|(owner, _)| *owner == name).map(|(_, gfn)| *gfn);
            (name.clone(), Arc::downgrade(&vm), own.take(FRAMES_MAX).collect())
        });
        let vms = vms.collect();
        let process = world.process();
        let vcpus = steps.iter().filter_map(|step| match &step.op {
            Op::CreateVcpu { vcpu, .. } => {
                let made = ioctl::peek_vcpu(cx, process, world.fd(vcpu))?;
                Some((vcpu.clone(), Arc::downgrade(&made)))
            }
            _ => None,
        });
        let files = steps.iter().filter_map(|step| match &step.op {
            Op::CreateGuestMemfd { fd, .. } => {
                let file = process.fds.with(cx, world.fd(fd), |file| Ok(Arc::downgrade(file))).ok()?;
                let pages: BTreeSet<Pgoff> = frames.iter().filter_map(|(_, gfn)| page_of(&steps, fd, *gfn)).collect();
                Some((fd.clone(), file, pages.into_iter().take(FRAMES_MAX).collect()))
            }
            _ => None,
        });
        Watch { vms, vcpus: vcpus.collect(), files: files.collect() }
    }

    /// Everything that is watched, as name and value, always in the same order.
    pub fn look(&self) -> Vec<(String, String)> {
        let mut seen = Vec::new();
        let many = self.vms.len() > 1;
        let gone = || "gone".to_string();
        for (name, vm, frames) in &self.vms {
            let vm = vm.upgrade();
            let of = if many { format!("{name} ") } else { String::new() };
            let mut put = |what: String, value: &dyn Fn(&Vm) -> String| {
                seen.push((format!("{of}{what}"), vm.as_deref().map_or_else(gone, value)));
            };
            for gfn in frames {
                let at = format!("gfn {:#x}", gfn.0);
                let private = |vm: &Vm| if vm.attributes().is_private(*gfn) { "private" } else { "shared" };
                put(format!("{at} attribute"), &|vm| private(vm).to_string());
                put(format!("{at} memslot"), &|vm| slot(vm, *gfn));
                put(format!("{at} SPTE"), &|vm| leafs(vm, *gfn));
            }
            put("mmu_invalidate_seq".into(), &|vm| vm.mmu().invalidate.peek_seq().to_string());
            put("mmu_invalidate_in_progress".into(), &|vm| vm.mmu().invalidate.in_progress().to_string());
            put("mmu_invalidate_range".into(), &|vm| {
                let invalidate = &vm.mmu().invalidate;
                match invalidate.range() {
                    Some(range) if invalidate.in_progress() > 0 => match range.end.0 {
                        u64::MAX => format!("from {:#x}", range.start.0),
                        end => format!("{:#x}..{end:#x}", range.start.0),
                    },
                    _ => "none".to_string(),
                }
            });
            put("memslot generation".into(), &|vm| {
                let generation = vm.memslots().peek_active(0, |set| set.generation);
                let swapping = generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS != 0;
                let number = generation & !KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS;
                if swapping { format!("{number}, update in progress") } else { number.to_string() }
            });
        }
        for (name, file, pages) in &self.files {
            let file = file.upgrade();
            let view = file.as_ref().and_then(|file| file.downcast::<GmemFile>());
            for page in pages {
                let cached = view.map_or_else(gone, |view| {
                    let pfn = view.inode().mapping().peek(*page);
                    pfn.map_or("no page".to_string(), |pfn| frame(view.vm(), pfn))
                });
                seen.push((format!("page cache of {name}, index {:#x}", page.0), cached));
                let bound = view.map_or_else(gone, |view| match view.peek_binding(*page) {
                    Some(handle) => format!("slot handle {handle}"),
                    None => "none".to_string(),
                });
                seen.push((format!("binding of {name}, index {:#x}", page.0), bound));
            }
        }
        for (name, vcpu) in &self.vcpus {
            let text = vcpu.upgrade().map_or_else(gone, |vcpu| {
                let flush =
                    if vcpu.peek_requests() & Request::TlbFlush as u64 != 0 { ", TLB flush requested" } else { "" };
                let place = if vcpu.is_in_guest() { "in the guest" } else { "outside the guest" };
                format!("{place}{flush}")
            });
            seen.push((format!("vCPU {name}"), text));
        }
        seen
    }

    /// The index of an operation in the words of its object; `None` for objects that have only one.
    pub fn place(&self, op: &Visible) -> Option<String> {
        for (_, vm, _) in &self.vms {
            let place = vm.upgrade().and_then(|vm| vm.mmu().entry_place(op.object, op.index));
            if let Some((gfn, level)) = place {
                return Some(format!("gfn {:#x}, level {}", gfn.0, level.number()));
            }
        }
        (op.index != 0 || op.span > 1).then(|| match op.span {
            1 => format!("{:#x}", op.index),
            span => format!("{:#x}..{:#x}", op.index, op.index + u64::from(span)),
        })
    }
}

/// A frame of the host: its number, and how many hold it.
fn frame(vm: &Vm, pfn: Pfn) -> String {
    let phys = &vm.host.phys;
    if !phys.is_allocated(pfn) {
        return format!("pfn {:#x}, which is free", pfn.0);
    }
    let defined = if phys.flags(pfn).contains(FrameFlags::UPTODATE) { "" } else { ", not uptodate" };
    format!("pfn {:#x}, {} references{defined}", pfn.0, phys.refcount(pfn))
}

fn slot(vm: &Vm, gfn: Gfn) -> String {
    vm.memslots().peek_active(0, |set| match set.by_gfn(gfn) {
        None => "none".to_string(),
        Some(slot) => {
            let invalid = if slot.is_invalid() { ", INVALID" } else { "" };
            let file = match slot.gmem.peek_file().and_then(|file| file.upgrade()) {
                None if slot.has_gmem() => ", no file",
                _ => "",
            };
            format!("slot {}{invalid}{file}", slot.id.0)
        }
    })
}

/// What stage 2 has for a frame: in valid roots, and in those that are being torn down.
fn leafs(vm: &Vm, gfn: Gfn) -> String {
    let mut found = Vec::new();
    vm.mmu().for_each_leaf(|leaf| {
        if leaf.gfn <= gfn && gfn < leaf.gfn + leaf.level.span() {
            let pfn = leaf.spte.pfn() + (gfn - leaf.gfn);
            let phys = &vm.host.phys;
            let free = if phys.is_allocated(pfn) { "" } else { ", a free frame" };
            let write = if leaf.spte.is_writable() { "writable" } else { "read-only" };
            let huge = if leaf.level.number() > 1 { format!(", level {}", leaf.level.number()) } else { String::new() };
            let root = if leaf.invalid_root { ", in an invalid root" } else { "" };
            found.push(format!("pfn {:#x} {write}{huge}{free}{root}", pfn.0));
        }
    });
    if found.is_empty() { "not present".to_string() } else { found.join("; ") }
}

/// The frames that guest accesses, conversions, pre-faults and holes of the threads and the finish name, with their VM.
fn frames(scenario: &Scenario) -> BTreeSet<(Name, Gfn)> {
    let steps: Vec<&Step> = scenario.steps().collect();
    let vm_of = |vcpu: &Name| {
        steps.iter().find_map(|step| match &step.op {
            Op::CreateVcpu { vm, vcpu: made, .. } if made == vcpu => Some(vm.clone()),
            _ => None,
        })
    };
    let mut found = BTreeSet::new();
    let threads = scenario.threads.iter().flat_map(|thread| &thread.steps);
    for step in threads.chain(&scenario.finish) {
        match &step.op {
            Op::GuestRead { vcpu, gpa }
            | Op::GuestWrite { vcpu, gpa, .. }
            | Op::GuestRmw { vcpu, gpa, .. }
            | Op::PreFaultMemory { vcpu, gpa, .. } => {
                found.extend(vm_of(vcpu).map(|vm| (vm, Gfn(gpa >> PAGE_SHIFT))));
            }
            Op::SetMemoryAttributes { vm, gpa, .. } => {
                found.insert((vm.clone(), Gfn(gpa >> PAGE_SHIFT)));
            }
            _ => {}
        }
    }
    // A scenario that names no frame is about slots.
    for step in &steps {
        if let Op::SetUserMemoryRegion { vm, gpa, .. } | Op::SetUserMemoryRegion2 { vm, gpa, .. } = &step.op
            && found.iter().all(|(owner, _)| owner != vm)
        {
            found.insert((vm.clone(), Gfn(gpa >> PAGE_SHIFT)));
        }
    }
    found
}

/// The page of the file `fd` that some slot of the scenario puts behind a frame.
fn page_of(steps: &[&Step], fd: &Name, gfn: Gfn) -> Option<Pgoff> {
    steps.iter().find_map(|step| match &step.op {
        Op::SetUserMemoryRegion2 { gpa, size, guest_memfd: FdRef::Name(name), guest_memfd_offset, .. } => {
            let first = gpa >> PAGE_SHIFT;
            let is_inside = name == fd && gfn.0 >= first && gfn.0 - first < size >> PAGE_SHIFT;
            is_inside.then(|| Pgoff((gfn.0 - first) + (guest_memfd_offset >> PAGE_SHIFT)))
        }
        _ => None,
    })
}
