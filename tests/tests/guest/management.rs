//! Guests started with command lines of QEMU, as `innkeeper qemu` and by QEMU's name, and managed over QMP: what management asks for is
//! what the guest sees. What the guests do is in resources/jobs/management.sh.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde_json::{Value, json};
use tests::process::{self, Name, Process};
use tests::qmp::Client;
use tests::resources::Extras;

const MIB: u64 = 1 << 20;

/// How often devices come and go; the last round of each five the guest lets go unasked.
const ROUNDS: u32 = if cfg!(feature = "long") { 20 } else { 2 };

/// How long the machine stands still.
const STANDSTILL: Duration = Duration::from_millis(500);

/// A guest with a shell on its serial line, and its monitor.
struct Managed {
    guest: Process,
    monitor: Client,
    folder: PathBuf,
}

impl Managed {
    /// Starts one on `kernel`, in a folder of its own, with `options` besides what every guest needs.
    fn start(name: Name, kernel: &str, folder: &str, force_legacy: bool, options: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("management-{folder}"));
        std::fs::create_dir_all(&folder).unwrap();
        File::create(folder.join("disk.img"))
            .unwrap()
            .set_len(256 * MIB)
            .unwrap();
        let mut command = process::program(name).unwrap();
        command.current_dir(&folder);
        command.args(["-M", "pc,accel=kvm", "-cpu", "host", "-m", "384", "-smp", "2"]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        command.args(["-qmp", "unix:qmp,server=on,wait=off"]);
        command.args(process::kernel(kernel, Extras::Tools { force_legacy }, "job=shell").unwrap());
        let mut guest = Process::start({
            command.args(options);
            command
        })
        .unwrap();
        let monitor = guest.monitor(&folder.join("qmp")).unwrap();
        let mut managed = Self { guest, monitor, folder };
        managed.hear("ready");
        managed
    }

    fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    fn say(&mut self, line: &str) {
        self.guest.line.say(line).unwrap();
    }

    fn hear(&mut self, start: &str) -> String {
        self.guest.line.hear(start).unwrap()
    }

    /// What the guest's shell prints for `command`: one line.
    fn guest(&mut self, command: &str) -> String {
        self.say(&format!("echo \"answer $({command})\""));
        self.hear("answer ")
    }

    /// Waits until the guest's file says this.
    fn await_value(&mut self, file: &str, value: &str) {
        self.say(&format!("await_value {file} '{value}' && echo 'it is so'"));
        self.hear("it is so");
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.monitor.ask(command, arguments).unwrap()
    }

    fn event(&mut self, name: &str) -> Value {
        self.monitor.event(name, |_| true).unwrap()
    }

    /// Lets the guest switch itself off and returns what its process says then, and the guest said.
    fn end(self) -> (ExitStatus, String) {
        let Self { guest, folder, .. } = self;
        let ended = guest.end().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        ended
    }
}

