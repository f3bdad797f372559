//! VMs and vCPUs as the hypervisor has them, and the host's structures that they are made from (`struct pkvm_hyp_vm`, `struct pkvm_hyp_vcpu`).
//!
//! Simplified: the host's structures are one page each; the hypervisor's pages for a VM and a vCPU are cleared and kept, but what it knows is beside them. A vCPU has no registers.

use super::access::GuestAbort;
use super::memcache::Memcache;
use super::pgtable::{PageTable, Root};
use super::types::{CpuId, Handle, Vmid};
use sim_kernel::Pfn;
use sim_kernel::sched::ObjId;
use sim_kernel::sync::Mutex;
use sim_mmu::Gfn;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The host's `struct kvm`, in a page that it shares with the hypervisor.
#[derive(Debug)]
pub struct HostKvm {
    pub(super) frame: Pfn,
    pub(super) created_vcpus: u32,
    pub(super) is_protected: bool,
    /// Where the hypervisor leaves the pages of a VM that is gone (`teardown_mc`).
    pub teardown: parking_lot::Mutex<Memcache>,
}

impl HostKvm {
    /// A VM with so many vCPUs.
    pub fn new(frame: Pfn, created_vcpus: u32, is_protected: bool) -> Arc<HostKvm> {
        Arc::new(HostKvm { frame, created_vcpus, is_protected, teardown: Default::default() })
    }

    /// The page that it is in.
    pub fn frame(&self) -> Pfn {
        self.frame
    }
}

/// The host's `struct kvm_vcpu`, in a page that it shares with the hypervisor.
#[derive(Debug)]
pub struct HostVcpu {
    pub(super) frame: Pfn,
    pub(super) index: u32,
    /// State of the SVE registers, in a page that is shared, too.
    pub(super) sve_state: Option<Pfn>,
    /// Pages for the tables of the VM's stage 2: what the host tops up before it asks for a mapping.
    pub memcache: parking_lot::Mutex<Memcache>,
}

impl HostVcpu {
    /// A vCPU with this index, without SVE.
    pub fn new(frame: Pfn, index: u32) -> Arc<HostVcpu> {
        HostVcpu::with_sve(frame, index, None)
    }

    /// A vCPU with SVE, if there is a page for the registers.
    pub fn with_sve(frame: Pfn, index: u32, sve_state: Option<Pfn>) -> Arc<HostVcpu> {
        Arc::new(HostVcpu { frame, index, sve_state, memcache: Default::default() })
    }

    /// The page that it is in.
    pub fn frame(&self) -> Pfn {
        self.frame
    }

    /// Its index in its VM.
    pub fn index(&self) -> u32 {
        self.index
    }
}

/// What the lock of a VM guards.
#[derive(Debug)]
pub(super) struct GuestMmu {
    pub(super) table: PageTable,
    /// Tables that are in no tree at the moment.
    pub(super) pool: Vec<Pfn>,
    /// Where pages were taken by force: for checking.
    pub(super) poisoned: BTreeSet<Gfn>,
}

/// A VM.
pub struct HypVm {
    handle: Handle,
    pub(super) host: Arc<HostKvm>,
    pub(super) created_vcpus: u32,
    is_protected: bool,
    pub(super) dying: AtomicBool,
    /// Who uses the VM beside the table: loaded vCPUs, and calls that are under way. Changes under `vm_table_lock`.
    pub(super) refs: AtomicU32,
    pub(super) mmu: Mutex<GuestMmu>,
    /// Where its walks start; a processor takes no lock.
    pub(super) root: Root,
    /// What looking where a guest's address leads, and changing that, is announced on.
    pub(super) object: ObjId,
    /// By index.
    pub(super) vcpus: parking_lot::Mutex<BTreeMap<u32, Arc<HypVcpu>>>,
    pub(super) frame: Pfn,
    pub(super) pgd: Pfn,
    pub(super) pgd_pages: u64,
}

