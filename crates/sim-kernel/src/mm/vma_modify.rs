//! Changing areas (`__split_vma`, `vma_modify`, `vma_merge` in `mm/vma.c`): cutting with its side effects on huge pages, the
//! reverse map and file references, and merging back.

use super::i_mmap::FileMapping;
use super::mm::Mm;
use super::vma::{Vma, VmaTree};
use crate::{Cx, Hva, HvaRange, PAGE_SIZE};
use std::sync::Weak;

impl Mm {
    /// What the reverse map says about an area, if it maps a file that keeps one.
    fn file_mapping(&self, vma: &Vma) -> Option<FileMapping> {
        let pgoff = vma.backing.as_ref()?.pgoff;
        Some(FileMapping {
            mm: Weak::clone(&self.me),
            start: vma.range.start,
            pgoff,
            pages: vma.range.len() / PAGE_SIZE,
        })
    }

    /// Replaces the reverse map's entries of a file at the starts `old` by those of the areas `new`, in one step.
    fn relink(&self, cx: &Cx<'_>, old: &[Hva], new: &[&Vma], file_of: &Vma) {
        let Some(backing) = &file_of.backing else { return };
        if let Some(i_mmap) = backing.file.operations().i_mmap() {
            i_mmap.replace(cx, &self.me, old, new.iter().filter_map(|vma| self.file_mapping(vma)));
        }
    }

    /// `vma_link_file`.
    pub(super) fn link(&self, cx: &Cx<'_>, vma: &Vma) {
        self.relink(cx, &[], &[vma], vma);
    }

    /// `unlink_file_vma`.
    pub(super) fn unlink(&self, cx: &Cx<'_>, vma: &Vma) {
        self.relink(cx, &[vma.range.start], &[], vma);
    }

    /// Cuts the area that contains the address in its inside.
    pub(super) fn split_vma(&self, cx: &Cx<'_>, tree: &mut VmaTree, at: Hva) {
        let Some(vma) = tree.find(at) else { return };
        let start = vma.range.start;
        if start == at {
            return;
        }
        self.split_huge_pmd_if_needed(cx, vma, at);
        let upper = tree.split(at).expect("the area contains the address").clone();
        if let Some(backing) = &upper.backing {
            backing.file.get(cx);
        }
        let lower = tree.find(start).expect("the lower part stays");
        self.relink(cx, &[start], &[lower, &upper], lower);
    }

    /// Joins the areas that meet at the address, if they are equal.
    fn merge_vma(&self, cx: &Cx<'_>, tree: &mut VmaTree, at: Hva) {
        let Some(upper) = tree.merge(at) else { return };
        let whole = tree.find(at).expect("the joined area");
        self.relink(cx, &[whole.range.start, at], &[whole], whole);
        if let Some(backing) = &upper.backing {
            backing.file.put(cx);
        }
    }

    /// `vma_modify_flags`: changes a part of one area. Cuts at the start, then at the end, and joins what became equal, downwards first.
    pub(super) fn modify_vma(&self, cx: &Cx<'_>, tree: &mut VmaTree, part: HvaRange, change: impl Fn(&mut Vma)) {
        self.split_vma(cx, tree, part.start);
        self.split_vma(cx, tree, part.end);
        change(tree.get_mut(part.start));
        // An area without an `anon_vma` may fit either neighbour, but not both; the lower one has it then.
        self.merge_vma(cx, tree, part.start);
        self.merge_vma(cx, tree, part.end);
    }
}
