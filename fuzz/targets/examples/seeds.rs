//! Writes the seeds of the target `operations` that come from recordings: `cargo run -p gmem-fuzz-targets --example seeds OUT FILE...`
//! makes a file in the folder OUT of the operations of each recording.

use std::fs;
use std::io::BufReader;
use std::path::Path;

use gmem::ops::Op;
use gmem::trace::Reader;
use gmem_fuzz_targets::operations::encode;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let out = args.next().ok_or("usage: seeds OUT FILE...")?;
    fs::create_dir_all(&out)?;
    for file in args {
        let reader = Reader::new(&file, BufReader::new(fs::File::open(&file)?))?;
        let ops = reader.map(|line| line.map(|line| line.op)).collect::<Result<Vec<Op>, _>>()?;
        let name = Path::new(&file).file_stem().ok_or("a recording has a name")?;
        fs::write(Path::new(&out).join(name), encode(&ops))?;
    }
    Ok(())
}
