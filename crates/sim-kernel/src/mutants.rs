//! The rules of this crate that can be switched off, by the ids of the specification of racing pairs. What each takes away and what
//! goes wrong then is told by `gmem::mutants`.

use crate::Mutant;

/// Whoever finds a page locks it and tests that it is still cached ([`AddressSpace::find_lock`](crate::fs::AddressSpace::find_lock)).
pub const RC_10: Mutant = Mutant::new(0, "RC-10");
/// Only the last reference releases a file ([`File::put_sync`](crate::fs::File::put_sync)).
pub const RC_18: Mutant = Mutant::new(1, "RC-18");
/// Whoever loses the race to insert a page takes the winner's.
pub const RC_37: Mutant = Mutant::new(2, "RC-37");
/// Truncation takes a page out of page tables under the folio lock.
pub const RC_38: Mutant = Mutant::new(3, "RC-38");
/// A fault looks at the entry again under the page-table lock.
pub const RC_39: Mutant = Mutant::new(4, "RC-39");
/// An area holds a reference to its file.
pub const RC_40: Mutant = Mutant::new(5, "RC-40");
/// Whoever gets a user's page holds a reference to it.
pub const RC_41: Mutant = Mutant::new(6, "RC-41");
/// A page enters the cache only where none is.
pub const RC_46: Mutant = Mutant::new(7, "RC-46");
/// A reader of the page cache looks at the entry again once it has its reference.
pub const RC_57: Mutant = Mutant::new(8, "RC-57");
/// The last reference that the kernel itself puts is released later, under no lock.
pub const RC_59: Mutant = Mutant::new(9, "RC-59");
