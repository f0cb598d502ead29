//! What tests of backends share: the host that they are opened on, frames in and out.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io;
use std::process::Command;
use std::sync::Arc;

use super::{Endpoint, MAX_FRAME, Opened, open};
use crate::io_thread::{IoThreads, PollPolicy};
use crate::memory::GuestMemory;
use crate::virtio::info::Host;
use crate::virtio::net::options::OPTIONS;
use crate::virtio::net::receive::ReceiveBuffers;
use crate::virtio::options::{ConfigError, Options};
use crate::virtio::virtq::GuestIoVec;

/// A host with a little memory.
pub fn host() -> Host {
    let memory = GuestMemory::from_ranges(&[(vm_memory::GuestAddress(0), 0x1000)]).unwrap();
    Host {
        memory: Arc::new(memory),
        io_threads: IoThreads::one(PollPolicy::default()).unwrap(),
        networks: Default::default(),
        timers: Default::default(),
    }
}

/// What the user's options of a card open.
pub fn opened(options: &str) -> Result<Opened, ConfigError> {
    open(&Options::parse("net", options, &[OPTIONS]).unwrap(), &host())
}

/// Sends a frame from guest memory, where it lies in several pieces.
pub fn send(endpoint: &mut dyn Endpoint, frame: &[u8]) -> io::Result<()> {
    endpoint.send(&GuestIoVec::holding(frame, 7))?;
    endpoint.flush()
}

/// Receives a frame into guest memory that is too small for most of them.
pub fn receive(endpoint: &mut dyn Endpoint) -> io::Result<Vec<u8>> {
    let mut guest = GuestIoVec::holding(&[0; 20], 7);
    let mut spill = vec![0; MAX_FRAME];
    let mut buffers = ReceiveBuffers::new(&mut guest, &mut spill);
    let len = endpoint.receive(&mut buffers)?;
    let mut frame = vec![0; len];
    buffers.copy_to(&mut frame);
    Ok(frame)
}

/// Receives frames until `wanted` finds what it looks for in one. `None` when none has come for
/// some seconds.
pub fn receive_until<T>(endpoint: &mut dyn Endpoint, wanted: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let tries = 2000;
    for _ in 0..tries {
        match receive(endpoint) {
            Ok(frame) => {
                if let Some(found) = wanted(&frame) {
                    return Some(found);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    None
}

/// Runs a program of the host, which has to succeed.
pub fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
