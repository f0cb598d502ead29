//! Interrupt pins and lines.

/// An interrupt pin, INTA# to INTD#.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Pin {
    /// INTA#, 1 in the interrupt pin register.
    A = 1,
    /// INTB#.
    B,
    /// INTC#.
    C,
    /// INTD#.
    D,
}

/// A level-triggered interrupt input that somebody outside provides. Setting the level that it has already is cheap.
pub trait InterruptLine: Send + Sync {
    /// Drives the line: `true` asserts.
    fn set_level(&self, asserted: bool);
}
