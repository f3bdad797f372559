//! The GHCB page (`struct ghcb`): a save area of which a bitmap says what is valid, a buffer for lists, version and usage.
//!
//! KVM copies the fields before it looks at any ([`Snapshot`]); the guest may go on writing them. What it then finds wrong it says as a *malformed input* with a
//! reason ([`Malformed`]), in an order that guests can see.

use super::ap::ApRequest;
use sim_kernel::PAGE_SIZE;
use sim_mmu::Gpa;
use std::ops::Range;

/// Offsets of fields.
pub mod offset {
    /// RAX of the request.
    pub const RAX: u64 = 0x1f8;
    /// RCX of the request.
    pub const RCX: u64 = 0x308;
    /// RDX of the request.
    pub const RDX: u64 = 0x310;
    /// RBX of the request.
    pub const RBX: u64 = 0x318;
    /// Which event ([`exit`](super::exit)).
    pub const SW_EXITCODE: u64 = 0x390;
    /// Its first argument; in the response, what the guest is to do.
    pub const SW_EXITINFO1: u64 = 0x398;
    /// Its second argument; in the response, the event's answer.
    pub const SW_EXITINFO2: u64 = 0x3a0;
    /// Guest-physical address of the scratch area.
    pub const SW_SCRATCH: u64 = 0x3a8;
    /// Two quadwords: a bit for each quadword of the save area.
    pub const VALID_BITMAP: u64 = 0x3f0;
    /// The shared buffer.
    pub const SHARED_BUFFER: u64 = 0x800;
    /// Its end.
    pub const SHARED_BUFFER_END: u64 = 0xff0;
    /// `protocol_version`, two bytes.
    pub const PROTOCOL_VERSION: u64 = 0xffa;
    /// `ghcb_usage`, four bytes.
    pub const USAGE: u64 = 0xffc;
}

/// Bytes of the shared buffer.
pub const SHARED_BUFFER_BYTES: u64 = offset::SHARED_BUFFER_END - offset::SHARED_BUFFER;

/// Events (`SVM_VMGEXIT_*`).
pub mod exit {
    /// Page-state change.
    pub const PSC: u64 = 0x8000_0010;
    /// Message to the firmware.
    pub const GUEST_REQUEST: u64 = 0x8000_0011;
    /// The same, with room for certificates.
    pub const EXT_GUEST_REQUEST: u64 = 0x8000_0012;
    /// Creation and destruction of vCPUs.
    pub const AP_CREATION: u64 = 0x8000_0013;
    /// Features of the hypervisor.
    pub const HV_FEATURES: u64 = 0x8000_fffd;
    /// The guest ends.
    pub const TERM_REQUEST: u64 = 0x8000_fffe;
    /// The guest got a `#VC` for which there is no event.
    pub const UNSUPPORTED_EVENT: u64 = 0x8000_ffff;
}

/// Low half of SW_EXITINFO1 in a response (`GHCB_HV_RESP_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Response {
    /// The event was handled.
    NoAction,
    /// The guest is to raise the exception that SW_EXITINFO2 describes.
    IssueException,
    /// The request was not understood.
    Malformed(Malformed),
}

impl Response {
    /// SW_EXITINFO1, and SW_EXITINFO2 where it is the response's and not the event's.
    pub const fn to_fields(self) -> (u64, Option<u64>) {
        match self {
            Response::NoAction => (0, None),
            Response::IssueException => (1, None),
            Response::Malformed(reason) => (2, Some(reason as u64)),
        }
    }
}

/// Why a request is refused (`GHCB_ERR_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u64)]
pub enum Malformed {
    /// The GHCB is not the one that was registered.
    #[error("NOT_REGISTERED")]
    NotRegistered = 1,
    /// `ghcb_usage` is not 0.
    #[error("INVALID_USAGE")]
    InvalidUsage = 2,
    /// The scratch area is not where it may be.
    #[error("INVALID_SCRATCH_AREA")]
    InvalidScratch = 3,
    /// A field that the event needs is not marked valid.
    #[error("MISSING_INPUT")]
    MissingInput = 4,
    /// A field has a value that it may not have.
    #[error("INVALID_INPUT")]
    InvalidInput = 5,
    /// There is no such event, or not for this guest.
    #[error("INVALID_EVENT")]
    InvalidEvent = 6,
}

/// The bitmap of valid fields.
///
/// ```
/// use gmem::kvm::sev::protocol::ghcb::{ValidBitmap, offset};
/// let valid = ValidBitmap::of(&[offset::SW_EXITCODE]);
/// assert!(valid.contains(offset::SW_EXITCODE) && !valid.contains(offset::RAX));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ValidBitmap(pub [u64; 2]);

impl ValidBitmap {
    /// These fields.
    pub fn of(offsets: &[u64]) -> ValidBitmap {
        let mut valid = ValidBitmap::default();
        offsets.iter().for_each(|offset| valid.set(*offset));
        valid
    }

    /// Marks a field.
    ///
    /// # Panics
    /// If there is no bit for this offset.
    pub fn set(&mut self, offset: u64) {
        let (word, bit) = Self::bit(offset);
        self.0[word] |= bit;
    }

