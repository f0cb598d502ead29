//! What QEMU creates by a name of its own and devices refer to: `-netdev`, `-drive` and `-blockdev`, `-chardev`, `-object`, and
//! the QMP commands of the same names. Our devices carry their backend in their own options; here one becomes the other.

use std::collections::BTreeMap;

use devices::virtio::options::{ConfigError, Pairs};

use super::{drive, properties};
use crate::config::DeviceConfig;

/// Options by the name that the user gave the thing.
pub type Named = BTreeMap<String, Pairs>;

/// Everything that devices can refer to.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Backends {
    /// Networks: QEMU's options without `id`; `type` says which kind.
    pub netdevs: Named,
    /// Disks: the options that our virtio-blk-pci takes in place of `drive=`.
    pub drives: Named,
    /// Character devices: QEMU's options without `id`; `backend` says which kind.
    pub chardevs: Named,
    /// Objects: QEMU's options without `id`; `qom-type` says which kind.
    pub objects: Named,
    /// Properties of all devices of a kind: driver, property, value.
    pub globals: Vec<[String; 3]>,
}

/// The kinds of which every virtio device on PCI is one.
const BASES: [&str; 2] = ["virtio-pci", "virtio-device"];

impl Backends {
    /// `-netdev` and QMP's `netdev_add`: `type=user,id=n0,...`.
    ///
    /// # Errors
    /// No id, one that is taken, or no type.
    pub fn add_netdev(&mut self, mut pairs: Pairs) -> Result<(), ConfigError> {
        required(&pairs, "-netdev", "type")?;
        let id = take_id(&mut pairs, "-netdev", &self.netdevs)?;
        self.netdevs.insert(id, pairs);
        Ok(())
    }

    /// `-drive` with `if=none`: `id=d0,file=root.img,format=raw,...`.
    ///
    /// # Errors
    /// No id, one that is taken, or an option that no disk here has.
    pub fn add_drive(&mut self, mut pairs: Pairs) -> Result<(), ConfigError> {
        let id = take_id(&mut pairs, "-drive", &self.drives)?;
        let subject = format!("-drive id={id}");
        self.drives.insert(id, drive::from_drive(&subject, pairs)?);
        Ok(())
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
    /// No id, one that is taken, or no kind.
    pub fn add_chardev(&mut self, mut pairs: Pairs) -> Result<(), ConfigError> {
        required(&pairs, "-chardev", "backend")?;
        let id = take_id(&mut pairs, "-chardev", &self.chardevs)?;
        self.chardevs.insert(id, pairs);
        Ok(())
    }

    /// `-object` and QMP's `object-add`: `qom-type=iothread,id=io1`.
    ///
    /// # Errors
    /// No id, one that is taken, or no kind.
    pub fn add_object(&mut self, mut pairs: Pairs) -> Result<(), ConfigError> {
        required(&pairs, "-object", "qom-type")?;
        let id = take_id(&mut pairs, "-object", &self.objects)?;
        self.objects.insert(id, pairs);
        Ok(())
    }

    /// `-global driver.property=value`.
    pub fn add_global(&mut self, driver: &str, property: &str, value: &str) {
        self.globals.push([driver, property, value].map(str::to_owned));
    }

    /// The properties that `device` has because of its kind.
    pub(super) fn globals_of(&self, device: &str) -> Pairs {
        let applies = |driver: &str| driver == device || (device.starts_with("virtio-") && BASES.contains(&driver));
        let globals = self.globals.iter().filter(|[driver, ..]| applies(driver));
        globals
            .map(|[_, property, value]| (property.as_str(), value.as_str()))
            .collect()
    }

    /// A device as `-device` and `device_add` have it (`pairs` without `driver`), with its references turned into the options of
    /// our devices.
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

fn required(pairs: &Pairs, subject: &str, key: &str) -> Result<(), ConfigError> {
    pairs.get(key).map(drop).ok_or_else(|| missing(subject, key))
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
