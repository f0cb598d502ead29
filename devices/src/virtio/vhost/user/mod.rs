//! vhost-user: another process, the backend, serves the queues of a device. We are its front end: over a UNIX socket
//! we agree on features, pass the descriptors of guest memory and of the queues' events, and start and stop queues.
//! (QEMU, docs/interop/vhost-user.rst.)
//!
//! A [`Remote`] is the backend of one device, as the device sees it: queues are given to it and taken back, whether a
//! backend is there at the moment or not. A thread of its own, the [`keeper`], looks after the connection: it notices
//! when the backend goes, waits for the next one or goes and looks for it, and gives that one the queues where the
//! last one has left them. One [`session`] lasts as long as one connection.
//!
//! The backend is trusted with guest memory, which it can read and write as the guest can, and with nothing else: what
//! it answers is bounded and checked, what it does not answer in time ends the session ([`guard`]), and it learns no
//! address of ours: to it, "user addresses" are guest-physical ones.

mod guard;
mod keeper;
mod place;
mod remote;
mod session;

pub(crate) use place::OPTIONS;
pub(crate) use remote::{Event, Remote, Wanted};
