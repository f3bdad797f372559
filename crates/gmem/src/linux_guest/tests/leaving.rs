//! Other processors, and another kernel: SN-189, SN-190.

use super::changing::{GHCB, booted};
use super::host::{FEATURES, on_host};
use crate::kvm::sev::protocol::msr::{MsrRequest, PageOp};
use crate::linux_guest::{ApStarted, ApStopped, Insn, Place, Vmsa};
use sim_coco::snp::PageState;
use sim_kernel::{PAGE_SIZE, PMD_SIZE};
use sim_mmu::Gpa;

#[test]
fn sn_189_a_vmsa_is_the_second_page_of_two() {
    for first in [0, 0x2000, PMD_SIZE, PMD_SIZE - 0x2000] {
        assert!(!Vmsa::in_pair(Gpa(first)).gpa().0.is_multiple_of(PMD_SIZE));
    }
    assert!(std::panic::catch_unwind(|| Vmsa::in_pair(Gpa(PMD_SIZE - PAGE_SIZE))).is_err());
}

#[test]
fn sn_189_a_processor_is_destroyed_before_its_page_changes() {
    on_host(Gpa(PMD_SIZE), |host| {
        let vcpu = host.vcpu(async |kernel| {
            let kernel = booted(kernel).await?;
            kernel.check_vmpl0(Gpa(0x2000)).await?;
            let vmsa = Vmsa::in_pair(Gpa(0x4000));
            assert_eq!(kernel.start_ap(1, vmsa, FEATURES).await?, ApStarted::Started);
            kernel.cpu.run(Insn::Out { port: 1, value: 1 }).await?;
            assert_eq!(kernel.stop_ap(1, vmsa, FEATURES).await?, ApStopped::Freed);
            Ok(())
        });
        while !matches!(host.log.last(), Some((_, Insn::Out { .. }))) {
            host.step(vcpu).unwrap();
        }
        assert!(host.entry(Gpa(0x5000)).vmsa);
        host.log.clear();
        assert_eq!(host.run(vcpu), Ok(()));
        let kinds: Vec<_> = host.log.iter().map(|(_, insn)| matches!(insn, Insn::Rmpadjust { .. })).collect();
        // wrmsr, vmgexit, rmpadjust
        assert_eq!(kinds, [false, false, true]);
        assert!(!host.entry(Gpa(0x5000)).vmsa);
    });
}

#[test]
fn sn_189_with_other_features_nobody_is_started() {
    on_host(Gpa(PMD_SIZE), |host| {
        let vcpu = host.vcpu(async |kernel| {
            let kernel = booted(kernel).await?;
            let refused = kernel.start_ap(1, Vmsa::in_pair(Gpa(0x4000)), FEATURES + 4).await?;
            assert_eq!(refused, ApStarted::Refused);
            Ok(())
        });
        assert_eq!(host.run(vcpu), Ok(()));
        assert!(!host.entry(Gpa(0x5000)).vmsa, "the page is an ordinary one again");
    });
}

#[test]
fn sn_190_ghcbs_are_the_last_to_become_private() {
    on_host(Gpa(PMD_SIZE), |host| {
        let shared = Gpa(32 * PAGE_SIZE)..Gpa(40 * PAGE_SIZE);
        let vcpu = host.vcpu(async move |kernel| {
            let mut kernel = booted(kernel).await?;
            // Accepted, then shared.
            kernel.set_pages_state(shared.clone(), PageOp::Private).await?;
            kernel.set_memory_decrypted(shared.clone()).await?;
            kernel.cpu.run(Insn::Out { port: 1, value: 1 }).await?;
            let vmsa = Vmsa::in_pair(Gpa(0x4000));
            assert_eq!(kernel.start_ap(1, vmsa, FEATURES).await?, ApStarted::Started);
            kernel.kexec(&[(1, vmsa)], &[shared], &[GHCB], FEATURES).await?;
            kernel.cpu.write(Place::private(GHCB), 1).await
        });
        while !matches!(host.log.last(), Some((_, Insn::Out { .. }))) {
            host.step(vcpu).unwrap();
        }
        host.exits.clear();
        assert_eq!(host.run(vcpu), Ok(()));
        let private: Vec<_> = host.exits.iter().map(|(gpa, npages, _)| (gpa.0 / PAGE_SIZE, *npages)).collect();
        assert_eq!(private, [(32, 8), (GHCB.0 / PAGE_SIZE, 1)]);
        // The last one through the MSR.
        let requests: Vec<u64> = host
            .log
            .iter()
            .filter_map(|(_, insn)| match insn {
                Insn::WriteGhcbMsr(value) => Some(*value),
                _ => None,
            })
            .collect();
        let last = MsrRequest::Psc { gpa: GHCB, op: PageOp::Private as u8 }.encode();
        assert_eq!(requests.last(), Some(&last));
        assert!(requests.iter().rev().skip(1).all(|request| *request != last));
        assert_eq!(host.state(GHCB), Some(PageState::GuestValid));
    });
}
