//! Properties of QEMU's devices, made into options of ours.

use devices::virtio::info::{self, CHILDREN};
use devices::virtio::options::{ConfigError, Pairs};

use super::backends::{Backends, Named};
use super::keyval::{Reader, Settled, settled};
use super::vhost_user;
use crate::config::DeviceConfig;

/// What a property of QEMU's becomes.
enum Becomes {
    /// An option of ours by another name.
    Renamed(&'static str),
    /// The options of the thing that it refers to.
    Inline(fn(&Backends) -> &Named),
    /// The options of the network that it refers to, and what is written down of it.
    Netdev,
    /// The options of a character device, or of the process behind it that serves the device.
    Chardev,
    /// A reference to an object of this type, which stays one.
    Object(&'static str),
    /// The options of an object of one of our sources of random numbers.
    Rng,
    /// Another word for `cache=`, which says with us what QEMU has at the device.
    WriteCache,
}

/// A property of QEMU's devices that is no option of ours as it is.
struct Property {
    listed: Listed,
    becomes: Becomes,
    /// What the names of the devices begin with that have it.
    devices: &'static [&'static str],
}

/// A property as lists show it.
#[derive(Clone, Copy)]
pub struct Listed {
    /// Its name.
    pub name: &'static str,
    /// QEMU's word for what it holds.
    pub of: &'static str,
    /// What it is for, in QEMU's words where QEMU has some.
    pub help: &'static str,
}

const fn listed(name: &'static str, of: &'static str, help: &'static str) -> Listed {
    Listed { name, of, help }
}

const fn property(listed: Listed, becomes: Becomes, devices: &'static [&'static str]) -> Property {
    Property {
        listed,
        becomes,
        devices,
    }
}

const PROPERTIES: &[Property] = &[
    property(
        listed("drive", "str", "Node name or ID of a block device to use as a backend"),
        Becomes::Inline(|backends| &backends.drives),
        &["virtio-blk"],
    ),
    property(
        listed("netdev", "str", "ID of a netdev to use as a backend"),
        Becomes::Netdev,
        &["virtio-net"],
    ),
    property(
        listed("chardev", "str", "ID of a chardev to use as a backend"),
        Becomes::Chardev,
        &["virtconsole", "virtserialport", VHOST_USER],
    ),
    property(listed("rng", "link<rng-backend>", ""), Becomes::Rng, &["virtio-rng"]),
    property(
        listed("iothread", "link<iothread>", ""),
        Becomes::Object("iothread"),
        &["virtio-", "vhost-user-blk"],
    ),
    property(
        listed("num-queues", "uint16", "the same as queues"),
        Becomes::Renamed("queues"),
        &["virtio-blk", "vhost-user-blk"],
    ),
    // Behind the drive, whose word it changes.
    property(
        listed("write-cache", "OnOffAuto", "on/off/auto"),
        Becomes::WriteCache,
        &["virtio-blk"],
    ),
];

/// The rows of the table above for `device`.
fn properties_of(device: &str) -> impl Iterator<Item = &'static Property> {
    let begins = move |prefix: &&str| device.starts_with(*prefix);
    PROPERTIES
        .iter()
        .filter(move |property| property.devices.iter().any(begins))
}

/// Properties that `device` takes beside its options in the table: those of QEMU that become such options, and those with one value.
pub fn beside_options(device: &str) -> Vec<Listed> {
    let becoming = properties_of(device);
    let tables = SETTLED
        .iter()
        .filter(|(prefix, _)| device.starts_with(prefix))
        .map(|(_, table)| *table);
    // QEMU does not list the bus.
    let settled = tables.flatten().filter(|row| row.key != "bus");
    let settled = settled.map(|row| listed(row.key, row.kind(), row.why));
    becoming.map(|property| property.listed).chain(settled).collect()
}

