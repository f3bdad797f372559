//! Counters and words beside the scheduled ones: bookkeeping that every task changes within its step.
//!
//! Natively that takes locked instructions. In a simulation one OS thread runs all tasks, so a load and a store do, and cost a quarter.

use crate::Cx;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// How words are changed in the world that this was made for.
///
/// ```
/// use sim_kernel::{sched::Sim, sync::Rmw};
/// use std::sync::atomic::AtomicU64;
/// Sim::sequential().solo(|cx| {
///     let (rmw, count) = (Rmw::new(cx), AtomicU64::new(3));
///     assert_eq!(rmw.add64(&count, 2), 3);
///     assert_eq!(rmw.update64(&count, |n| n * 2), 5);
///     assert_eq!(count.into_inner(), 10);
/// });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Rmw {
    native: bool,
}

impl Rmw {
    /// For objects that are only used where `cx` runs.
    pub fn new(cx: &Cx<'_>) -> Rmw {
        Rmw { native: cx.is_native() }
    }

    /// For objects that may be used anywhere.
    pub const NATIVE: Rmw = Rmw { native: true };

    /// Adds, wrapping, and returns the old value.
    #[inline]
    pub fn add32(self, word: &AtomicU32, n: u32) -> u32 {
        if self.native {
            return word.fetch_add(n, Ordering::SeqCst);
        }
        let old = word.load(Ordering::Relaxed);
        word.store(old.wrapping_add(n), Ordering::Relaxed);
        old
    }

    /// Adds, wrapping, and returns the old value.
    #[inline]
    pub fn add64(self, word: &AtomicU64, n: u64) -> u64 {
        if self.native {
            return word.fetch_add(n, Ordering::SeqCst);
        }
        let old = word.load(Ordering::Relaxed);
        word.store(old.wrapping_add(n), Ordering::Relaxed);
        old
    }

    /// Replaces the word by a function of it and returns the old value. Natively the function may run more than once.
    #[inline]
    pub fn update32(self, word: &AtomicU32, change: impl Fn(u32) -> u32) -> u32 {
        if self.native {
            let result = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(change(old)));
            return result.unwrap_or_else(|old| old);
        }
        let old = word.load(Ordering::Relaxed);
        word.store(change(old), Ordering::Relaxed);
        old
    }

    /// Replaces the word by a function of it and returns the old value. Natively the function may run more than once.
    #[inline]
    pub fn update64(self, word: &AtomicU64, change: impl Fn(u64) -> u64) -> u64 {
        if self.native {
            let result = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(change(old)));
            return result.unwrap_or_else(|old| old);
        }
        let old = word.load(Ordering::Relaxed);
        word.store(change(old), Ordering::Relaxed);
        old
    }
}
