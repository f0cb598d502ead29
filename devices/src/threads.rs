//! Threads as this program starts them.

#![forbid(unsafe_code)]

use std::io;
use std::sync::LazyLock;
use std::thread::{self, Builder, JoinHandle};

/// Bytes of a thread's stack. Less than a huge page, so that the kernel does not fill one for each of them.
pub const STACK: usize = 1 << 20;

/// Whether all threads of this process have one CPU, or the time of one, as it was when this was asked first.
pub fn share_one_cpu() -> bool {
    static ONE: LazyLock<bool> = LazyLock::new(|| thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1));
    *ONE
}

/// Starts a thread that is called `name`, of which the process list shows 15 characters.
///
/// # Errors
/// The host gives no more threads.
pub fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.into()).stack_size(STACK).spawn(run)
}
