//! The calls, still without bodies.
#![allow(missing_docs, clippy::todo, unused_variables)]
use super::{Advice, GupError, GupFlags, GupPage, HostLevel, Mm, MmapArgs, Prot, Signal};
use crate::{Cx, Errno, Hva};

impl Mm {
    pub fn check_offset(offset: u64) -> Result<(), Errno> {
        todo!()
    }
    pub fn mmap(&self, cx: &Cx<'_>, args: &MmapArgs<'_>) -> Result<Hva, Errno> {
        todo!()
    }
    pub fn munmap(&self, cx: &Cx<'_>, start: Hva, len: u64) -> Result<(), Errno> {
        todo!()
    }
    pub fn exit_mmap(&self, cx: &Cx<'_>) {
        todo!()
    }
    pub fn mprotect(&self, cx: &Cx<'_>, start: Hva, len: u64, prot: Prot) -> Result<(), Errno> {
        todo!()
    }
    pub fn madvise(&self, cx: &Cx<'_>, start: Hva, len: u64, advice: Advice) -> Result<(), Errno> {
        todo!()
    }
    pub fn mincore(&self, cx: &Cx<'_>, start: Hva, len: u64) -> Result<Vec<bool>, Errno> {
        todo!()
    }
    pub fn mlock(&self, cx: &Cx<'_>, start: Hva, len: u64) -> Result<(), Errno> {
        todo!()
    }
    pub fn read_u32(&self, cx: &Cx<'_>, hva: Hva) -> Result<u32, Signal> {
        todo!()
    }
    pub fn write_u32(&self, cx: &Cx<'_>, hva: Hva, value: u32) -> Result<(), Signal> {
        todo!()
    }
    pub fn read_u64(&self, cx: &Cx<'_>, hva: Hva) -> Result<u64, Signal> {
        todo!()
    }
    pub fn write_u64(&self, cx: &Cx<'_>, hva: Hva, value: u64) -> Result<(), Signal> {
        todo!()
    }
    pub fn get_user_page(&self, cx: &Cx<'_>, hva: Hva, flags: GupFlags) -> Result<GupPage, GupError> {
        todo!()
    }
    pub fn get_user_page_fast_only(&self, cx: &Cx<'_>, hva: Hva, write: bool) -> Option<GupPage> {
        todo!()
    }
    pub fn host_mapping_level(&self, cx: &Cx<'_>, hva: Hva) -> HostLevel {
        todo!()
    }
}
