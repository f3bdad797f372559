//! Cutting a search into parts that can be run anywhere, in any order, and whose totals add up to the same whoever runs them.
//!
//! A part is a *frozen prefix* of steps: the part varies only what comes after it. Within the frozen steps every task that does not sleep is tried, in some part or
//! other, so no part has to tell another of a race that it found. How a search is cut depends on nothing but the program and the number of parts asked for.

use super::{Exploration, Frontier, Program, Rest, StrategyKind};
use crate::sched::{Branch, Chooser, Dfs, Reduced, ReducedBranch};

/// Steps beyond which prefixes are not made longer: a program that offers no choice for so long is not worth cutting.
const PREFIX_MAX: usize = 64;

impl<P: Program> Exploration<'_, P> {
    /// Cuts the search into about `parts` parts, each of which is taken up with [`Exploration::from_frontier`]; fewer if the program is small. The parts together run
    /// every class that the whole would run, once; what they prune may differ from what the whole prunes, but not from one cut to the next.
    ///
    /// Only plain search, sleep sets and partial-order reduction can be cut; every other search is its own and only part. Samples are split by number instead
    /// ([`Options::first`](super::Options::first)).
    ///
    /// Finding the parts takes one execution each, which are judged to be taken down, and not counted.
    ///
    /// # Panics
    /// If the exploration has already run an execution.
    pub fn split(mut self, parts: usize) -> Vec<Frontier> {
        let whole = self.frontier();
        assert_eq!(whole.statistics.executions + whole.statistics.pruned, 0, "a search is cut before it begins");
        let rests = match whole.kind {
            StrategyKind::Dfs => self.split_dfs(parts),
            StrategyKind::Sleep | StrategyKind::Dpor => self.split_reduced(parts),
            _ => return vec![whole],
        };
        rests.into_iter().map(|rest| Frontier { rest, ..whole.clone() }).collect()
    }

    fn split_dfs(&mut self, parts: usize) -> Vec<Rest> {
        let mut prefixes: Vec<Vec<Branch>> = vec![Vec::new()];
        grow(&mut prefixes, parts, |prefix| {
            self.set_chooser(Chooser::Dfs(Dfs::from_path(prefix, prefix.len())));
            self.probe();
            let next = self.with_chooser(|chooser| match chooser {
                Chooser::Dfs(dfs) => dfs.path().get(prefix.len()).copied(),
                _ => None,
            });
            let Some(next) = next else { return Vec::new() };
            let tasks = (0..64).filter(|task| (next.left | 1 << next.task) & 1 << task != 0);
            tasks.map(|task| [prefix, &[Branch { task, left: 0 }][..]].concat()).collect()
        });
        prefixes.into_iter().map(|path| Rest::Dfs { frozen: path.len(), path }).collect()
    }

    fn split_reduced(&mut self, parts: usize) -> Vec<Rest> {
        let mut prefixes: Vec<Vec<ReducedBranch>> = vec![Vec::new()];
        grow(&mut prefixes, parts, |prefix| {
            let search = Reduced::sleep().with_path(prefix, prefix.len()).up_to(prefix.len());
            self.set_chooser(Chooser::Reduced(Box::new(search)));
            let mut longer = Vec::new();
            loop {
                self.probe();
                let (found, more) = self.with_chooser(|chooser| match chooser {
                    Chooser::Reduced(search) => (search.prefix().to_vec(), search.has_more()),
                    _ => (Vec::new(), false),
                });
                if found.len() > prefix.len() {
                    longer.push(found);
                }
                if !more {
                    return longer;
                }
            }
        });
        prefixes.into_iter().map(|path| Rest::Reduced { frozen: path.len(), path }).collect()
    }
}

/// Replaces the shortest prefix by its continuations, until there are enough. A prefix without continuations stays.
fn grow<T>(prefixes: &mut Vec<Vec<T>>, parts: usize, mut continuations: impl FnMut(&[T]) -> Vec<Vec<T>>) {
    let mut is_whole: Vec<bool> = vec![false; prefixes.len()];
    while prefixes.len() < parts {
        let growing = (0..prefixes.len()).filter(|n| !is_whole[*n] && prefixes[*n].len() < PREFIX_MAX);
        let Some(shortest) = growing.min_by_key(|n| prefixes[*n].len()) else { return };
        let longer = continuations(&prefixes[shortest]);
        if longer.is_empty() {
            is_whole[shortest] = true;
            continue;
        }
        // In place, so that parts stay in the order of the search.
        is_whole.splice(shortest..=shortest, longer.iter().map(|_| false));
        prefixes.splice(shortest..=shortest, longer);
    }
}
