//! Interrupts: lines that several sources share, the PIRQ router of the ISA bridge, and the routes of message-signalled interrupts.

mod lines;
mod msi;

pub use lines::{Gsi, GsiSink, Input, Lines};
pub use msi::{MsiMessage, MsiRoutes, RouteError};
