//! Which races a search with partial-order reduction had to turn round: where it spends its executions.

use super::Site;
use crate::sched::Place;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// How often the search became larger because two steps raced, by the places of the two.
///
/// A race at which something was to be tried already is not counted, so the sum is about the number of executions.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(from = "Vec<(Site, Site, u64)>", into = "Vec<(Site, Site, u64)>")]
pub struct Reversals {
    pairs: BTreeMap<(Site, Site), u64>,
}

impl Reversals {
    /// The pairs, the earlier step first, and how often each was reversed; the most frequent first.
    pub fn most(&self) -> impl Iterator<Item = (&(Site, Site), u64)> {
        let mut pairs: Vec<_> = self.pairs.iter().map(|(pair, times)| (pair, *times)).collect();
        pairs.sort_by_key(|(pair, times)| (Reverse(*times), *pair));
        pairs.into_iter()
    }

    /// Adds what another part counted.
    pub fn merge(&mut self, other: &Reversals) {
        for (pair, times) in &other.pairs {
            *self.pairs.entry(pair.clone()).or_default() += times;
        }
    }

    pub(super) fn add(&mut self, reversed: &[(Place, Place)]) {
        for &(earlier, later) in reversed {
            *self.pairs.entry((earlier.into(), later.into())).or_default() += 1;
        }
    }
}

impl From<Vec<(Site, Site, u64)>> for Reversals {
    fn from(rows: Vec<(Site, Site, u64)>) -> Reversals {
        Reversals { pairs: rows.into_iter().map(|(earlier, later, times)| ((earlier, later), times)).collect() }
    }
}

impl From<Reversals> for Vec<(Site, Site, u64)> {
    fn from(reversals: Reversals) -> Self {
        reversals.pairs.into_iter().map(|((earlier, later), times)| (earlier, later, times)).collect()
    }
}
