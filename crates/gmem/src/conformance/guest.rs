//! Guests of checks: programs that test what they read and report to the VMM, and the VMM's side of running them.
//!
//! A selftest's guest asserts and synchronises with exits to user space; so does this one, by writing to a port.

use super::expect::{Failure, ok};
use crate::kvm::vcpu::GuestInsn;
use crate::{VcpuExit, VcpuFd};
use sim_kernel::Cx;
use sim_mmu::Gpa;

/// Port of reports and synchronisation (`UCALL_PIO_PORT` of the selftests).
pub(super) const REPORT: u16 = 0x1000;
/// Port of a test that failed inside the guest.
const ABORT: u16 = 0x1001;

/// A guest program in the making.
#[derive(Clone, Debug, Default)]
pub(super) struct Program {
    code: Vec<GuestInsn>,
    /// What each test expects, by the place of its report.
    tests: Vec<(usize, u64, u64)>,
}

impl Program {
    pub(super) fn new() -> Program {
        Program::default()
    }

    /// The place of the next instruction, to jump to.
    pub(super) fn here(&self) -> usize {
        self.code.len()
    }

    pub(super) fn push(&mut self, insn: GuestInsn) -> &mut Program {
        self.code.push(insn);
        self
    }

    /// Reads eight bytes.
    pub(super) fn read(&mut self, gpa: u64) -> &mut Program {
        self.push(GuestInsn::Read64 { gpa: Gpa(gpa) })
    }

    /// Writes eight bytes.
    pub(super) fn write(&mut self, gpa: u64, value: u64) -> &mut Program {
        self.push(GuestInsn::Write64 { gpa: Gpa(gpa), value })
    }

    /// Reads eight bytes, which must be these.
    pub(super) fn expect(&mut self, gpa: u64, value: u64) -> &mut Program {
        self.read(gpa);
        let next = self.here() + 2;
        self.push(GuestInsn::JumpEqual { value, to: next });
        self.tests.push((self.here(), gpa, value));
        self.push(GuestInsn::Out { port: ABORT })
    }

    /// Reads eight bytes until they are something else than `value`, which is then in `rbx`.
    pub(super) fn spin_while(&mut self, gpa: u64, value: u64) -> &mut Program {
        let again = self.here();
        self.read(gpa).push(GuestInsn::JumpEqual { value, to: again })
    }

    /// Tells the VMM the last value that was read.
    pub(super) fn report(&mut self) -> &mut Program {
        self.push(GuestInsn::Out { port: REPORT })
    }

    /// Tells the VMM a value.
    pub(super) fn sync(&mut self, value: u64) -> &mut Program {
        self.push(GuestInsn::Load { value }).report()
    }

    /// A hypercall.
    pub(super) fn hypercall(&mut self, nr: u64, args: [u64; 4]) -> &mut Program {
        self.push(GuestInsn::Hypercall { nr, args })
    }

    pub(super) fn jump(&mut self, to: usize) -> &mut Program {
        self.push(GuestInsn::Jump { to })
    }

    pub(super) fn load(&self, cx: &Cx<'_>, vcpu: &mut VcpuFd) {
        vcpu.load_program(cx, &self.code);
    }

    /// Runs the program, which must come to its end without an exit but its reports, each of which `report` gets.
    pub(super) fn run(
        &self,
        cx: &Cx<'_>,
        vcpu: &mut VcpuFd,
        mut report: impl FnMut(u64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.load(cx, vcpu);
        loop {
            match self.step(cx, vcpu)? {
                Some(value) => report(value)?,
                None => return Ok(()),
            }
        }
    }

    /// Runs the program to its end; a report is as unexpected as any other exit.
    pub(super) fn run_to_halt(&self, cx: &Cx<'_>, vcpu: &mut VcpuFd) -> Result<(), Failure> {
        self.run(cx, vcpu, |value| {
            Err(Failure::new(format!("KVM_RUN: expected the end, found a report of {value:#x}")))
        })
    }

    /// Runs the guest to its next report, or to its end.
    pub(super) fn step(&self, cx: &Cx<'_>, vcpu: &mut VcpuFd) -> Result<Option<u64>, Failure> {
        self.step_with(cx, vcpu, |_, exit| Err(unexpected("KVM_RUN: expected a report or the end", &exit)))
    }

    /// As [`Program::step`]; any other exit goes to `handle`, after which the guest goes on.
    pub(super) fn step_with(
        &self,
        cx: &Cx<'_>,
        vcpu: &mut VcpuFd,
        mut handle: impl FnMut(&Cx<'_>, VcpuExit<'_>) -> Result<(), Failure>,
    ) -> Result<Option<u64>, Failure> {
        loop {
            let exit = ok("KVM_RUN", vcpu.run(cx))?;
            match self.reported(&exit) {
                Some(Ok(value)) => return Ok(Some(value)),
                Some(Err(at)) => return Err(self.failed_test(cx, vcpu, at)),
                None if matches!(exit, VcpuExit::Hlt) => return Ok(None),
                None => handle(cx, exit)?,
            }
        }
    }

    /// The value of a report; for a test that failed, what it read.
    fn reported(&self, exit: &VcpuExit<'_>) -> Option<Result<u64, u64>> {
        let VcpuExit::IoOut(port, data) = exit else { return None };
        let value = data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        match *port {
            REPORT => Some(Ok(value)),
            ABORT => Some(Err(value)),
            _ => None,
        }
    }

    fn failed_test(&self, cx: &Cx<'_>, vcpu: &VcpuFd, found: u64) -> Failure {
        let rip = vcpu.get_regs(cx).map_or(usize::MAX, |regs| regs.rip);
        match self.tests.iter().find(|(at, ..)| *at == rip) {
            Some((_, gpa, expected)) => {
                Failure::new(format!("the guest reads {gpa:#x}: expected {expected:#x}, found {found:#x} (low half)"))
            }
            None => Failure::new(format!("the guest found {found:#x} at instruction {rip}")),
        }
    }
}

/// The exit is not what it should be.
pub(super) fn unexpected(expected: &str, exit: &VcpuExit<'_>) -> Failure {
    Failure::new(format!("{expected}, found {exit:x?}"))
}

/// A word that stands for a byte pattern that a selftest fills memory with.
pub(super) const fn filled(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}
