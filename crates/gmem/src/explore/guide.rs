//! A schedule that need not fit: what changes an interleaving a little, and sees what becomes of it.
//!
//! A recorded schedule names who ran at each decision; change one and the rest means something else. A [`Guide`] names who performs each
//! *operation* instead, and bends where it must: an entry whose task cannot run waits for its turn, one whose task has ended is forgotten.

use std::collections::VecDeque;

use sim_kernel::sched::{Divergence, Op, Ready, Strategy, TaskId};

/// Follows an order of operations as far as it can; after its end, tasks run until they block, the lowest number first.
#[derive(Clone, Debug)]
pub struct Guide {
    order: Vec<TaskId>,
    left: VecDeque<TaskId>,
}

impl Guide {
    /// Follows `order`: the task of each operation after the set-up.
    pub fn new(order: Vec<TaskId>) -> Guide {
        let left = order.iter().copied().collect();
        Guide { order, left }
    }
}

impl Strategy for Guide {
    fn begin(&mut self, _seed: u64) {
        self.left = self.order.iter().copied().collect();
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let next = self.left.iter().copied().find(|task| ready.runnable.contains(*task));
        Ok(next.unwrap_or_else(|| {
            if ready.runnable.contains(ready.current) { ready.current } else { ready.runnable.nth(0) }
        }))
    }

    fn executed(&mut self, task: TaskId, _op: &Op) {
        if task == TaskId::BOOT {
            return;
        }
        if let Some(at) = self.left.iter().position(|next| *next == task) {
            self.left.remove(at);
        }
    }
}
