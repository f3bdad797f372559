//! Writes down two tables: where each function of the simulator stands, and which function of the kernel it says that it models; and the
//! scenarios of the repository, so that `gmem zoo` needs no files.
//!
//! Failure reports name the places where tasks collided. A place is known to the engine as file and line; the table that this makes of
//! the sources gives the function around it. By convention a function that models one of the kernel has that name, in backquotes, at
//! the beginning of its documentation.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 4] = ["sim-kernel", "sim-mmu", "sim-coco", "gmem"];

fn main() {
    let crates = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo says where")).join("..");
    let mut table = String::from("&[\n");
    for name in CRATES {
        let sources = crates.join(name).join("src");
        println!("cargo::rerun-if-changed={}", sources.display());
        let mut files = Vec::new();
        collect(&sources, "rs", &mut files);
        files.sort();
        for file in files {
            let text = fs::read_to_string(&file).expect("a source can be read");
            let path = file.strip_prefix(&crates).expect("below the crates").to_string_lossy().replace('\\', "/");
            write!(table, "    (\"crates/{path}\", &[").expect("writing to a string");
            for (line, function, kernel) in functions(&text) {
                write!(table, "({line}, {function:?}, {kernel:?}), ").expect("writing to a string");
            }
            table.push_str("]),\n");
        }
    }
    table.push(']');
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo says where"));
    fs::write(out.join("functions.rs"), table).expect("the table can be written");
    fs::write(out.join("scenarios.rs"), scenarios(&crates)).expect("the table can be written");
}

/// Path below `scenarios/`, and text, of every scenario.
fn scenarios(crates: &Path) -> String {
    let root = crates.join("../scenarios").canonicalize().expect("the repository has scenarios");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(&root, "toml", &mut files);
    files.sort();
    let mut table = String::from("&[\n");
    for file in files {
        let path = file.strip_prefix(&root).expect("below the scenarios").to_string_lossy().replace('\\', "/");
        writeln!(table, "    ({path:?}, include_str!({:?})),", file.display().to_string())
            .expect("writing to a string");
    }
    table.push(']');
    table
}

fn collect(folder: &Path, ending: &str, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder can be read") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            collect(&path, ending, files);
        } else if path.extension().is_some_and(|extension| extension == ending) {
            files.push(path);
        }
    }
}

/// Line, name, and the kernel's name or nothing, of every function of a source.
fn functions(text: &str) -> Vec<(usize, &str, &str)> {
    let mut found = Vec::new();
    let mut doc: Option<&str> = None;
    for (number, line) in text.lines().enumerate() {
        let code = line.trim_start();
        if let Some(words) = code.strip_prefix("///") {
            doc = doc.or(Some(words.trim()));
            continue;
        }
        if code.starts_with("#[") || code.starts_with("//") {
            continue;
        }
        if let Some(name) = function_name(code) {
            found.push((number + 1, name, doc.map_or("", kernel_name)));
        }
        doc = None;
    }
    found
}

fn function_name(code: &str) -> Option<&str> {
    let before = &code[..code.find("fn ")?];
    let is_modifier = |word: &str| word.starts_with("pub") || word == "const" || word.ends_with(')');
    if !before.split_whitespace().all(is_modifier) {
        return None;
    }
    let name = &code[before.len() + 3..];
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (end > 0).then(|| &name[..end])
}

/// The name in backquotes at the beginning of a documentation, if it looks like a function of the kernel.
fn kernel_name(doc: &str) -> &str {
    let Some((name, _)) = doc.strip_prefix('`').and_then(|rest| rest.split_once('`')) else { return "" };
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    // A system call by its name in capitals will do, too.
    if is_name && name.contains('_') { name } else { "" }
}