/// Properties of every virtio device on PCI that are as things are here.
const PCI: &[Settled] = &[
    settled("bus", &["pci.0", "pci"], "there is one bus, pci.0"),
    settled("multifunction", &["off"], "each device has a slot of its own"),
    settled("rombar", &["0"], "there is no firmware that would run it"),
    settled("romfile", &[""], "there is no firmware that would run it"),
    settled("ioeventfd", &[], "kicks are always events"),
    settled("page-per-vq", &["off"], "doorbells are 4 bytes apart"),
    settled("x-disable-pcie", &[], "the bus is not PCI Express"),
    settled("x-pcie-lnkctl-init", &[], "the bus is not PCI Express"),
    settled("x-pcie-deverr-init", &[], "the bus is not PCI Express"),
    settled("x-pcie-pm-init", &[], "the bus is not PCI Express"),
    settled("x-pcie-flr-init", &[], "the bus is not PCI Express"),
    settled("migrate-extra", &[], "there is no migration"),
    settled("use-started", &[], "there is no migration"),
    settled("use-disabled-flag", &[], "a broken device is the driver's doing"),
    settled("virtio-pci-bus-master-bug-migration", &[], "there is no migration"),
    settled("failover_pair_id", &[""], "there is nothing to fail over to"),
];

/// Properties of disks that are as things are here.
const BLOCK: &[Settled] = &[
    settled("share-rw", &["off"], "images are locked"),
    settled("werror", &["auto", "report"], "errors are reported to the guest"),
    settled("rerror", &["auto", "report"], "errors are reported to the guest"),
    settled("config-wce", &["on"], "the guest can switch the write cache"),
    settled("request-merging", &[], "the guest cannot tell"),
    settled("seg-max-adjust", &["on"], "it follows the size of the queue"),
    settled("scsi", &["off"], "SCSI commands are not passed through"),
    settled(
        "discard",
        &["on"],
        "discards are offered; the drive's discard= says what becomes of them",
    ),
    settled("write-zeroes", &["on"], "it is offered"),
    settled("logical_block_size", &["512"], "sectors have 512 bytes"),
    settled("physical_block_size", &["512"], "sectors have 512 bytes"),
    settled("min_io_size", &["0"], "there is none"),
    settled("opt_io_size", &["0"], "there is none"),
    settled("account-invalid", &[], "the guest cannot tell"),
    settled("account-failed", &[], "the guest cannot tell"),
];

/// Properties of network cards that are as things are here.
const NET: &[Settled] = &[
    settled("failover", &["off"], "there is nothing to fail over to"),
    settled(
        "tx",
        &["bh", "timer"],
        "when frames are sent follows from how they come",
    ),
    settled("x-txtimer", &[], "when frames are sent follows from how they come"),
    settled("x-txburst", &[], "when frames are sent follows from how they come"),
    settled("rss", &["off"], "there is no receive side scaling"),
    settled("hash", &["off"], "there is no receive side scaling"),
    settled("x-mtu-bypass-backend", &[], "the guest cannot tell"),
];

/// What the names of devices begin with that other processes serve.
const VHOST_USER: &str = "vhost-user-";

/// Properties by the beginning of the device's name.
const SETTLED: &[(&str, &[Settled])] = &[
    ("virtio-", PCI),
    (VHOST_USER, PCI),
    ("virtio-blk", BLOCK),
    ("virtio-net", NET),
];

