//! What a driver asks a disk (virtio 1.3, 5.2.6).

use devices::virtio::virtq::testing::Buffer;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::Driver;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// Bytes of RAM that a request in flight takes: header, status, data.
const SLOT: u64 = 0x2000;
const STATUS: u64 = 0x10;
const PAYLOAD: u64 = 0x1000;

/// Slots that there are.
pub const SLOTS: u64 = 96;

/// The status byte before the device writes it.
pub const UNANSWERED: u8 = 0xaa;

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The status byte.
    pub status: u8,
    /// How many bytes the device says it wrote.
    pub written: u32,
    /// What is in the writable buffer, status apart.
    pub data: Vec<u8>,
}

/// The first 16 bytes of a request.
pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// The segment of a discard or write-zeroes request.
pub fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// Posts a request in slot `slot` of the driver's data, without a kick: a header, what the device reads, room for
/// what it writes, and the status. Returns the head.
///
/// # Panics
/// The ring is full.
pub fn post(driver: &mut Driver<'_>, slot: u64, kind: u32, sector: u64, out: &[u8], room: u32) -> u16 {
    let at = driver.data() + SLOT * (slot % SLOTS);
    let machine = driver.machine();
    machine.set_bytes(at, &header(kind, sector));
    machine.set_bytes(at + STATUS, &[UNANSWERED]);
    machine.set_bytes(at + PAYLOAD, out);
    let mut buffers = vec![Buffer::readable(at, 16)];
    if !out.is_empty() {
        buffers.push(Buffer::readable(at + PAYLOAD, out.len() as u32));
    }
    if room > 0 {
        buffers.push(Buffer::writable(at + PAYLOAD, room));
    }
    buffers.push(Buffer::writable(at + STATUS, 1));
    driver.post(0, &buffers)
}

/// The status byte of the request in slot `slot`.
pub fn status(driver: &Driver<'_>, slot: u64) -> u8 {
    driver
        .machine()
        .bytes(driver.data() + SLOT * (slot % SLOTS) + STATUS, 1)[0]
}

/// Asks and waits.
///
/// # Panics
/// Nothing comes back.
pub fn ask(driver: &mut Driver<'_>, kind: u32, sector: u64, out: &[u8], room: u32) -> Answer {
    let head = post(driver, 0, kind, sector, out, room);
    driver.kick(0);
    let used = driver.complete(0);
    assert_eq!(used.head, u32::from(head), "another request came back");
    Answer {
        status: status(driver, 0),
        written: used.len,
        data: driver.machine().bytes(driver.data() + PAYLOAD, room as usize),
    }
}

/// Reads sectors.
///
/// # Panics
/// The disk does not answer, or not with success.
pub fn read(driver: &mut Driver<'_>, sector: u64, len: u32) -> Vec<u8> {
    let answer = ask(driver, VIRTIO_BLK_T_IN, sector, &[], len);
    assert_eq!((answer.status, answer.written), (0, len + 1), "reading sector {sector}");
    answer.data
}

/// Writes sectors.
///
/// # Panics
/// The disk does not answer, or not with success.
pub fn write(driver: &mut Driver<'_>, sector: u64, data: &[u8]) {
    let answer = ask(driver, VIRTIO_BLK_T_OUT, sector, data, 0);
    assert_eq!((answer.status, answer.written), (0, 1), "writing sector {sector}");
}
