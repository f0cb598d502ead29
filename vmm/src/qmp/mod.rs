//! QMP, QEMU's machine protocol.

pub mod json;
