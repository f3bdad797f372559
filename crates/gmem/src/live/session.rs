//! [`Session`]: the parent's end of a worker process, with time-outs.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::machine::LiveMachine;
use super::{LiveOutcome, Reply};
use crate::ops::json::recorded_style;
use crate::ops::{Answer, Op};

/// What a worker may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that one call may make the kernel allocate.
    pub memory_max: u64,
    /// How long the answer to one operation may take.
    pub patience: Duration,
    /// Seconds of processor time.
    pub cpu_seconds: u64,
}

impl Default for Limits {
    /// 64 MiB, 10 seconds for an answer, a minute of processor time.
    fn default() -> Limits {
        Limits { memory_max: 64 << 20, patience: Duration::from_secs(10), cpu_seconds: 60 }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LiveError {
    /// There is no worker: no device, no permission, no process.
    #[error("{0}")]
    Unavailable(String),
    /// The worker did not answer in time and was killed.
    #[error("no answer to {op} in {seconds} s")]
    TimedOut {
        /// What it was asked.
        op: String,
        /// How long it was given.
        seconds: u64,
    },
    /// The worker is gone.
    #[error("the worker ended at {op}: {how}")]
    Died {
        /// What it was asked last.
        op: String,
        /// Its exit status, and what it said.
        how: String,
    },
}

/// How workers are started.
#[derive(Clone, Debug)]
pub struct Starter {
    /// The `gmem` program.
    pub program: PathBuf,
    /// The device, usually `/dev/kvm`.
    pub device: PathBuf,
}

impl Starter {
    /// Workers of this very program on `device`.
    ///
    /// # Errors
    /// If the program cannot find itself.
    pub fn new(device: &Path) -> Result<Starter, LiveError> {
        let program = std::env::current_exe().map_err(|error| LiveError::Unavailable(error.to_string()))?;
        Ok(Starter { program, device: device.to_path_buf() })
    }

    fn command(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("live-worker").arg("--kvm").arg(&self.device).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What the machine at hand is.
    ///
    /// # Errors
    /// [`LiveError::Unavailable`] if there is no such device here.
    pub fn probe(&self) -> Result<LiveMachine, LiveError> {
        let unavailable = |text: String| LiveError::Unavailable(text);
        let output =
            self.command(&["--probe".into()]).output().map_err(|error| unavailable(format!("no worker: {error}")))?;
        if !output.status.success() {
            return Err(unavailable(complaint(&output.stderr)));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| unavailable(format!("the probe said nonsense: {error}")))
    }

    /// Has a worker measure what a page costs, in a file of so many; it prints a line for each case.
    ///
    /// # Errors
    /// [`LiveError::Unavailable`] if no worker can be started.
    pub fn bench(&self, machine: &LiveMachine, pages: u64) -> Result<Output, LiveError> {
        let mut arguments = vec![format!("--bench={pages}")];
        if machine.long_mode {
            arguments.push("--long-mode".into());
        }
        self.command(&arguments).output().map_err(|error| LiveError::Unavailable(format!("no worker: {error}")))
    }

    /// Starts a worker in which nothing has happened.
    ///
    /// # Errors
    /// [`LiveError::Unavailable`] if there is no such device here.
    pub fn start(&self, machine: &LiveMachine, limits: Limits) -> Result<Session, LiveError> {
        let mut arguments =
            vec![format!("--memory={}", limits.memory_max), format!("--cpu-seconds={}", limits.cpu_seconds)];
        if machine.long_mode {
            arguments.push("--long-mode".into());
        }
        let mut child =
            self.command(&arguments).spawn().map_err(|error| LiveError::Unavailable(format!("no worker: {error}")))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(LiveError::Unavailable("the worker has no pipes".into()));
        };
        let (send, lines) = channel();
        // Ends when the worker does, or when nobody listens any more.
        #[allow(clippy::disallowed_methods, reason = "reads a real process's pipe, so that waiting for it can end")]
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { break };
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut session = Session { child, input: Some(input), lines, patience: limits.patience };
        match session.lines.recv_timeout(limits.patience) {
            Ok(_) => Ok(session),
            Err(_) => {
                let how = session.obituary();
                Err(LiveError::Unavailable(how))
            }
        }
    }
}

/// A worker process, waiting for operations.
#[derive(Debug)]
pub struct Session {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    patience: Duration,
}

impl Session {
    /// The worker's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Performs one operation on the real kernel.
    ///
    /// # Errors
    /// If the worker does not answer, or is gone. It answers nothing more then.
    pub fn execute(&mut self, op: &Op) -> Result<LiveOutcome, LiveError> {
        let text = recorded_style(op);
        let sent =
            self.input.as_mut().is_some_and(|input| writeln!(input, "{text}").and_then(|()| input.flush()).is_ok());
        if !sent {
            return Err(LiveError::Died { op: text, how: self.obituary() });
        }
        let line = match self.lines.recv_timeout(self.patience) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                self.obituary();
                return Err(LiveError::TimedOut { op: text, seconds: self.patience.as_secs() });
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(LiveError::Died { op: text, how: self.obituary() });
            }
        };
        let nonsense = |why: String| LiveError::Died { op: text.clone(), how: format!("it answered {line}: {why}") };
        let reply: Reply = serde_json::from_str(&line).map_err(|error| nonsense(error.to_string()))?;
        let answer = reply.ret.map(|ret| Answer::from_json(&ret)).transpose().map_err(nonsense)?;
        Ok(LiveOutcome { answer, note: reply.note })
    }

    /// Ends the worker, if it has not ended, and says how it did.
    fn obituary(&mut self) -> String {
        self.input = None;
        // Killing what has ended already changes nothing.
        let _ = self.child.kill();
        let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        let mut said = Vec::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_end(&mut said);
        }
        match complaint(&said) {
            said if said.is_empty() => status,
            said => said,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.obituary();
    }
}

/// What a worker wrote to stderr, without the word "error" and colours.
pub(crate) fn complaint(stderr: &[u8]) -> String {
    let text = anstream::adapter::strip_bytes(stderr).into_vec();
    let text = String::from_utf8_lossy(&text).trim().to_string();
    text.strip_prefix("error: ").unwrap_or(&text).to_string()
}
