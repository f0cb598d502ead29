//! What QEMU creates by a name of its own and devices refer to: `-netdev`, `-drive` and `-blockdev`, `-chardev`,
//! `-object`, and the QMP commands of the same names. Our devices carry their backend in their own options; here one
//! becomes the other.

use std::collections::{BTreeMap, BTreeSet};

use devices::virtio::info;
use devices::virtio::options::{ConfigError, Pairs};

use super::{drive, lines, network, objects, properties};
use crate::config::DeviceConfig;

/// Options by the name that the user gave the thing.
pub type Named = BTreeMap<String, Pairs>;

/// Everything that devices can refer to.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Backends {
    /// Networks: the options that our virtio-net-pci takes in place of `netdev=`.
    pub netdevs: Named,
    /// Disks: the options that our virtio-blk-pci takes in place of `drive=`. A drive without a medium has none.
    pub drives: Named,
    /// Those of them that go with the device that shows them: `-drive`, not `-blockdev`.
    fleeting: BTreeSet<String>,
    /// Character devices: the options of [`devices::chardev`], among them `backend`.
    pub chardevs: Named,
    /// Objects: QEMU's options without `id`; `qom-type` says which kind.
    pub objects: Named,
    /// Properties of all devices of a kind: driver, property, value.
    pub globals: Vec<[String; 3]>,
    /// CPUs of the machine, by which disks have queues.
    pub cpus: u32,
}

/// The kinds of which every virtio device on PCI is one.
pub(super) const BASES: [&str; 2] = ["virtio-pci", "virtio-device"];

/// Is it one of them?
fn on_pci(device: &str) -> bool {
    info::find(device).is_ok()
}

impl Backends {
    /// `-netdev` and QMP's `netdev_add`: `type=user,id=n0,...`.
    ///
    /// # Errors
    /// No id, one that is taken, or an option that no network here has.
    pub fn add_netdev(&mut self, mut pairs: Pairs) -> Result<(), ConfigError> {
        let id = take_id(&mut pairs, "-netdev", &self.netdevs)?;
        let subject = format!("-netdev id={id}");
        self.netdevs
            .insert(id, network::netdev(&subject, pairs, &self.chardevs)?);
        Ok(())
    }

    /// `-drive` with `if=none`: `id=d0,file=root.img,format=raw,...`.
    ///
    /// # Errors
    /// No id, one that is taken, or an option that no disk here has.
    pub fn add_drive(&mut self, mut pairs: Pairs) -> Result<(), ConfigError> {
        let id = take_id(&mut pairs, "-drive", &self.drives)?;
        let subject = format!("-drive id={id}");
        self.drives.insert(id.clone(), drive::from_drive(&subject, pairs)?);
        self.fleeting.insert(id);
        Ok(())
    }

    /// Takes a disk away; `false` when there is none of that name.
    pub fn remove_drive(&mut self, name: &str) -> bool {
        self.fleeting.remove(name);
        self.drives.remove(name).is_some()
    }

    /// Is it a drive, as `-drive` makes them, and no node?
    pub fn is_drive(&self, name: &str) -> bool {
        self.fleeting.contains(name)
    }

    /// The device that showed this disk is gone. A drive goes with it, a node stays.
    pub fn leave_drive(&mut self, name: &str) {
        if self.is_drive(name) {
            self.remove_drive(name);
        }
    }

    /// `-blockdev` and QMP's `blockdev-add`: `driver=qcow2,node-name=d0,file.driver=file,file.filename=root.qcow2`.
    ///
    /// # Errors
    /// No name, one that is taken, a reference to a node that is not there, or an option that no disk here has.
    pub fn add_blockdev(&mut self, mut pairs: Pairs) -> Result<(), ConfigError> {
        let name = pairs
            .take("node-name")
            .ok_or_else(|| missing("-blockdev", "node-name"))?;
        check_name("-blockdev", "node-name", &name, &self.drives)?;
        let subject = format!("-blockdev node-name={name}");
        let options = drive::from_blockdev(&subject, pairs, &self.drives)?;
        self.drives.insert(name, options);
        Ok(())
    }

    /// `-chardev` and QMP's `chardev-add`: `backend=socket,id=c0,path=...`.
    ///
    /// # Errors
    /// No id, one that is taken, or an option that no character device here has.
    pub fn add_chardev(&mut self, mut pairs: Pairs) -> Result<(), ConfigError> {
        let id = take_id(&mut pairs, "-chardev", &self.chardevs)?;
        let subject = format!("-chardev id={id}");
        self.chardevs.insert(id, lines::chardev(&subject, pairs)?);
        Ok(())
    }

