//! What a page costs: allocated by `fallocate`, punched, touched first by the VMM, touched first by a vCPU. The same four things are
//! measured of a real kernel by `live::bench`, in the same run.

use super::vm::BenchVm;
use super::{Case, Meter, Size, Timer};
use crate::{Machine, MachineConfig};

/// The goal's name.
pub const GOAL: &str = "pages";
/// Pages of the file.
pub const PAGES: u64 = 4096;

/// What is done with each page of a file that has none, or has all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// `fallocate`.
    Allocate,
    /// `fallocate` with `FALLOC_FL_PUNCH_HOLE`, of pages that nobody has mapped.
    Punch,
    /// The VMM writes a word of each page through its mapping; none exists before.
    TouchByVmm,
    /// The vCPU does.
    TouchByVcpu,
}

impl Deed {
    /// All four.
    pub const ALL: [Deed; 4] = [Deed::Allocate, Deed::Punch, Deed::TouchByVmm, Deed::TouchByVcpu];

    /// The name of the case, of the simulator or of a real kernel.
    pub fn name(self, real: bool) -> &'static str {
        match (self, real) {
            (Deed::Allocate, false) => "allocate",
            (Deed::Allocate, true) => "allocate, real kernel",
            (Deed::Punch, false) => "punch hole",
            (Deed::Punch, true) => "punch hole, real kernel",
            (Deed::TouchByVmm, false) => "first touch by the VMM",
            (Deed::TouchByVmm, true) => "first touch by the VMM, real kernel",
            (Deed::TouchByVcpu, false) => "first touch by a vCPU",
            (Deed::TouchByVcpu, true) => "first touch by a vCPU, real kernel",
        }
    }
}

/// On the simulator, natively.
pub(super) fn simulated(meter: &mut dyn Meter, size: &Size) {
    let pages = size.of(PAGES, 64);
    Machine::run_native(MachineConfig::default(), |cx, process| {
        let mut vm = BenchVm::mapped(cx, process, pages);
        for deed in Deed::ALL {
            let case = Case::new(GOAL, deed.name(false), pages, "page", pages);
            meter.measure(case, &mut |timer: &mut Timer| match deed {
                Deed::Allocate => {
                    vm.punch(cx);
                    timer.time(|| vm.allocate(cx));
                }
                Deed::Punch => {
                    vm.punch(cx);
                    vm.allocate(cx);
                    timer.time(|| vm.punch(cx));
                }
                Deed::TouchByVmm => {
                    vm.punch(cx);
                    timer.time(|| vm.touch(cx));
                }
                Deed::TouchByVcpu => {
                    vm.punch(cx);
                    vm.load_writes(cx, 0..pages, 1);
                    timer.time(|| vm.run(cx));
                }
            });
        }
        vm.close(cx);
    });
}
