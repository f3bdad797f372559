//! Makes a differing program small: first fewer operations, then simpler arguments.
//!
//! Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input"): chunks of half the program, then of
//! a quarter, and so on down to single operations, are left out as long as a difference remains. Which difference remains is not asked: a smaller
//! program that differs is as good a find.

use serde_json::Value;

use crate::ops::Op;
use crate::ops::table::{self, Kind};

/// The smallest program found that `differs` still accepts, in at most `attempts_max` attempts. `differs` says how many operations of a
/// program matter (up to the difference), or `None` if there is none.
///
/// # Errors
/// What `differs` fails with.
pub fn shrink<E>(
    ops: Vec<Op>,
    attempts_max: u32,
    mut differs: impl FnMut(&[Op]) -> Result<Option<usize>, E>,
) -> Result<Vec<Op>, E> {
    let mut best = ops;
    let mut attempts = 0;
    loop {
        let before = best.clone();
        let mut chunk = best.len().div_ceil(2).max(1);
        loop {
            let mut start = 0;
            while start < best.len() && attempts < attempts_max {
                let end = (start + chunk).min(best.len());
                let candidate: Vec<Op> = best[..start].iter().chain(&best[end..]).cloned().collect();
                attempts += 1;
                match differs(&candidate)? {
                    Some(matter) => {
                        best = candidate;
                        best.truncate(matter);
                    }
                    None => start = end,
                }
            }
            if chunk == 1 {
                break;
            }
            chunk = chunk.div_ceil(2);
        }
        let mut index = 0;
        while index < best.len() {
            for simpler in simpler(&best[index]) {
                if attempts >= attempts_max {
                    return Ok(best);
                }
                let mut candidate = best.clone();
                candidate[index] = simpler;
                attempts += 1;
                if let Some(matter) = differs(&candidate)? {
                    best = candidate;
                    best.truncate(matter);
                    break;
                }
            }
            index += 1;
        }
        if best == before || attempts >= attempts_max {
            return Ok(best);
        }
    }
}

/// The operation with one number simpler: zero, one page, without its low bits, half of it.
fn simpler(op: &Op) -> Vec<Op> {
    let Ok(Value::Object(fields)) = serde_json::to_value(op) else { return Vec::new() };
    let mut all = Vec::new();
    for (name, value) in &fields {
        // A number that names something is not simpler for being smaller, and where a mapping is placed is no argument of the kernel's.
        let arg = table::find(op.name()).and_then(|spec| spec.arg(name)).map(|(_, arg)| arg.kind);
        if matches!(arg, Some(Kind::Choice(_))) || name == "align" {
            continue;
        }
        let replacements: Vec<Value> = if let Some(number) = value.as_u64() {
            let mut numbers = vec![0, 4096, number & !0x1f_ffff, number & !0xfff, (number / 2) & !0xfff];
            numbers.retain(|candidate| *candidate < number);
            numbers.dedup();
            numbers.into_iter().map(Value::from).collect()
        } else if value.as_bool() == Some(true) {
            vec![false.into()]
        } else {
            Vec::new()
        };
        for replacement in replacements {
            let mut fields = fields.clone();
            fields[name] = replacement;
            all.extend(serde_json::from_value::<Op>(Value::Object(fields)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(n: usize) -> Op {
        Op::Close { fd: format!("f{n}").as_str().into() }
    }

    #[test]
    fn only_what_matters_is_left() {
        let ops: Vec<Op> = (0..40).map(close).collect();
        let needed = [close(3), close(29)];
        let differs = |ops: &[Op]| {
            let all = needed.iter().all(|op| ops.contains(op));
            Ok::<_, ()>(all.then(|| ops.iter().position(|op| *op == needed[1]).unwrap() + 1))
        };
        assert_eq!(shrink(ops, 1000, differs), Ok(needed.to_vec()));
    }

    #[test]
    fn numbers_become_simple() {
        let op = Op::HostRead { map: "m0".into(), offset: 0x123_4567 };
        let differs =
            |ops: &[Op]| Ok::<_, ()>(matches!(ops, [Op::HostRead { offset, .. }] if *offset >= 0x10_0000).then_some(1));
        let shrunk = shrink(vec![op], 1000, differs).unwrap();
        assert!(matches!(shrunk[..], [Op::HostRead { offset: 0x10_0000..0x20_0000, .. }]), "{shrunk:?}");
    }
}
