//! The host's numbers for our threads, by which users pin them to CPUs.

use std::fs;

/// Bytes of a thread's name that Linux keeps (TASK_COMM_LEN without the zero, include/linux/sched.h).
const KEPT: usize = 15;

/// The number of the thread of this process that is called `name`; that of the process if there is none.
pub fn thread_named(name: &str) -> i64 {
    let kept = name.as_bytes().get(..KEPT).unwrap_or(name.as_bytes());
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let found = tasks.filter(|task| {
        let comm = fs::read(task.path().join("comm")).unwrap_or_default();
        comm.trim_ascii_end() == kept
    });
    let number = found.filter_map(|task| task.file_name().to_str()?.parse().ok()).min();
    number.unwrap_or_else(|| std::process::id().into())
}
