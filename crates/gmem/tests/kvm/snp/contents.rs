//! What a guest reads is what it wrote (SNP-INV-006), and at one address it has one page (SNP-INV-004): each broken past all checks, as a probe on the bus
//! or a hypervisor with a way around the RMP could.

use super::Script;
use sim_coco::snp::{Asid, GuestCpu, KeyPath, PageOperand, RmpUpdate};
use sim_mmu::Gpa;

const GUEST: Asid = Asid(1);

#[test]
fn snp_inv_006_old_contents_on_the_bus_are_seen_when_the_guest_reads_them() {
    let mut script = Script::running();
    script.run("guest_pvalidate c0 0x200000 => hlt 0\n guest_write c0 0x200000 1 => hlt");
    let pfn = script.frame(0x20_0000).unwrap();
    let mut before = [0; 16];
    script.snp(|_, snp| snp.memory().read(KeyPath::Raw, pfn, 0, &mut before));
    script.run("guest_write c0 0x200000 2 => hlt\n guest_read c0 0x200000 => hlt 2");
    script.snp(|_, snp| snp.memory().write(KeyPath::Raw, pfn, 0, &before));
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| script.run("guest_read c0 0x200000")));
    let message = *read.expect_err("it reads 1 and has written 2").downcast::<String>().unwrap();
    assert!(message.starts_with("SNP-INV-006"), "{message}");
}

#[test]
fn snp_inv_006_forgets_what_was_there_before_a_page_was_accepted() {
    let mut script = Script::running();
    script.run(
        "guest_pvalidate c0 0x200000              => hlt 0
         guest_write c0 0x200000 1                => hlt
         fallocate g0 punch_hole 0 4K             => ok
         guest_pvalidate c0 0x200000              => hlt 0
         guest_read c0 0x200000
         guest_write c0 0x200000 2                => hlt
         guest_read c0 0x200000                   => hlt 2",
    );
    script.end();
}

#[test]
fn snp_inv_004_two_pages_at_one_address() {
    let mut script = Script::running();
    script.run("guest_pvalidate c0 0x200000 => hlt 0\n guest_pvalidate c0 0x201000 => hlt 0");
    let other = script.frame(0x20_1000).unwrap();
    script.snp(|cx, snp| {
        snp.rmpupdate(cx, other, RmpUpdate::guest(GUEST, Gpa(0x20_0000))).unwrap();
        let operand = PageOperand::page(Gpa(0x20_0000), other);
        snp.pvalidate(cx, &GuestCpu::snp(0, GUEST), &operand, 1).unwrap();
    });
    let finding = script.finding();
    assert!(finding.starts_with("SNP-INV-004"), "{finding}");
}
