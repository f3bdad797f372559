//! Operations of guests of pKVM (`arch/arm64/mm/mem_encrypt.c`, `drivers/virt/coco/pkvm-guest/arm-pkvm-guest.c` of the guest).

use super::guest::answer_of;
use super::world::{World, failed};
use crate::kvm::ioctl;
use crate::kvm::vcpu::{ExitInfo, GuestInsn};
use crate::ops::{Answer, Name, PkvmOp};
use sim_coco::pkvm::func;
use sim_kernel::{Cx, Errno, PAGE_SIZE};

/// What `to` is for private memory, as in the page states of SNP.
const TO_PRIVATE: u64 = 1;
/// Pages that one operation changes at most.
const PAGES_MAX: u64 = 1 << 16;

impl World {
    /// Performs an operation of a guest of pKVM.
    pub(super) fn pkvm(&self, cx: &Cx<'_>, op: &PkvmOp) -> Answer {
        match op {
            PkvmOp::GuestSetMemory { vcpu, gpa, len, to } => self.guest_set_memory(cx, vcpu, *gpa, *len, *to),
        }
    }

    /// `set_memory_decrypted`, `set_memory_encrypted`: a call for each page, and none after one that fails. What was done before stays.
    pub(super) fn guest_set_memory(&self, cx: &Cx<'_>, vcpu: &Name, gpa: u64, len: u64, to: u64) -> Answer {
        let function = if to == TO_PRIVATE { func::MEM_UNSHARE } else { func::MEM_SHARE };
        let pages = len.div_ceil(PAGE_SIZE);
        if pages > PAGES_MAX {
            return failed(Errno::ENOMEM);
        }
        let fd = self.fd(vcpu);
        let Some(handle) = ioctl::peek_vcpu(cx, &self.process, fd) else {
            return failed(ioctl::run(cx, &self.process, fd).err().unwrap_or(Errno::ENOTTY));
        };
        let _operator = handle.operator.lock(cx);
        for page in 0..pages {
            let ipa = gpa.wrapping_add(page * PAGE_SIZE);
            handle.set_program(cx, &[GuestInsn::Hypercall { nr: u64::from(function), args: [ipa, 0, 0, 0] }]);
            let (result, exit) = match ioctl::run(cx, &self.process, fd) {
                Ok(run) => run,
                Err(errno) => return failed(errno),
            };
            let rax = handle.regs(cx).rax;
            if result.is_err() || exit != ExitInfo::Hlt || rax != 0 {
                return answer_of(result, exit, Some(rax));
            }
        }
        answer_of(Ok(()), ExitInfo::Hlt, Some(0))
    }
}
