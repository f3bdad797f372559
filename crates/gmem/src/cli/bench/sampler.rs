//! The meter of `gmem bench`: how often a body is called, and what is made of the times.
//!
//! A *sample* calls the body until what it times has taken a while, and gives nanoseconds for each element. What is told of the samples is the
//! median: it does not mind that now and then somebody else had the processor.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bench::{Case, Meter, Timer, Weighing};

/// How long is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Samples of a case, if there is time for them.
    pub(super) samples: usize,
    /// Timed work of a sample, at least.
    pub(super) sample: Duration,
    /// Time for a case, preparations included; three samples are taken in any case.
    pub(super) case: Duration,
}

impl Patience {
    pub(super) const USUAL: Patience =
        Patience { samples: 21, sample: Duration::from_millis(20), case: Duration::from_secs(4) };
    pub(super) const QUICK: Patience =
        Patience { samples: 3, sample: Duration::from_millis(2), case: Duration::from_millis(200) };
}

/// Nanoseconds or bytes for each element, over the samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) samples: usize,
}

impl Measured {
    fn of(mut samples: Vec<f64>) -> Measured {
        samples.sort_by(f64::total_cmp);
        let median = samples[samples.len() / 2];
        Measured { median, min: samples[0], max: samples[samples.len() - 1], samples: samples.len() }
    }
}

/// Time that this thread has spent on a processor: what a program costs, whoever else is there.
pub(super) fn cpu_time() -> Duration {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
    }
    #[cfg(not(unix))]
    wall_time()
}

/// Time that has passed since the first call.
// The simulator reads no clock; what it costs is measured here.
#[expect(clippy::disallowed_methods)]
pub(super) fn wall_time() -> Duration {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let now = Instant::now();
    now.saturating_duration_since(*BEGUN.get_or_init(|| now))
}

/// Bytes of this process that are in memory; `None` on a host that does not say.
fn resident() -> Option<u64> {
    const PAGE: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * PAGE)
}

/// Measures what it is given, and tells `report` at once.
pub(super) struct Sampler<'a> {
    patience: Patience,
    scales: Scales<'a>,
    /// What the ids of the cases begin with that are wanted.
    wanted: &'a str,
    /// One was met.
    found: bool,
    report: &'a mut dyn FnMut(Case, Measured),
    failure: Option<anyhow::Error>,
}

/// Where memory is weighed. Memory that was freed is not given back, so each case needs a process that has done nothing else.
pub(super) enum Scales<'a> {
    /// In this process, and nothing but the case with this id.
    Here(String),
    /// In another, which may have nothing to say.
    Elsewhere(&'a dyn Fn(&Case) -> anyhow::Result<Option<Measured>>),
}

impl<'a> Sampler<'a> {
    /// A meter that measures so long and tells `report`, of those cases whose ids begin with `wanted`.
    pub(super) fn new(
        patience: Patience,
        scales: Scales<'a>,
        wanted: &'a str,
        report: &'a mut dyn FnMut(Case, Measured),
    ) -> Sampler<'a> {
        Sampler { patience, scales, wanted, found: false, report, failure: None }
    }

    /// What went wrong on the way; whether any case was wanted.
    pub(super) fn finish(self) -> anyhow::Result<bool> {
        self.failure.map_or(Ok(self.found), Err)
    }

    fn wants(&mut self, case: &Case) -> bool {
        let wants = case.id().to_ascii_lowercase().starts_with(&self.wanted.to_ascii_lowercase());
        self.found |= wants;
        wants
    }
}

impl Meter for Sampler<'_> {
    fn measure(&mut self, case: Case, body: &mut dyn FnMut(&mut Timer)) {
        if !self.wants(&case) {
            return;
        }
        let begun = wall_time();
        let patience = self.patience;
        let clock = if case.is_parallel { wall_time } else { cpu_time };
        let spent_by = |body: &mut dyn FnMut(&mut Timer), least: Duration| {
            let mut timer = Timer::new(clock);
            let mut calls = 0u64;
            while calls == 0 || timer.spent() < least {
                body(&mut timer);
                calls += 1;
            }
            timer.spent().as_secs_f64() * 1e9 / (calls * case.elements) as f64
        };
        // Once for the caches.
        spent_by(body, patience.sample / 4);
        let mut samples = Vec::new();
        while samples.len() < 3 || (samples.len() < patience.samples && wall_time() - begun < patience.case) {
            samples.push(spent_by(body, patience.sample));
        }
        (self.report)(case, Measured::of(samples));
    }

    fn weigh(&mut self, case: Case, body: &mut Weighing<'_>) {
        if !self.wants(&case) {
            return;
        }
        match &self.scales {
            // Where nobody says how much memory a process has, there is nothing to tell.
            Scales::Here(id) if *id == case.id() => {
                let (mut empty, mut full) = (None, None);
                body(&mut || empty = resident(), &mut || full = resident());
                if let (Some(empty), Some(full)) = (empty, full) {
                    let each = full.saturating_sub(empty) as f64 / case.elements as f64;
                    (self.report)(case, Measured::of(vec![each]));
                }
            }
            Scales::Here(_) => {}
            Scales::Elsewhere(weigh) => match weigh(&case) {
                Ok(Some(measured)) => (self.report)(case, measured),
                Ok(None) => {}
                Err(error) => self.failure = self.failure.take().or(Some(error)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let of = Measured::of(vec![5.0, 1.0, 100.0]);
        assert_eq!((of.median, of.min, of.max, of.samples), (5.0, 1.0, 100.0, 3));
    }

    #[test]
    fn a_case_is_measured_at_least_three_times_and_only_by_what_it_times() {
        let patience = Patience { samples: 5, sample: Duration::ZERO, case: Duration::ZERO };
        let mut told = Vec::new();
        let mut calls = 0;
        let mut report = |case, of| told.push((case, of));
        let mut sampler = Sampler::new(patience, Scales::Here(String::new()), "P1/x", &mut report);
        for name in ["x", "another"] {
            sampler.measure(Case::new("P1", name, 0, "thing", 10), &mut |timer| {
                calls += 1;
                timer.time(|| ());
            });
        }
        assert!(sampler.finish().unwrap());
        assert_eq!(calls, 4, "once for the caches, three samples");
        assert_eq!(told.len(), 1, "the other was not wanted");
        assert_eq!(told[0].1.samples, 3);
    }
}
