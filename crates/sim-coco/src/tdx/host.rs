//! Accesses of the host and of devices, and instructions of the host for caches and TLBs. None is checked: what protects a TD is what they find and leave.

use super::machine::{Seam, Tdx};
use super::memory::{DirtyLine, Poison};
use super::pamt::PageType;
use super::types::Hkid;
use super::vp::VcpuState;
use sim_kernel::sched::Access;
use sim_kernel::{Cx, PAGE_SIZE, Pfn};

impl Seam<'_> {
    /// The host reads bytes of a page: of lines of a TD, a fixed value.
    ///
    /// # Errors
    /// A machine check, for a poisoned line.
    ///
    /// # Panics
    /// If the bytes are not all in the page, or nobody ever had the frame.
    #[track_caller]
    pub fn host_read(self, cx: &Cx<'_>, pfn: Pfn, offset: usize, bytes: &mut [u8]) -> Result<(), Poison> {
        self.tdx.point_bytes(cx, Access::Load, pfn, offset as u64, bytes.len());
        self.tdx.state.lock().memory.read(Hkid::HOST, pfn, offset, bytes)
    }

    /// The host writes bytes of a page, through its caches. Lines are the host's then, also those of a TD.
    ///
    /// # Errors
    /// As [`Seam::host_read`], for a part of a poisoned line.
    ///
    /// # Panics
    /// As [`Seam::host_read`].
    #[track_caller]
    pub fn host_write(self, cx: &Cx<'_>, pfn: Pfn, offset: usize, bytes: &[u8]) -> Result<(), Poison> {
        self.tdx.point_bytes(cx, Access::Rmw, pfn, offset as u64, bytes.len());
        let mut state = self.tdx.state.lock();
        let package = state.package(self.lp);
        self.tdx.wrote(cx, &state, pfn);
        state.memory.store(Hkid::HOST, package, pfn, offset, bytes)
    }

    /// The host writes past its caches, or a device does. Where the processor has that erratum, a part of a line of a TD is poisoned, and nobody hears of it.
    ///
    /// # Errors
    /// As [`Seam::host_write`]; lines before the poisoned one are written.
    ///
    /// # Panics
    /// As [`Seam::host_read`].
    #[track_caller]
    pub fn host_write_direct(self, cx: &Cx<'_>, pfn: Pfn, offset: usize, bytes: &[u8]) -> Result<(), Poison> {
        self.tdx.point_bytes(cx, Access::Rmw, pfn, offset as u64, bytes.len());
        let mut state = self.tdx.state.lock();
        self.tdx.wrote(cx, &state, pfn);
        state.memory.store_direct(Hkid::HOST, pfn, offset, bytes)
    }

    /// MOVDIR64B of zeroes over a page: what a host does before it uses a page that was a TD's.
    ///
    /// # Panics
    /// If nobody ever had the frame.
    #[track_caller]
    pub fn host_reset_page(self, cx: &Cx<'_>, pfn: Pfn) {
        let written = self.host_write_direct(cx, pfn, 0, &[0; PAGE_SIZE as usize]);
        written.expect("whole lines are never read first");
    }

    /// CLFLUSH of a page: what the host wrote is in memory.
    #[track_caller]
    pub fn clflush(self, cx: &Cx<'_>, pfn: Pfn) {
        self.tdx.point_pages(cx, pfn, 1);
        let mut state = self.tdx.state.lock();
        self.tdx.wrote(cx, &state, pfn);
        state.memory.write_back_page(pfn, Hkid::HOST);
    }

    /// INVEPT of all contexts: this processor forgets all translations.
    ///
    /// # Panics
    /// If a vCPU is in its TD on this processor, which then executes the guest's instructions: an access is never between its translation and its bytes
    /// meanwhile.
    #[track_caller]
    pub fn invept_global(self, cx: &Cx<'_>) {
        self.tdx.point(cx);
        let mut state = self.tdx.state.lock();
        let mut here = state.vps.values().filter(|vp| vp.assoc == Some(self.lp));
        assert!(here.all(|vp| vp.state != VcpuState::Active), "INVEPT on {:?}, which is in a TD", self.lp);
        state.lp_mut(self.lp).tlb.flush_all();
    }
}

impl Tdx {
    /// The host is about to write a frame past [`Seam::host_write`], as a part of a step. Where caches matter, that leaves lines in one until [`Seam::clflush`]; and of a frame that no TD has any more, all lines are the host's from then on, and
    /// zero if they were a TD's, as the host reads those. Frames of TDs stay as they are.
    pub fn host_uses(&self, pfn: Pfn) {
        let mut state = self.state.lock();
        let is_free = matches!(state.pamt.of_frame(pfn).1.page_type, PageType::Nda | PageType::Rsvd);
        if is_free {
            state.memory.take_back(pfn);
        }
        state.memory.note_host_write(pfn);
    }

    /// A cache evicts a line, because it does: memory gets it, under the key that its KeyID has now. `false` if it was in none.
    #[track_caller]
    pub fn evict(&self, cx: &Cx<'_>, line: DirtyLine) -> bool {
        self.point_bytes(cx, Access::Rmw, line.0, u64::from(line.1) * 64, 64);
        let mut state = self.state.lock();
        self.wrote(cx, &state, line.0);
        state.memory.evict(line)
    }
}
