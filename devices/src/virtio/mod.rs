//! Virtio: the rings that every device shares, and the devices themselves.

pub mod virtq;
