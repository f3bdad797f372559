//! `gmem conformance`: runs checks of the kernel's checklist and prints what came of them.

use std::io::Write;

use serde_json::{Value, json};

use super::{Backend, args};
use crate::Status;
use crate::conformance::{self, CheckResult};

pub(super) fn conformance(
    args: &args::Conformance,
    backend: &dyn Backend,
    out: &mut dyn Write,
) -> anyhow::Result<Status> {
    let results = backend.conformance(&args.ids)?;
    let count = |status| results.iter().filter(|result| result.status == status).count();
    let pass = count(conformance::Status::Pass);
    let fail = count(conformance::Status::Fail);
    let absent = count(conformance::Status::Absent);
    if args.json {
        let checks: Vec<Value> = results.iter().map(object).collect();
        let report = json!({ "checks": checks, "pass": pass, "fail": fail, "absent": absent });
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        // What a check looked at is for those who ask about it; why one failed or is absent is for everybody.
        text(&results, !args.ids.is_empty(), out)?;
        writeln!(out, "\n{pass} passed, {fail} failed, {absent} absent")?;
    }
    Ok(if fail == 0 { Status::Success } else { Status::Found })
}

fn object(result: &CheckResult) -> Value {
    let CheckResult { id, suite, title, status, reason } = result;
    json!({ "id": id, "suite": suite, "title": title, "status": status.name(), "reason": reason })
}

fn text(results: &[CheckResult], all_reasons: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut suite = "";
    for result in results {
        if result.suite != suite {
            let gap = if suite.is_empty() { "" } else { "\n" };
            writeln!(out, "{gap}{}", result.suite)?;
            suite = result.suite;
        }
        writeln!(out, "  {:<8}{:<8}{}", result.id, result.status.name(), result.title)?;
        if all_reasons || result.status != conformance::Status::Pass {
            writeln!(out, "{:18}{}", "", result.reason)?;
        }
    }
    Ok(())
}
