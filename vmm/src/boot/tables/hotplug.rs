//! The part of the DSDT by which a guest hears of devices that come and go, and gives slots back. It works the controller that is
//! `devices::platform::PciHotplug`; the names are QEMU's (hw/i386/acpi-build.c), which Linux shows in sysfs.

use acpi_tables::aml::{
    And, Arg, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Method,
    MethodCall, Name, Notify, OpRegion, OpRegionSpace, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::acpi::port;

/// Slots that can be emptied and filled; those before hold the chipset.
const SLOTS: std::ops::RangeInclusive<u8> = pci::host::FIRST_DEVICE_SLOT..=31;
/// Bytes of the controller's registers.
const REGISTERS: u8 = 24;
/// Bits of one.
const REGISTER: usize = 32;

/// Values of `Notify` (ACPI specification 6.4, table 5.6).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// What belongs into `\_SB.PCI0`: the controller, and its slots.
pub(super) struct HotplugBus;

impl Aml for HotplugBus {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        resources(sink);
        registers(sink);
        SLOTS.for_each(|slot| slot_device(slot, sink));
        notify_slots(sink);
        look_at_slots(sink);
    }
}

/// `\_GPE._E01`: the event of the controller.
pub(super) fn event(code: &mut Vec<u8>) {
    let look = MethodCall::new("\\_SB_.PCI0.PCNT".into(), vec![]);
    let handler = Method::new("_E01".into(), 0, false, vec![&look]);
    Scope::new("\\_GPE".into(), vec![&handler]).to_aml_bytes(code);
}

/// The ports are taken: no BAR may go there.
fn resources(sink: &mut dyn AmlSink) {
    let ports = IO::new(port::PCI_HOTPLUG, port::PCI_HOTPLUG, 1, REGISTERS);
    let id = Name::new("_HID".into(), &EISAName::new("PNP0A06"));
    let uid = Name::new("_UID".into(), &"PCI Hotplug resources");
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports]));
    Device::new("PHPR".into(), vec![&id, &uid, &resources]).to_aml_bytes(sink);
}

fn registers(sink: &mut dyn AmlSink) {
    OpRegion::new("PCST".into(), OpRegionSpace::SystemIO, &port::PCI_HOTPLUG, &REGISTERS).to_aml_bytes(sink);
    let register = |name| FieldEntry::Named(name, REGISTER);
    Field::new(
        "PCST".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![register(*b"PCIU"), register(*b"PCID"), register(*b"B0EJ")],
    )
    .to_aml_bytes(sink);
}

/// The name of the device in a slot: S and its device and function numbers.
fn slot_path(slot: u8) -> Path {
    Path::new(&format!("S{:02X}_", slot << 3))
}

fn slot_bit(slot: u8) -> u32 {
    1 << slot
}

/// A slot, whether there is something in it or not. `_EJ0` makes it one that can be emptied; it is called by the name `_SUN`.
fn slot_device(slot: u8, sink: &mut dyn AmlSink) {
    let (eject_port, bit) = (Path::new("B0EJ"), slot_bit(slot));
    let eject = Store::new(&eject_port, &bit);
    let address = u32::from(slot) << 16;
    Device::new(
        slot_path(slot),
        vec![
            &Name::new("_ADR".into(), &address),
            &Name::new("_SUN".into(), &slot),
            &Method::new("_EJ0".into(), 1, false, vec![&eject]),
        ],
    )
    .to_aml_bytes(sink);
}

/// `DVNT(slots, what)`: notifies each slot whose bit is set.
fn notify_slots(sink: &mut dyn AmlSink) {
    let (slots, what) = (Arg(0), Arg(1));
    let notify = |slot| {
        let (bit, path, mut bytes) = (slot_bit(slot), slot_path(slot), Vec::new());
        let wanted = And::new(&ZERO, &slots, &bit);
        If::new(&wanted, vec![&Notify::new(&path, &what)]).to_aml_bytes(&mut bytes);
        Bytes(bytes)
    };
    let all: Vec<_> = SLOTS.map(notify).collect();
    let all = all.iter().map(|code| code as &dyn Aml).collect();
    Method::new("DVNT".into(), 2, false, all).to_aml_bytes(sink);
}

/// `PCNT()`: looks which slots changed. Serialized: the register of new devices is empty once it was read.
fn look_at_slots(sink: &mut dyn AmlSink) {
    let (up, down) = (Path::new("PCIU"), Path::new("PCID"));
    let check = MethodCall::new("DVNT".into(), vec![&up, &DEVICE_CHECK]);
    let request = MethodCall::new("DVNT".into(), vec![&down, &EJECT_REQUEST]);
    Method::new("PCNT".into(), 0, true, vec![&check, &request]).to_aml_bytes(sink);
}

/// Code that is made already.
struct Bytes(Vec<u8>);

impl Aml for Bytes {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(aml: &dyn Aml) -> Vec<u8> {
        let mut bytes = Vec::new();
        aml.to_aml_bytes(&mut bytes);
        bytes
    }

    fn count(code: &[u8], part: &[u8]) -> usize {
        code.windows(part.len()).filter(|window| *window == part).count()
    }

    #[test]
    fn every_slot_but_the_chipsets_can_be_emptied_and_is_told() {
        let code = bytes(&HotplugBus);
        assert_eq!(count(&code, b"_EJ0"), 30);
        assert_eq!(count(&code, b"_SUN"), 30);
        for (name, times) in [(b"S10_", 2), (b"S18_", 2), (b"SF8_", 2), (b"S08_", 0)] {
            assert_eq!(count(&code, name), times, "{name:?}");
        }
    }

    #[test]
    fn a_slot_is_emptied_by_its_bit() {
        let mut code = Vec::new();
        slot_device(6, &mut code);
        let mut expected = vec![0x5b, 0x82, 0x24];
        expected.extend(*b"S30_\x08_ADR\x0c\x00\x00\x06\x00\x08_SUN\x0a\x06\x14\x0d_EJ0\x01\x70\x0a\x40B0EJ");
        assert_eq!(code, expected);
    }

    #[test]
    fn the_event_looks_at_new_devices_first() {
        let mut code = Vec::new();
        event(&mut code);
        assert!(code.ends_with(b"_E01\x00\\/\x03_SB_PCI0PCNT"), "{code:02x?}");
        let mut look = Vec::new();
        look_at_slots(&mut look);
        assert!(look.ends_with(b"PCNT\x08DVNTPCIU\x01DVNTPCID\x0a\x03"), "{look:02x?}");
    }
}
