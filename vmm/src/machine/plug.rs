//! Puts the devices that the user asked for on the PCI bus.

use std::sync::Arc;

use devices::io_thread::{IoThread, IoThreads, PollPolicy};
use devices::memory::GuestMemory;
use devices::virtio::info::{self, Host};
use devices::virtio::net::Networks;
use devices::virtio::options::{ConfigError as OptionError, Pairs};
use pci::intx::pirq;
use pci::{Address, Pin, host};

use super::StartError;
use super::board::Board;
use super::wiring::KvmWiring;
use crate::config::MachineConfig;
use crate::irq::Input;

/// The name of the I/O thread that is there when the user names none.
const DEFAULT_IO_THREAD: &str = "io0";

/// Builds every device of `config` and puts it on `board`. A machine without devices gets no I/O thread.
pub(super) fn plug_all(
    config: &MachineConfig,
    memory: &GuestMemory,
    board: &Board,
    wiring: &KvmWiring,
) -> Result<(), StartError> {
    if config.devices.is_empty() {
        return Ok(());
    }
    let host = Host {
        memory: Arc::new(memory.clone()),
        io_threads: io_threads(&config.io_threads)?,
        networks: Networks::default(),
    };
    for device in &config.devices {
        plug(&device.name, &device.options, &host, board, wiring)?;
    }
    Ok(())
}

fn io_threads(names: &[String]) -> Result<IoThreads, StartError> {
    let names = if names.is_empty() {
        vec![DEFAULT_IO_THREAD.to_owned()]
    } else {
        names.to_vec()
    };
    let spawned = names
        .iter()
        .map(|name| IoThread::spawn(name, PollPolicy::default()))
        .collect::<Result<Vec<_>, _>>();
    let threads = spawned.map_err(StartError::host("I/O thread"))?;
    IoThreads::new(threads).ok_or_else(|| StartError::host("I/O thread")(std::io::ErrorKind::NotFound.into()))
}

fn plug(name: &str, pairs: &Pairs, host: &Host, board: &Board, wiring: &KvmWiring) -> Result<(), StartError> {
    let vectors = wiring.vectors();
    let created = info::create(name, pairs, host, Arc::clone(&vectors) as _)?;
    let (function, options) = (created.function, created.options);
    let refused = |problem: &str, remedy: &str| OptionError::refused(name, problem, remedy);
    let wanted = options.slot("addr");
    // No function here says that its slot has several, and a kernel's scan does not look behind function 0 then.
    if wanted.is_some_and(|slot| slot.function != 0) {
        return Err(refused(
            "addr= names a function other than 0",
            "give each device a slot of its own, such as addr=4",
        )
        .into());
    }
    let slot = wanted
        .map(|slot| slot.device)
        .or_else(|| board.pci().first_free_slot(host::FIRST_DEVICE_SLOT));
    let address = slot
        .and_then(|device| Address::new(0, device, 0))
        .ok_or_else(|| refused("the bus has no free slot", "use fewer devices"))?;
    let line = board.lines().source(Input::Pirq(pirq(address.device(), Pin::A)));
    if let Some(line) = line {
        function.connect_intx(line);
    }
    wiring.tie(address, function.doorbells(), vectors);
    board.pci().add_function(address, function)?;
    Ok(())
}
