//! The simulator as the command uses it.

use std::io::Write;

use crate::cli::{Backend, RunOptions};
use crate::interp::Sequential;
use crate::kvm::config::MachineConfig;
use crate::replay::Executor;
use crate::scenario::Scenario;
use crate::trace::Header;
use crate::{Stage2Kind, Status};

/// The machine of this crate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Simulator;

impl Backend for Simulator {
    fn executor(&self, header: &Header) -> Result<Box<dyn Executor>, String> {
        let mut config = MachineConfig::default();
        match header.stage2.as_str() {
            "npt" => config.stage2 = Stage2Kind::Npt,
            "ept" => config.stage2 = Stage2Kind::Ept,
            other => return Err(format!("stage2 is `{other}`; expected npt or ept")),
        }
        Ok(Box::new(Sequential::new(config)))
    }

    fn run(
        &self,
        _scenario: &Scenario,
        _options: &RunOptions,
        _out: &mut dyn Write,
        _log: Option<&mut dyn Write>,
    ) -> anyhow::Result<Status> {
        anyhow::bail!("being assembled")
    }

    fn demonstrate(&self, _out: &mut dyn Write) -> anyhow::Result<Status> {
        anyhow::bail!("being assembled")
    }
}
