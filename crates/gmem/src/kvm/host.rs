//! The host: memory, configuration, and what is unique on it.

use super::config::MachineConfig;
use super::guest_memfd::GmemInode;
use super::process::Process;
use super::sev::SevHost;
use super::tdx::TdxHost;
use super::vm::Vm;
use sim_coco::BusyOnce;
use sim_kernel::mm::{Mm, PhysMem};
use sim_kernel::xarray::{NodeCache, XaFlags};
use sim_kernel::{Cx, Errno, Faults, Mutant};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Bytes that the kernel needs for one xarray node.
const XARRAY_NODE_BYTES: u64 = 576;
/// Nodes may take this part of the host's memory. In the kernel they may take all of it, and then somebody is killed.
const XARRAY_NODES_PART: u64 = 4;

/// One simulated host.
pub struct Host {
    pub(crate) config: MachineConfig,
    pub(crate) phys: Arc<PhysMem>,
    /// Where all xarrays take their nodes from.
    pub(crate) nodes: Arc<NodeCache>,
    /// Stands before the machines of the VMs.
    pub(crate) busy: BusyOnce,
    /// SEV-SNP, if the machine has it.
    sev: Option<Arc<SevHost>>,
    /// TDX, if the machine has it.
    tdx: Option<Arc<TdxHost>>,
    next_ino: AtomicU32,
    charged: AtomicU64,
    /// Whether the configuration's faults count already.
    faulty: AtomicBool,
    /// What guests of VMs made from now on do is recorded. Not the kernel's; for checking.
    watches_guests: AtomicBool,
    watched: parking_lot::Mutex<Watched>,
    /// Whether processors show what they have cached.
    recorded: AtomicBool,
}

/// What was made on a host and may still exist: for checkers.
#[derive(Debug, Default)]
struct Watched {
    vms: Vec<Weak<Vm>>,
    inodes: Vec<Weak<GmemInode>>,
    mms: Vec<Weak<Mm>>,
}

/// What exists on a host, each in the order in which it was made: for checkers.
pub(crate) struct Existing {
    pub(crate) vms: Vec<Arc<Vm>>,
    pub(crate) inodes: Vec<Arc<GmemInode>>,
    pub(crate) mms: Vec<Arc<Mm>>,
}

/// Adds to a list, and forgets what is gone when it has grown to a power of two.
fn watch<T>(list: &mut Vec<Weak<T>>, new: Weak<T>) {
    if list.len().is_power_of_two() {
        list.retain(|known| known.strong_count() > 0);
    }
    list.push(new);
}

impl Host {
    /// A host with this configuration and nothing running on it. Its mutants are those of the whole simulation.
    ///
    /// # Panics
    /// If it has mutants and this is not the boot task of a simulation.
    pub fn new(cx: &Cx<'_>, config: MachineConfig) -> Arc<Host> {
        if !config.mutants.is_empty() {
            cx.set_mutants(config.mutants);
        }
        let phys = Arc::new(PhysMem::with_nodes(cx, config.memory, config.nodes));
        let nodes = Arc::new(NodeCache::recycled(cx));
        nodes.set_limit(config.memory / XARRAY_NODES_PART / XARRAY_NODE_BYTES);
        let sev = SevHost::boot(cx, &phys, &config);
        let tdx = TdxHost::boot(cx, &phys, &config);
        Arc::new(Host {
            config,
            sev,
            tdx,
            phys,
            nodes,
            busy: BusyOnce::default(),
            next_ino: AtomicU32::new(1),
            charged: AtomicU64::new(0),
            faulty: AtomicBool::new(false),
            watches_guests: AtomicBool::new(false),
            watched: Default::default(),
            recorded: AtomicBool::new(false),
        })
    }

