//! Configuration space of a disk, as `struct virtio_blk_config` lays it out (virtio 1.3, 5.2.4),
//! with the values of QEMU's virtio-blk-pci (hw/block/virtio-blk.c, `virtio_blk_update_config`).

#![forbid(unsafe_code)]

use std::mem::offset_of;

use virtio_bindings::virtio_blk::*;

use super::SECTOR;

/// Bytes of configuration that QEMU has: to the end of the last write-zeroes field. Secure erase
/// and zones come behind.
pub const CONFIG_BYTES: usize = offset_of!(virtio_blk_config, write_zeroes_may_unmap) + 1;

/// Offset of the `writeback` byte, the only one that a driver may write.
pub const WRITEBACK_OFFSET: usize = offset_of!(virtio_blk_config, wce);

/// Offset of the number of queues, two bytes.
pub const QUEUES_OFFSET: usize = offset_of!(virtio_blk_config, num_queues);

/// The most sectors of one discard or write-zeroes request, or of any other: 2^31 bytes less one
/// sector (QEMU's BDRV_REQUEST_MAX_SECTORS).
pub const MAX_REQUEST_SECTORS: u32 = (i32::MAX as u32) / SECTOR as u32;

/// The queue size of QEMU's `queue-size` option.
pub const DEFAULT_QUEUE_SIZE: u16 = 256;

/// What the driver reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Size of the disk in sectors of 512 bytes.
    pub sectors: u64,
    /// Descriptors of each queue.
    pub queue_size: u16,
    /// Number of queues.
    pub queues: u16,
    /// Bytes of the smallest unit that the disk takes without read-modify-write.
    pub block_size: u32,
    /// Whether the write cache is on: completed writes are safe only after a flush.
    pub write_cache: bool,
}

impl DiskConfig {
    /// The bytes that the driver sees.
    pub fn to_bytes(&self) -> [u8; CONFIG_BYTES] {
        let mut bytes = [0; CONFIG_BYTES];
        let mut put = |offset: usize, value: &[u8]| {
            if let Some(field) = bytes.get_mut(offset..offset + value.len()) {
                field.copy_from_slice(value);
            }
        };
        let one = 1u32.to_le_bytes();
        let max_sectors = MAX_REQUEST_SECTORS.to_le_bytes();
        put(offset_of!(virtio_blk_config, capacity), &self.sectors.to_le_bytes());
        // Header and status take a descriptor each.
        let segments = u32::from(self.queue_size).saturating_sub(2).max(1);
        put(offset_of!(virtio_blk_config, seg_max), &segments.to_le_bytes());
        put(offset_of!(virtio_blk_config, geometry), &geometry(self.sectors));
        put(offset_of!(virtio_blk_config, blk_size), &self.block_size.to_le_bytes());
        put(WRITEBACK_OFFSET, &[self.write_cache.into()]);
        put(offset_of!(virtio_blk_config, num_queues), &self.queues.to_le_bytes());
        put(offset_of!(virtio_blk_config, max_discard_sectors), &max_sectors);
        put(offset_of!(virtio_blk_config, max_discard_seg), &one);
        let alignment = (self.block_size / SECTOR as u32).max(1);
        put(
            offset_of!(virtio_blk_config, discard_sector_alignment),
            &alignment.to_le_bytes(),
        );
        put(offset_of!(virtio_blk_config, max_write_zeroes_sectors), &max_sectors);
        put(offset_of!(virtio_blk_config, max_write_zeroes_seg), &one);
        put(offset_of!(virtio_blk_config, write_zeroes_may_unmap), &[1]);
        bytes
    }

    /// Reads from `offset` on. As in QEMU, a read that goes past the end gets nothing: `data` is
    /// left as it is.
    pub fn read(&self, offset: u32, data: &mut [u8]) {
        let bytes = self.to_bytes();
        let from = bytes.get(offset as usize..).and_then(|from| from.get(..data.len()));
        if let Some(from) = from {
            data.copy_from_slice(from);
        }
    }
}

/// The feature bits that a disk offers: QEMU's defaults, with MQ for several queues and RO for a
/// read-only one.
pub fn features(queues: u16, readonly: bool) -> u64 {
    let always = [
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_GEOMETRY,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ];
    let multi_queue = (queues > 1).then_some(VIRTIO_BLK_F_MQ);
    let readonly = readonly.then_some(VIRTIO_BLK_F_RO);
    always
        .into_iter()
        .chain(multi_queue)
        .chain(readonly)
        .fold(0, |word, bit| word | 1 << bit)
}

/// Cylinders, heads and sectors that no disk has had for decades: 16 heads of 63 sectors and as
/// many cylinders as there are, from 2 to 16383 (QEMU, hw/block/hd-geometry.c,
/// `guess_chs_for_size`).
fn geometry(sectors: u64) -> [u8; 4] {
    const HEADS: u8 = 16;
    const SECTORS: u8 = 63;
    let cylinders = (sectors / (u64::from(HEADS) * u64::from(SECTORS))).clamp(2, 16383) as u16;
    let [low, high] = cylinders.to_le_bytes();
    [low, high, HEADS, SECTORS]
}

#[cfg(test)]
mod tests {
    use super::*;

    const QEMU: DiskConfig = DiskConfig {
        sectors: 1 << 21,
        queue_size: 256,
        queues: 1,
        block_size: 512,
        write_cache: true,
    };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn configuration_of_a_1_gib_disk_is_qemus_byte_for_byte() {
        // The reference was read in words of 4 bytes, so its last byte looks like ff there.
        let expected = "000020000000000000000000fe0000002008103f000200000000000000000000\
                        01000100ffff3f000100000001000000ffff3f000100000001";
        assert_eq!(hex(&QEMU.to_bytes()), expected);
    }

    #[test]
    fn features_are_qemus() {
        assert_eq!(features(1, false), 0x6e54);
        assert_eq!(features(4, true), 0x6e54 | 1 << 12 | 1 << 5);
    }

    #[test]
    fn reads_of_any_width_stop_at_the_end() {
        let mut data = [0xff; 8];
        QEMU.read(48, &mut data);
        assert_eq!(data, [0xff, 0xff, 0x3f, 0, 1, 0, 0, 0]);
        data = [0xff; 8];
        QEMU.read(52, &mut data);
        assert_eq!(data, [0xff; 8]);
        let mut data = [0xff; 4];
        QEMU.read(u32::MAX, &mut data);
        assert_eq!(data, [0xff; 4]);
        let mut byte = [0];
        QEMU.read(56, &mut byte);
        assert_eq!(byte, [1]);
        QEMU.read(32, &mut byte);
        assert_eq!(byte, [1]);
        DiskConfig {
            write_cache: false,
            ..QEMU
        }
        .read(32, &mut byte);
        assert_eq!(byte, [0]);
    }

    #[test]
    fn geometry_stays_within_its_fields() {
        assert_eq!(geometry(0), [2, 0, 16, 63]);
        assert_eq!(geometry(u64::MAX), [0xff, 0x3f, 16, 63]);
    }

    #[test]
    fn the_smallest_queue_still_allows_a_segment() {
        let bytes = DiskConfig { queue_size: 2, ..QEMU }.to_bytes();
        assert_eq!(bytes[12..16], [1, 0, 0, 0]);
    }
}
