//! What a model needs of an engine: tasks, locks, words. One implementation for each engine that is compared.

use sim_kernel::sync;
use std::sync::atomic::Ordering::SeqCst;

/// An engine as a model sees it. Operations on words and locks are what the engine schedules.
pub(crate) trait Platform: Sized + 'static {
    /// What every operation is told: who runs.
    type Cx<'c>;
    /// An exclusive lock.
    type Lock: Send + Sync + 'static;
    /// An atomic word.
    type Word: Send + Sync + 'static;
    /// A task to wait for.
    type Join;

    fn lock_new(cx: &Self::Cx<'_>) -> Self::Lock;
    fn word_new(cx: &Self::Cx<'_>, value: u64) -> Self::Word;
    /// Runs `body` with the lock held.
    fn locked<R>(cx: &Self::Cx<'_>, lock: &Self::Lock, body: impl FnOnce() -> R) -> R;
    fn load(cx: &Self::Cx<'_>, word: &Self::Word) -> u64;
    fn store(cx: &Self::Cx<'_>, word: &Self::Word, value: u64);
    /// Reads the word after all tasks have ended.
    fn peek(word: &Self::Word) -> u64;
    fn spawn(cx: &Self::Cx<'_>, body: impl FnOnce(&Self::Cx<'_>) + Send + 'static) -> Self::Join;
}

/// This simulator's engine.
pub(crate) struct Ours;

impl Platform for Ours {
    type Cx<'c> = sim_kernel::Cx<'c>;
    type Lock = sync::Mutex<()>;
    type Word = sync::Atomic64;
    type Join = ();

    fn lock_new(cx: &Self::Cx<'_>) -> Self::Lock {
        sync::Mutex::new(cx, "lock", ())
    }
    fn word_new(cx: &Self::Cx<'_>, value: u64) -> Self::Word {
        sync::Atomic64::new(cx, "word", value)
    }
    #[inline]
    #[track_caller]
    fn locked<R>(cx: &Self::Cx<'_>, lock: &Self::Lock, body: impl FnOnce() -> R) -> R {
        let _guard = lock.lock(cx);
        body()
    }
    #[inline]
    #[track_caller]
    fn load(cx: &Self::Cx<'_>, word: &Self::Word) -> u64 {
        word.load(cx)
    }
    #[inline]
    #[track_caller]
    fn store(cx: &Self::Cx<'_>, word: &Self::Word, value: u64) {
        word.store(cx, value);
    }
    fn peek(word: &Self::Word) -> u64 {
        word.peek()
    }
    fn spawn(cx: &Self::Cx<'_>, body: impl FnOnce(&Self::Cx<'_>) + Send + 'static) {
        cx.spawn("task", body);
    }
}

/// An engine that is written as the standard library is.
macro_rules! like_std {
    ($(#[$doc:meta] $name:ident is $engine:ident;)*) => {$(
        #[$doc]
        pub(crate) struct $name;

        impl Platform for $name {
            type Cx<'c> = ();
            type Lock = $engine::sync::Mutex<()>;
            type Word = $engine::sync::atomic::AtomicU64;
            type Join = $engine::thread::JoinHandle<()>;

            fn lock_new(_: &()) -> Self::Lock {
                $engine::sync::Mutex::new(())
            }
            fn word_new(_: &(), value: u64) -> Self::Word {
                $engine::sync::atomic::AtomicU64::new(value)
            }
            fn locked<R>(_: &(), lock: &Self::Lock, body: impl FnOnce() -> R) -> R {
                let _guard = lock.lock().expect("nobody panics under the lock");
                body()
            }
            fn load(_: &(), word: &Self::Word) -> u64 {
                word.load(SeqCst)
            }
            fn store(_: &(), word: &Self::Word, value: u64) {
                word.store(value, SeqCst);
            }
            fn peek(word: &Self::Word) -> u64 {
                word.load(SeqCst)
            }
            fn spawn(_: &(), body: impl FnOnce(&()) + Send + 'static) -> Self::Join {
                $engine::thread::spawn(move || body(&()))
            }
        }
    )*};
}

like_std! {
    /// [shuttle](https://docs.rs/shuttle): randomised testing of concurrent Rust.
    Shuttle is shuttle;
    /// [loom](https://docs.rs/loom): exhaustive testing of concurrent Rust, under the C11 memory model.
    Loom is loom;
}
