//! The tables of which a state consists: what they are called and which columns they have.
//!
//! A new machine adds its own here and a function to [`look`](super::look) that fills it; whatever shows states takes tables as they come. A table
//! without rows in the whole run is not shown. Locks that are held are no table: they are known by when they were taken and released.

/// What a table is.
#[derive(Debug, PartialEq, Eq)]
pub struct TableSpec {
    /// Short, for addresses and filters.
    pub id: &'static str,
    /// For people.
    pub title: &'static str,
    /// What it models, in a sentence.
    pub note: &'static str,
    /// Names of the columns; the first is never empty in a row that is there.
    pub columns: &'static [&'static str],
}

/// Place of a table in [`TABLES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Table(pub u8);

impl Table {
    /// Guest-physical memory as KVM sees it.
    pub const MAP: Table = Table(0);
    /// The counters of the invalidation protocol and others of a VM.
    pub const COUNTERS: Table = Table(1);
    /// vCPUs.
    pub const VCPUS: Table = Table(2);
    /// What their processors have cached.
    pub const TLB: Table = Table(3);
    /// Stage 2, entry by entry.
    pub const STAGE2: Table = Table(4);
    /// Entries of the RMP of an SNP machine.
    pub const RMP: Table = Table(5);
    /// TDs and their vCPUs, as the TDX module has them.
    pub const TD: Table = Table(6);
    /// Secure EPTs beside their mirrors.
    pub const SEPT: Table = Table(7);
    /// Frames that the TDX module has.
    pub const PAMT: Table = Table(8);
    /// Pages that are not the host's alone, with pKVM.
    pub const PKVM: Table = Table(9);
    /// Page caches of guest_memfds.
    pub const CACHE: Table = Table(10);
    /// Bindings of files to slots.
    pub const BINDINGS: Table = Table(11);
    /// Memory slots.
    pub const SLOTS: Table = Table(12);
    /// Frames of the host.
    pub const FRAMES: Table = Table(13);
    /// What the VMM's page tables map.
    pub const HOST: Table = Table(14);
    /// Nodes of xarrays.
    pub const NODES: Table = Table(15);

    /// What the table is.
    pub fn spec(self) -> &'static TableSpec {
        &TABLES[usize::from(self.0)]
    }
}

/// Every table, in the order in which they are shown.
pub const TABLES: &[TableSpec] = &[
    TableSpec {
        id: "map",
        title: "Guest-physical map",
        note: "ranges of guest frames with the same attribute, slot, backing and mapping",
        columns: &["gfns", "attribute", "slot", "backing", "mapped by stage 2"],
    },
    TableSpec {
        id: "counters",
        title: "Sequence counters",
        note: "the invalidation protocol between faults and whoever takes memory away",
        columns: &["counter", "value"],
    },
    TableSpec {
        id: "vcpus",
        title: "vCPUs",
        note: "vcpu->mode and vcpu->requests",
        columns: &["vCPU", "mode", "requests", "root table"],
    },
    TableSpec {
        id: "tlb",
        title: "TLBs",
        note: "translations that the processor of a vCPU has cached",
        columns: &["vCPU", "address", "guest frame", "frame", "rights"],
    },
    TableSpec {
        id: "stage2",
        title: "Stage 2",
        note: "entries below each root that were ever written",
        columns: &["tree", "gfns", "level", "entry", "rights"],
    },
    TableSpec {
        id: "rmp",
        title: "RMP",
        note: "frames of an SNP machine that are not the hypervisor's",
        columns: &["frame", "state", "owner", "guest address", "validated"],
    },
    TableSpec {
        id: "td",
        title: "TDs",
        note: "what the TDX module keeps of TDs and vCPUs: the epoch of their TLBs, and how many vCPUs entered in which",
        columns: &["TD, vCPU", "state", "key, processor", "epoch", "inside"],
    },
    TableSpec {
        id: "sept",
        title: "Secure EPT",
        note: "entries that are not free, and what KVM's mirror has in the same place",
        columns: &["TD", "gfns", "level", "Secure EPT", "mirror"],
    },
    TableSpec {
        id: "pamt",
        title: "PAMT",
        note: "frames that the TDX module has, whose they are, and the epoch of the last BLOCK",
        columns: &["frame", "type", "size", "owner", "BEPOCH"],
    },
    TableSpec {
        id: "pkvm",
        title: "pKVM owners",
        note: "pages that are not the host's alone; a change is seen when the hypervisor's locks are free",
        columns: &["frame", "host", "hypervisor", "guest", "guest's page"],
    },
    TableSpec {
        id: "cache",
        title: "Page cache",
        note: "the pages of each guest_memfd",
        columns: &["file", "index", "frame", "references", "state"],
    },
    TableSpec {
        id: "bindings",
        title: "Bindings",
        note: "which pages of a file belong to which slot",
        columns: &["file", "pages", "VM", "slot"],
    },
    TableSpec {
        id: "slots",
        title: "Memory slots",
        note: "the set of slots that is active",
        columns: &["slot", "gfns", "flags", "file"],
    },
    TableSpec {
        id: "frames",
        title: "Frames of the host",
        note: "frames that something above names, with how many name them",
        columns: &["frame", "references", "host maps", "stage-2 maps", "state"],
    },
    TableSpec {
        id: "host",
        title: "Host mappings",
        note: "what the page tables of the VMM map; a change is seen when page_table_lock is free",
        columns: &["address", "frame", "rights"],
    },
    TableSpec {
        id: "nodes",
        title: "XArray nodes",
        note: "of page caches, bindings and memory attributes",
        columns: &["array", "indexes", "shift", "slots used"],
    },
];

/// Rows that a look has of one table of one owner, at most: of a guest of a terabyte nobody reads all.
pub const ROWS_MAX: usize = 2048;