    /// `-object` and QMP's `object-add`: `qom-type=iothread,id=io1`.
    ///
    /// # Errors
    /// No id, one that is taken, no kind that is here, or an option that it has not.
    pub fn add_object(&mut self, mut pairs: Pairs) -> Result<(), ConfigError> {
        let id = take_id(&mut pairs, "-object", &self.objects)?;
        let subject = format!("-object id={id}");
        self.objects.insert(id, objects::object(&subject, pairs)?);
        Ok(())
    }

    /// Looks at a `-global`. Answers with a line for the user when it means nothing here.
    ///
    /// # Errors
    /// It is about something that is here, and that it cannot change.
    pub fn check_global(&self, driver: &str, property: &str, value: &str) -> Result<Option<String>, ConfigError> {
        properties::check_global(driver, property, value)
    }

    /// `-global driver.property=value`.
    pub fn add_global(&mut self, driver: &str, property: &str, value: &str) {
        self.globals.push([driver, property, value].map(str::to_owned));
    }

    /// The properties that `device` has because of its kind.
    pub(super) fn globals_of(&self, device: &str) -> Pairs {
        let applies = |driver: &str| driver == device || (on_pci(device) && BASES.contains(&driver));
        let globals = self.globals.iter().filter(|[driver, ..]| applies(driver));
        globals
            .map(|[_, property, value]| (property.as_str(), value.as_str()))
            .collect()
    }

    /// A device as `-device` and `device_add` have it (`pairs` without `driver`), with its references turned into the
    /// options of our devices.
    ///
    /// # Errors
    /// A reference to nothing, or a property that has no counterpart.
    pub fn resolve(&self, device: &str, pairs: Pairs) -> Result<DeviceConfig, ConfigError> {
        properties::translate(device, pairs, self)
    }
}

/// The name that a thing of `subject` is created by, taken out of its options.
fn take_id(pairs: &mut Pairs, subject: &str, taken: &Named) -> Result<String, ConfigError> {
    let id = pairs.take("id").ok_or_else(|| missing(subject, "id"))?;
    check_name(subject, "id", &id, taken)?;
    Ok(id)
}

/// Sees that a name is one as QEMU wants it (util/id.c: a letter, then letters, digits, `-`, `.` or `_`), and free.
fn check_name(subject: &str, key: &str, name: &str, taken: &Named) -> Result<(), ConfigError> {
    let mut letters = name.chars();
    let well_formed = letters.next().is_some_and(|first| first.is_ascii_alphabetic())
        && letters.all(|letter| letter.is_ascii_alphanumeric() || "-._".contains(letter));
    if !well_formed {
        return Err(ConfigError::InvalidValue {
            subject: subject.to_owned(),
            name: key.to_owned(),
            value: name.to_owned(),
            expected: "a letter, then letters, digits, '-', '.' or '_'".to_owned(),
        });
    }
    if taken.contains_key(name) {
        let remedy = "give each a name of its own";
        return Err(ConfigError::refused(
            subject,
            format_args!("{key}={name} is there already"),
            remedy,
        ));
    }
    Ok(())
}

/// An option that has to be there.
pub(super) fn missing(subject: &str, key: &str) -> ConfigError {
    ConfigError::MissingOption {
        subject: subject.to_owned(),
        name: key.to_owned(),
        help: match key {
            "id" | "node-name" => "a name that devices refer to it by",
            _ => "which kind it is to be",
        }
        .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_drive_goes_with_its_device_and_a_node_stays() {
        let mut backends = Backends::default();
        backends.add_drive(Pairs::parse("id=d,file=null-co://", None)).unwrap();
        let node = "node-name=n,driver=raw,file.driver=null-co,file.read-zeroes=on";
        backends.add_blockdev(Pairs::parse(node, None)).unwrap();
        assert!(backends.is_drive("d") && !backends.is_drive("n"));
        backends.leave_drive("d");
        backends.leave_drive("n");
        assert_eq!(backends.drives.keys().collect::<Vec<_>>(), ["n"]);
        // Its name is free, and a node of that name is no drive.
        let node = "node-name=d,driver=null-co,read-zeroes=on";
        backends.add_blockdev(Pairs::parse(node, None)).unwrap();
        assert!(!backends.is_drive("d"));
    }

    #[test]
    fn a_drive_without_a_medium_is_shown_by_no_device() {
        let mut backends = Backends::default();
        backends.add_drive(Pairs::parse("id=d", None)).unwrap();
        let error = backends
            .resolve("virtio-blk-pci", Pairs::parse("drive=d", None))
            .unwrap_err();
        assert!(error.to_string().contains("drive is empty"), "{error}");
        assert!(backends.remove_drive("d") && !backends.remove_drive("d"));
    }
}
