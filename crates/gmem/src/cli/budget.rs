//! How much an exploration may do: so many executions, or so long.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// When an exploration ends, if nothing else ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// After so many executions: what is explored is the same on every machine.
    Executions(u64),
    /// After so long.
    Time(Duration),
}

impl Budget {
    /// Executions that an exhaustive search may take before samples are taken, however much time there is.
    const SEARCH_IN_TIME: u64 = 200_000;

    /// Executions, in all and of the exhaustive search that comes first.
    pub fn executions(self) -> (u64, u64) {
        match self {
            Budget::Executions(count) => (count, count.div_ceil(2)),
            Budget::Time(_) => (u64::MAX, Self::SEARCH_IN_TIME),
        }
    }

    /// How long, if that is what counts.
    pub fn time(self) -> Option<Duration> {
        match self {
            Budget::Executions(_) => None,
            Budget::Time(time) => Some(time),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Executions(count) => match count {
                n if *n > 0 && n % 1_000_000 == 0 => write!(f, "{}M", n / 1_000_000),
                n if *n > 0 && n % 1_000 == 0 => write!(f, "{}k", n / 1_000),
                n => n.fmt(f),
            },
            Budget::Time(time) => write!(f, "{}s", time.as_secs()),
        }
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(s: &str) -> Result<Budget, String> {
        let wrong = || format!("`{s}` is neither a number of executions (5000, 100k, 2M) nor a time (10s, 5m)");
        let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let number: u64 = s[..digits].parse().map_err(|_| wrong())?;
        let times = |factor: u64| number.checked_mul(factor).ok_or_else(|| format!("`{s}` is too much"));
        let budget = match &s[digits..] {
            "" => Budget::Executions(number),
            "k" => Budget::Executions(times(1_000)?),
            "M" => Budget::Executions(times(1_000_000)?),
            "s" => Budget::Time(Duration::from_secs(number)),
            "m" => Budget::Time(Duration::from_secs(times(60)?)),
            _ => return Err(wrong()),
        };
        match number {
            0 => Err("a budget of nothing explores nothing".to_string()),
            _ => Ok(budget),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_as_written() {
        for (text, budget) in [
            ("1", Budget::Executions(1)),
            ("100k", Budget::Executions(100_000)),
            ("2M", Budget::Executions(2_000_000)),
            ("10s", Budget::Time(Duration::from_secs(10))),
        ] {
            assert_eq!(text.parse(), Ok(budget));
            assert_eq!(budget.to_string(), text);
        }
        assert_eq!("5m".parse(), Ok(Budget::Time(Duration::from_secs(300))));
        for wrong in ["", "k", "10h", "-1", "1.5s", "0", "0s", "99999999999999999999", "99999999999999999k"] {
            assert!(wrong.parse::<Budget>().is_err(), "{wrong}");
        }
    }
}
