//! Page states: what the fields of an RMP entry mean. They are derived and never stored.

use super::entry::RmpEntry;
use super::types::Asid;

/// The state of a page, of its head where it is 2 MiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PageState {
    /// The host's, and shared memory of guests. Also every page that the RMP does not cover (*Default*).
    Hypervisor,
    /// The host's for ever.
    HvFixed,
    /// Given back by the firmware; RMPUPDATE may take it.
    Reclaim,
    /// The firmware's.
    Firmware,
    /// The firmware's, with a guest context in it.
    Context,
    /// The firmware's, with what it needs to swap pages in again.
    Metadata,
    /// A guest's, for the firmware to put contents into.
    PreGuest,
    /// A guest's that it has not accepted.
    GuestInvalid,
    /// A guest's that it, or the firmware for it, has accepted.
    GuestValid,
    /// As before, closed so that the firmware can move it.
    PreSwap,
}

impl PageState {
    /// The state that an entry is in; `None` if its fields contradict each other, which no instruction or command leaves behind.
    ///
    /// A closed page of a guest that it has not accepted is [`PageState::PreGuest`] with either VMSA flag: RMPUPDATE keeps the flag of a
    /// rescinded VMSA that it closes.
    pub fn of(entry: &RmpEntry) -> Option<PageState> {
        let RmpEntry { assigned, immutable, gpa, asid, validated, vmsa, .. } = *entry;
        let is_guest = asid != Asid::HOST;
        match (assigned, is_guest, immutable) {
            (false, _, _) if is_guest || validated || vmsa || gpa.0 != 0 => None,
            (false, _, false) => Some(PageState::Hypervisor),
            (false, _, true) => Some(PageState::HvFixed),
            (true, false, _) if validated => None,
            (true, false, false) => (!vmsa).then_some(PageState::Reclaim),
            (true, false, true) => match (vmsa, gpa.0) {
                (false, 0) => Some(PageState::Firmware),
                (false, _) => Some(PageState::Metadata),
                (true, 0) => Some(PageState::Context),
                (true, _) => None,
            },
            (true, true, true) if validated => Some(PageState::PreSwap),
            (true, true, true) => Some(PageState::PreGuest),
            (true, true, false) if validated => Some(PageState::GuestValid),
            (true, true, false) => Some(PageState::GuestInvalid),
        }
    }
}