impl HypVm {
    #[expect(clippy::too_many_arguments, reason = "the one place where a VM is made")]
    pub(super) fn new(
        cx: &sim_kernel::Cx<'_>,
        handle: Handle,
        host: Arc<HostKvm>,
        created_vcpus: u32,
        bits: u32,
        frame: Pfn,
        pgd: Pfn,
        vmid: Vmid,
    ) -> HypVm {
        let object = cx.new_object("guest_s2");
        let root = Root::new(pgd, bits, vmid);
        let table = PageTable::new(root, Some(object));
        HypVm {
            handle,
            created_vcpus,
            is_protected: host.is_protected,
            host,
            dying: AtomicBool::new(false),
            refs: AtomicU32::new(0),
            mmu: Mutex::new(cx, "vm->lock", GuestMmu { table, pool: Vec::new(), poisoned: BTreeSet::new() }),
            root,
            object,
            vcpus: Default::default(),
            frame,
            pgd,
            pgd_pages: Root::pages(bits),
        }
    }

    /// Its name.
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// Its tag in TLBs.
    pub fn vmid(&self) -> Vmid {
        self.root.vmid
    }

    /// Whether its memory is kept from the host.
    pub fn is_protected(&self) -> bool {
        self.is_protected
    }

    /// Whether it is being torn down.
    pub fn is_dying(&self) -> bool {
        self.dying.load(Ordering::Acquire)
    }
}

impl fmt::Debug for HypVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HypVm").field("handle", &self.handle).field("dying", &self.is_dying()).finish_non_exhaustive()
    }
}

/// A vCPU.
pub struct HypVcpu {
    /// Its VM.
    pub(super) vm: Arc<HypVm>,
    pub(super) index: u32,
    host: Arc<HostVcpu>,
    pub(super) frame: Pfn,
    /// Tables for the next mappings, which the hypervisor owns.
    pub(super) memcache: parking_lot::Mutex<Vec<Pfn>>,
    /// Changes under `vm_table_lock`.
    pub(super) loaded_on: parking_lot::Mutex<Option<CpuId>>,
    /// Why it last left its guest, if that was an abort. Stays while it is put.
    pub(super) fault: parking_lot::Mutex<Option<GuestAbort>>,
}

impl HypVcpu {
    pub(super) fn new(vm: Arc<HypVm>, host: Arc<HostVcpu>, frame: Pfn) -> HypVcpu {
        HypVcpu {
            vm,
            index: host.index,
            host,
            frame,
            memcache: Default::default(),
            loaded_on: Default::default(),
            fault: Default::default(),
        }
    }

    /// Its VM.
    pub fn vm(&self) -> &HypVm {
        &self.vm
    }

    /// What the host made it from.
    pub fn host(&self) -> &HostVcpu {
        &self.host
    }

    /// Tables in its memcache.
    pub fn memcache_pages(&self) -> usize {
        self.memcache.lock().len()
    }
}

impl fmt::Debug for HypVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HypVcpu").field("vm", &self.vm).field("index", &self.index).finish_non_exhaustive()
    }
}

/// A place in the table of VMs.
#[derive(Clone, Debug, Default)]
pub(super) enum Place {
    #[default]
    Free,
    Reserved,
    Vm(Arc<HypVm>),
}

/// What `vm_table_lock` guards.
#[derive(Debug)]
pub(super) struct VmTable {
    pub(super) places: Vec<Place>,
}

impl Default for VmTable {
    fn default() -> VmTable {
        VmTable { places: vec![Place::Free; Handle::MAX_VMS] }
    }
}

impl VmTable {
    pub(super) fn place(&mut self, handle: Handle) -> Option<&mut Place> {
        self.places.get_mut(handle.index()?)
    }

    /// The VM with this handle, if it was made.
    pub(super) fn vm(&self, handle: Handle) -> Option<Arc<HypVm>> {
        match self.places.get(handle.index()?)? {
            Place::Vm(vm) => Some(Arc::clone(vm)),
            _ => None,
        }
    }

    /// All VMs.
    pub(super) fn vms(&self) -> impl Iterator<Item = &Arc<HypVm>> {
        self.places.iter().filter_map(|place| match place {
            Place::Vm(vm) => Some(vm),
            _ => None,
        })
    }
}
