//! User-mode networking: passt, which needs no privilege, gives the guest DHCP, DNS and the host's
//! connections, and opens ports of the host for it.

#![forbid(unsafe_code)]

mod forward;
mod passt;

use std::sync::Arc;

use socket2::Socket;

use super::{Backend, Opened, stream};
use crate::virtio::info::Host;
use crate::virtio::options::{ConfigError, Options};
use forward::Forward;
use passt::{Passt, StartError};

/// `user`, with any number of `hostfwd=`.
pub(super) fn open(options: &Options, _host: &Host) -> Result<Opened, ConfigError> {
    let mut arguments = Vec::new();
    for text in options.texts("hostfwd") {
        let forward = Forward::parse(text).ok_or_else(|| options.invalid("hostfwd", text, Forward::SPELLING))?;
        arguments.extend(forward.arguments());
    }
    let (passt, socket) = Passt::start(&arguments).map_err(|error| {
        let remedy = match &error {
            StartError::Missing => "install it with 'sudo apt-get install passt' (Debian package passt)",
            StartError::Ended(_) if !arguments.is_empty() => "check hostfwd=, or that those ports are free",
            _ => "see what 'passt --foreground' says",
        };
        options.refused(error, remedy)
    })?;
    let opened = stream::connected(Socket::from(socket), "passt".to_owned())
        .map_err(|error| options.refused(format!("the socket of passt: {error}"), "try again"))?;
    Ok(Opened {
        backend: Arc::new(UserNetwork { _passt: passt }),
        ..opened
    })
}

/// A passt of our own, which lives as long as this.
struct UserNetwork {
    _passt: Passt,
}

impl Backend for UserNetwork {
    fn describe(&self) -> String {
        "user-mode network (passt)".to_owned()
    }
}

#[cfg(test)]
mod tests;
