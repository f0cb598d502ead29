//! A value that few write and the data path reads.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The value. Writers lock; readers have a [`Copied`] of their own and look at one number to see
/// whether it is the latest.
pub(super) struct Published<T> {
    value: Mutex<Arc<T>>,
    version: AtomicU64,
}

impl<T: Clone> Published<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            value: Mutex::new(Arc::new(value)),
            version: AtomicU64::new(0),
        }
    }

    /// The latest value.
    pub(super) fn get(&self) -> Arc<T> {
        Arc::clone(&self.value.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the value. Readers that look after this returned see it.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(Arc::make_mut(&mut value));
        self.version.fetch_add(1, Ordering::Release);
        result
    }

    /// A reader.
    pub(super) fn copy(&self) -> Copied<T> {
        // The version first: what changes between the two is only copied once more.
        let version = self.version.load(Ordering::Acquire);
        Copied {
            value: self.get(),
            version,
        }
    }
}

/// What a reader has seen last.
pub(super) struct Copied<T> {
    value: Arc<T>,
    version: u64,
}

impl<T: Clone> Copied<T> {
    /// The latest value of `published`.
    pub(super) fn latest(&mut self, published: &Published<T>) -> &T {
        if self.version != published.version.load(Ordering::Acquire) {
            *self = published.copy();
        }
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_see_the_latest_and_keep_what_they_hold() {
        let published = Published::new(1);
        let mut reader = published.copy();
        let held = published.get();
        published.change(|value| *value = 2);
        assert_eq!((*reader.latest(&published), *held), (2, 1));
        assert_eq!(*reader.latest(&published), 2);
    }
}
