//! What a disk answers, from the driver's header to the status byte, each way.

use devices::virtio::virtq::testing::Buffer;
use tests::driver::block::{SECTOR, UNANSWERED, ask, header, read, segment, write};
use tests::driver::{Driver, Machine, Way};
use virtio_bindings::virtio_blk::*;

use crate::image::{Image, sector};

const SECTORS: u64 = 128;
/// Bytes of configuration that QEMU's disk has.
const CONFIG_BYTES: u32 = 57;
const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// Does `test` with a disk each way; `options` come on top.
fn each_way(options: &str, test: impl Fn(&mut Driver<'_>, &Image)) {
    for way in Way::ALL {
        let image = Image::new(SECTORS);
        let machine = Machine::new(&[("virtio-blk-pci", &image.options(options))]).unwrap();
        let mut driver = Driver::of_first(&machine, way);
        test(&mut driver, &image);
        // Whatever was asked before, a disk that is asked properly answers.
        assert_eq!(read(&mut driver, 3, 512), sector(3), "{way:?}");
    }
}

#[test]
fn sectors_beyond_the_end_are_errors_and_touch_nothing() {
    each_way("", |driver, image| {
        for (first, sectors) in [
            (SECTORS, 1),
            (SECTORS - 1, 2),
            (u64::MAX, 1),
            (u64::MAX / 512, 1),
            (1 << 55, 8),
        ] {
            for (kind, out, room) in [
                (VIRTIO_BLK_T_IN, vec![], 512 * sectors),
                (VIRTIO_BLK_T_OUT, vec![9; 512 * sectors as usize], 0),
            ] {
                let answer = ask(driver, kind, first, &out, room);
                assert_eq!(
                    (answer.status, answer.data.iter().max()),
                    (IOERR, (room > 0).then_some(&0)),
                    "{first}"
                );
                driver.machine().set_bytes(driver.data() + 0x1000, &[0; 4096]);
            }
        }
        assert_eq!(image.bytes().len() as u64, SECTORS * SECTOR);
        assert_eq!(image.bytes()[(SECTORS as usize - 1) * 512..], sector(SECTORS - 1));
    });
}

#[test]
fn lengths_that_are_not_whole_sectors_are_errors() {
    each_way("", |driver, _| {
        for len in [1, 511, 513, 1000] {
            assert_eq!(ask(driver, VIRTIO_BLK_T_IN, 0, &[], len).status, IOERR, "{len}");
            assert_eq!(
                ask(driver, VIRTIO_BLK_T_OUT, 0, &vec![1; len as usize], 0).status,
                IOERR,
                "{len}"
            );
        }
        for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
            assert_eq!(ask(driver, kind, 0, &[], 0).status, OK, "nothing is asked");
        }
    });
}

#[test]
fn flush_is_answered() {
    each_way("", |driver, _| {
        write(driver, 5, &[5; 512]);
        let answer = ask(driver, VIRTIO_BLK_T_FLUSH, 0, &[], 0);
        assert_eq!((answer.status, answer.written), (OK, 1));
    });
}

#[test]
fn the_serial_number_fits_the_buffer_that_there_is() {
    each_way(",serial=innkeeper-0123456789", |driver, _| {
        for room in [20, 8, 1, 64] {
            let answer = ask(driver, VIRTIO_BLK_T_GET_ID, 0, &[], room);
            assert_eq!(answer.status, OK, "{room}");
            let expected = &b"innkeeper-0123456789"[..room.min(20) as usize];
            assert_eq!(answer.data[..room.min(20) as usize], *expected);
        }
        assert_eq!(ask(driver, VIRTIO_BLK_T_GET_ID, 0, &[], 0).status, OK);
    });
}

#[test]
fn unknown_requests_are_unsupported() {
    each_way("", |driver, _| {
        for kind in [2, 3, 6, 7, 10, 14, 15, 16, 18, 26, 0x7fff_fffe, 0xffff_fff0] {
            assert_eq!(ask(driver, kind, 0, &[1; 512], 512).status, UNSUPP, "{kind}");
        }
    });
}

#[test]
fn a_read_only_disk_refuses_what_would_change_it() {
    each_way(",readonly=on", |driver, image| {
        assert_ne!(driver.features & 1 << VIRTIO_BLK_F_RO, 0);
        let before = image.bytes();
        assert_eq!(ask(driver, VIRTIO_BLK_T_OUT, 0, &[1; 512], 0).status, IOERR);
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(ask(driver, kind, 0, &segment(0, 8, 0), 0).status, IOERR);
        }
        assert_eq!(ask(driver, VIRTIO_BLK_T_FLUSH, 0, &[], 0).status, OK);
        assert_eq!(image.bytes(), before);
    });
}

