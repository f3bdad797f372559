//! Who maps a file: the reverse map from file pages to page-table entries (`i_mmap`, `mm/rmap.c`).

/// The mappings of one address space.
#[derive(Debug, Default)]
pub struct IMmap {}
