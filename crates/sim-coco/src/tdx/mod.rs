//! Intel TDX: the TDX module, the metadata and the Secure EPTs that it keeps, the vCPUs of TDs, and memory under private KeyIDs, as Intel's public
//! documents and the module's source define them.
//!
//! [`Tdx`] is the machine. The host calls the module on a processor, [`Tdx::on`]: one method for each SEAMCALL leaf, by its name ([`Seam::mem_page_aug`]), with typed operands; what
//! does not succeed is a [`SeamFail`]. [`Seam::vp_enter`] gives an [`InTd`], the vCPU in its TD: its accesses and its TDCALLs are methods of that, until one of them is a
//! [`TdExit`]. The host's own accesses are [`Seam::host_read`] and its like: memory knows for each line whose it is, and what was written through the wrong KeyID is
//! poison.
//!
//! No Linux is in it: who retries, who kicks vCPUs, and what KVM answers is elsewhere. What is simplified is in the files. Invariants (`TDX-INV-...`) are in
//! [`invariants`] and as assertions; rules can be switched off ([`mutants`]).
//!
//! Every leaf is a scheduling point. With [`TdxConfig::contention`] another task may run between the moment when a leaf has its locks and the moment when it
//! changes something: then it answers OPERAND_BUSY, as the real one does. Leaves that read or write pages have a second step anyhow, announced on the
//! pages' bytes and on the module.

mod accept;
mod access;
mod attr;
mod check;
mod config;
mod enter;
pub mod exit;
mod host;
pub mod invariants;
mod keys;
mod leaf;
mod lock;
mod machine;
mod measurement;
mod mem_add;
mod mem_range;
mod mem_rdwr;
mod mem_remove;
mod mem_sept;
mod mem_size;
mod memory;
mod migration;
mod mng;
mod mr;
pub mod mutants;
mod pamt;
mod pamt_pages;
mod params;
mod phymem;
mod seamcall;
mod sept;
mod shared;
mod status;
mod sys;
mod td;
mod tdcall;
mod tlb;
mod transitions;
mod types;
mod vp;
mod vp_leaves;

pub use accept::Tdcall;
pub use attr::PageAttributes;
pub use config::{Tdmr, TdxConfig};
pub use enter::{Entry, GuestStop, InTd};
pub use exit::{EeqType, TdExit, VmCall};
pub use keys::HkidState;
pub use leaf::Leaf;
pub use machine::{Injected, Seam, Tdx};
pub use measurement::{EXTEND_BYTES, Measurement};
pub use mem_sept::{ALLOW_EXISTING, SeptAdded};
pub use mem_size::Promoted;
pub use memory::{DirtyLine, LineMeta, LineOwner, Poison};
pub use pamt::{PageType, PamtEntry, PamtNode};
pub use params::{
    CONFIG_FLEXIBLE_PENDING_VE, CONFIG_GPAW, CONFIG_NO_RBP_MOD, EPTP_4_LEVELS, EPTP_5_LEVELS, TD_PARAMS_BYTES, TdParams,
};
pub use phymem::PageMetadata;
pub use seamcall::SeamRegisters;
pub use sept::{EntryDetails, STATES, SeptEntry, SeptState, StateRow};
pub use shared::{SharedEpt, SharedWalk};
pub use status::{OperandId, SeamFail, Seamcall, Status, StatusName};
pub use sys::SysState;
pub use td::{Epoch, Lifecycle, OpState, TdAttributes, TdInfo};
pub use tdcall::TdgVpInfo;
pub use tlb::TlbEntry;
pub use transitions::{Cell, HostOp, Tracking};
pub use types::{Gpaw, Hkid, Hpa, KeyNumber, Lp, PageSize, SeptInfo, level_number};
pub use vp::{VcpuState, VeInfo, VpInfo};
