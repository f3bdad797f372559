//! Instructions of the guest's kernel, one at a time, and programs that are made of them.
//!
//! A program is a future that is polled without a waker: it hands an instruction over and is pending until the result is there. Nothing else makes it wait.

use crate::kvm::sev::protocol::msr::{MsrRequest, TermReason};
use crate::kvm::tdx::protocol::leaf;
use parking_lot::Mutex;
use sim_coco::snp::{RmpAdjust, RmpSize};
use sim_mmu::{Gpa, Level};
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// What the guest's memory is accessed through: an address, and a mapping with the C-bit or without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Where.
    pub gpa: Gpa,
    /// Without the C-bit.
    pub shared: bool,
}

impl Place {
    /// Through a mapping with the C-bit.
    pub const fn private(gpa: Gpa) -> Place {
        Place { gpa, shared: false }
    }

    /// Through one without.
    pub const fn shared(gpa: Gpa) -> Place {
        Place { gpa, shared: true }
    }
}

/// An instruction, with its operands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Insn {
    /// `pvalidate`. Result: EAX, or 255 if there was nothing to do (`PVALIDATE_FAIL_NOUPDATE`).
    Pvalidate {
        /// The page.
        gpa: Gpa,
        /// Its size.
        size: RmpSize,
        /// To accept, or to take back.
        validate: bool,
    },
    /// `rmpadjust` of a page of 4 KiB. Result: EAX.
    Rmpadjust {
        /// The page.
        gpa: Gpa,
        /// RDX.
        rdx: RmpAdjust,
    },
    /// `wrmsr` of the GHCB MSR.
    WriteGhcbMsr(u64),
    /// `rdmsr` of it. Result: its value.
    ReadGhcbMsr,
    /// `vmgexit`.
    Vmgexit,
    /// TDG.MEM.PAGE.ACCEPT. Result: RAX.
    TdAccept {
        /// The page.
        gpa: Gpa,
        /// Its size.
        level: Level,
    },
    /// TDG.VP.VMCALL of the standard interface. Result: R10; R11 is what [`Insn::ReadRax`] gives then.
    TdVmCall {
        /// R11.
        leaf: u64,
        /// R12 to R15.
        operands: [u64; 4],
    },
    /// TDG.VP.INFO. Result: the width of addresses; the attributes are what [`Insn::ReadRax`] gives then.
    TdVpInfo,
    /// TDG.VM.WR of TD_CTLS: no `#VE` for a page that was not accepted. Result: RAX.
    TdSetPendingVeDisable,
    /// What else the instruction before has left, which is no instruction.
    ReadRax,
    /// A load of eight bytes. Result: them.
    Read(Place),
    /// A store of eight bytes.
    Write(Place, u64),
    /// A copy of quadwords to memory, within a page.
    Copy(Place, Vec<u64>),
    /// `lock cmpxchg` of eight private bytes. Result: what was there.
    CompareExchange {
        /// Where.
        gpa: Gpa,
        /// What is expected.
        old: u64,
        /// What comes there then.
        new: u64,
    },
    /// `while (*gpa == value) pause;`: the processor does nothing else until another one of the guest has executed [`Insn::Release`].
    SpinWhile {
        /// Where.
        gpa: Gpa,
        /// What it waits to see gone.
        value: u64,
    },
    /// A store of eight private bytes for which others spin.
    Release(Gpa, u64),
    /// The mappings of these addresses change, and are flushed.
    SetEncrypted(Range<Gpa>, bool),
    /// `out`: user space sees it.
    Out {
        /// The port.
        port: u16,
        /// The value.
        value: u32,
    },
}

/// `#VC` instead of a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vc {
    /// The error code: [`sim_coco::snp::VC_PAGE_NOT_VALIDATED`], or another exit code that nothing here handles.
    pub error: u64,
    /// CR2.
    pub cr2: u64,
}

/// An exception instead of a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    /// In an SNP guest.
    Vc(Vc),
    /// `#VE` in a TD, about private memory: the page was not accepted.
    Ve {
        /// Where.
        gpa: Gpa,
    },
}

/// The guest has ended itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Terminated {
    /// By the MSR protocol of SNP.
    #[error("the guest has terminated: {0:?}")]
    Snp(TermReason),
    /// By ReportFatalError of TDX.
    #[error("the TD has ended: {0}")]
    Td(TdFatal),
}

/// Why a TD ends itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TdFatal {
    /// `tdx_accept_memory` failed (`Accepting memory failed`).
    #[error("memory could not be accepted")]
    Accept,
    /// `#VE` about private memory (`Unexpected #VE`).
    #[error("#VE about private memory")]
    Ve,
    /// `disable_sept_ve`.
    #[error("SEPT_VE_DISABLE is not set")]
    SeptVe,
    /// What becomes shared or private is left in an unknown state, and the workload has no use for it.
    #[error("the host does not convert memory")]
    Convert,
}

/// A user task of the guest got SIGBUS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("SIGBUS")]
pub struct SigBus;

/// What comes of code of the kernel that may end the guest.
pub type Ends<T> = Result<T, Terminated>;

#[derive(Debug, Default)]
struct Channel {
    insn: Option<Insn>,
    result: Option<Result<u64, Trap>>,
}

/// A processor, as the program that runs on it sees it.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    channel: Arc<Mutex<Channel>>,
}

