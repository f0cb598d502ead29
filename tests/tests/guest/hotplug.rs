//! Devices that come and go while Debian's kernels run, and a machine that stands still meanwhile.

use std::fs::File;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use tests::guest::{self, Conversation, Ended};
use tests::resources::Extras;
use vmm::config::DeviceConfig;
use vmm::machine::events::Event;
use vmm::machine::inventory::Inventory;
use vmm::machine::{Outcome, RunState};

/// How often devices come and go; the last time the guest lets go unasked.
const ROUNDS: u32 = 4;
/// How long a guest may take for anything in the emulated lab.
const PATIENCE: Duration = Duration::from_secs(90);

fn plug(inventory: &Inventory, disk: &str) {
    let disk = format!("path={disk},format=raw,id=disk,addr=6");
    for (name, options) in [("virtio-blk-pci", disk.as_str()), ("virtio-rng-pci", "id=rng,addr=7")] {
        inventory.hot_plug(&DeviceConfig::parse(name, options, None)).unwrap();
    }
}

/// Waits until both devices are gone.
fn wait_until_deleted(events: &Receiver<Event>) {
    let mut left = vec!["disk", "rng"];
    while !left.is_empty() {
        if let Event::DeviceDeleted { id: Some(id), .. } = events.recv_timeout(PATIENCE).unwrap() {
            left.retain(|name| *name != id);
        }
    }
}

each_kernel! {
    devices_come_and_go(kernel) {
        let disk = std::env::temp_dir().join(format!("hotplug-{kernel}.img"));
        File::create(&disk).unwrap().set_len(16 << 20).unwrap();
        let extras = Extras::Virtio { force_legacy: false };
        let config = guest::reporting_with(kernel, extras, &format!("hotplug={ROUNDS}")).unwrap();
        let mut guest = Conversation::start(config).unwrap();
        let (sender, events) = mpsc::channel();
        let remote = guest.remote();
        remote.events().subscribe(move |event| sender.send(event.clone()).is_ok());
        while let Some(line) = guest.next_line().unwrap() {
            match line.split_once(' ') {
                Some(("plug", _)) => plug(remote.inventory(), disk.to_str().unwrap()),
                Some(("unplug", _)) => {
                    remote.pause();
                    for id in ["disk", "rng"] {
                        remote.inventory().unplug(id).unwrap();
                    }
                    assert_eq!(remote.run_state(), RunState::Paused);
                    remote.resume().unwrap();
                    wait_until_deleted(&events);
                }
                Some(("gone", round)) if round == ROUNDS.to_string() => wait_until_deleted(&events),
                _ => {}
            }
        }
        let Ended { outcome, console: said, .. } = guest.end().unwrap();
        assert_eq!(outcome, Outcome::PowerOff, "{}", guest::tail(&said));
        let count = |line: &str| said.lines().filter(|said| said.trim_end() == line).count();
        assert_eq!((count("disk same"), count("random 16")), (ROUNDS as usize, ROUNDS as usize), "{}", guest::tail(&said));
        assert_eq!(count(&format!("gone {ROUNDS}")), 1);
        let slots = (2..=31).map(|slot| slot.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(count(&format!("slots {slots}")), 1, "{}", guest::tail(&said));
    }
}
