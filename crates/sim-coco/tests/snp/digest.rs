//! Launch digests: SN-107. `tests/data/launch_digest.txt` has the vectors.

use crate::machine::{G, Machine, config, with_config};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use sim_coco::snp::firmware::{GuestPolicy, LaunchDigest, LaunchUpdate, PageInfo, PageType, contents_digest};
use sim_coco::snp::{KeyPath, PageBytes, PermsOrder, RmpSize, RmpUpdate, SnpConfig, Spa, VmplPerms};
use sim_kernel::Cx;
use sim_mmu::Gpa;

const VECTORS: &str = include_str!("../data/launch_digest.txt");
/// Vectors in the file: a reader that skips some would not be noticed otherwise.
const COUNT: usize = 50;

/// One line: pages that are launched.
struct Step {
    page_type: PageType,
    contents: Box<PageBytes>,
    gpa: Gpa,
    pages: u64,
    size: RmpSize,
    imi_page: bool,
    perms: [VmplPerms; 3],
    order: PermsOrder,
}

fn parse(line: &str) -> Step {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap();
    let page_type = match name {
        "normal" => PageType::Normal,
        "vmsa" => PageType::Vmsa,
        "zero" => PageType::Zero,
        "unmeasured" => PageType::Unmeasured,
        "secrets" => PageType::Secrets,
        "cpuid" => PageType::Cpuid,
        other => panic!("`{other}` is no type of page"),
    };
    let mut step = Step {
        page_type,
        contents: Box::new([0; 4096]),
        gpa: Gpa(0),
        pages: 1,
        size: RmpSize::Size4K,
        imi_page: false,
        perms: [VmplPerms::empty(); 3],
        order: PermsOrder::Ascending,
    };
    while let Some(word) = words.next() {
        if let Some(gpa) = word.strip_prefix('@') {
            step.gpa = Gpa(number(gpa));
        } else if let Some(perms) = word.strip_prefix("perms=") {
            let perms: Vec<_> =
                perms.split(',').map(|perms| VmplPerms::from_bits_retain(perms.parse().unwrap())).collect();
            step.perms = perms.try_into().unwrap();
        } else {
            match word {
                "len" => step.pages = number(words.next().unwrap()) / 4096,
                "imi" => step.imi_page = true,
                "descending" => step.order = PermsOrder::Descending,
                "2m" => step.size = RmpSize::Size2M,
                other => step.contents = contents(other),
            }
        }
    }
    step
}

fn number(hex: &str) -> u64 {
    u64::from_str_radix(hex.strip_prefix("0x").unwrap(), 16).unwrap()
}

fn contents(name: &str) -> Box<PageBytes> {
    let mut page: Box<PageBytes> = Box::new([0; 4096]);
    match name.split_once(':') {
        None if name == "zero" => {}
        None if name == "ramp" => page.iter_mut().zip(0u32..).for_each(|(byte, i)| *byte = i as u8),
        Some(("fill", hex)) => page.fill(u8::from_str_radix(hex, 16).unwrap()),
        Some(("hashes", command_line)) => page = hashes_page(&command_line.replace('_', " ")),
        Some((vcpu, features)) => page = vmsa_page(vcpu == "ap", u8::from_str_radix(features, 16).unwrap()),
        None => panic!("`{name}` is no page"),
    }
    page
}

/// QEMU's page of hashes: of the command line, and of an initial memory and a kernel that are empty.
fn hashes_page(command_line: &str) -> Box<PageBytes> {
    let guid = |hex: &str| HEXLOWER.decode(hex.as_bytes()).unwrap();
    // A command line is hashed with the zero at its end.
    let line = [command_line.as_bytes(), &[0]].concat();
    let entries = [
        ("d82dd09720bd944caa78e7714d36ab2a", Sha256::digest(&line)),
        ("31f7ba442f3ad74b9af141e29169781d", Sha256::digest([])),
        ("3794e74dd2ab7f42b835d5b172d2045b", Sha256::digest([])),
    ];
    let mut table = guid("06d63894224fc94cb479a793d411fd21");
    table.extend(168u16.to_le_bytes());
    for (name, hash) in entries {
        table.extend(guid(name));
        table.extend(50u16.to_le_bytes());
        table.extend(hash);
    }
    let mut page: Box<PageBytes> = Box::new([0; 4096]);
    page[0xc00..][..table.len()].copy_from_slice(&table);
    page
}

