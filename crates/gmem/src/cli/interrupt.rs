//! What the command does with signals and panics while it explores: an interrupt ends the exploration with what there is so far, and the
//! assertions that are looked for do not spill their messages over the terminal.

use std::panic;
use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::explore::campaign::THREAD_NAME;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the first interrupt is remembered, and the second ends the program.
pub(super) fn catch_interrupts() {
    INTERRUPTED.store(false, Ordering::Relaxed);
    // A program that uses the command as a library may have a handler already; it stays.
    let _ = ctrlc::try_set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            process::exit(130);
        }
    });
}

/// Whether there was an interrupt.
pub(super) fn was_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// From now on, threads that execute schedules fail assertions without a word: what fails is reported when its turn comes.
pub(super) fn silence_explorers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let explores = std::thread::current().name().is_some_and(|name| name.starts_with(THREAD_NAME));
            if !explores {
                usual(info);
            }
        }));
    });
}
