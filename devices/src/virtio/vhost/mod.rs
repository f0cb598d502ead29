//! Queues that somebody else serves (vhost): the host's kernel, or another process ([`user`]). We keep the ring for its
//! geometry and its progress, and pass interrupts on; who serves it reads and writes guest memory by itself.

#![forbid(unsafe_code)]

pub(crate) mod served;
pub(crate) mod user;

pub(crate) use served::{Served, reason};
