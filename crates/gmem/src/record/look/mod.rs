//! Describes the state of a host as rows of tables, without scheduling points.
//!
//! One file for each part of the state. What a lock keeps others from looking at is described as it was when the lock was free last; the
//! tables say which ones that concerns.

mod files;
mod map;
mod memory;
mod pkvm;
mod snp;
mod stage2;
mod tdx;
mod vms;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use sim_coco::pkvm::Ownership;
use sim_kernel::mm::{MappedPage, PhysMem};
use sim_kernel::{Hva, Pfn};

use super::store::Store;
use crate::kvm::guest_memfd::GmemInode;
use crate::kvm::host::{Existing, Host};
use crate::kvm::pkvm::PkvmHost;
use crate::kvm::sev::SevHost;
use crate::kvm::tdx::TdxHost;
use crate::kvm::vm::Vm;

/// Looks at a host again and again, and knows again what it has seen.
#[derive(Debug, Default)]
pub struct Looker {
    /// VMs in the order in which they were first seen. Weak: whoever looks must not keep alive what the simulation lets go.
    vms: Vec<Weak<Vm>>,
    /// What each process mapped when one could look, in the order of the processes.
    mapped: Vec<BTreeMap<Hva, MappedPage>>,
    /// Who had which page when the hypervisor's locks were free last.
    ownership: Option<Ownership>,
}

/// What the parts look at.
struct Moment<'a> {
    phys: &'a PhysMem,
    /// SEV-SNP of the host, if it has it.
    sev: Option<Arc<SevHost>>,
    /// TDX of the host, if it has it.
    tdx: Option<Arc<TdxHost>>,
    /// pKVM of the host, if it has it.
    pkvm: Option<Arc<PkvmHost>>,
    /// Who had which page when one could look.
    ownership: Option<&'a Ownership>,
    vms: Vec<(u64, Arc<Vm>)>,
    inodes: Vec<Arc<GmemInode>>,
    /// What each process maps.
    mapped: &'a [BTreeMap<Hva, MappedPage>],
    /// For each VM, the place of its process among them.
    process: Vec<Option<usize>>,
    /// Frames that a row names, some more than once.
    frames: Vec<Pfn>,
}

/// The parts of the state, each with the function that describes it. A new machine adds its own.
const PARTS: &[fn(&mut Moment<'_>, &mut Store)] = &[
    map::guest_physical_map,
    vms::counters,
    vms::slots,
    vms::vcpus,
    stage2::trees,
    files::page_caches,
    files::bindings,
    files::nodes,
    memory::host_mappings,
    snp::rmp,
    tdx::tds,
    tdx::sept_and_pamt,
    pkvm::owners,
    pkvm::translations,
    // The last: frames that the others name.
    memory::frames,
];

impl Looker {
    /// The number of a VM, if it was seen.
    pub fn number_of(&self, vm: &Vm) -> Option<u64> {
        self.vms.iter().position(|known| std::ptr::eq(known.as_ptr(), vm)).map(|at| at as u64)
    }

    /// Describes the state as it is now: one look of the store.
    pub fn look(&mut self, host: &Host, store: &mut Store) {
        let Existing { vms, inodes, mms } = host.existing();
        for vm in &vms {
            if self.number_of(vm).is_none() {
                self.vms.push(Arc::downgrade(vm));
            }
        }
        self.mapped.resize_with(mms.len().max(self.mapped.len()), BTreeMap::new);
        for (known, mm) in self.mapped.iter_mut().zip(&mms) {
            if let Some(pages) = mm.peek_small_pages() {
                *known = pages.into_iter().map(|page| (page.hva, page)).collect();
            }
        }
        if let Some(now) = host.pkvm().and_then(|pkvm| pkvm.pkvm().try_ownership()) {
            self.ownership = Some(now);
        }
        let process = vms.iter().map(|vm| mms.iter().position(|mm| Arc::ptr_eq(mm, &vm.mm))).collect();
        let vms = vms.into_iter().map(|vm| (self.number_of(&vm).expect("just numbered"), vm)).collect();
        let mut moment = Moment {
            phys: &host.phys,
            sev: host.sev().cloned(),
            tdx: host.tdx().cloned(),
            pkvm: host.pkvm().cloned(),
            ownership: self.ownership.as_ref(),
            vms,
            inodes,
            mapped: &self.mapped,
            process,
            frames: Vec::new(),
        };
        store.begin();
        for part in PARTS {
            part(&mut moment, store);
        }
        store.end();
    }
}

impl Moment<'_> {
    /// A frame in words; whoever names it has it listed.
    fn frame(&mut self, pfn: Pfn) -> String {
        let free = self.names(pfn);
        frame(pfn, free)
    }

    /// Has a frame listed. Whether it is free.
    fn names(&mut self, pfn: Pfn) -> bool {
        self.frames.push(pfn);
        !self.phys.is_allocated(pfn)
    }
}

/// A frame in words.
fn frame(pfn: Pfn, free: bool) -> String {
    format!("frame {:#x}{}", pfn.0, if free { ", which is free" } else { "" })
}
