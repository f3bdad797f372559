//! The tracepoint `kvm_tdp_mmu_spte_changed` of the machine at hand, through an instance of tracefs of our own.
//!
//! Simplified: events that KVM's background workers emit later (a root that is torn down) belong to another process and are not
//! seen; nor are they in the recordings.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// One change of an entry, as the tracepoint says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the tracepoint's fields")]
pub struct Event {
    pub as_id: u32,
    pub gfn: u64,
    pub level: u8,
    pub old_spte: u64,
    pub new_spte: u64,
}

/// Where tracefs is usually mounted.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// `O_NONBLOCK` on x86-64.
const O_NONBLOCK: i32 = 0o4000;

/// The events of one process, from now on.
#[derive(Debug)]
pub struct Events {
    instance: PathBuf,
    pipe: File,
    /// What was read of a line that is not complete.
    rest: String,
}

impl Events {
    /// Listens to the process `pid`.
    ///
    /// # Errors
    /// Why the tracepoint cannot be used, in words.
    pub fn of(pid: u32) -> Result<Events, String> {
        let Some(root) = PLACES.iter().map(Path::new).find(|root| root.join("instances").is_dir()) else {
            return Err(format!("tracefs is not mounted, or not readable, at {}", PLACES.join(" or ")));
        };
        Events::below(root, pid)
    }

    fn below(root: &Path, pid: u32) -> Result<Events, String> {
        let instance = root.join("instances").join(format!("gmem-{pid}"));
        let failure = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
        fs::create_dir(&instance).map_err(|error| failure(&instance, error))?;
        let set_up = || {
            let write = |file: &str, text: String| {
                let path = instance.join(file);
                fs::write(&path, text).map_err(|error| failure(&path, error))
            };
            write("set_event_pid", pid.to_string())?;
            write("events/kvmmmu/kvm_tdp_mmu_spte_changed/enable", "1".into())?;
            let path = instance.join("trace_pipe");
            OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path).map_err(|error| failure(&path, error))
        };
        match set_up() {
            Ok(pipe) => Ok(Events { instance, pipe, rest: String::new() }),
            Err(reason) => {
                let _ = fs::remove_dir(&instance);
                Err(reason)
            }
        }
    }

    /// The events since the last call.
    ///
    /// # Errors
    /// If events were lost or cannot be read, in words: what is returned would not be all of them.
    pub fn take(&mut self) -> Result<Vec<Event>, String> {
        let mut bytes = [0; 1 << 16];
        loop {
            match self.pipe.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => self.rest.push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("trace_pipe: {error}")),
            }
        }
        let complete = self.rest.rfind('\n').map_or(0, |end| end + 1);
        let rest = self.rest.split_off(complete);
        let text = std::mem::replace(&mut self.rest, rest);
        parse(&text)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // The directory goes only when nobody reads; the kernel keeps at most this one pipe open until the process ends.
        if let Ok(null) = File::open("/dev/null") {
            self.pipe = null;
        }
        let _ = fs::remove_dir(&self.instance);
    }
}

/// The events in some lines of a trace.
fn parse(text: &str) -> Result<Vec<Event>, String> {
    let mut events = Vec::new();
    for line in text.lines() {
        if line.contains(" LOST ") || line.contains("[LOST") {
            return Err(format!("the kernel lost events: {line}"));
        }
        if let Some((_, fields)) = line.split_once("kvm_tdp_mmu_spte_changed: ") {
            events.push(event(fields).ok_or_else(|| format!("not understood: {line}"))?);
        }
    }
    Ok(events)
}

/// `as id 0 gfn f0000 level 1 old_spte 0 new_spte 600000010a4f7`
fn event(fields: &str) -> Option<Event> {
    let words: Vec<&str> = fields.split_whitespace().collect();
    let ["as", "id", as_id, "gfn", gfn, "level", level, "old_spte", old, "new_spte", new] = words[..] else {
        return None;
    };
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some(Event {
        as_id: as_id.parse().ok()?,
        gfn: hex(gfn)?,
        level: level.parse().ok()?,
        old_spte: hex(old)?,
        new_spte: hex(new)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_tracepoint_are_read() {
        let text = "  gmem-412  [001] .....  12.5: kvm_tdp_mmu_spte_changed: as id 0 gfn f0000 level 1 old_spte 0 new_spte 600000010a4f7\n\
                    gmem-412  [001] .....  12.6: kvm_exit: vcpu 0\n";
        let event = Event { as_id: 0, gfn: 0xf0000, level: 1, old_spte: 0, new_spte: 0x6_0000_0010_a4f7 };
        assert_eq!(parse(text), Ok(vec![event]));
    }

    #[test]
    fn what_is_missing_is_said() {
        assert!(parse("CPU:1 [LOST 12 EVENTS]\n").unwrap_err().contains("lost events"));
        assert!(parse("x: kvm_tdp_mmu_spte_changed: gfn 1\n").unwrap_err().contains("not understood"));
    }
}
