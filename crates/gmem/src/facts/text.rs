//! A fact of a machine as people say it on a command line: `snp=true`, `stage2=ept`, `memory=64M`.

use super::{FACTS, Fact, FactValue, STAGE2_NAMES};
use crate::kvm::config::MachineConfig;
use crate::ops::suggest::did_you_mean;
use crate::scenario::words;

impl MachineConfig {
    /// States a fact that is written `name=value`, with the names of a scenario's `[machine]` table. [`MachineConfig::check`] says whether what comes of several is a machine.
    ///
    /// ```
    /// use gmem::MachineConfig;
    /// let mut machine = MachineConfig::default();
    /// machine.state_text("tdx=true").unwrap();
    /// machine.state_text("stage2=ept").unwrap();
    /// assert!(machine.tdx);
    /// assert_eq!(machine.state_text("tdx=maybe").unwrap_err(), "`tdx=maybe`: this is no switch; expected true or false");
    /// ```
    ///
    /// # Errors
    /// What is wrong and what was expected.
    pub fn state_text(&mut self, text: &str) -> Result<(), String> {
        let Some((name, value)) = text.split_once('=') else {
            return Err(format!("`{text}`: expected a fact and its value such as snp=true"));
        };
        match name {
            "kernel" => self.kernel = value.parse().map_err(|error| format!("`{text}`: {error}"))?,
            "stage2" if self.set_stage2(value) => {}
            "stage2" => return Err(format!("`{text}`: expected one of {}", STAGE2_NAMES.join(", "))),
            _ => {
                let fact = Fact::find(name).ok_or_else(|| unknown(name))?;
                let said = match value {
                    _ if fact.is_number => words::number(value).map(FactValue::Number),
                    "true" | "false" => Some(FactValue::Switch(value == "true")),
                    word => Some(FactValue::Word(word.to_string())),
                };
                let stated = said.ok_or(fact.expected).and_then(|said| fact.state(self, &said));
                stated.map_err(|expected| format!("`{text}`: this is no {}; expected {expected}", fact.what))?;
            }
        }
        Ok(())
    }
}

fn unknown(name: &str) -> String {
    let names = || ["kernel", "stage2"].into_iter().chain(FACTS.iter().map(|fact| fact.name));
    let all: Vec<&str> = names().collect();
    format!("machines have no fact `{name}`{}; there are {}", did_you_mean(name, names()), all.join(", "))
}
