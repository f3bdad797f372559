//! SNP_GUEST_REQUEST: a guest and the firmware talk through the host, which sees nothing of it and can repeat nothing.
//!
//! A message has a header of 96 bytes and at most 4000 bytes behind it, under AES-256-GCM with a key of the sender's VMPL. The sequence number is the
//! nonce: a request carries the number after the last one, the response the number after the request's. Answered are requests for an attestation
//! report, which is not signed here.

use super::super::machine::Snp;
use super::super::memory::{KeyPath, PageBytes};
use super::super::types::{Spa, Vmpl};
use super::NamedPage;
use super::context::Gctx;
use super::status::{Command, FwStatus, PspFail};
use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use sim_kernel::Cx;

/// Type of a request for an attestation report.
pub const MSG_REPORT_REQ: u8 = 5;
/// Type of the answer.
pub const MSG_REPORT_RSP: u8 = 6;
/// Bytes of an attestation report.
pub const REPORT_BYTES: usize = 0x4a0;
/// Bytes of a header.
const HEADER_BYTES: usize = 0x60;
/// Where the authenticated part of the header begins.
const AAD_OFFSET: usize = 0x30;
/// Most bytes behind a header.
const PAYLOAD_MAX: usize = 4000;
/// Number of AES-256-GCM.
const ALGO_AES_256_GCM: u8 = 1;
/// Version of the header.
const HEADER_VERSION: u8 = 1;
/// Bytes of a report's answer in front of the report: status and size.
const REPORT_RSP_HEADER: usize = 0x20;
/// Bytes of a request for a report: 64 of data, VMPL, padding.
const REPORT_REQ_BYTES: usize = 0x60;

/// What a message says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MessageHeader {
    /// Sequence number.
    pub seqno: u64,
    /// Type.
    pub msg_type: u8,
    /// Version of the type.
    pub msg_version: u8,
    /// Key, by VMPL.
    pub vmpck: u8,
}

/// A message that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessageError {
    /// A field of the header has no meaning, or more bytes are said than there can be.
    #[error("the header is malformed")]
    Malformed,
    /// The tag does not fit: another key, another number, or other bytes.
    #[error("the message is not authentic")]
    NotAuthentic,
}

fn nonce(seqno: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&seqno.to_le_bytes());
    nonce
}

/// A page with an encrypted message.
///
/// # Panics
/// With more than 4000 bytes.
pub fn seal(key: &[u8; 32], header: &MessageHeader, payload: &[u8]) -> Box<PageBytes> {
    assert!(payload.len() <= PAYLOAD_MAX, "a message of {} bytes", payload.len());
    let mut page: Box<PageBytes> = Box::new([0; 4096]);
    page[0x20..0x28].copy_from_slice(&header.seqno.to_le_bytes());
    page[0x30] = ALGO_AES_256_GCM;
    page[0x31] = HEADER_VERSION;
    page[0x32..0x34].copy_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
    page[0x34] = header.msg_type;
    page[0x35] = header.msg_version;
    page[0x36..0x38].copy_from_slice(&(payload.len() as u16).to_le_bytes());
    page[0x3c] = header.vmpck;
    page[HEADER_BYTES..][..payload.len()].copy_from_slice(payload);
    let (head, body) = page.split_at_mut(HEADER_BYTES);
    let body = &mut body[..payload.len()];
    let cipher = Aes256Gcm::new(key.into());
    let tag = cipher
        .encrypt_inout_detached(&Nonce::from(nonce(header.seqno)), &head[AAD_OFFSET..], body.into())
        .expect("a page is short enough");
    head[..16].copy_from_slice(&tag);
    page
}

/// The header of a page with a message, before anything is known to be authentic.
///
/// # Errors
/// If a field has no meaning.
fn header_of(page: &PageBytes) -> Result<(MessageHeader, usize), MessageError> {
    let size = usize::from(u16::from_le_bytes([page[0x36], page[0x37]]));
    let is_known = page[0x30] == ALGO_AES_256_GCM
        && page[0x31] == HEADER_VERSION
        && page[0x32..0x34] == (HEADER_BYTES as u16).to_le_bytes()
        && size <= PAYLOAD_MAX;
    let header = MessageHeader {
        seqno: u64::from_le_bytes(*page[0x20..].first_chunk().expect("a page is longer")),
        msg_type: page[0x34],
        msg_version: page[0x35],
        vmpck: page[0x3c],
    };
    if is_known { Ok((header, size)) } else { Err(MessageError::Malformed) }
}

