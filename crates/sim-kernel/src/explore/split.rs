//! Cutting a search into parts that can be run anywhere, in any order, and whose totals add up to the same whoever runs them.
//!
//! A part is a *frozen prefix* of steps: the part varies only what comes after it. Within the frozen steps every task that does not sleep is tried, in some part or
//! other, so no part has to tell another of a race that it found. A search can be cut before it begins and at any time between two of its executions: what it has
//! done stays done, and the parts share what it has left. How it is cut depends on nothing but the program, where the search stands, and the number of
//! parts asked for.

use super::{Exploration, Frontier, FrontierError, Options, Program, Rest, Statistics, StrategyKind};
use crate::sched::{Branch, Chooser, Dfs, Reduced, ReducedBranch, TaskSet};

/// Steps beyond which prefixes are not made longer: a program that offers no choice for so long is not worth cutting.
const PREFIX_MAX: usize = 64;

/// Cuts what the searches at `frontiers` have left into about `parts` parts, each of which is taken up with [`Exploration::from_frontier`] and counts from zero;
/// fewer if the program is small. The parts together run every class that the searches would run, once; what they prune may differ from what
/// those would prune, but not from one cut to the next.
///
/// Only plain search, sleep sets and partial-order reduction can be cut; every other search is its own and only part. Samples are split by number instead
/// ([`Options::first`]).
///
/// Finding the parts takes an execution for each, which are judged to be taken down, and not counted.
///
/// # Errors
/// If a frontier is not one that [`Exploration::frontier`] could have given.
pub fn cut<P: Program>(program: &P, frontiers: Vec<Frontier>, parts: usize) -> Result<Vec<Frontier>, FrontierError> {
    for frontier in &frontiers {
        frontier.check()?;
    }
    let mut is_whole: Vec<bool> = frontiers.iter().map(|frontier| frontier.exhausted).collect();
    let empty = |frontier| Frontier { statistics: Statistics::default(), ..frontier };
    let mut found: Vec<Frontier> = frontiers.into_iter().map(empty).collect();
    while found.len() < parts {
        let growing = (0..found.len()).filter(|n| !is_whole[*n]);
        // The one that was cut least is the largest, most likely.
        let Some(shortest) = growing.min_by_key(|n| found[*n].rest.frozen().unwrap_or(PREFIX_MAX)) else { break };
        if found[shortest].rest.frozen().is_none_or(|frozen| frozen >= PREFIX_MAX) {
            break;
        }
        let Some(pieces) = Cutter::new(program, &found[shortest]).cut(&found[shortest].rest) else {
            is_whole[shortest] = true;
            continue;
        };
        let whole = found[shortest].clone();
        // In place, so that parts stay in the order of the search.
        is_whole.splice(shortest..=shortest, pieces.iter().map(|_| false));
        found.splice(shortest..=shortest, pieces.into_iter().map(|rest| Frontier { rest, ..whole.clone() }));
    }
    Ok(found)
}

impl<P: Program> Exploration<'_, P> {
    /// As [`cut`], of what this search has left; what it has done is its own.
    ///
    /// # Panics
    /// Never: a search's own frontier is one.
    pub fn split(self, parts: usize) -> Vec<Frontier> {
        let frontier = self.frontier();
        cut(self.program(), vec![frontier], parts).expect("the frontier of a search")
    }
}

impl Rest {
    /// Steps that are not varied; nothing if this cannot be cut.
    fn frozen(&self) -> Option<usize> {
        match self {
            Rest::Dfs { frozen, .. } | Rest::Reduced { frozen, .. } => Some(*frozen),
            _ => None,
        }
    }
}

/// Runs executions to see how they go on.
struct Cutter<'p, P: Program> {
    exploration: Exploration<'p, P>,
}

impl<'p, P: Program> Cutter<'p, P> {
    fn new(program: &'p P, frontier: &Frontier) -> Self {
        let options = Options { steps_max: frontier.steps_max, memory: frontier.memory, ..Options::default() };
        // The strategy is replaced before anything is executed.
        Cutter { exploration: Exploration::new(program, StrategyKind::Dfs, frontier.seed, options) }
    }

    /// The parts of what is left, each with one frozen step more; nothing if the program has no further step there.
    fn cut(mut self, rest: &Rest) -> Option<Vec<Rest>> {
        match rest {
            Rest::Dfs { path, frozen } => self.cut_dfs(path, *frozen),
            Rest::Reduced { path, frozen } => self.cut_reduced(path, *frozen),
            _ => None,
        }
    }

    fn cut_dfs(&mut self, path: &[Branch], frozen: usize) -> Option<Vec<Rest>> {
        let prefix = &path[..frozen];
        let (branch, tail) = match path.get(frozen) {
            Some(branch) => (*branch, &path[frozen + 1..]),
            None => {
                self.exploration.set_chooser(Chooser::Dfs(Dfs::from_path(prefix, frozen)));
                self.exploration.probe();
                let next = self.exploration.with_chooser(|chooser| match chooser {
                    Chooser::Dfs(dfs) => dfs.path().get(frozen).copied(),
                    _ => None,
                });
                (next?, &[][..])
            }
        };
        let part = |task: u8, tail: &[Branch]| Rest::Dfs {
            path: [prefix, &[Branch { task, left: 0 }], tail].concat(),
            frozen: frozen + 1,
        };
        let others = TaskSet(branch.left);
        Some(std::iter::once(part(branch.task, tail)).chain(others.iter().map(|task| part(task.0, &[]))).collect())
    }

    fn cut_reduced(&mut self, path: &[ReducedBranch], frozen: usize) -> Option<Vec<Rest>> {
        let mut known = path[..path.len().min(frozen + 1)].to_vec();
        if let Some(varied) = known.get_mut(frozen) {
            // Who is to be tried there is known only in part: from now on nobody adds to it, so it is everybody.
            varied.backtrack = varied.enabled;
        }
        let search = Reduced::sleep().with_path(&known, frozen).up_to(frozen);
        self.exploration.set_chooser(Chooser::Reduced(Box::new(search)));
        let mut parts = Vec::new();
        loop {
            self.exploration.probe();
            let (mut found, more) = self.exploration.with_chooser(|chooser| match chooser {
                Chooser::Reduced(search) => (search.prefix().to_vec(), search.has_more()),
                _ => (Vec::new(), false),
            });
            if found.len() > frozen {
                if parts.is_empty() && path.len() > frozen {
                    // Where the search stands, and what it has found out since.
                    found.extend_from_slice(&path[frozen + 1..]);
                }
                parts.push(Rest::Reduced { path: found, frozen: frozen + 1 });
            }
            if !more {
                return (!parts.is_empty()).then_some(parts);
            }
        }
    }
}
