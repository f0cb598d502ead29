//! What devices tell of themselves, told on to clients.

use std::os::fd::AsRawFd;

use devices::virtio::balloon::BalloonControl;
use devices::virtio::block::{BlockControl, DiskFailure};
use devices::virtio::console::SerialEvent;
use devices::virtio::info::Control;
use vmm_sys_util::eventfd::EventFd;

use super::event::{BalloonChange, BlockIoError, ErrorAction, Event, IoOperation, NicRxFilterChanged, VserportChange};
use super::link::Monitors;
use super::target::Shown;
use crate::machine::events;
use crate::machine::inventory::{Inventory, Plugged};
use crate::qemu::backends::Backends;

/// Tells `monitors` what happens to the device from now on, until it is deleted. `backends` has what it refers to.
pub fn watch(plugged: &Plugged, inventory: &Inventory, backends: &Backends, monitors: &Monitors) {
    if plugged.slot().is_none() {
        return;
    }
    match plugged.control() {
        Control::Serial(control) => {
            let monitors = monitors.clone();
            control.subscribe(move |event| {
                if let SerialEvent::PortChange { id: Some(id), open, .. } = event {
                    let (id, open) = (id.clone(), *open);
                    monitors.emit(Event::VserportChange(VserportChange { id, open }));
                }
            });
        }
        Control::Balloon(control) => {
            // Without descriptors or a thread its size is still there for the asking.
            if let Err(error) = watch_balloon(control, plugged.path(), inventory, monitors) {
                tracing::warn!("changes of {} are not told: {error}", plugged.path());
            }
        }
        Control::Net(control) => {
            let monitors = monitors.clone();
            let (name, path) = (plugged.id().map(str::to_owned), plugged.backend_path());
            control.on_filter_change(move || {
                let (name, path) = (name.clone(), path.clone());
                monitors.emit(Event::NicRxFilterChanged(NicRxFilterChanged { name, path }));
            });
        }
        Control::Block(control) => watch_disk(&control, plugged, backends, monitors),
        Control::None => {}
    }
}

/// Of a node, QEMU tells the name of the node only.
fn watch_disk(control: &BlockControl, plugged: &Plugged, backends: &Backends, monitors: &Monitors) {
    let name = plugged.reference("drive").unwrap_or_default();
    let device = if backends.is_drive(name) { name } else { "" }.to_owned();
    let node_name = Some(name.to_owned()).filter(|name| !name.is_empty());
    let monitors = monitors.clone();
    control.disk().on_failure(move |DiskFailure { is_read, error }| {
        let no_space = error.kind() == std::io::ErrorKind::StorageFull;
        monitors.emit(Event::BlockIoError(BlockIoError {
            device: device.clone(),
            node_name: node_name.clone(),
            operation: if *is_read {
                IoOperation::Read
            } else {
                IoOperation::Write
            },
            action: ErrorAction::Report,
            nospace: Some(no_space),
            reason: reason(error),
        }));
    });
}

/// What the C library says of an error, which is what Rust says without the number behind it.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Readable when it is dropped.
struct Farewell(EventFd);

impl Drop for Farewell {
    fn drop(&mut self) {
        // The counter was zero: the write cannot fail.
        let _ = self.0.write(1);
    }
}

/// A thread that waits for changes of the balloon's size, and ends with the device or with the machine.
fn watch_balloon(
    control: BalloonControl,
    path: &str,
    inventory: &Inventory,
    monitors: &Monitors,
) -> std::io::Result<()> {
    let changed = control.subscribe()?;
    let gone = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    let farewell = Farewell(gone.try_clone()?);
    let monitors = monitors.clone();
    let tell = move || {
        while wait(&changed, &gone) {
            let _ = changed.read();
            let actual = control.actual();
            monitors.emit(Event::BalloonChange(BalloonChange { actual }));
        }
    };
    std::thread::Builder::new().name("qmp balloon".into()).spawn(tell)?;
    let path = path.to_owned();
    inventory.events().subscribe(move |event| {
        let _whole = &farewell;
        !matches!(event, events::Event::DeviceDeleted { path: deleted, .. } if *deleted == path)
    });
    Ok(())
}

/// Waits for either; is it the first?
fn wait(changed: &EventFd, gone: &EventFd) -> bool {
    let wanted = |event: &EventFd| libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds = [wanted(changed), wanted(gone)];
    loop {
        // SAFETY: the array outlives the call and its length is right.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
        match ready {
            1.. => return fds[1].revents == 0,
            _ if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            _ => return false,
        }
    }
}
