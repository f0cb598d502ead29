//! A card that is plugged into nothing.

#![forbid(unsafe_code)]

use std::io;

use super::{Backend, Endpoint, Opened, Wanted};
use crate::io_thread::Source;
use crate::virtio::info::Host;
use crate::virtio::net::receive::ReceiveBuffers;
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::virtq::GuestIoVec;

/// `none`: the cable is out.
pub(super) fn open(_options: &Options, _host: &Host) -> Result<Opened, ConfigError> {
    Ok(Opened {
        link: false,
        ..unconnected()
    })
}

/// No network was named. As QEMU has it, the guest sees a link, and what it sends is lost.
pub(super) fn unconnected() -> Opened {
    Opened::one(Nothing, Nothing)
}

struct Nothing;

impl Backend for Nothing {
    fn describe(&self) -> String {
        "not connected".to_owned()
    }
}

impl Endpoint for Nothing {
    fn sources(&self, _wanted: Wanted) -> Vec<Source> {
        Vec::new()
    }

    fn receive(&mut self, _buffers: &mut ReceiveBuffers<'_>) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn send(&mut self, _frame: &GuestIoVec) -> io::Result<()> {
        Ok(())
    }

    fn send_bytes(&mut self, _frame: &[u8]) {}
}
