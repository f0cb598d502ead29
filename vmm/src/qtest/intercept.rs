//! The inputs of the interrupt controllers of a machine that has none: their levels are kept, and told to a test that wants to know.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Output;
use crate::irq::{Gsi, GsiSink};

/// What every interrupt line ends at.
#[derive(Default)]
pub struct Inputs(Mutex<State>);

#[derive(Default)]
struct State {
    /// A bit for each input.
    levels: u32,
    listener: Option<Output>,
}

impl Inputs {
    /// Tells each change from now on.
    pub fn tell(&self, listener: Output) {
        self.state().listener = Some(listener);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GsiSink for Inputs {
    fn set_gsi(&self, gsi: Gsi, high: bool) {
        let mut state = self.state();
        let levels = if high {
            state.levels | bit(gsi)
        } else {
            state.levels & !bit(gsi)
        };
        if std::mem::replace(&mut state.levels, levels) == levels {
            return;
        }
        let word = if high { "raise" } else { "lower" };
        // Under the lock, so that changes are told in their order.
        if let Some(listener) = &state.listener
            && listener.send(&format!("IRQ {word} {gsi}")).is_err()
        {
            state.listener = None;
        }
    }
}

fn bit(gsi: Gsi) -> u32 {
    1_u32.checked_shl(gsi).unwrap_or(0)
}