/// Register state after reset, as QEMU sets it up for an EPYC-v4.
fn vmsa_page(is_ap: bool, features: u8) -> Box<PageBytes> {
    let mut page: Box<PageBytes> = Box::new([0; 4096]);
    let words: [(usize, u64); 26] = [
        (0x000, 0x0000_ffff_0093_0000),
        (0x010, 0x0000_ffff_009b_f000),
        (0x018, 0x0000_0000_ffff_0000),
        (0x020, 0x0000_ffff_0093_0000),
        (0x030, 0x0000_ffff_0093_0000),
        (0x040, 0x0000_ffff_0093_0000),
        (0x050, 0x0000_ffff_0093_0000),
        (0x060, 0x0000_ffff_0000_0000),
        (0x070, 0x0000_ffff_0082_0000),
        (0x080, 0x0000_ffff_0000_0000),
        (0x090, 0x0000_ffff_008b_0000),
        (0x0d0, 0x1000),
        (0x148, 0x40),
        (0x158, 0x10),
        (0x160, 0x400),
        (0x168, 0xffff_0ff0),
        (0x170, 2),
        (0x178, 0xfff0),
        (0x268, 0x0007_0406_0007_0406),
        (0x310, 0x0080_0f12),
        (0x3b0, u64::from(features)),
        (0x3e8, 1),
        (0x408, 0x1f80),
        (0x410, 0x037f),
        (0x018, if is_ap { 0x0080_0000 } else { 0xffff_0000 }),
        (0x178, if is_ap { 0xb004 } else { 0xfff0 }),
    ];
    for (at, word) in words {
        page[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    page
}

fn info(step: &Step, gpa: Gpa) -> PageInfo {
    PageInfo {
        imi_page: step.imi_page,
        perms: step.perms,
        perms_order: step.order,
        ..PageInfo::new(step.page_type, gpa).with_contents(&step.contents[..])
    }
}

/// The chain alone.
fn extend(digest: LaunchDigest, step: &Step) -> LaunchDigest {
    let pages = step.pages * step.size.pages();
    (0..pages).fold(digest, |digest, i| digest.extend(&info(step, Gpa(step.gpa.0 + (i << 12)))))
}

/// The machine: pages with these contents, given away and launched.
fn launch(cx: &Cx<'_>, machine: &Machine, gctx: Spa, step: &Step) {
    for i in 0..step.pages {
        let pfn = machine.of_size(step.size);
        for part in 0..step.size.pages() {
            machine.snp.memory().write_page(KeyPath::Raw, pfn + part, &step.contents);
        }
        let gpa = Gpa(step.gpa.0 + (i << 12));
        machine.assign(cx, pfn, RmpUpdate::guest(G, gpa).sized(step.size).immutable());
        let update = LaunchUpdate {
            page_size: step.size,
            imi_page: step.imi_page,
            perms: step.perms,
            ..LaunchUpdate::new(gctx, Spa::of(pfn), step.page_type)
        };
        machine.snp.snp_launch_update(cx, &update).unwrap();
    }
}

/// A guest that is launched line by line; with the digests that must have come out.
fn check_launch(steps: &[(Step, Option<String>)]) {
    let perms_order = steps[0].0.order;
    with_config(SnpConfig { perms_order, ..config() }, |cx, machine| {
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        for (step, expected) in steps {
            launch(cx, machine, gctx, step);
            if let Some(expected) = expected {
                let digest = machine.snp.peek_guest(gctx, |guest| guest.digest.to_string()).unwrap();
                assert_eq!(digest, *expected, "SNP-INV-018");
            }
        }
    });
}

#[test]
fn sn_107_vectors() {
    let mut checked = 0;
    for block in VECTORS.split("\n\n") {
        let mut digest = LaunchDigest::ZERO;
        let mut steps: Vec<(Step, Option<String>)> = Vec::new();
        let mut is_seeded = false;
        for line in block.lines().filter(|line| !line.starts_with('#')) {
            if let Some(expected) = line.strip_prefix("= ") {
                assert_eq!(digest.to_string(), expected, "{block}");
                checked += 1;
                if let Some((_, last)) = steps.last_mut() {
                    *last = Some(expected.to_string());
                }
            } else if let Some(page) = line.strip_prefix("contents ") {
                let (page, expected) = page.split_once(" = ").unwrap();
                assert_eq!(contents_digest(&contents(page)[..]).to_string(), expected, "{page}");
                checked += 1;
            } else if let Some(page) = line.strip_prefix("info ") {
                let (page, expected) = page.split_once(" = ").unwrap();
                let step = parse(page);
                let bytes = info(&step, step.gpa).to_bytes(&LaunchDigest::ZERO);
                assert_eq!(HEXLOWER.encode(&bytes[0x60..]), expected, "{page}");
                checked += 1;
            } else if let Some(seed) = line.strip_prefix("seed ") {
                digest = LaunchDigest(HEXLOWER.decode(seed.as_bytes()).unwrap().try_into().unwrap());
                is_seeded = true;
            } else {
                let step = parse(line);
                digest = extend(digest, &step);
                steps.push((step, None));
            }
        }
        if !is_seeded && !steps.is_empty() {
            check_launch(&steps);
        }
    }
    assert_eq!(checked, COUNT);
}