/// Header and contents of a page with a message.
///
/// # Errors
/// If it is none, or not under this key.
pub fn open(key: &[u8; 32], page: &PageBytes) -> Result<(MessageHeader, Vec<u8>), MessageError> {
    let (header, size) = header_of(page)?;
    let mut body = page[HEADER_BYTES..][..size].to_vec();
    let tag: [u8; 16] = *page.first_chunk().expect("a page is longer");
    Aes256Gcm::new(key.into())
        .decrypt_inout_detached(
            &Nonce::from(nonce(header.seqno)),
            &page[AAD_OFFSET..HEADER_BYTES],
            body.as_mut_slice().into(),
            &Tag::from(tag),
        )
        .map_err(|_| MessageError::NotAuthentic)?;
    Ok((header, body))
}

impl Snp {
    /// SNP_GUEST_REQUEST: opens the message in the request's page, answers it into the response's, which is the firmware's and stays so.
    ///
    /// # Errors
    /// In the order of the checks: `InvalidAddress`, `InvalidGuest`, `InvalidGuestState`, `InvalidPageSize` and `InvalidPageState` of the response's page,
    /// `InvalidParam` for a header or a type that is not known, `AeadOflow` when the numbers are used up, `BadMeasurement` if the message is not the
    /// next one or not authentic. Then no number advances (SNP-INV-039).
    #[track_caller]
    pub fn snp_guest_request(&self, cx: &Cx<'_>, gctx: Spa, request: Spa, response: Spa) -> Result<(), PspFail> {
        let req = NamedPage::small(request);
        let resp = NamedPage::small(response);
        if req == resp {
            return Err(FwStatus::InvalidAddress.into());
        }
        self.command(cx, Command::GuestRequest, &[req, resp], |psp| {
            self.check_gctx(gctx)?;
            self.check_address(&req)?;
            self.check_address(&resp)?;
            let guest = psp.guest_for(Command::GuestRequest, gctx)?;
            self.check_firmware_page(&resp)?;
            let page = self.memory.read_page(KeyPath::Raw, request.pfn());
            let (header, _) = header_of(&page).map_err(|_| FwStatus::InvalidParam)?;
            let vmpl = Vmpl::new(header.vmpck).ok_or(FwStatus::InvalidParam)?;
            let last = guest.msg_seqno[vmpl.index()];
            let expected = last.checked_add(1).filter(|seqno| *seqno != u64::MAX).ok_or(FwStatus::AeadOflow)?;
            let key = guest.vmpck[vmpl.index()];
            let (header, body) = open(&key, &page).map_err(|_| FwStatus::BadMeasurement)?;
            if header.seqno != expected {
                return Err(FwStatus::BadMeasurement);
            }
            let answer = report_response(guest, vmpl, &header, &body)?;
            let answered = MessageHeader { seqno: expected + 1, msg_type: MSG_REPORT_RSP, ..header };
            self.memory.write_page(KeyPath::Raw, response.pfn(), &seal(&key, &answered, &answer));
            guest.msg_seqno[vmpl.index()] = expected + 1;
            Ok(())
        })
    }
}

/// The answer to a request for a report: of the VMPL that is asked for, which is not more privileged than the key's.
fn report_response(guest: &Gctx, vmpl: Vmpl, header: &MessageHeader, body: &[u8]) -> Result<Vec<u8>, FwStatus> {
    let asked = body.get(0x40..0x44).map(|bytes| u32::from_le_bytes(*bytes.first_chunk().expect("four bytes")));
    let is_request = header.msg_type == MSG_REPORT_REQ && body.len() == REPORT_REQ_BYTES;
    let asked = asked.filter(|asked| is_request && (vmpl.index() as u32..Vmpl::COUNT as u32).contains(asked));
    let asked = asked.ok_or(FwStatus::InvalidParam)?;
    let mut answer = vec![0; REPORT_RSP_HEADER + REPORT_BYTES];
    answer[4..8].copy_from_slice(&(REPORT_BYTES as u32).to_le_bytes());
    let report = &mut answer[REPORT_RSP_HEADER..];
    report[..4].copy_from_slice(&2u32.to_le_bytes());
    report[0x08..0x10].copy_from_slice(&guest.policy.bits().to_le_bytes());
    report[0x30..0x34].copy_from_slice(&asked.to_le_bytes());
    report[0x50..0x90].copy_from_slice(&body[..0x40]);
    report[0x90..0xc0].copy_from_slice(&guest.digest.0);
    report[0xc0..0xe0].copy_from_slice(&guest.host_data);
    report[0x140..0x160].copy_from_slice(&guest.report_id);
    Ok(answer)
}
