//! What the commands share on their way out: diagnostics, errors, files that appear whole.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Sends diagnostics to stderr, down to `level` or as `RUST_LOG` says.
pub(super) fn start_tracing(level: LevelFilter) {
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    let colours = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours)
        .without_time()
        .finish();
    // A program that uses the command as a library may have its own subscriber already; it stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// `error: message`, with colours.
pub(super) fn error(message: &str) -> String {
    format!("\u{1b}[1;31merror\u{1b}[0m: {message}")
}

/// Whether what failed is a write to a pipe that nobody reads any more.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is_broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(is_broken))
}

/// Fails as [`whole_file`] would fail, before there is anything to write. Nothing is left behind.
///
/// # Errors
/// That the file cannot be written.
pub(super) fn can_be_written(path: &Path) -> anyhow::Result<()> {
    let failure = || format!("cannot write {}", path.display());
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        fs::OpenOptions::new().write(true).open(path).with_context(failure)?;
        return Ok(());
    }
    temporary_beside(&fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())).with_context(failure)?;
    Ok(())
}

/// A new file in the folder of `target`, which goes away unless it is kept.
fn temporary_beside(target: &Path) -> io::Result<tempfile::NamedTempFile> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".gmem-");
    #[cfg(unix)]
    {
        // As any new file: what the umask leaves of it.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder).map_err(without_path)
}

/// The error of the system, without the name of a file that nobody has asked for.
fn without_path(error: io::Error) -> io::Error {
    let text = error.to_string();
    let (cause, _) = text.split_once(" at path ").unwrap_or((&text, ""));
    io::Error::new(error.kind(), cause)
}

/// Lets `write` fill the file at `path`. The file appears whole or not at all: if anything fails, what was there stays.
///
/// # Errors
/// What `write` fails with, or that the file cannot be written.
pub(super) fn whole_file<T>(path: &Path, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let failure = || format!("cannot write {}", path.display());
    // A device or a pipe cannot be replaced, only written to.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let mut file = BufWriter::new(fs::OpenOptions::new().write(true).open(path).with_context(failure)?);
        let result = write(&mut file)?;
        file.flush().with_context(failure)?;
        return Ok(result);
    }
    // Through a link, the file that it names is replaced, not the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let mut file = BufWriter::new(temporary_beside(&target).with_context(failure)?);
    let result = write(&mut file)?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error).with_context(failure)?;
    file.persist(&target).with_context(failure)?;
    Ok(result)
}
