//! `gmem workload`: an SNP guest or a TD that boots and works, in numbers.

use std::io::Write;

use serde_json::json;

use super::args;
use crate::Status;
use crate::workload::{self, Phase, Platform, Report, Sizes};

pub(super) fn workload(args: &args::Workload, out: &mut dyn Write) -> anyhow::Result<Status> {
    let usual = Sizes::boot(args.vcpus, args.memory);
    let sizes = Sizes {
        firmware_accept: args.firmware_accept.unwrap_or(usual.firmware_accept),
        bounces: args.bounces,
        lazy_blocks: args.lazy_blocks.unwrap_or(usual.lazy_blocks),
        conversions: args.conversions.unwrap_or(usual.conversions),
        kexec: args.kexec,
        terminate: args.terminate,
        contention: args.contention,
        large_pages: args.large_pages,
        platform: match args.platform {
            args::Platform::Snp => Platform::Snp,
            args::Platform::Tdx => Platform::Tdx,
        },
        ..usual
    };
    let report = workload::run(&sizes, args.seed).map_err(anyhow::Error::msg)?;
    if args.json {
        let phases: Vec<_> = report.phases.iter().map(|row| {
            json!({
                "phase": row.phase.to_string(), "exits": row.exits, "to_private": row.to_private, "to_shared": row.to_shared,
            })
        }).collect();
        let object = json!({
            "phases": phases,
            "teardown": report.teardown.map(|calls| {
                let leaves: serde_json::Map<_, _> =
                    calls.by_name().map(|(name, count)| (name.to_string(), json!(count))).collect();
                json!({ "seamcalls": leaves, "kicks": calls.kicks })
            }),
            "complete": report.is_complete(),
            "steps": report.steps,
            "log_digest": format!("{:016x}", report.log_digest),
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&object)?)?;
    } else {
        print(out, &report)?;
    }
    Ok(if report.is_complete() { Status::Success } else { Status::Found })
}

fn print(out: &mut dyn Write, report: &Report) -> anyhow::Result<()> {
    writeln!(out, "phase                  exits   pages to private   pages to shared")?;
    for row in &report.phases {
        let title = format!("{} {}", row.phase, Phase::title(row.phase));
        writeln!(out, "{title:<20} {:>7} {:>18} {:>17}", row.exits, row.to_private, row.to_shared)?;
    }
    if let Some(calls) = &report.teardown {
        let leaves: Vec<_> = calls.by_name().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(out, "W11 teardown: {} SEAMCALLs ({}), {} kicks", calls.total(), leaves.join(", "), calls.kicks)?;
    }
    for problem in &report.problems {
        writeln!(out, "{problem}")?;
    }
    for (vcpu, outcome) in report.outcomes.iter().enumerate() {
        match outcome {
            Some(Ok(())) => {}
            Some(Err(ended)) => writeln!(out, "vCPU {vcpu}: {ended}")?,
            None => writeln!(out, "vCPU {vcpu} did not come to its end")?,
        }
    }
    writeln!(out, "{}, {} steps, event log {:016x}", report.verdict, report.steps, report.log_digest)?;
    Ok(())
}