    /// Whether a field is marked.
    ///
    /// # Panics
    /// As [`ValidBitmap::set`].
    pub fn contains(&self, offset: u64) -> bool {
        let (word, bit) = Self::bit(offset);
        self.0[word] & bit != 0
    }

    fn bit(offset: u64) -> (usize, u64) {
        assert!(offset < offset::VALID_BITMAP, "no field at {offset:#x} has a bit");
        ((offset / 8 / 64) as usize, 1 << (offset / 8 % 64))
    }
}

/// What KVM copied of the page before it looked at any of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Where the page is.
    pub gpa: Gpa,
    /// Which fields the guest filled in.
    pub valid: ValidBitmap,
    /// SW_EXITCODE.
    pub exit_code: u64,
    /// SW_EXITINFO1.
    pub exit_info_1: u64,
    /// SW_EXITINFO2.
    pub exit_info_2: u64,
    /// SW_SCRATCH.
    pub scratch: u64,
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// `ghcb_usage`.
    pub usage: u32,
}

/// An event that passed the checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// [`exit::PSC`].
    Psc,
    /// [`exit::GUEST_REQUEST`].
    GuestRequest,
    /// [`exit::EXT_GUEST_REQUEST`].
    ExtGuestRequest,
    /// [`exit::AP_CREATION`].
    ApCreation,
    /// [`exit::HV_FEATURES`].
    HvFeatures,
    /// [`exit::TERM_REQUEST`].
    TermRequest,
    /// [`exit::UNSUPPORTED_EVENT`].
    UnsupportedEvent,
}

impl Snapshot {
    /// `sev_handle_vmgexit`, as far as it is the same for all events: registration, usage, whether an event of SNP guests comes from one, required
    /// fields, the event itself.
    ///
    /// # Errors
    /// The first of these that is wrong.
    pub fn check(&self, registered: Option<Gpa>, is_snp: bool) -> Result<Event, Malformed> {
        if is_snp && registered != Some(self.gpa) {
            return Err(Malformed::NotRegistered);
        }
        if self.usage != 0 {
            return Err(Malformed::InvalidUsage);
        }
        let event = Event::of(self.exit_code);
        if event.is_some_and(Event::is_snp_only) && !is_snp {
            return Err(Malformed::InvalidEvent);
        }
        if !self.has_required_fields() {
            return Err(Malformed::MissingInput);
        }
        event.ok_or(Malformed::InvalidEvent)
    }

    /// `sev_es_are_required_ghcb_fields_valid`.
    fn has_required_fields(&self) -> bool {
        let has = |offset| self.valid.contains(offset);
        [offset::SW_EXITCODE, offset::SW_EXITINFO1, offset::SW_EXITINFO2].into_iter().all(has)
            && match self.exit_code {
                exit::PSC => has(offset::SW_SCRATCH),
                exit::AP_CREATION => has(offset::RAX) || self.exit_info_1 as u32 == ApRequest::DESTROY,
                _ => true,
            }
    }

    /// `setup_vmgexit_scratch` of version 2: the scratch area, from where the guest put it to the end of the shared buffer.
    ///
    /// # Errors
    /// [`Malformed::InvalidScratch`] if it is not in the GHCB's shared buffer, or has less than `min_len` bytes.
    pub fn scratch_area(&self, min_len: u64) -> Result<Range<Gpa>, Malformed> {
        let buffer = self.gpa.0 + offset::SHARED_BUFFER..self.gpa.0 + offset::SHARED_BUFFER_END;
        let fits = buffer.contains(&self.scratch) && buffer.end - self.scratch >= min_len;
        if fits { Ok(Gpa(self.scratch)..Gpa(buffer.end)) } else { Err(Malformed::InvalidScratch) }
    }

    /// Where request and response of a message to the firmware are.
    ///
    /// # Errors
    /// [`Malformed::InvalidInput`] unless they are two pages.
    pub fn message_pages(&self) -> Result<(Gpa, Gpa), Malformed> {
        let (request, response) = (self.exit_info_1, self.exit_info_2);
        let aligned = request.is_multiple_of(PAGE_SIZE) && response.is_multiple_of(PAGE_SIZE);
        if aligned && request != response { Ok((Gpa(request), Gpa(response))) } else { Err(Malformed::InvalidInput) }
    }
}

impl Event {
    /// The event with this code.
    pub const fn of(exit_code: u64) -> Option<Event> {
        Some(match exit_code {
            exit::PSC => Event::Psc,
            exit::GUEST_REQUEST => Event::GuestRequest,
            exit::EXT_GUEST_REQUEST => Event::ExtGuestRequest,
            exit::AP_CREATION => Event::ApCreation,
            exit::HV_FEATURES => Event::HvFeatures,
            exit::TERM_REQUEST => Event::TermRequest,
            exit::UNSUPPORTED_EVENT => Event::UnsupportedEvent,
            _ => return None,
        })
    }

