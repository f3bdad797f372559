//! Accesses to memory on a machine with SNP: announced, checked, and through the right key, in one step.
//! Natively they are two: an access that was checked may reach the page after it was taken away.

use super::check::HostSnpAccess;
use super::fail::{GuestFault, HostFault};
use super::guest::{GuestCpu, SnpAccess};
use super::machine::Snp;
use super::memory::KeyPath;
use super::types::{Asid, head_of};
use crate::AccessKind;
use sim_kernel::sched::Access;
use sim_kernel::{Cx, PAGES_PER_PMD, Pfn};
use sim_mmu::{Gpa, Level};

/// What an unprivileged read of hidden ciphertext gives.
const HIDDEN: u8 = 0xff;

impl Snp {
    /// The scheduling point of an access to bytes of a page: whole blocks of the cipher, or the region that a check of a large mapping looks at.
    #[track_caller]
    fn point_bytes(&self, cx: &Cx<'_>, kind: AccessKind, pfn: Pfn, level: Level, offset: u64, bytes: usize) {
        let is_write = kind == AccessKind::Write;
        let access = if is_write { Access::Rmw } else { Access::Load };
        if is_write && level > Level::L4K {
            return self.point(cx, access, head_of(pfn), PAGES_PER_PMD);
        }
        let first = offset / 16 * 2;
        let end = (offset + bytes as u64).div_ceil(16) * 2;
        self.point_words(cx, access, pfn, first, end - first);
    }

    /// A guest reads (or fetches) bytes, which are in one page.
    ///
    /// # Errors
    /// As [`Snp::check_guest`].
    ///
    /// # Panics
    /// If the bytes are in more than one page: each has its own check.
    #[track_caller]
    pub fn guest_read(
        &self,
        cx: &Cx<'_>,
        cpu: &GuestCpu,
        access: &SnpAccess,
        bytes: &mut [u8],
    ) -> Result<(), GuestFault> {
        assert!(access.kind != AccessKind::Write, "a read that writes");
        let offset = access.gpa.offset();
        self.point_bytes(cx, access.kind, access.pfn, Level::L4K, offset, bytes.len());
        let path = self.check_guest(cpu, access)?;
        self.memory.read(path, access.pfn, offset as usize, bytes);
        Ok(())
    }

    /// A guest writes bytes, which are in one page.
    ///
    /// # Errors
    /// As [`Snp::check_guest`]; then nothing is written.
    ///
    /// # Panics
    /// As [`Snp::guest_read`].
    #[track_caller]
    pub fn guest_write(&self, cx: &Cx<'_>, cpu: &GuestCpu, access: &SnpAccess, bytes: &[u8]) -> Result<(), GuestFault> {
        assert!(access.kind == AccessKind::Write, "a write that reads");
        let offset = access.gpa.offset();
        // Only a check of the hypervisor's ownership looks at the whole region.
        let level = if access.is_private(cpu) { Level::L4K } else { access.level };
        self.point_bytes(cx, access.kind, access.pfn, level, offset, bytes.len());
        let path = self.check_guest(cpu, access)?;
        self.memory.write(path, access.pfn, offset as usize, bytes);
        Ok(())
    }

    /// A guest replaces bytes, which are in one page, by a function of them (a locked instruction).
    ///
    /// # Errors
    /// As [`Snp::check_guest`]; then nothing is written.
    ///
    /// # Panics
    /// As [`Snp::guest_read`].
    #[track_caller]
    pub fn guest_modify(
        &self,
        cx: &Cx<'_>,
        cpu: &GuestCpu,
        access: &SnpAccess,
        bytes: &mut [u8],
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), GuestFault> {
        assert!(access.kind == AccessKind::Write, "a write that reads");
        let offset = access.gpa.offset();
        let level = if access.is_private(cpu) { Level::L4K } else { access.level };
        self.point_bytes(cx, access.kind, access.pfn, level, offset, bytes.len());
        let path = self.check_guest(cpu, access)?;
        self.memory.read(path, access.pfn, offset as usize, bytes);
        change(bytes);
        self.memory.write(path, access.pfn, offset as usize, bytes);
        Ok(())
    }

    /// The host reads bytes of a page. It never faults.
    ///
    /// # Panics
    /// If the bytes are not all in the page.
    #[track_caller]
    pub fn host_read(&self, cx: &Cx<'_>, pfn: Pfn, offset: usize, bytes: &mut [u8]) {
        self.point_bytes(cx, AccessKind::Read, pfn, Level::L4K, offset as u64, bytes.len());
        let page = self.rmp.page(pfn);
        if self.config.ciphertext_hiding && page.assigned && page.asid != Asid::HOST {
            bytes.fill(HIDDEN);
        } else {
            self.memory.read(KeyPath::Raw, pfn, offset, bytes);
        }
    }

    /// The host writes bytes of a page.
    ///
    /// # Errors
    /// As [`Snp::check_host`]; then nothing is written (SNP-INV-002).
    ///
    /// # Panics
    /// If the bytes are not all in the page.
    #[track_caller]
    pub fn host_write(
        &self,
        cx: &Cx<'_>,
        access: &HostSnpAccess,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), HostFault> {
        self.point_bytes(cx, access.kind, access.pfn, access.level, offset as u64, bytes.len());
        self.check_host(access)?;
        self.memory.write(KeyPath::Raw, access.pfn, offset, bytes);
        Ok(())
    }

    /// A device reads bytes of a page: what lies in memory.
    #[track_caller]
    pub fn dma_read(&self, cx: &Cx<'_>, pfn: Pfn, offset: usize, bytes: &mut [u8]) {
        self.point_bytes(cx, AccessKind::Read, pfn, Level::L4K, offset as u64, bytes.len());
        self.memory.read(KeyPath::Raw, pfn, offset, bytes);
    }

    /// A device writes bytes of a page; `false` if the write was dropped.
    #[track_caller]
    pub fn dma_write(&self, cx: &Cx<'_>, pfn: Pfn, offset: usize, bytes: &[u8]) -> bool {
        self.point_bytes(cx, AccessKind::Write, pfn, Level::L4K, offset as u64, bytes.len());
        let passes = self.check_dma(pfn, AccessKind::Write);
        if passes {
            self.memory.write(KeyPath::Raw, pfn, offset, bytes);
        }
        passes
    }

    /// As [`Snp::guest_read`], eight bytes of the guest's private memory through a nested leaf of 4 KiB.
    ///
    /// # Errors
    /// As [`Snp::check_guest`].
    #[track_caller]
    pub fn guest_read_u64(&self, cx: &Cx<'_>, cpu: &GuestCpu, gpa: Gpa, pfn: Pfn) -> Result<u64, GuestFault> {
        let mut bytes = [0; 8];
        self.guest_read(cx, cpu, &SnpAccess::private(AccessKind::Read, gpa, pfn), &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// As [`Snp::guest_write`], eight bytes of the guest's private memory through a nested leaf of 4 KiB.
    ///
    /// # Errors
    /// As [`Snp::check_guest`].
    #[track_caller]
    pub fn guest_write_u64(
        &self,
        cx: &Cx<'_>,
        cpu: &GuestCpu,
        gpa: Gpa,
        pfn: Pfn,
        value: u64,
    ) -> Result<(), GuestFault> {
        let access = SnpAccess::private(AccessKind::Write, gpa, pfn);
        self.guest_write(cx, cpu, &access, &value.to_le_bytes())
    }
}