struct Executing<'a> {
    cpu: &'a Cpu,
    insn: Option<Insn>,
}

impl Future for Executing<'_> {
    type Output = Result<u64, Trap>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let insn = self.insn.take();
        let mut channel = self.cpu.channel.lock();
        if insn.is_some() {
            channel.insn = insn;
            return Poll::Pending;
        }
        Poll::Ready(channel.result.take().expect("a program goes on when its instruction is complete"))
    }
}

impl Cpu {
    fn execute(&self, insn: Insn) -> Executing<'_> {
        Executing { cpu: self, insn: Some(insn) }
    }

    /// An instruction of the kernel. There is no handler for a `#VC` that says that a page was not validated.
    ///
    /// # Errors
    /// The guest ends (set 0, code 0) if it got one.
    pub async fn run(&self, insn: Insn) -> Ends<u64> {
        match self.execute(insn).await {
            Ok(result) => Ok(result),
            Err(Trap::Vc(_)) => Err(self.terminate(TermReason::Unspecified).await),
            Err(Trap::Ve { .. }) => Err(self.panic(TdFatal::Ve).await),
        }
    }

    /// An instruction of a user task.
    ///
    /// # Errors
    /// The task gets SIGBUS, and the guest goes on.
    pub async fn run_user(&self, insn: Insn) -> Result<u64, SigBus> {
        self.execute(insn).await.map_err(|_| SigBus)
    }

    /// `sev_es_terminate`.
    pub async fn terminate(&self, reason: TermReason) -> Terminated {
        for insn in [Insn::WriteGhcbMsr(MsrRequest::terminate(reason).encode()), Insn::Vmgexit] {
            // Whatever comes of it: there is nothing else to do.
            let _ended = self.execute(insn).await;
        }
        Terminated::Snp(reason)
    }

    /// `__tdx_hypercall` of ReportFatalError (`tdx_panic`).
    pub async fn panic(&self, why: TdFatal) -> Terminated {
        // Nothing comes of it: the host does not enter the vCPU again.
        let _ended = self.execute(Insn::TdVmCall { leaf: leaf::REPORT_FATAL_ERROR, operands: [0; 4] }).await;
        Terminated::Td(why)
    }

    /// Reads eight bytes.
    ///
    /// # Errors
    /// As [`Cpu::run`].
    pub async fn read(&self, at: Place) -> Ends<u64> {
        self.run(Insn::Read(at)).await
    }

    /// Writes eight bytes.
    ///
    /// # Errors
    /// As [`Cpu::run`].
    pub async fn write(&self, at: Place, value: u64) -> Ends<()> {
        self.run(Insn::Write(at, value)).await.map(drop)
    }

    /// `spin_lock`.
    ///
    /// # Errors
    /// As [`Cpu::run`].
    pub async fn spin_lock(&self, lock: Gpa) -> Ends<()> {
        while self.run(Insn::CompareExchange { gpa: lock, old: 0, new: 1 }).await? != 0 {
            self.run(Insn::SpinWhile { gpa: lock, value: 1 }).await?;
        }
        Ok(())
    }

    /// `spin_unlock`.
    ///
    /// # Errors
    /// As [`Cpu::run`].
    pub async fn spin_unlock(&self, lock: Gpa) -> Ends<()> {
        self.run(Insn::Release(lock, 0)).await.map(drop)
    }
}

/// Code that runs on one processor, to its end or to the guest's.
///
/// ```
/// use gmem::linux_guest::{Insn, Place, Program};
/// use sim_mmu::{Gpa, Level};
/// let mut program = Program::new(async |cpu| {
///     let value = cpu.read(Place::private(Gpa(0x1000))).await?;
///     cpu.write(Place::private(Gpa(0x2000)), value + 1).await
/// });
/// assert_eq!(program.step(Ok(0)), Some(Insn::Read(Place::private(Gpa(0x1000)))));
/// assert_eq!(program.step(Ok(6)), Some(Insn::Write(Place::private(Gpa(0x2000)), 7)));
/// assert_eq!(program.step(Ok(0)), None);
/// assert_eq!(program.outcome(), Some(Ok(())));
/// ```
pub struct Program {
    future: Pin<Box<dyn Future<Output = Ends<()>> + Send>>,
    cpu: Cpu,
    started: bool,
    outcome: Option<Ends<()>>,
}

impl Program {
    /// The code.
    pub fn new<F>(code: impl FnOnce(Cpu) -> F) -> Program
    where
        F: Future<Output = Ends<()>> + Send + 'static,
    {
        let cpu = Cpu::default();
        Program { future: Box::pin(code(cpu.clone())), cpu, started: false, outcome: None }
    }

    /// The instruction that is next, after the one before came to this; the first time, nobody looks at it. `None` at the end.
    pub fn step(&mut self, result: Result<u64, Trap>) -> Option<Insn> {
        if self.outcome.is_some() {
            return None;
        }
        if self.started {
            self.cpu.channel.lock().result = Some(result);
        }
        self.started = true;
        match self.future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Some(self.cpu.channel.lock().insn.take().expect("only instructions are awaited")),
            Poll::Ready(outcome) => {
                self.outcome = Some(outcome);
                None
            }
        }
    }

    /// How it ended, if it has.
    pub fn outcome(&self) -> Option<Ends<()>> {
        self.outcome
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}