    /// `is_snp_only_vmgexit`.
    const fn is_snp_only(self) -> bool {
        matches!(self, Event::Psc | Event::GuestRequest | Event::ExtGuestRequest | Event::ApCreation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GHCB: Gpa = Gpa(0x7000);

    fn request(exit_code: u64) -> Snapshot {
        let valid = [offset::SW_EXITCODE, offset::SW_EXITINFO1, offset::SW_EXITINFO2, offset::SW_SCRATCH, offset::RAX];
        let scratch = GHCB.0 + offset::SHARED_BUFFER;
        Snapshot { gpa: GHCB, valid: ValidBitmap::of(&valid), exit_code, scratch, ..Snapshot::default() }
    }

    #[test]
    fn sn_163_registration_usage_and_event_are_checked_in_this_order() {
        let snapshot = request(exit::PSC);
        assert_eq!(snapshot.check(Some(GHCB), true), Ok(Event::Psc));
        for registered in [None, Some(GHCB + 0x1000)] {
            assert_eq!(Snapshot { usage: 1, ..snapshot }.check(registered, true), Err(Malformed::NotRegistered));
        }
        let used = Snapshot { usage: 1, exit_code: 0x8000_0099, ..snapshot };
        assert_eq!(used.check(Some(GHCB), true), Err(Malformed::InvalidUsage));
        assert_eq!(request(0x8000_0099).check(Some(GHCB), true), Err(Malformed::InvalidEvent));
        // Fields come before the event.
        let empty = Snapshot { valid: ValidBitmap::default(), ..request(0x8000_0099) };
        assert_eq!(empty.check(Some(GHCB), true), Err(Malformed::MissingInput));
    }

    #[test]
    fn sn_163_an_event_of_snp_guests_is_none_to_others() {
        for code in [exit::PSC, exit::GUEST_REQUEST, exit::EXT_GUEST_REQUEST, exit::AP_CREATION] {
            let empty = Snapshot { valid: ValidBitmap::default(), ..request(code) };
            assert_eq!(empty.check(None, false), Err(Malformed::InvalidEvent), "{code:#x}");
        }
        assert_eq!(request(exit::HV_FEATURES).check(None, false), Ok(Event::HvFeatures));
    }

    #[test]
    fn sn_163_each_event_needs_its_fields() {
        let without = |code: u64, field: u64, info_1: u64| {
            let fields =
                [offset::SW_EXITCODE, offset::SW_EXITINFO1, offset::SW_EXITINFO2, offset::SW_SCRATCH, offset::RAX];
            let left: Vec<u64> = fields.into_iter().filter(|f| *f != field).collect();
            Snapshot { valid: ValidBitmap::of(&left), exit_info_1: info_1, ..request(code) }.check(Some(GHCB), true)
        };
        let missing = Err(Malformed::MissingInput);
        for field in [offset::SW_EXITCODE, offset::SW_EXITINFO1, offset::SW_EXITINFO2] {
            assert_eq!(without(exit::HV_FEATURES, field, 0), missing);
        }
        assert_eq!(without(exit::PSC, offset::SW_SCRATCH, 0), missing);
        assert_eq!(without(exit::AP_CREATION, offset::RAX, u64::from(ApRequest::CREATE)), missing);
        assert_eq!(without(exit::AP_CREATION, offset::RAX, u64::from(ApRequest::DESTROY)), Ok(Event::ApCreation));
        assert_eq!(without(exit::PSC, offset::RAX, 0), Ok(Event::Psc));
    }

    #[test]
    fn sn_159_the_scratch_area_is_in_the_shared_buffer_and_holds_a_header() {
        let at = |scratch: u64| Snapshot { scratch, ..request(exit::PSC) }.scratch_area(8);
        let end = GHCB.0 + offset::SHARED_BUFFER_END;
        assert_eq!(at(GHCB.0 + 0x800), Ok(Gpa(GHCB.0 + 0x800)..Gpa(end)));
        assert_eq!(at(end - 8), Ok(Gpa(end - 8)..Gpa(end)));
        let outside = [0, GHCB.0, GHCB.0 + 0x7ff, end - 7, end, GHCB.0 + 0x1800, 0x10_0000, u64::MAX - 3];
        for scratch in outside {
            assert_eq!(at(scratch), Err(Malformed::InvalidScratch), "{scratch:#x}");
        }
        assert_eq!(SHARED_BUFFER_BYTES, 2032);
    }

    #[test]
    fn responses_are_two_fields() {
        assert_eq!(Response::NoAction.to_fields(), (0, None));
        assert_eq!(Response::IssueException.to_fields(), (1, None));
        assert_eq!(Response::Malformed(Malformed::InvalidEvent).to_fields(), (2, Some(6)));
    }

    #[test]
    fn sn_164_messages_have_two_pages() {
        let pages = |request: u64, response: u64| {
            Snapshot { exit_info_1: request, exit_info_2: response, ..Snapshot::default() }.message_pages()
        };
        assert_eq!(pages(0x1000, 0x2000), Ok((Gpa(0x1000), Gpa(0x2000))));
        for (a, b) in [(0x1000, 0x1000), (0x1001, 0x2000), (0x1000, 0x2008)] {
            assert_eq!(pages(a, b), Err(Malformed::InvalidInput));
        }
    }
}
