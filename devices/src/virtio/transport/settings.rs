//! What the user can choose about the transport of any device: the options that QEMU gives every
//! `virtio-*-pci`.

#![forbid(unsafe_code)]

use pci::capability::msix::MAX_VECTORS;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::features::RingOptions;
use crate::virtio::options::{ConfigError, OptionKind, OptionSpec, Options};

/// Which name of a device the user chose.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Variant {
    /// `virtio-rng-pci`: both faces unless options say otherwise.
    #[default]
    Plain,
    /// `virtio-rng-pci-transitional`: both faces.
    Transitional,
    /// `virtio-rng-pci-non-transitional`: the modern face.
    NonTransitional,
}

impl Variant {
    /// What it adds to the name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Transitional => "-transitional",
            Self::NonTransitional => "-non-transitional",
        }
    }
}

/// The options of every virtio device on PCI.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "id",
        OptionKind::Text,
        "the device's name for other options and for QMP",
    ),
    OptionSpec::new(
        "addr",
        OptionKind::Slot,
        "its place on the bus; the lowest free one if not given",
    ),
    OptionSpec::new(
        "disable-legacy",
        OptionKind::Choice(&["auto", "on", "off"]),
        "leaves out the legacy face",
    )
    .or("auto"),
    OptionSpec::new("disable-modern", OptionKind::Flag, "leaves out the modern face").or("off"),
    OptionSpec::new(
        "vectors",
        OptionKind::Number {
            min: 0,
            max: MAX_VECTORS as u64,
        },
        "MSI-X vectors, 0 for none; as many as suit the device if not given",
    ),
    OptionSpec::new(
        "modern-pio-notify",
        OptionKind::Flag,
        "adds a doorbell port to the modern face",
    )
    .or("off"),
    OptionSpec::new("indirect_desc", OptionKind::Flag, "offers VIRTIO_F_INDIRECT_DESC").or("on"),
    OptionSpec::new("event_idx", OptionKind::Flag, "offers VIRTIO_F_EVENT_IDX").or("on"),
    OptionSpec::new(
        "notify_on_empty",
        OptionKind::Flag,
        "offers VIRTIO_F_NOTIFY_ON_EMPTY (legacy)",
    )
    .or("on"),
    OptionSpec::new("any_layout", OptionKind::Flag, "offers VIRTIO_F_ANY_LAYOUT (legacy)").or("on"),
    OptionSpec::new("queue_reset", OptionKind::Flag, "offers VIRTIO_F_RING_RESET").or("on"),
    OptionSpec::new("packed", OptionKind::Flag, "not available").or("off"),
    OptionSpec::new("iommu_platform", OptionKind::Flag, "not available").or("off"),
    OptionSpec::new("ats", OptionKind::Flag, "not available").or("off"),
];

/// Options of QEMU that there is nothing behind, and why.
const UNAVAILABLE: &[(&str, &str)] = &[
    (
        "packed",
        "packed rings are not implemented; leave it off, and drivers use split rings",
    ),
    ("iommu_platform", "there is no IOMMU in front of devices; leave it off"),
    (
        "ats",
        "there is no IOMMU that could answer address translation requests; leave it off",
    ),
];

/// The views that a device has of its registers, at least one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Faces {
    /// Legacy and modern: a transitional device.
    Both,
    /// Legacy only.
    Legacy,
    /// Modern only.
    Modern,
}

impl Faces {
    /// Whether there is a legacy face.
    pub fn legacy(self) -> bool {
        self != Self::Modern
    }

    /// Whether there is a modern face.
    pub fn modern(self) -> bool {
        self != Self::Legacy
    }

    /// Those of them that a device can have of whose features no others than `possible` can be offered; `None` when
    /// there is none. Without VERSION_1 a modern face would only confuse drivers (QEMU, hw/virtio/virtio-pci.c,
    /// `virtio_pci_device_plugged`).
    pub fn with_features(self, possible: u64) -> Option<Self> {
        match self {
            faces if possible & 1 << VIRTIO_F_VERSION_1 != 0 => Some(faces),
            Self::Both | Self::Legacy => Some(Self::Legacy),
            Self::Modern => None,
        }
    }
}

/// The transport as the user wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Which faces.
    pub faces: Faces,
    /// MSI-X vectors; `None` for as many as suit the device.
    pub vectors: Option<u16>,
    /// Whether the modern face has a doorbell port.
    pub notify_port: bool,
    /// Features of ring and transport.
    pub ring: RingOptions,
}

impl Default for Settings {
    /// A transitional device with everything that QEMU's default offers.
    fn default() -> Self {
        Self {
            faces: Faces::Both,
            vectors: None,
            notify_port: false,
            ring: RingOptions::default(),
        }
    }
}