    /// A new process. Faults of the configuration count from the first one on: what boots before them has what it needs.
    pub fn process(self: &Arc<Host>, cx: &Cx<'_>) -> Arc<Process> {
        let process = Process::new(cx, self);
        watch(&mut self.watched.lock().mms, Arc::downgrade(&process.mm));
        let faults = &self.config.faults;
        if *faults != Faults::default() && !self.faulty.swap(true, Ordering::Relaxed) {
            self.phys.inject(faults);
            self.nodes.inject(faults);
            self.busy.inject(faults);
            if let Some(sev) = self.sev() {
                sev.inject(cx, faults);
            }
            cx.inject_signal(faults);
        }
        process
    }

    /// Of VMs made from now on it is recorded which stores of their guests user space must be told of (MMU-INV-040), and which frames their TLBs
    /// may lead to (MMU-INV-026, MMU-INV-031).
    pub fn watch_guests(&self) {
        self.watches_guests.store(true, Ordering::Relaxed);
    }

    pub(crate) fn watches_guests(&self) -> bool {
        self.watches_guests.load(Ordering::Relaxed)
    }

    pub(crate) fn watch_vm(&self, vm: &Arc<Vm>) {
        watch(&mut self.watched.lock().vms, Arc::downgrade(vm));
    }

    pub(crate) fn watch_inode(&self, inode: &Arc<GmemInode>) {
        watch(&mut self.watched.lock().inodes, Arc::downgrade(inode));
    }

    /// The VMs, guest_memfds and address spaces that exist.
    pub(crate) fn existing(&self) -> Existing {
        fn live<T>(list: &[Weak<T>]) -> Vec<Arc<T>> {
            list.iter().filter_map(Weak::upgrade).collect()
        }
        let watched = self.watched.lock();
        Existing { vms: live(&watched.vms), inodes: live(&watched.inodes), mms: live(&watched.mms) }
    }

    /// From now on processors show what they have cached, for a recording of the state.
    pub fn record(&self) {
        self.recorded.store(true, Ordering::Relaxed);
    }

    /// Whether somebody records the state.
    #[inline]
    pub(crate) fn is_recorded(&self) -> bool {
        self.recorded.load(Ordering::Relaxed)
    }

    /// SEV-SNP of the host, if it has it.
    #[inline]
    pub fn sev(&self) -> Option<&Arc<SevHost>> {
        self.sev.as_ref()
    }

    /// TDX of the host, if it has it.
    #[inline]
    pub fn tdx(&self) -> Option<&Arc<TdxHost>> {
        self.tdx.as_ref()
    }

    /// The configuration.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// The memory.
    pub fn phys(&self) -> &Arc<PhysMem> {
        &self.phys
    }

    /// How the arrays behave that guest faults read; `at_once` is the rule that their nodes outlive their readers.
    pub(crate) fn xa_flags(&self, cx: &Cx<'_>, at_once: Mutant) -> XaFlags {
        let mut flags = XaFlags::empty();
        flags.set(XaFlags::FINE_GRAINED, self.config.xarray_steps);
        flags.set(XaFlags::MUTANT_FREE_AT_ONCE, cx.has_mutant(at_once));
        flags
    }

    /// A number for an inode and its address space, never given twice.
    pub(crate) fn new_ino(&self) -> u32 {
        self.next_ino.fetch_add(1, Ordering::Relaxed)
    }

    /// Accounts kernel memory that the simulator itself does not spend.
    ///
    /// # Errors
    /// `ENOMEM` if the host has less left.
    pub(crate) fn charge(self: &Arc<Host>, bytes: u64) -> Result<Charge, Errno> {
        let charge = |charged: u64| charged.checked_add(bytes).filter(|&sum| sum <= self.config.memory);
        let charged = self.charged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge);
        charged.map(|_| Charge { host: Arc::clone(self), bytes }).map_err(|_| Errno::ENOMEM)
    }
}

/// Accounted memory; dropping it gives the memory back.
#[derive(Debug)]
pub(crate) struct Charge {
    host: Arc<Host>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.host.charged.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("config", &self.config).field("phys", &self.phys).finish_non_exhaustive()
    }
}
