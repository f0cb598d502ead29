//! Puts the devices that the user asked for on the PCI bus.

use std::sync::Arc;

use devices::io_thread::{IoThread, IoThreads, PollPolicy};
use devices::memory::GuestMemory;
use devices::virtio::info::{self, Host};
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
    };
    for device in &config.devices {
        let pairs = Pairs::parse(&device.options, device.implied_key);
        plug(&device.name, &pairs, &host, board, wiring)?;
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
    let (function, options) = info::create(name, pairs, host, Arc::clone(&vectors) as _)?;
    let wanted = options.slot("addr").map(|slot| (slot.device, slot.function));
    let place = wanted.or_else(|| Some((board.pci().first_free_slot(host::FIRST_DEVICE_SLOT)?, 0)));
    let address = place
        .and_then(|(device, function)| Address::new(0, device, function))
        .ok_or_else(|| {
            OptionError::refused(
                name,
                "the bus has no free slot",
                "use fewer devices, or functions of one slot (addr=4.1)",
            )
        })?;
    let line = board.lines().source(Input::Pirq(pirq(address.device(), Pin::A)));
    if let Some(line) = line {
        function.connect_intx(line);
    }
    wiring.tie(address, function.doorbells(), vectors);
    board.pci().add_function(address, function)?;
    Ok(())
}
