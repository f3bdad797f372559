//! MRTD and RTMRs: TD-062's vectors, through the leaves.

use crate::machine::{K, LP, Machine, leave, name, params, pfn, with};
use data_encoding::HEXLOWER;
use sim_coco::tdx::{EXTEND_BYTES, Hpa, OperandId, SeptInfo, Status, StatusName};
use sim_kernel::Cx;
use sim_mmu::{Gpa, Level};

/// What is done to a TD before it is finished.
#[derive(Clone, Copy)]
enum Step {
    /// PAGE.ADD of a page with these contents, by a function of the byte's number.
    Add(u64, fn(usize) -> u8),
    /// MR.EXTEND of 256 bytes.
    Extend(u64),
    /// All of a page.
    ExtendPage(u64),
}
use Step::{Add, Extend, ExtendPage};

const ZERO: fn(usize) -> u8 = |_| 0;

const VECTORS: [(&[Step], &str); 9] = [
    (&[], "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b"),
    (
        &[Add(0, ZERO)],
        "8f3e9a8aca6784eab874f7aa4dda5d49104a88047f1f86695ef2a88f5691a90e34aac48ce45ffa1f5a23c7d62980d570",
    ),
    (
        &[Add(0xffff_f000, ZERO)],
        "8d411e4377a0da03b249acbe9a7939b44b4483b5a6c81341f00d60c1f417257f9a5c1c03f2f223c59f010f4933f238b8",
    ),
    (
        &[Add(0, ZERO), ExtendPage(0)],
        "236f0efa607ff8843f1855d7ef80dc3dda8fb455787a186b8787212951eab0096e3193bb26f817c2b63c21f5e10f9938",
    ),
    (
        &[Add(0x1000, |i| (7 * i + 3) as u8), ExtendPage(0x1000)],
        "1d6a39508485f397068c05784a4b63a370570e76aece69da8d9803c7ec110b31872fb82a115e9bb2ba454fad78293be6",
    ),
    (
        &[Add(0, ZERO), ExtendPage(0), Add(0x1000, |_| 1), ExtendPage(0x1000)],
        "ce2d39d83ed72dec8f6e303d395baf5ba5dc0e3627f1f5804d1bcf7145ea602f564175835bd53a98e68db61209a99e79",
    ),
    (
        &[Add(0, ZERO), Add(0x1000, |_| 1), ExtendPage(0), ExtendPage(0x1000)],
        "409e07a5e102c38d142713aa16ea96fd703298c0b82f52e66ac7728c6d589efaba3f9806f9154276b5d9053f36d99f18",
    ),
    (
        &[Add(0x1000, ZERO), Add(0, ZERO)],
        "ccd5746e64f677a4135861ab4ea44fff8f1976b9a78eee76351e1339c6878ffb14e378c43d523aea8ea2f961bb4a4643",
    ),
    (
        &[Add(0x80_9000, |i| i as u8), Extend(0x80_9300)],
        "c39471547fe0925d4bd95d40efdad83b9b872f6e9caf1b732c95c3df5c138dbdbb4e4eaf489bd2d497b7c4a59fe65347",
    ),
];

/// Tables for an address, where there are none.
fn tables(cx: &Cx<'_>, machine: &Machine, tdr: Hpa, gpa: Gpa) {
    for level in [Level::L512G, Level::L1G, Level::L2M] {
        let tdr = Hpa(tdr.0 | sim_coco::tdx::ALLOW_EXISTING);
        machine.tdx.on(LP).mem_sept_add(cx, SeptInfo::new(aligned(gpa, level), level), tdr, machine.page()).unwrap();
    }
}

fn aligned(gpa: Gpa, level: Level) -> Gpa {
    gpa.gfn().round_down(level).gpa()
}