/// The device with its references resolved.
pub(super) fn translate(device: &str, pairs: Pairs, backends: &Backends) -> Result<DeviceConfig, ConfigError> {
    known(device)?;
    let is_child = CHILDREN.iter().any(|child| child.name == device);
    let mut given = backends.globals_of(device);
    given.extend(pairs);
    let mut reader = Reader::new(device, given);
    let (mut options, mut references) = (Pairs::default(), Pairs::default());
    for Property { listed, becomes, .. } in properties_of(device) {
        let key = listed.name;
        let Some(value) = reader.text(key) else { continue };
        if !matches!(becomes, Becomes::Renamed(_) | Becomes::WriteCache) {
            references.push(key, value.as_str());
        }
        match becomes {
            Becomes::Renamed(name) => options.push(*name, value),
            Becomes::Inline(named) => options.extend(referred(device, key, &value, named(backends))?.clone()),
            Becomes::Netdev => {
                options.extend(referred(device, key, &value, &backends.netdevs)?.clone());
                options.extend(capture(&value, backends));
            }
            Becomes::Chardev if device.starts_with(VHOST_USER) => {
                options.extend(vhost_user::place(device, &value, &backends.chardevs)?);
            }
            Becomes::Chardev => options.extend(referred(device, key, &value, &backends.chardevs)?.clone()),
            Becomes::Object(kind) => {
                object(device, key, &value, &[kind], backends)?;
                options.push(key, value);
            }
            Becomes::Rng => options.extend(rng(device, &value, backends)?),
            Becomes::WriteCache => {
                let cache = options.get("cache").unwrap_or("writeback");
                let mode = cache_mode(cache, &value).ok_or_else(|| reader.invalid(key, &value, "on|off|auto"))?;
                if mode != cache {
                    options.push("cache", mode.to_owned());
                }
            }
        }
    }
    if !is_child {
        for (_, table) in SETTLED.iter().filter(|(prefix, _)| device.starts_with(prefix)) {
            reader.settle(table)?;
        }
    }
    options.extend(reader.rest());
    default_queues(device, &mut options, backends.cpus);
    Ok(DeviceConfig {
        references,
        ..DeviceConfig::new(device, options)
    })
}

/// A disk has as many queues as there are CPUs (QEMU, `virtio_pci_optimal_num_queues`), and a network card with several tells the guest
/// so only with `mq=on`, where ours do unless told otherwise.
fn default_queues(device: &str, options: &mut Pairs, cpus: u32) {
    let queues = options.get("queues");
    let descriptors = options.get("tap-fd").filter(|list| list.contains(':'));
    let is_disk = ["virtio-blk", "vhost-user-blk"]
        .iter()
        .any(|disk| device.starts_with(disk));
    if is_disk && queues.is_none() && cpus > 1 {
        options.push("queues", cpus.to_string());
    } else if device.starts_with("virtio-net") && queues.or(descriptors).is_some() && options.get("mq").is_none() {
        options.push("mq", "off");
    }
}

/// The `filter-dump` of a network.
fn capture(netdev: &str, backends: &Backends) -> Option<(String, String)> {
    let mut dumps = backends
        .objects
        .values()
        .filter(|object| object.get("qom-type") == Some("filter-dump"));
    let dump = dumps.find(|dump| dump.get("netdev") == Some(netdev))?;
    Some(("capture".to_owned(), dump.get("file")?.to_owned()))
}

/// What `cache=` says with this `write-cache=`. `None` if that is none of its values.
fn cache_mode<'a>(cache: &'a str, write_cache: &str) -> Option<&'a str> {
    let on = match super::keyval::canonical(write_cache) {
        "on" => true,
        "off" => false,
        "auto" => return Some(cache),
        _ => return None,
    };
    Some(match (cache, on) {
        ("writeback" | "unsafe", false) => "writethrough",
        ("none", false) => "directsync",
        ("writethrough", true) => "writeback",
        ("directsync", true) => "none",
        _ => cache,
    })
}

/// What `key=id` of `device` refers to.
fn referred<'a>(device: &str, key: &str, id: &str, named: &'a Named) -> Result<&'a Pairs, ConfigError> {
    let found = named.get(id);
    if key == "drive" && found.is_some_and(Pairs::is_empty) {
        let problem = format_args!("drive={id}: device needs media, but drive is empty");
        return Err(ConfigError::refused(device, problem, "add file=FILE to the drive"));
    }
    found.ok_or_else(|| {
        let remedy = match key {
            "drive" => format!("add -drive if=none,id={id},file=FILE or -blockdev node-name={id},..."),
            "rng" => format!("add -object rng-random,id={id}"),
            "iothread" => format!("add -object iothread,id={id}"),
            _ => format!("add -{key} ...,id={id}"),
        };
        ConfigError::refused(
            device,
            format_args!("{key}={id}: there is nothing of that name"),
            remedy,
        )
    })
}

