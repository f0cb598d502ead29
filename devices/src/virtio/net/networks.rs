//! What the network cards of one machine share.

#![forbid(unsafe_code)]

/// The hubs that join cards, and the addresses in use.
#[derive(Clone, Default, Debug)]
pub struct Networks {}
