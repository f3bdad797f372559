//! Prints the program of an input of the target `operations`, to look at a finding: `cargo run -p gmem-fuzz-targets --example show FILE`.

use gmem_fuzz_targets::operations::decode;

fn main() -> std::io::Result<()> {
    for file in std::env::args().skip(1) {
        let program = decode(&std::fs::read(&file)?);
        println!("# {file}: {:?}, seed {}", program.machine, program.seed);
        let show = |name: &str, ops: &[gmem::ops::Op]| {
            println!("[{name}]");
            for op in ops {
                println!("{}", gmem::scenario::print(op));
            }
        };
        show("setup", &program.set_up);
        for (n, ops) in program.tasks.iter().enumerate() {
            show(&format!("thread.t{n}"), ops);
        }
    }
    Ok(())
}