/// The object that `key=id` of `device` refers to, of one of these types.
fn object<'a>(
    device: &str,
    key: &str,
    id: &str,
    kinds: &[&str],
    backends: &'a Backends,
) -> Result<&'a Pairs, ConfigError> {
    let object = referred(device, key, id, &backends.objects)?;
    let kind = object.get("qom-type").unwrap_or_default();
    if kinds.contains(&kind) {
        return Ok(object);
    }
    let problem = format!("{key}={id} is a {kind}");
    Err(ConfigError::refused(
        device,
        problem,
        format!("name a {}", kinds.join(" or a ")),
    ))
}

/// The source of a `rng=`. The kernel's own generator is the one of `rng-builtin`.
fn rng(device: &str, id: &str, backends: &Backends) -> Result<Pairs, ConfigError> {
    let object = object(device, "rng", id, &["rng-random", "rng-builtin", "rng-egd"], backends)?;
    if let Some(chardev) = object.get("chardev") {
        let socket = referred(device, "chardev", chardev, &backends.chardevs)?;
        let path = socket.get("path").ok_or_else(|| {
            let problem = format!("chardev={chardev} has no path");
            ConfigError::refused(device, problem, "rng-egd takes a chardev socket with path=SOCKET")
        })?;
        return Ok([("egd", path)].into_iter().collect());
    }
    let source = object.get("filename").map(|path| ("source", path));
    Ok(source.into_iter().collect())
}

/// Devices of the machine itself whose properties have one value here: driver, property, value.
const FIXED: &[[&str; 3]] = &[
    ["kvm-pit", "lost_tick_policy", "delay"],
    ["mc146818rtc", "lost_tick_policy", "discard"],
    ["PIIX4_PM", "disable_s3", "1"],
    ["PIIX4_PM", "disable_s4", "1"],
    ["PIIX4_PM", "acpi-pci-hotplug-with-bridge-support", "off"],
    ["i440FX-pcihost", "pci-hole64-size", "2G"],
    ["fw_cfg", "dma_enabled", "off"],
];

/// What is to be said of a `-global` that is no property of our virtio devices.
pub(super) fn check_global(driver: &str, property: &str, value: &str) -> Result<Option<String>, ConfigError> {
    let subject = format!("-global {driver}.{property}={value}");
    if super::backends::BASES.contains(&driver) || info::find(driver).is_ok() {
        return Ok(None);
    }
    if CHILDREN.iter().any(|child| child.name == driver) {
        return Ok(None);
    }
    let mut fixed = FIXED.iter().filter(|[name, ..]| *name == driver).peekable();
    if fixed.peek().is_none() {
        return Ok(Some(format!("{subject}: there is no {driver} here; it has no effect")));
    }
    if fixed.any(|[_, name, only]| *name == property && *only == value) {
        return Ok(None);
    }
    Err(ConfigError::refused(
        subject,
        "this property cannot be changed",
        "leave it out",
    ))
}