/// What the hot-plugged devices refer to, and the devices: each a command and its arguments.
fn backends(disk: &Path) -> [(&'static str, Value); 4] {
    [
        (
            "blockdev-add",
            json!({"driver": "raw", "node-name": "d0", "file": {"driver": "file", "filename": disk}}),
        ),
        ("netdev_add", json!({"type": "hubport", "hubid": 0, "id": "n0"})),
        (
            "chardev-add",
            json!({"id": "c0", "backend": {"type": "null", "data": {}}}),
        ),
        (
            "object-add",
            json!({"qom-type": "rng-random", "id": "r0", "filename": "/dev/urandom"}),
        ),
    ]
}

/// Removes what [`backends`] made.
const REMOVAL: [(&str, &str, &str); 4] = [
    ("blockdev-del", "node-name", "d0"),
    ("netdev_del", "id", "n0"),
    ("chardev-remove", "id", "c0"),
    ("object-del", "id", "r0"),
];

/// A device to plug: driver, id, slot, and what it refers to.
type Plug = (
    &'static str,
    &'static str,
    &'static str,
    Option<(&'static str, &'static str)>,
);

const DEVICES: [Plug; 5] = [
    ("virtio-blk-pci", "disk", "6", Some(("drive", "d0"))),
    ("virtio-net-pci", "card", "7", Some(("netdev", "n0"))),
    ("virtio-serial-pci", "serial", "8", None),
    ("virtio-rng-pci", "rng", "9", Some(("rng", "r0"))),
    ("virtio-balloon-pci", "balloon", "a", None),
];

fn plug(managed: &mut Managed) {
    for (command, arguments) in backends(&managed.disk()) {
        managed.ask(command, arguments);
    }
    for (driver, id, slot, reference) in DEVICES {
        let mut arguments = json!({"driver": driver, "id": id, "addr": slot});
        if let Some((property, name)) = reference {
            arguments[property] = json!(name);
        }
        managed.ask("device_add", arguments);
    }
    let port =
        json!({"driver": "virtserialport", "bus": "serial.0", "chardev": "c0", "id": "port", "name": "org.example"});
    managed.ask("device_add", port);
}

/// The ids of the PCI devices that `query-pci` lists.
fn on_the_bus(managed: &mut Managed) -> Vec<String> {
    let buses = managed.ask("query-pci", json!({}));
    let devices = buses[0]["devices"].as_array().unwrap();
    let mut ids: Vec<_> = devices
        .iter()
        .filter_map(|device| device["qdev_id"].as_str())
        .filter(|id| !id.is_empty())
        .map(str::to_owned)
        .collect();
    ids.sort();
    ids
}

fn come_and_go(kernel: &str, force_legacy: bool) {
    let folder = format!("hotplug-{kernel}-{force_legacy}");
    let mut managed = Managed::start(Name::Qemu, kernel, &folder, force_legacy, &[]);
    managed.say("dd if=/dev/urandom of=/pattern bs=64k count=16 2>/dev/null");
    for round in 1..=ROUNDS {
        plug(&mut managed);
        assert_eq!(on_the_bus(&mut managed), ["balloon", "card", "disk", "rng", "serial"]);
        managed.say("await_devices && work");
        managed.hear("disk same");
        managed.hear("at work");
        managed.ask("balloon", json!({"value": 128 * MIB}));
        if round % 5 == 0 || round == ROUNDS {
            managed.say("eject");
        } else {
            for (_, id, ..) in DEVICES {
                managed.ask("device_del", json!({"id": id}));
            }
        }
        for (_, id, ..) in DEVICES {
            let is_it = |data: &Value| data["device"] == id;
            let data = managed.monitor.event("DEVICE_DELETED", is_it).unwrap();
            assert_eq!(data["path"], format!("/machine/peripheral/{id}"));
        }
        managed.say("await_gone");
        managed.hear("all gone");
        assert_eq!(on_the_bus(&mut managed), [""; 0]);
        for (command, property, name) in REMOVAL {
            managed.ask(command, json!({property: name}));
        }
        managed.monitor.forget("DEVICE_DELETED");
    }
    // Nothing is left of the balloons.
    let available = managed.guest("grep MemAvailable /proc/meminfo | tr -dc 0-9");
    assert!(available.parse::<u64>().unwrap() > 200 << 10, "{available} KiB");
    managed.say("break");
    let (status, said) = managed.end();
    assert_eq!(status.code(), Some(0));
    assert_eq!(said.matches("disk same").count() as u32, ROUNDS);
}

#[test]
fn devices_come_and_go_while_they_work() {
    come_and_go("cloud", false);
}

#[cfg(feature = "long")]
#[test]
fn devices_come_and_go_while_they_work_on_the_generic_kernel() {
    come_and_go("generic", false);
}

#[cfg(feature = "long")]
#[test]
fn devices_come_and_go_while_legacy_drivers_work() {
    come_and_go("cloud", true);
}

/// A machine with one device of each kind that management has commands for.
fn furnished(name: Name, folder: &str) -> Managed {
    let options = [
        ["-blockdev", "raw,node-name=d0,file.driver=file,file.filename=disk.img"],
        ["-device", "virtio-blk-pci,drive=d0,id=disk"],
        ["-netdev", "hubport,hubid=0,id=n0"],
        ["-device", "virtio-net-pci,netdev=n0,id=card"],
        ["-device", "virtio-balloon-pci,id=balloon"],
        ["-device", "virtio-serial-pci,id=serial"],
        ["-chardev", "ringbuf,id=c0"],
        ["-device", "virtserialport,chardev=c0,id=port,name=org.example"],
        ["-monitor", "unix:people,server=on,wait=off"],
    ];
    Managed::start(name, "cloud", folder, false, &options.concat())
}

/// What the monitor for people says, up to its prompt.
fn hear_prompt(monitor: &mut UnixStream) -> String {
    let mut said = Vec::new();
    let mut byte = [0];
    while !said.ends_with(b"(qemu) ") {
        monitor.read_exact(&mut byte).unwrap();
        said.extend(byte);
    }
    String::from_utf8(said).unwrap()
}

fn people_are_answered(managed: &Managed) {
    let mut monitor = UnixStream::connect(managed.folder.join("people")).unwrap();
    assert!(hear_prompt(&mut monitor).starts_with("QEMU 7.2.0 monitor"));
    monitor.write_all(b"info status\n").unwrap();
    assert_eq!(hear_prompt(&mut monitor), "VM status: running\r\n(qemu) ");
}

/// The card's filter as the guest has it is told once, and again when somebody has asked for it.
fn filter_is_followed(managed: &mut Managed) {
    managed.ask("query-rx-filter", json!({}));
    managed.monitor.forget("NIC_RX_FILTER_CHANGED");
    for (mode, promiscuous) in [("on", true), ("off", false)] {
        managed.say(&format!("ip link set eth0 promisc {mode}"));
        let data = managed.event("NIC_RX_FILTER_CHANGED");
        assert_eq!(
            data,
            json!({"name": "card", "path": "/machine/peripheral/card/virtio-backend"})
        );
        // The guest sets it by several commands, of which the first is told.
        while managed.ask("query-rx-filter", json!({"name": "card"}))[0]["promiscuous"] != promiscuous {}
        managed.monitor.forget("NIC_RX_FILTER_CHANGED");
    }
}

/// Operations on the disk that the machine has done.
fn operations(managed: &mut Managed) -> (u64, u64) {
    let disks = managed.ask("query-blockstats", json!({}));
    let stats = &disks[0]["stats"];
    (
        stats["rd_operations"].as_u64().unwrap(),
        stats["wr_operations"].as_u64().unwrap(),
    )
}

fn status(managed: &mut Managed) -> String {
    let status = managed.ask("query-status", json!({}));
    assert_eq!(status["running"], status["status"] == "running");
    status["status"].as_str().unwrap().to_owned()
}

/// Stops the machine while its disk is read and written: nothing moves until it goes on, and then everything does.
fn stands_still_and_goes_on(managed: &mut Managed) {
    managed.say("keep_the_disk_busy");
    let (mut reads, mut writes) = operations(managed);
    for _ in 0..5 {
        loop {
            let (more_reads, more_writes) = operations(managed);
            if more_reads > reads && more_writes > writes {
                break;
            }
        }
        managed.ask("stop", json!({}));
        managed.event("STOP");
        assert_eq!(status(managed), "paused");
        (reads, writes) = operations(managed);
        let touched = || {
            std::fs::metadata(managed.folder.join("disk.img"))
                .unwrap()
                .modified()
                .unwrap()
        };
        let before = touched();
        std::thread::sleep(STANDSTILL);
        assert_eq!(touched(), before);
        assert_eq!(operations(managed), (reads, writes));
        managed.ask("cont", json!({}));
        managed.event("RESUME");
        assert_eq!(status(managed), "running");
    }
    managed.say("let_the_disk_rest");
    managed.hear("pattern is there");
    let mut first = [0; 16];
    File::open(managed.disk())
        .unwrap()
        .read_exact_at(&mut first, 0)
        .unwrap();
    assert_ne!(first, [0; 16], "the pattern is in the image");
}

fn balloon_fills_and_empties(managed: &mut Managed) {
    assert_eq!(managed.ask("query-balloon", json!({}))["actual"], 384 * MIB);
    let free = |managed: &mut Managed| {
        managed
            .guest("grep MemFree /proc/meminfo | tr -dc 0-9")
            .parse::<u64>()
            .unwrap()
    };
    let before = free(managed);
    for target in [256 * MIB, 384 * MIB] {
        managed.ask("balloon", json!({"value": target}));
        let data = managed
            .monitor
            .event("BALLOON_CHANGE", |data| data["actual"] == target)
            .unwrap();
        assert_eq!(data, json!({"actual": target}));
        assert_eq!(managed.ask("query-balloon", json!({}))["actual"], target);
        let taken = before.saturating_sub(free(managed)) >> 10;
        let expected = (384 * MIB - target) / MIB;
        assert!(taken.abs_diff(expected) < 16, "{taken} MiB of {expected} taken");
    }
}

#[test]
fn management_is_seen_by_the_guest() {
    let mut managed = furnished(Name::Innkeeper, "commands");
    assert_eq!(status(&mut managed), "running");

    assert_eq!(managed.guest("cat /sys/block/vda/size"), (256 * MIB / 512).to_string());
    managed.ask("block_resize", json!({"node-name": "d0", "size": 320 * MIB}));
    managed.await_value("/sys/block/vda/size", &(320 * MIB / 512).to_string());

    managed.say("ip link set eth0 up");
    managed.await_value("/sys/class/net/eth0/carrier", "1");
    for (up, carrier) in [(false, "0"), (true, "1")] {
        managed.ask("set_link", json!({"name": "card", "up": up}));
        managed.await_value("/sys/class/net/eth0/carrier", carrier);
    }

    balloon_fills_and_empties(&mut managed);

    people_are_answered(&managed);
    filter_is_followed(&mut managed);

    // A port that the guest opens, writes to and closes.
    managed.monitor.forget("VSERPORT_CHANGE");
    managed.say("echo hello > $(ls /dev/vport*p1)");
    for open in [true, false] {
        let data = managed
            .monitor
            .event("VSERPORT_CHANGE", |data| data["open"] == open)
            .unwrap();
        assert_eq!(data, json!({"id": "port", "open": open}));
    }

    stands_still_and_goes_on(&mut managed);

    managed.say("obey_the_power_button");
    managed.hear("listening to the button");
    managed.ask("system_powerdown", json!({}));
    assert_eq!(managed.event("POWERDOWN"), Value::Null);
    managed.hear("button pressed");
    let data = managed.event("SHUTDOWN");
    assert_eq!(data, json!({"guest": true, "reason": "guest-shutdown"}));
    assert_eq!(managed.end().0.code(), Some(0));
}

/// A file system of 8 MiB.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    fn mount(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m", "none"])
            .arg(&path)
            .status();
        assert!(mount.unwrap().success());
        Self(path)
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_of_the_host_is_an_error_in_the_guest_and_an_event() {
    let small = SmallFileSystem::mount(std::env::temp_dir().join("management-small"));
    let image = small.0.join("disk.img");
    File::create(&image).unwrap().set_len(64 * MIB).unwrap();
    let drive = format!("if=none,id=d0,format=raw,file={}", image.display());
    let options = ["-drive", &drive, "-device", "virtio-blk-pci,drive=d0"];
    let mut managed = Managed::start(Name::Innkeeper, "cloud", "full", false, &options);
    managed.say("dd if=/dev/zero of=/dev/vda bs=1M count=1 oflag=direct 2>/dev/null; echo \"small $?\"");
    assert_eq!(managed.hear("small "), "0");
    managed.say("dd if=/dev/zero of=/dev/vda bs=1M count=16 oflag=direct 2>/dev/null; echo \"large $?\"");
    assert_eq!(managed.hear("large "), "1");
    assert_eq!(
        managed.event("BLOCK_IO_ERROR"),
        json!({"device": "d0", "node-name": "d0", "operation": "write", "action": "report", "nospace": true,
               "reason": "No space left on device"})
    );
    managed.ask("quit", json!({}));
    assert_eq!(
        managed.event("SHUTDOWN"),
        json!({"guest": false, "reason": "host-qmp-quit"})
    );
    assert_eq!(managed.end().0.code(), Some(0));
}
