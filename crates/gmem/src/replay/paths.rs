//! Which files a command line means: files as named, folders with every `*.jsonl` in them.
//!
//! Simplified: symbolic links to folders are not followed, so that no cycle needs to be detected.

use std::fs;
use std::path::{Path, PathBuf};

/// The files that `paths` mean, in their order; those of a folder sorted by name, subfolders included.
///
/// # Errors
/// A message with the path if one does not exist or cannot be read, or if nothing was found at all.
pub fn traces(paths: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for path in paths {
        let metadata = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
        if metadata.is_dir() {
            folder(path, &mut files)?;
        } else {
            files.push(path.clone());
        }
    }
    if files.is_empty() {
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(format!("no trace found in {}: expected files named *.jsonl", paths.join(", ")));
    }
    Ok(files)
}

fn folder(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let failure = |error| format!("{}: {error}", path.display());
    let mut entries = fs::read_dir(path).map_err(failure)?.collect::<Result<Vec<_>, _>>().map_err(failure)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type().map_err(failure)?.is_dir() {
            folder(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "jsonl") && path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}
