//! What a driver may ask of a disk (virtio 1.3, 5.2.6), read from a chain.
//!
//! Layout rules are those of VIRTIO_F_ANY_LAYOUT, which contain the older ones: the first 16
//! readable bytes are the header and the last writable byte is the status, wherever the borders of
//! the buffers are. Answers to what is wrong are QEMU's.

#![forbid(unsafe_code)]

use virtio_bindings::virtio_blk::*;

use super::SECTOR;
use super::config::MAX_REQUEST_SECTORS;
use crate::virtio::virtq::Chain;

/// Bytes of the header: type, priority, sector.
pub const HEADER_BYTES: usize = 16;

/// Bytes of a segment of a discard or write-zeroes request: sector, number of sectors, flags.
const SEGMENT_BYTES: usize = 16;

/// Bytes of the disk's name that GET_ID answers with.
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// The answer to a request, in the status byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// VIRTIO_BLK_S_IOERR.
    IoError = VIRTIO_BLK_S_IOERR as u8,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What is done to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Disk to guest.
    Read,
    /// Guest to disk.
    Write,
    /// Everything that was completed before is to survive a loss of power.
    Flush,
    /// The content of a range is no longer needed.
    Discard,
    /// A range is to read as zeroes.
    WriteZeroes {
        /// It may lose its storage by that.
        unmap: bool,
    },
}

impl Op {
    /// Whether it changes the disk.
    pub fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes { .. })
    }
}

/// A part of the disk, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// What is to be done with a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// There is not even room for a status: the chain goes back with length 0.
    Unanswerable,
    /// It is answered at once.
    Answer(Status),
    /// The name of the disk goes into the writable part in front of the status.
    Identify,
    /// Work for the backend.
    Transfer(Op, Range),
}

/// What a request is held against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size of the disk in sectors.
    pub sectors: u64,
    /// Nothing may change it.
    pub readonly: bool,
}

/// The first bytes of a request, as they are in memory.
struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Self {
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = bytes;
        Self {
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            sector: u64::from_le_bytes(sector),
        }
    }
}

impl Request {
    /// Reads the request in `chain`.
    pub fn parse(chain: &Chain, limits: &Limits) -> Self {
        let Some(room) = chain.writable_bytes().checked_sub(1) else {
            return Self::Unanswerable;
        };
        let mut reader = chain.reader();
        let mut header = [0; HEADER_BYTES];
        if reader.read_exact(&mut header).is_err() {
            return Self::Answer(Status::IoError);
        }
        let Header { kind, sector } = Header::from_bytes(header);
        let is_out = kind & VIRTIO_BLK_T_OUT != 0;
        match kind & !(VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_BARRIER) {
            VIRTIO_BLK_T_IN if is_out => Self::data(Op::Write, sector, reader.remaining(), limits),
            VIRTIO_BLK_T_IN => Self::data(Op::Read, sector, room, limits),
            VIRTIO_BLK_T_FLUSH => Self::Transfer(Op::Flush, Range { offset: 0, len: 0 }),
            VIRTIO_BLK_T_GET_ID => Self::Identify,
            DISCARD_IN | WRITE_ZEROES_IN if !is_out || reader.remaining() > SEGMENT_BYTES => {
                // Without the direction bit, or with more segments than max_discard_seg and
                // max_write_zeroes_seg allow.
                Self::Answer(Status::Unsupported)
            }
            masked @ (DISCARD_IN | WRITE_ZEROES_IN) => {
                let mut segment = [0; SEGMENT_BYTES];
                match reader.read_exact(&mut segment) {
                    Ok(()) => Self::range(masked == WRITE_ZEROES_IN, segment, limits),
                    Err(_) => Self::Answer(Status::IoError),
                }
            }
            _ => Self::Answer(Status::Unsupported),
        }
    }

    fn data(op: Op, sector: u64, len: usize, limits: &Limits) -> Self {
        let len = len as u64;
        let sectors = len / SECTOR;
        let fits = len.is_multiple_of(SECTOR) && limits.contain(sector, sectors);
        if !fits || (limits.readonly && op.is_write()) {
            return Self::Answer(Status::IoError);
        }
        if len == 0 {
            return Self::Answer(Status::Ok);
        }
        Self::Transfer(
            op,
            Range {
                offset: sector * SECTOR,
                len,
            },
        )
    }

    /// A discard or write-zeroes request with its one segment.
    fn range(write_zeroes: bool, segment: [u8; SEGMENT_BYTES], limits: &Limits) -> Self {
        let (sector, rest) = segment.split_at(8);
        let (sectors, flags) = rest.split_at(4);
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        let (sector, sectors, flags) = (word(sector), word(sectors), word(flags));

        if !limits.contain(sector, sectors) {
            return Self::Answer(Status::IoError);
        }
        let unmap = flags & u64::from(VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) != 0;
        let unknown = flags & !u64::from(VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) != 0;
        if unknown || (unmap && !write_zeroes) {
            return Self::Answer(Status::Unsupported);
        }
        if limits.readonly {
            return Self::Answer(Status::IoError);
        }
        if sectors == 0 {
            return Self::Answer(Status::Ok);
        }
        let op = if write_zeroes {
            Op::WriteZeroes { unmap }
        } else {
            Op::Discard
        };
        Self::Transfer(
            op,
            Range {
                offset: sector * SECTOR,
                len: sectors * SECTOR,
            },
        )
    }
}

/// DISCARD and WRITE_ZEROES without the direction bit that is part of their numbers.
const DISCARD_IN: u32 = VIRTIO_BLK_T_DISCARD & !VIRTIO_BLK_T_OUT;
const WRITE_ZEROES_IN: u32 = VIRTIO_BLK_T_WRITE_ZEROES & !VIRTIO_BLK_T_OUT;

impl Limits {
    fn contain(&self, sector: u64, sectors: u64) -> bool {
        // A capacity is at most 2^63 bytes, so what passes can be multiplied by the sector size.
        sectors <= u64::from(MAX_REQUEST_SECTORS) && sector.checked_add(sectors).is_some_and(|end| end <= self.sectors)
    }
}