/// Devices of QEMU that many know, by the beginning of their names, and what there is instead.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (
        &[
            "e1000", "rtl8139", "ne2k", "pcnet", "i8255", "vmxnet", "usb-net", "tulip",
        ],
        "use virtio-net-pci",
    ),
    (
        &[
            "ide-",
            "ahci",
            "nvme",
            "scsi-",
            "virtio-scsi",
            "megasas",
            "lsi",
            "pvscsi",
            "sd-card",
            "floppy",
            "vhost-scsi",
        ],
        "use virtio-blk-pci",
    ),
    (
        &[
            "VGA",
            "qxl",
            "cirrus",
            "virtio-gpu",
            "virtio-vga",
            "bochs",
            "ramfb",
            "vmware-svga",
            "secondary-vga",
        ],
        "there are no displays; use -serial or a virtconsole",
    ),
    (
        &[
            "usb",
            "qemu-xhci",
            "nec-usb",
            "piix3-usb",
            "ich9-usb",
            "virtio-keyboard",
            "virtio-mouse",
            "virtio-tablet",
        ],
        "there is no USB, keyboard or tablet; use -serial or a virtconsole",
    ),
    (
        &["virtio-9p", "vhost-user-fs", "virtio-fs"],
        "there are no shared folders; give a disk with -drive if=virtio",
    ),
    (
        &[
            "pcie-",
            "ioh3420",
            "pci-bridge",
            "pxb",
            "i82801b11",
            "x3130",
            "xio3130",
            "cxl",
        ],
        "there is one bus, pci.0, without bridges; leave it out, and bus= of the devices behind it",
    ),
    (
        &["vhost-vsock", "vhost-user-vsock"],
        "there is no vsock; use a virtserialport or a network",
    ),
    (
        &[
            "intel-hda",
            "hda-",
            "AC97",
            "ES1370",
            "ich9-intel-hda",
            "sb16",
            "virtio-sound",
        ],
        "there is no sound",
    ),
    (
        &["vfio-", "pci-assign", "virtio-iommu", "intel-iommu", "amd-iommu"],
        "there is no IOMMU, and the host's devices cannot be passed on",
    ),
    (
        &[
            "pvpanic",
            "i6300esb",
            "ib700",
            "vmcoreinfo",
            "vmgenid",
            "ivshmem",
            "edu",
            "pci-testdev",
            "tpm-",
            "nvdimm",
            "pc-dimm",
            "virtio-mem",
            "virtio-pmem",
            "virtio-crypto",
        ],
        "leave it out",
    ),
];