impl Settings {
    /// Reads them. `transitional` says whether the type of device has a legacy face at all.
    ///
    /// # Errors
    /// A combination that cannot be, or an option that there is nothing behind.
    pub fn read(options: &Options, variant: Variant, transitional: bool) -> Result<Self, ConfigError> {
        for (name, why) in UNAVAILABLE {
            if options.flag(name) {
                return Err(options.invalid(name, "on", format_args!("off: {why}")));
            }
        }
        let faces = faces(options, variant, transitional)?;
        let notify_port = options.flag("modern-pio-notify");
        if notify_port && !faces.modern() {
            return Err(options.refused("modern-pio-notify=on with disable-modern=on", "leave out one of them"));
        }
        Ok(Self {
            faces,
            vectors: options
                .number("vectors")
                .and_then(|vectors| u16::try_from(vectors).ok()),
            notify_port,
            ring: RingOptions {
                indirect_desc: options.flag("indirect_desc"),
                event_idx: options.flag("event_idx"),
                notify_on_empty: options.flag("notify_on_empty"),
                any_layout: options.flag("any_layout"),
                queue_reset: options.flag("queue_reset"),
            },
        })
    }
}

fn faces(options: &Options, variant: Variant, transitional: bool) -> Result<Faces, ConfigError> {
    let (legacy, modern) = (options.text("disable-legacy"), !options.flag("disable-modern"));
    let contradiction = match variant {
        Variant::Plain => false,
        Variant::Transitional => legacy == Some("on") || !modern,
        Variant::NonTransitional => legacy == Some("off") || !modern,
    };
    if contradiction {
        let name = variant.suffix();
        let remedy = format!("leave them out, or use the name without '{name}'");
        return Err(options.refused("disable-legacy and disable-modern contradict the device's name", remedy));
    }
    if !transitional && (legacy == Some("off") || !modern) {
        return Err(options.refused(
            "this device has no legacy face",
            "leave out disable-legacy and disable-modern",
        ));
    }
    let legacy = transitional && legacy != Some("on") && variant != Variant::NonTransitional;
    match (legacy, modern) {
        (true, true) => Ok(Faces::Both),
        (true, false) => Ok(Faces::Legacy),
        (false, true) => Ok(Faces::Modern),
        (false, false) => Err(options.refused(
            "no driver can use it with both faces left out",
            "give disable-modern=off or disable-legacy=off",
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(variant: Variant, transitional: bool, text: &str) -> Result<Settings, ConfigError> {
        let options = Options::parse("virtio-rng-pci", text, &[OPTIONS])?;
        Settings::read(&options, variant, transitional)
    }

    fn complaint(variant: Variant, transitional: bool, text: &str) -> String {
        read(variant, transitional, text).unwrap_err().to_string()
    }

    #[test]
    fn there_is_no_modern_face_without_version_1() {
        for faces in [Faces::Both, Faces::Legacy, Faces::Modern] {
            assert_eq!(faces.with_features(u64::MAX), Some(faces));
        }
        let without = !(1 << VIRTIO_F_VERSION_1);
        assert_eq!(Faces::Both.with_features(without), Some(Faces::Legacy));
        assert_eq!(Faces::Legacy.with_features(without), Some(Faces::Legacy));
        assert_eq!(Faces::Modern.with_features(without), None);
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(read(Variant::Plain, true, ""), Ok(Settings::default()));
    }

    #[test]
    fn faces_follow_from_name_and_options() {
        let faces = |variant, transitional, text| read(variant, transitional, text).unwrap().faces;
        assert_eq!(faces(Variant::Plain, true, "disable-legacy=on"), Faces::Modern);
        assert_eq!(faces(Variant::Plain, true, "disable-modern=on"), Faces::Legacy);
        assert_eq!(faces(Variant::Plain, false, ""), Faces::Modern);
        assert_eq!(faces(Variant::Transitional, true, ""), Faces::Both);
        assert_eq!(faces(Variant::NonTransitional, true, ""), Faces::Modern);
    }

    #[test]
    fn a_device_without_faces_is_refused() {
        assert_eq!(
            complaint(Variant::Plain, true, "disable-legacy=on,disable-modern=on"),
            "virtio-rng-pci: no driver can use it with both faces left out; give disable-modern=off or disable-legacy=off"
        );
        complaint(Variant::NonTransitional, true, "disable-modern=on");
        complaint(Variant::Transitional, true, "disable-legacy=on");
        complaint(Variant::Plain, false, "disable-modern=on");
    }

    #[test]
    fn options_with_nothing_behind_them_are_refused_and_off_is_fine() {
        assert!(read(Variant::Plain, true, "packed=off,iommu_platform=off,ats=off").is_ok());
        assert_eq!(
            complaint(Variant::Plain, true, "packed=on"),
            "virtio-rng-pci: packed=on: expected off: packed rings are not implemented; leave it off, and drivers use split rings"
        );
        complaint(Variant::Plain, true, "ats=on");
        complaint(Variant::Plain, true, "modern-pio-notify=on,disable-modern=on");
    }
}
