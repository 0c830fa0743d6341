//! The native stack: evaluation recurses, so it must know how much stack is left. Where a thread has not said how much it has, little is assumed.

use std::cell::Cell;
use std::io;
use std::thread::JoinHandle;

/// The stack of the threads that [`spawn`] starts. Only what is touched costs memory.
pub const QUERY_STACK: usize = 64 << 20;

/// What a thread of unknown origin is trusted to have left: less than the 2 MiB that Rust gives by default.
const UNKNOWN_STACK: usize = 1 << 20;

thread_local! {
    /// Where this thread entered evaluation, and how far it may go from there.
    static ENTRY: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

fn here() -> usize {
    let marker = 0_u8;
    std::ptr::from_ref(&marker) as usize
}

/// Whether evaluation may go one level deeper on this thread.
pub(crate) fn has_room() -> bool {
    let here = here();
    ENTRY.with(|entry| match entry.get() {
        Some((base, size)) => base.abs_diff(here) < size,
        None => true,
    })
}

/// Runs `work` as the entry of evaluation on this thread, unless there is one already.
pub(crate) fn enter<T>(work: impl FnOnce() -> T) -> T {
    struct Leave(bool);
    impl Drop for Leave {
        fn drop(&mut self) {
            if self.0 {
                ENTRY.with(|entry| entry.set(None));
            }
        }
    }
    let outermost = ENTRY.with(|entry| {
        let outermost = entry.get().is_none();
        if outermost {
            entry.set(Some((here(), UNKNOWN_STACK)));
        }
        outermost
    });
    let _leave = Leave(outermost);
    work()
}

/// Starts a thread with a stack made for queries: deep recursion ends with a log line and not sooner than in stock engines.
///
/// # Errors
/// The system gives no thread.
pub fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(QUERY_STACK).spawn(move || {
        ENTRY.with(|entry| entry.set(Some((here(), QUERY_STACK - (QUERY_STACK >> 3)))));
        work()
    })
}
