//! What the network cards of one machine share.

#![forbid(unsafe_code)]

use std::fmt;

use super::backend::hub::Hubs;
use super::mac::MacPool;

/// The hubs that join cards, and the addresses in use.
#[derive(Clone, Default)]
pub struct Networks {
    pub(super) hubs: Hubs,
    pub(super) macs: MacPool,
}

impl fmt::Debug for Networks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Networks").finish_non_exhaustive()
    }
}
