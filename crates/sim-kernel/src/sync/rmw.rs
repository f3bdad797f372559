//! Counters and words beside the scheduled ones: bookkeeping that every task changes within its step.
//!
//! Natively that takes locked instructions. In a simulation one OS thread runs all tasks, so a load and a store do, and cost a quarter.

use crate::Cx;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// How words are changed in the world that this was made for.
///
/// ```
/// use sim_kernel::{sched::Sim, sync::Rmw};
/// use std::sync::atomic::{AtomicU32, AtomicU64};
/// Sim::sequential().solo(|cx| {
///     let (rmw, count, small) = (Rmw::new(cx), AtomicU64::new(3), AtomicU32::new(1));
///     assert_eq!(rmw.add(&count, 2), 3);
///     assert_eq!(rmw.update(&count, |n| n * 2), 5);
///     assert_eq!((count.into_inner(), rmw.add(&small, u32::MAX)), (10, 1));
/// });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Rmw {
    native: bool,
}

/// A word that [`Rmw`] changes.
pub trait RmwWord {
    /// What it holds.
    type Value: Copy;

    /// The value.
    fn get(&self) -> Self::Value;

    /// Replaces the value; another thread's change may be lost.
    fn set(&self, value: Self::Value);

    /// The sum, wrapping.
    fn sum(a: Self::Value, b: Self::Value) -> Self::Value;

    /// Replaces the value by a function of it, as one step for all threads, and returns the old one. The function may run more than once.
    fn update_locked(&self, change: impl Fn(Self::Value) -> Self::Value) -> Self::Value;

    /// Adds, as one step for all threads, and returns the old value.
    fn add_locked(&self, n: Self::Value) -> Self::Value;
}

macro_rules! words {
    ($($atomic:ident $value:ident),*) => {$(
        impl RmwWord for $atomic {
            type Value = $value;

            #[inline]
            fn get(&self) -> $value {
                self.load(Ordering::Relaxed)
            }

            #[inline]
            fn set(&self, value: $value) {
                self.store(value, Ordering::Relaxed);
            }

            #[inline]
            fn sum(a: $value, b: $value) -> $value {
                a.wrapping_add(b)
            }

            #[inline]
            fn update_locked(&self, change: impl Fn($value) -> $value) -> $value {
                let result = self.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(change(old)));
                result.unwrap_or_else(|old| old)
            }

            #[inline]
            fn add_locked(&self, n: $value) -> $value {
                self.fetch_add(n, Ordering::SeqCst)
            }
        }
    )*};
}

words!(AtomicU32 u32, AtomicU64 u64);

impl Rmw {
    /// For objects that are only used where `cx` runs.
    pub fn new(cx: &Cx<'_>) -> Rmw {
        Rmw { native: cx.is_native() }
    }

    /// For objects that may be used anywhere.
    pub const NATIVE: Rmw = Rmw { native: true };

    /// Adds, wrapping, and returns the old value.
    #[inline]
    pub fn add<W: RmwWord>(self, word: &W, n: W::Value) -> W::Value {
        if self.native {
            return word.add_locked(n);
        }
        let old = word.get();
        word.set(W::sum(old, n));
        old
    }

    /// Replaces the word by a function of it and returns the old value. Natively the function may run more than once.
    #[inline]
    pub fn update<W: RmwWord>(self, word: &W, change: impl Fn(W::Value) -> W::Value) -> W::Value {
        if self.native {
            return word.update_locked(change);
        }
        let old = word.get();
        word.set(change(old));
        old
    }
}