#[test]
fn discard_and_write_zeroes_keep_to_their_range() {
    each_way(",discard=unmap", |driver, image| {
        assert_eq!(
            ask(driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(8, 8, 0), 0).status,
            OK
        );
        assert_eq!(
            ask(driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(32, 8, 1), 0).status,
            OK
        );
        assert_eq!(ask(driver, VIRTIO_BLK_T_DISCARD, 0, &segment(64, 8, 0), 0).status, OK);
        for (first, zeroed) in [
            (7, false),
            (8, true),
            (15, true),
            (16, false),
            (32, true),
            (40, false),
            (63, false),
        ] {
            let expected = if zeroed { [0; 512] } else { sector(first) };
            assert_eq!(read(driver, first, 512), expected, "{first}");
        }
        let before = image.bytes();
        let long = [segment(0, 1, 0), segment(1, 1, 0)].concat();
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            for (out, status) in [
                (segment(SECTORS, 1, 0).to_vec(), IOERR),
                (segment(SECTORS - 1, 2, 0).to_vec(), IOERR),
                (segment(u64::MAX, u32::MAX, 0).to_vec(), IOERR),
                (segment(0, u32::MAX, 0).to_vec(), IOERR),
                (segment(0, 1, 0x8000_0000).to_vec(), UNSUPP),
                (long.clone(), UNSUPP),
                (segment(0, 1, 0)[..15].to_vec(), IOERR),
                (vec![], IOERR),
            ] {
                assert_eq!(ask(driver, kind, 0, &out, 0).status, status, "{kind}: {out:x?}");
            }
        }
        assert_eq!(
            ask(driver, VIRTIO_BLK_T_DISCARD, 0, &segment(0, 1, 1), 0).status,
            UNSUPP
        );
        assert_eq!(image.bytes(), before);
    });
}

#[test]
fn a_request_in_one_byte_pieces_is_a_request() {
    each_way("", |driver, _| {
        let at = driver.data();
        driver.machine().set_bytes(at, &header(VIRTIO_BLK_T_IN, 4));
        driver.machine().set_bytes(at + 0x800, &[UNANSWERED]);
        let mut buffers: Vec<_> = (0..16).map(|byte| Buffer::readable(at + byte, 1)).collect();
        buffers.extend((0..128).map(|part| Buffer::writable(at + 0x1000 + 8 * part, 4)));
        buffers.push(Buffer::writable(at + 0x800, 1));
        assert_eq!(driver.request(0, &buffers).len, 513);
        assert_eq!(driver.machine().bytes(at + 0x800, 1), [OK]);
        for part in 0..128 {
            assert_eq!(
                driver.machine().bytes(at + 0x1000 + 8 * part, 8),
                [5, 5, 5, 5, 0, 0, 0, 0]
            );
        }
    });
}

#[test]
fn configuration_tells_what_the_disk_is() {
    each_way("", |driver, _| {
        let config = |offset, width| driver.transport.config(offset, width);
        assert_eq!((config(0, 4), config(4, 4)), (SECTORS, 0), "capacity");
        assert_eq!(config(12, 4), 254, "seg_max");
        assert_eq!(config(20, 4), 512, "blk_size");
        assert_eq!(config(34, 2), 1, "num_queues");
        // Everything but the cache is read-only.
        for offset in (0..CONFIG_BYTES).filter(|offset| *offset != 32) {
            let before = driver.transport.config(offset, 1);
            driver.transport.set_config(offset, 1, before ^ 0xff);
            assert_eq!(driver.transport.config(offset, 1), before, "{offset}");
        }
    });
}

#[test]
fn the_write_cache_is_switched_while_the_disk_works() {
    each_way("", |driver, image| {
        for (round, on) in (0..).zip([0, 1, 0, 1]) {
            driver.transport.set_config(32, 1, on);
            assert_eq!(driver.transport.config(32, 1), on);
            write(driver, 40 + round, &[0x77; 512]);
        }
        assert_eq!(image.bytes()[40 * 512..44 * 512], [0x77; 4 * 512]);
    });
}

#[test]
fn configuration_is_accessed_by_any_width() {
    each_way("", |driver, _| {
        let bytes: Vec<_> = (0..CONFIG_BYTES).map(|at| driver.transport.config(at, 1)).collect();
        for width in [2u32, 4] {
            for at in (0..CONFIG_BYTES - width + 1).step_by(width as usize) {
                let expected = (0..width)
                    .map(|byte| bytes[(at + byte) as usize] << (8 * byte))
                    .sum::<u64>();
                assert_eq!(driver.transport.config(at, width as usize), expected, "{width} at {at}");
            }
        }
    });
}