fn perform(cx: &Cx<'_>, machine: &Machine, tdr: Hpa, steps: &[Step]) {
    let seam = machine.tdx.on(LP);
    for step in steps {
        match *step {
            Add(gpa, contents) => {
                let source = machine.page();
                let bytes: Vec<u8> = (0..4096).map(contents).collect();
                seam.host_write(cx, pfn(source), 0, &bytes).unwrap();
                tables(cx, machine, tdr, Gpa(gpa));
                seam.mem_page_add(cx, SeptInfo::page(Gpa(gpa)), tdr, machine.page(), source).unwrap();
            }
            Extend(gpa) => seam.mr_extend(cx, Gpa(gpa), tdr).unwrap(),
            ExtendPage(gpa) => {
                for offset in (0..4096).step_by(EXTEND_BYTES) {
                    seam.mr_extend(cx, Gpa(gpa + offset), tdr).unwrap();
                }
            }
        }
    }
}

fn mrtd(cx: &Cx<'_>, machine: &Machine, tdr: Hpa) -> String {
    machine.vcpu(cx, tdr, LP);
    machine.tdx.on(LP).mr_finalize(cx, tdr).unwrap();
    HEXLOWER.encode(&machine.tdx.peek_td(pfn(tdr)).unwrap().mrtd.unwrap())
}

#[test]
fn td_062_vectors() {
    for (i, (steps, digest)) in VECTORS.into_iter().enumerate() {
        with(|cx, machine| {
            let tdr = machine.initialized(cx, K, &params());
            assert_eq!(machine.tdx.peek_td(pfn(tdr)).unwrap().mrtd, None);
            perform(cx, machine, tdr, steps);
            assert_eq!(mrtd(cx, machine, tdr), digest, "V{i}");
        });
    }
}

#[test]
fn only_what_was_done_counts() {
    // What is removed again was measured all the same; augmenting, tables and other parameters are not (TDX-INV-013).
    with(|cx, machine| {
        let tdr = machine.initialized(cx, K, &sim_coco::tdx::TdParams { mrowner: [3; 48], ..params() });
        perform(cx, machine, tdr, &[Add(0, ZERO)]);
        machine.tdx.on(LP).mem_page_remove(cx, SeptInfo::page(Gpa(0)), tdr).unwrap();
        machine.aug(cx, tdr, Gpa(0x5000), Level::L4K);
        assert_eq!(mrtd(cx, machine, tdr), VECTORS[1].1);
    });
}

#[test]
fn rtmr_of_nothing_is_the_vector() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let gpa = crate::machine::GPA;
        machine.aug(cx, tdr, gpa, Level::L4K);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.mem_page_accept(cx, SeptInfo::page(gpa)).unwrap().unwrap();
        let data = HEXLOWER.decode(VECTORS[0].1.as_bytes()).unwrap();
        guest.write(cx, Gpa(gpa.0 + 64), &data).unwrap();
        let invalid = |operand| Ok(Err(Status::of(StatusName::OperandInvalid, operand)));
        assert_eq!(guest.mr_rtmr_extend(cx, Gpa(gpa.0 + 32), 0), invalid(OperandId::RCX));
        assert_eq!(guest.mr_rtmr_extend(cx, Gpa(gpa.0 | 1 << 47), 0), invalid(OperandId::RCX));
        assert_eq!(guest.mr_rtmr_extend(cx, Gpa(gpa.0 + 64), 4), invalid(OperandId::RDX));
        assert_eq!(guest.mr_rtmr_extend(cx, Gpa(gpa.0 + 64), 2), Ok(Ok(())));
        leave(cx, guest);
        let rtmr = machine.tdx.peek_td(pfn(tdr)).unwrap().rtmr;
        let expected =
            "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c10edb30948c90ba67310f7b964fc500a";
        assert_eq!(HEXLOWER.encode(&rtmr[2]), expected);
        assert_eq!([rtmr[0], rtmr[1], rtmr[3]], [[0; 48]; 3]);
    });
}

#[test]
fn a_measurement_is_of_the_td_and_not_of_the_host() {
    // The host's write after the page was added is no part of it: reading it is a machine check.
    with(|cx, machine| {
        let tdr = machine.initialized(cx, K, &params());
        tables(cx, machine, tdr, Gpa(0));
        let page = machine.add(cx, tdr, Gpa(0));
        machine.tdx.on(LP).host_write(cx, pfn(page), 0, &[1; 64]).unwrap();
        assert_eq!(name(machine.tdx.on(LP).mr_extend(cx, Gpa(0), tdr)), StatusName::TdFatal);
    });
}
