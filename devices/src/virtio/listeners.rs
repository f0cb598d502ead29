//! Those who want to hear what happens to a device.

#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError};

type Listener<E> = Box<dyn Fn(&E) + Send>;

/// Functions that are called for each event of type `E`, in the order in which they came.
pub(super) struct Listeners<E>(Mutex<Vec<Listener<E>>>);

impl<E> Default for Listeners<E> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<E> Listeners<E> {
    /// Calls everyone, on this thread.
    pub(super) fn tell(&self, event: &E) {
        let listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().for_each(|listener| listener(event));
    }

    /// Calls `listener` too from now on.
    pub(super) fn add(&self, listener: impl Fn(&E) + Send + 'static) {
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.push(Box::new(listener));
    }
}
