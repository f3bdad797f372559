//! Messages between a guest and the firmware: SN-103, SN-110, SNP-INV-039.

use crate::firmware::{finish, status};
use crate::machine::{G, GPA, Machine, STATES, with};
use sim_coco::snp::firmware::{
    FwStatus, GuestPolicy, LaunchUpdate, MSG_REPORT_REQ, MSG_REPORT_RSP, MessageHeader, PageType, PspFail, open, seal,
};
use sim_coco::snp::{KeyPath, PageBytes, PageState, RmpUpdate, Spa};
use sim_kernel::Cx;

/// A guest that runs, the key that it found in its secrets page, and the host's two pages.
struct Talk<'a> {
    machine: &'a Machine,
    gctx: Spa,
    keys: Vec<[u8; 32]>,
    request: Spa,
    response: Spa,
}

impl Talk<'_> {
    fn new<'a>(cx: &Cx<'_>, machine: &'a Machine) -> Talk<'a> {
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        let secrets = machine.in_state(cx, PageState::PreGuest);
        let update = LaunchUpdate::new(gctx, Spa::of(secrets), PageType::Secrets);
        machine.snp.snp_launch_update(cx, &update).unwrap();
        machine.snp.snp_launch_finish(cx, &finish(gctx)).unwrap();
        let page = machine.snp.memory().read_page(KeyPath::Guest(G), secrets);
        let keys = page[0x20..0xa0].chunks(32).map(|key| key.try_into().unwrap()).collect();
        Talk { machine, gctx, keys, request: Spa::of(machine.page()), response: machine.firmware_page(cx) }
    }

    fn report_request(&self, vmpl: u8, seqno: u64) -> Box<PageBytes> {
        let mut payload = [0; 0x60];
        payload[..64].fill(0x77);
        payload[0x40] = vmpl;
        let header = MessageHeader { seqno, msg_type: MSG_REPORT_REQ, msg_version: 1, vmpck: vmpl };
        seal(&self.keys[usize::from(vmpl)], &header, &payload)
    }

    fn send(&self, cx: &Cx<'_>, page: &PageBytes) -> Result<(), PspFail> {
        self.machine.snp.memory().write_page(KeyPath::Raw, self.request.pfn(), page);
        self.machine.snp.snp_guest_request(cx, self.gctx, self.request, self.response)
    }

    fn seqno(&self) -> [u64; 4] {
        self.machine.snp.peek_guest(self.gctx, |guest| guest.msg_seqno()).unwrap()
    }
}

#[test]
fn a_report_says_how_the_guest_was_launched() {
    with(|cx, machine| {
        let talk = Talk::new(cx, machine);
        talk.send(cx, &talk.report_request(1, 1)).unwrap();
        let answer = machine.snp.memory().read_page(KeyPath::Raw, talk.response.pfn());
        let (header, body) = open(&talk.keys[1], &answer).unwrap();
        assert_eq!((header.seqno, header.msg_type, header.vmpck), (2, MSG_REPORT_RSP, 1));
        assert!(open(&talk.keys[0], &answer).is_err(), "another key does not open it");
        let report = &body[0x20..];
        assert_eq!(report[0x08..0x10], 0x30000u64.to_le_bytes());
        assert_eq!(report[0x30], 1);
        assert_eq!(report[0x50..0x90], [0x77; 64]);
        let digest = machine.snp.peek_guest(talk.gctx, |guest| guest.digest).unwrap();
        assert_eq!(report[0x90..0xc0], digest.0);
        assert_eq!(machine.state(talk.response.pfn()), PageState::Firmware, "SN-103: it stays so");
        assert_eq!(talk.seqno(), [0, 2, 0, 0]);
    });
}

#[test]
fn sn_103_the_response_is_the_firmwares_page() {
    with(|cx, machine| {
        let talk = Talk::new(cx, machine);
        for state in STATES {
            let page = Spa::of(machine.in_state(cx, state));
            machine.snp.memory().write_page(KeyPath::Raw, talk.request.pfn(), &talk.report_request(0, 1));
            let answer = machine.snp.snp_guest_request(cx, talk.gctx, talk.request, page);
            if state == PageState::Firmware {
                assert_eq!(answer, Ok(()));
            } else {
                assert_eq!(status(answer), FwStatus::InvalidPageState, "{state:?}");
                assert_eq!(talk.seqno()[0], if state > PageState::Firmware { 2 } else { 0 });
            }
        }
        let answer = machine.snp.snp_guest_request(cx, talk.gctx, talk.response, talk.response);
        assert_eq!(status(answer), FwStatus::InvalidAddress);
    });
}

#[test]
fn sn_110_nothing_is_answered_twice() {
    with(|cx, machine| {
        let talk = Talk::new(cx, machine);
        let first = talk.report_request(0, 1);
        talk.send(cx, &first).unwrap();
        for (page, expected) in [
            (first.clone(), FwStatus::BadMeasurement),
            (talk.report_request(0, 2), FwStatus::BadMeasurement),
            (talk.report_request(0, 4), FwStatus::BadMeasurement),
        ] {
            assert_eq!(status(talk.send(cx, &page)), expected);
            assert_eq!(talk.seqno()[0], 2);
        }
        // One flipped bit: in the header, in the contents, in the tag.
        for at in [0x35, 0x70, 3] {
            let mut page = talk.report_request(0, 3);
            page[at] ^= 1;
            assert_eq!(status(talk.send(cx, &page)), FwStatus::BadMeasurement, "byte {at:#x}");
        }
        // What is not a message, and one that is not for a report.
        for (at, value) in [(0x30, 2u8), (0x31, 0), (0x32, 0x61), (0x37, 0x40), (0x3c, 4)] {
            let mut page = talk.report_request(0, 3);
            page[at] = value;
            assert_eq!(status(talk.send(cx, &page)), FwStatus::InvalidParam, "byte {at:#x}");
        }
        let header = MessageHeader { seqno: 3, msg_type: 3, msg_version: 1, vmpck: 0 };
        assert_eq!(status(talk.send(cx, &seal(&talk.keys[0], &header, &[0; 0x60]))), FwStatus::InvalidParam);
        // A key of VMPL 1 does not speak for VMPL 0.
        let mut payload = [0; 0x60];
        let header = MessageHeader { seqno: 1, msg_type: MSG_REPORT_REQ, msg_version: 1, vmpck: 1 };
        assert_eq!(status(talk.send(cx, &seal(&talk.keys[1], &header, &payload))), FwStatus::InvalidParam);
        payload[0x40] = 3;
        talk.send(cx, &seal(&talk.keys[1], &header, &payload)).unwrap();
        talk.send(cx, &talk.report_request(0, 3)).unwrap();
        assert_eq!(talk.seqno(), [4, 2, 0, 0]);
        machine.assign(cx, machine.page(), RmpUpdate::guest(G, GPA));
    });
}
