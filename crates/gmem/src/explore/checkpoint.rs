//! What an exploration has done so far, kept in a file, so that one that was interrupted or killed goes on from there.
//!
//! A checkpoint is JSON: what was asked for, and the [`Progress`] in whole units of work. It belongs to one scenario and one version of
//! `gmem`; for another it is refused, and the reason is said in words. The command writes it whole or not at all.

use serde::{Deserialize, Serialize};

use super::portfolio::Plan;
use super::progress::Progress;

/// What makes two explorations the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The version of `gmem`.
    pub version: String,
    /// Hash of the scenario's text.
    pub scenario: String,
    /// The kernel whose rules apply.
    pub kernel: String,
    /// Ids of the rules that are switched off.
    pub mutants: Vec<String>,
    /// `sc` or `tso`.
    pub memory_model: String,
    /// Strategies, seed, budget.
    pub plan: Plan,
}

/// An exploration that may go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Which exploration.
    pub identity: Identity,
    /// Where it stands.
    pub progress: Progress,
}

/// A checkpoint as it stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    identity: Identity,
    /// Of the progress as text: a file that is damaged in one digit is still JSON.
    digest: String,
    progress: Progress,
}

/// Why a checkpoint is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// It is something else, or damaged.
    #[error("this is no checkpoint of an exploration: {0}")]
    Malformed(String),
    /// Something in it has changed since it was written.
    #[error("it is damaged: it does not have the digest {0} that stands in it")]
    Damaged(String),
    /// Another version wrote it.
    #[error("it was written by gmem {theirs}, and this is gmem {ours}: what a schedule means may have changed")]
    Version {
        /// The version that wrote it.
        theirs: String,
        /// This one.
        ours: String,
    },
    /// Something else was explored.
    #[error("it is of another exploration: its {what} is {theirs}, and {ours} was asked for")]
    Other {
        /// What differs.
        what: &'static str,
        /// As it was.
        theirs: String,
        /// As it is asked for.
        ours: String,
    },
}

impl Identity {
    /// The text of a scenario as a number that differs for different texts.
    pub fn hash(text: &str) -> String {
        format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
    }

    /// Whether a checkpoint of `theirs` serves this exploration.
    fn accept(&self, theirs: &Identity) -> Result<(), CheckpointError> {
        if self.version != theirs.version {
            return Err(CheckpointError::Version { theirs: theirs.version.clone(), ours: self.version.clone() });
        }
        let list = |ids: &[String]| if ids.is_empty() { "none".to_string() } else { ids.join(", ") };
        let (ours, other) = (&self.plan, &theirs.plan);
        let differing = [
            ("scenario (hash of the text)", theirs.scenario.clone(), self.scenario.clone()),
            ("kernel", theirs.kernel.clone(), self.kernel.clone()),
            ("list of mutants", list(&theirs.mutants), list(&self.mutants)),
            ("memory model", theirs.memory_model.clone(), self.memory_model.clone()),
            ("strategy", other.choice.to_string(), ours.choice.to_string()),
            ("seed", other.seed.to_string(), ours.seed.to_string()),
            ("budget of executions", other.executions.to_string(), ours.executions.to_string()),
            ("share of the exhaustive search", other.search.to_string(), ours.search.to_string()),
            ("`--keep-going`", other.keep_going.to_string(), ours.keep_going.to_string()),
        ];
        match differing.into_iter().find(|(_, theirs, ours)| theirs != ours) {
            None => Ok(()),
            Some((what, theirs, ours)) => Err(CheckpointError::Other { what, theirs, ours }),
        }
    }
}

impl Checkpoint {
    /// The checkpoint as text.
    pub fn print(&self) -> String {
        let progress = serde_json::to_string(&self.progress).expect("a checkpoint is plain data");
        let digest = Identity::hash(&progress);
        let kept = Kept { identity: self.identity.clone(), digest, progress: self.progress.clone() };
        let mut text = serde_json::to_string(&kept).expect("a checkpoint is plain data");
        text.push('\n');
        text
    }

    /// Reads a checkpoint and says where the exploration of `identity` stands.
    ///
    /// # Errors
    /// Why it cannot go on from there.
    pub fn read(text: &str, identity: &Identity) -> Result<Progress, CheckpointError> {
        // The version first: what else there is depends on it.
        #[derive(Deserialize)]
        struct Versioned {
            identity: Version,
        }
        #[derive(Deserialize)]
        struct Version {
            version: String,
        }
        let malformed = |error: serde_json::Error| CheckpointError::Malformed(error.to_string());
        let Versioned { identity: Version { version } } = serde_json::from_str(text).map_err(malformed)?;
        if version != identity.version {
            return Err(CheckpointError::Version { theirs: version, ours: identity.version.clone() });
        }
        let kept: Kept = serde_json::from_str(text).map_err(malformed)?;
        identity.accept(&kept.identity)?;
        let progress = serde_json::to_string(&kept.progress).expect("a checkpoint is plain data");
        if kept.digest != Identity::hash(&progress) {
            return Err(CheckpointError::Damaged(kept.digest));
        }
        Ok(kept.progress)
    }
}