/// Sees that there is such a device.
fn known(device: &str) -> Result<(), ConfigError> {
    if CHILDREN.iter().any(|child| child.name == device) {
        return Ok(());
    }
    let Err(error) = info::find(device) else { return Ok(()) };
    if let Some(plain) = device.strip_suffix("-device")
        && info::find(plain).is_ok()
    {
        let remedy = format!("use {plain}-pci");
        return Err(ConfigError::refused(device, "virtio-mmio is not here", remedy));
    }
    let elsewhere = ELSEWHERE
        .iter()
        .find(|(prefixes, _)| prefixes.iter().any(|prefix| device.starts_with(prefix)));
    Err(match elsewhere {
        Some((_, remedy)) => ConfigError::refused(device, "there is no such device here", remedy),
        None => error,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn backends() -> Backends {
        let mut backends = Backends::default();
        let pairs = |text| Pairs::parse(text, None);
        backends
            .add_drive(pairs("id=d0,file=a.img,format=raw,cache=none"))
            .unwrap();
        backends.add_object(pairs("qom-type=iothread,id=io1")).unwrap();
        backends
            .add_object(pairs("qom-type=rng-random,id=r0,filename=/dev/random"))
            .unwrap();
        backends
            .add_chardev(pairs("backend=socket,id=c0,path=/run/egd"))
            .unwrap();
        backends.add_object(pairs("qom-type=rng-egd,id=r1,chardev=c0")).unwrap();
        backends
    }

    fn resolve(device: &str, text: &str) -> Result<String, String> {
        let resolved = backends().resolve(device, Pairs::parse(text, None));
        resolved
            .map(|device| device.options.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn references_become_options() {
        for (device, text, expected) in [
            (
                "virtio-blk-pci",
                "drive=d0,id=x,addr=04.0",
                "path=a.img,format=raw,cache=none,id=x,addr=04.0",
            ),
            (
                "virtio-blk-pci",
                "drive=d0,num-queues=4,iothread=io1,write-cache=off",
                "path=a.img,format=raw,cache=none,iothread=io1,queues=4,cache=directsync",
            ),
            (
                "virtio-blk",
                "drive=d0,bus=pci.0,ioeventfd=on,romfile=,scsi=off",
                "path=a.img,format=raw,cache=none",
            ),
            ("virtio-rng-pci", "rng=r0", "source=/dev/random"),
            (
                "virtio-rng-pci",
                "rng=r1,max-bytes=1024,period=1000",
                "egd=/run/egd,max-bytes=1024,period=1000",
            ),
            (
                "virtio-rng-pci-non-transitional",
                "disable-modern=off",
                "disable-modern=off",
            ),
            // What is of another device is refused by its name, with the options.
            ("virtio-net-pci", "write-cache=off", "write-cache=off"),
            ("virtio-rng-pci", "drive=d0", "drive=d0"),
        ] {
            assert_eq!(resolve(device, text), Ok(expected.to_owned()), "{device},{text}");
        }
    }

    #[test]
    fn what_refers_to_nothing_or_the_wrong_thing_is_refused() {
        for (device, text, complaint) in [
            (
                "virtio-blk-pci",
                "drive=d1",
                "virtio-blk-pci: drive=d1: there is nothing of that name; add -drive if=none,id=d1",
            ),
            (
                "virtio-rng-pci",
                "rng=io1",
                "virtio-rng-pci: rng=io1 is a iothread; name a rng-random or a rng-builtin or a rng-egd",
            ),
            ("virtio-blk-pci", "drive=d0,iothread=io2", "add -object iothread,id=io2"),
            ("virtio-blk-pci", "drive=d0,bus=pci.1", "there is one bus"),
            (
                "virtio-blk-pci",
                "drive=d0,logical_block_size=4096",
                "sectors have 512 bytes",
            ),
            (
                "virtio-blk-device",
                "drive=d0",
                "virtio-mmio is not here; use virtio-blk-pci",
            ),
            (
                "e1000",
                "netdev=n0",
                "e1000: there is no such device here; use virtio-net-pci",
            ),
            ("virtio-rgn-pci", "", "did you mean 'virtio-rng-pci'?"),
        ] {
            let error = resolve(device, text).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    fn disks_have_a_queue_for_each_cpu_and_cards_several_when_told() {
        let mut backends = backends();
        backends.cpus = 4;
        backends
            .add_netdev(Pairs::parse("type=tap,id=t0,ifname=tap0,queues=2", None))
            .unwrap();
        for (id, fds) in [("t1", "3"), ("t2", "3:4")] {
            let netdev = Pairs::parse(&format!("type=tap,id={id},fds={fds}"), None);
            backends.add_netdev(netdev).unwrap();
        }
        for (device, text, expected) in [
            (
                "virtio-blk-pci",
                "drive=d0",
                "path=a.img,format=raw,cache=none,queues=4",
            ),
            (
                "virtio-blk-pci",
                "drive=d0,num-queues=1",
                "path=a.img,format=raw,cache=none,queues=1",
            ),
            ("virtio-rng-pci", "rng=r0", "source=/dev/random"),
            ("virtio-net-pci", "netdev=t0", "tap=tap0,queues=2,mq=off"),
            ("virtio-net-pci", "netdev=t0,mq=on", "tap=tap0,queues=2,mq=on"),
            ("virtio-net-pci", "netdev=t1", "tap-fd=3"),
            ("virtio-net-pci", "netdev=t2", "tap-fd=3:4,mq=off"),
            ("virtio-net-pci", "netdev=t2,mq=on", "tap-fd=3:4,mq=on"),
        ] {
            let resolved = backends.resolve(device, Pairs::parse(text, None)).unwrap();
            assert_eq!(resolved.options.to_string(), expected, "{device},{text}");
        }
    }

    #[test]
    fn globals_come_before_what_the_device_says() {
        let mut backends = backends();
        backends.add_global("virtio-blk-pci", "vectors", "6");
        backends.add_global("virtio-pci", "disable-modern", "on");
        backends.add_global("virtio-net-pci", "vectors", "7");
        let device = backends
            .resolve("virtio-blk-pci", Pairs::parse("drive=d0,vectors=3", None))
            .unwrap();
        assert_eq!(
            device.options.to_string(),
            "path=a.img,format=raw,cache=none,vectors=6,disable-modern=on,vectors=3"
        );
    }
}
