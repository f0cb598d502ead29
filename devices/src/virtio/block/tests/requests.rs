//! Requests, good and bad.

use super::*;

const SECTORS: u64 = 64;

fn disk(aio: AioMode) -> (TempFile, Driver) {
    let file = image(SECTORS * 512);
    let driver = Driver::open(&with_engine(&file, aio));
    (file, driver)
}

/// Runs the same with both engines.
fn with_both(test: impl Fn(&mut Driver)) {
    for aio in ENGINES {
        let (_file, mut driver) = disk(aio);
        test(&mut driver);
        // Whatever it was, the queue goes on.
        assert_eq!(driver.read(5, 512), [6; 512]);
    }
}

#[track_caller]
fn assert_status(driver: &mut Driver, kind: u32, sector: u64, out: &[u8], room: usize, status: u8) {
    let answer = driver.ask(kind, sector, out, room);
    assert_eq!(
        (answer.status, answer.len as usize),
        (status, room + 1),
        "kind {kind} sector {sector:#x}"
    );
}

#[test]
fn what_is_written_is_read_back() {
    for aio in ENGINES {
        let (file, mut driver) = disk(aio);
        let data = pattern(3 * 512, 1);
        driver.write(7, &data);
        driver.flush();
        assert_eq!(driver.read(7, 3 * 512), data);
        assert_eq!(std::fs::read(file.as_path()).unwrap()[7 * 512..10 * 512], data);
        assert_eq!(driver.read(SECTORS - 1, 512), [64; 512]);
        assert_eq!(driver.read(0, SECTORS as usize * 512).len(), SECTORS as usize * 512);
    }
}

#[test]
fn the_header_may_come_in_single_bytes_and_the_status_behind_data() {
    with_both(|driver| {
        let bytes = header(IN, 2);
        let address = driver.place(&bytes, 0);
        let mut buffers: Vec<Buffer> = (0..16).map(|n| Buffer::readable(address + n, 1)).collect();
        let data = driver.buffer(513, 3);
        buffers.push(Buffer::writable(data, 100));
        buffers.push(Buffer::writable(data + 100, 413));
        let answer = driver.ask_raw(&buffers);
        assert_eq!((answer.status, answer.len), (OK, 513));
        assert_eq!(driver.load(data, 512), [3; 512]);
    });
}

#[test]
fn header_and_data_may_share_a_buffer() {
    with_both(|driver| {
        let mut bytes = header(OUT, 9).to_vec();
        bytes.extend([0xab; 512]);
        let address = driver.place(&bytes, 1);
        let status = driver.buffer(1, 0);
        let buffers = [
            Buffer::readable(address, 300),
            Buffer::readable(address + 300, 228),
            Buffer::writable(status, 1),
        ];
        assert_eq!(driver.ask_raw(&buffers).status, OK);
        assert_eq!(driver.read(9, 512), [0xab; 512]);
    });
}

#[test]
fn a_short_header_is_an_error() {
    with_both(|driver| {
        let address = driver.place(&header(IN, 0), 0);
        let status = driver.buffer(1, 0);
        let short = [Buffer::readable(address, 15), Buffer::writable(status, 1)];
        assert_eq!(
            driver.ask_raw(&short),
            Answer {
                status: IOERR,
                len: 1,
                data: Vec::new()
            }
        );
        // And one that is missing, or in the wrong direction.
        assert_eq!(driver.ask_raw(&[Buffer::writable(status, 1)]).status, IOERR);
        assert_eq!(
            driver
                .ask_raw(&[Buffer::writable(address, 16), Buffer::writable(status, 1)])
                .status,
            IOERR
        );
    });
}

#[test]
fn without_a_status_the_chain_comes_back_empty() {
    with_both(|driver| {
        let address = driver.place(&header(OUT, 0), 0);
        let data = driver.place(&[0xab; 512], 0);
        let buffers = [Buffer::readable(address, 16), Buffer::readable(data, 512)];
        assert_eq!(driver.ask_raw(&buffers).len, 0);
        assert_eq!(driver.read(0, 512), [1; 512]);
    });
}

#[test]
fn ranges_past_the_end_are_errors() {
    with_both(|driver| {
        for sector in [
            SECTORS,
            SECTORS + 1,
            u64::MAX,
            u64::MAX / 512,
            (u64::MAX / 512) + 1,
            1 << 55,
        ] {
            assert_status(driver, IN, sector, &[], 512, IOERR);
            assert_status(driver, OUT, sector, &[7; 512], 0, IOERR);
        }
        assert_status(driver, IN, SECTORS - 1, &[], 1024, IOERR);
        assert_status(driver, OUT, SECTORS - 1, &[7; 1024], 0, IOERR);
        assert_eq!(driver.read(SECTORS - 1, 512), [64; 512]);
    });
}

#[test]
fn lengths_are_multiples_of_a_sector() {
    with_both(|driver| {
        for len in [1, 511, 513, 1023] {
            assert_status(driver, IN, 0, &[], len, IOERR);
            assert_status(driver, OUT, 0, &vec![7; len], 0, IOERR);
        }
        // Nothing is a multiple too.
        assert_status(driver, IN, 0, &[], 0, OK);
        assert_status(driver, OUT, 0, &[], 0, OK);
        assert_eq!(driver.read(0, 512), [1; 512]);
    });
}

#[test]
fn unknown_requests_are_unsupported() {
    with_both(|driver| {
        // SCSI_CMD among them: no disk of ours offers that feature.
        for kind in [2, 3, 6, 14, 24, 0x100, 0x7fff_ffff] {
            assert_status(driver, kind, 0, &[7; 512], 8, UNSUPP);
        }
        // The barrier bit of the first drivers is no type.
        assert_status(driver, IN | 1 << 31, 0, &[], 512, OK);
    });
}

#[test]
fn a_readonly_disk_is_not_written() {
    for aio in ENGINES {
        let file = image(SECTORS * 512);
        let mut driver = Driver::open(&BlockConfig {
            readonly: true,
            discard: true,
            ..with_engine(&file, aio)
        });
        assert_eq!(driver.device.features() & 1 << 5, 1 << 5);
        assert_status(&mut driver, OUT, 0, &[7; 512], 0, IOERR);
        assert_status(&mut driver, DISCARD, 0, &segment(0, 8, 0), 0, IOERR);
        assert_status(&mut driver, WRITE_ZEROES, 0, &segment(0, 8, 0), 0, IOERR);
        assert_status(&mut driver, FLUSH, 0, &[], 0, OK);
        assert_eq!(driver.read(0, 512), [1; 512]);
        assert_eq!(
            driver.control.resize(512).unwrap_err().kind(),
            std::io::ErrorKind::ReadOnlyFilesystem
        );
    }
}

#[test]
fn the_serial_number_fills_what_room_there_is() {
    let file = image(512);
    let ask = |serial: Option<&str>, room: usize| {
        let config = BlockConfig {
            serial: serial.map(str::to_owned),
            ..raw(file.as_path())
        };
        let answer = Driver::open(&config).ask(GET_ID, 0, &[], room);
        assert_eq!((answer.status, answer.len as usize), (OK, room + 1));
        answer.data
    };
    assert_eq!(ask(Some("abc"), 20)[..5], *b"abc\0\xcc");
    assert_eq!(ask(Some("abcdefghijklmnopqrstuvw"), 20), *b"abcdefghijklmnopqrst");
    assert_eq!(ask(Some("abcdefghijklmnopqrstuvw"), 24)[18..], *b"st\xcc\xcc\xcc\xcc");
    assert_eq!(ask(Some("abcdef"), 3), *b"abc");
    assert_eq!(ask(Some("abc"), 0), *b"");
    assert_eq!(ask(None, 20)[..2], *b"\0\xcc");
}

#[test]
fn malformed_discards_and_zeroes_are_refused() {
    with_both(|driver| {
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_status(driver, kind, 0, &segment(SECTORS, 1, 0), 0, IOERR);
            assert_status(driver, kind, 0, &segment(u64::MAX, 8, 0), 0, IOERR);
            assert_status(driver, kind, 0, &segment(0, u32::MAX, 0), 0, IOERR);
            assert_status(driver, kind, 0, &segment(0, 1, 2), 0, UNSUPP);
            assert_status(driver, kind, 0, &segment(0, 1, u32::MAX), 0, UNSUPP);
            assert_status(driver, kind, 0, &segment(0, 1, 0)[..15], 0, IOERR);
            assert_status(
                driver,
                kind,
                0,
                &[segment(0, 1, 0), segment(8, 1, 0)].concat(),
                0,
                UNSUPP,
            );
            assert_status(driver, kind & !1, 0, &segment(0, 1, 0), 0, UNSUPP);
            assert_status(driver, kind, 0, &segment(0, 0, 0), 0, OK);
        }
        assert_status(driver, DISCARD, 0, &segment(0, 1, 1), 0, UNSUPP);
        assert_eq!(driver.read(0, 1024)[..512], [1; 512]);
    });
}

#[test]
fn zeroes_are_zeroes_with_and_without_storage() {
    use std::os::unix::fs::MetadataExt;

    for aio in ENGINES {
        let file = image(1 << 20);
        let blocks = || std::fs::metadata(file.as_path()).unwrap().blocks();
        let mut driver = Driver::open(&BlockConfig {
            discard: true,
            ..with_engine(&file, aio)
        });
        driver.flush();
        let full = blocks();
        assert_status(&mut driver, WRITE_ZEROES, 0, &segment(8, 16, 0), 0, OK);
        assert_eq!(driver.read(7, 18 * 512)[..512], [8; 512]);
        assert_eq!(driver.read(8, 16 * 512), [0; 16 * 512]);
        assert_eq!(driver.read(24, 512), [25; 512]);
        assert_status(&mut driver, WRITE_ZEROES, 0, &segment(256, 512, 1), 0, OK);
        assert_eq!(driver.read(256, 512 * 512), vec![0; 512 * 512]);
        assert!(blocks() + 400 < full, "{} of {full} blocks left", blocks());
        assert_eq!(std::fs::metadata(file.as_path()).unwrap().len(), 1 << 20);
    }
}

#[test]
fn discards_reach_the_file_only_if_they_are_to() {
    use std::os::unix::fs::MetadataExt;

    for (aio, discard) in ENGINES.into_iter().flat_map(|aio| [(aio, false), (aio, true)]) {
        let file = image(1 << 20);
        let blocks = || std::fs::metadata(file.as_path()).unwrap().blocks();
        let mut driver = Driver::open(&BlockConfig {
            discard,
            ..with_engine(&file, aio)
        });
        driver.flush();
        let full = blocks();
        assert_status(&mut driver, DISCARD, 0, &segment(0, 2048, 0), 0, OK);
        assert_eq!(blocks() < full, discard);
        assert_eq!(driver.read(3, 512), [if discard { 0 } else { 4 }; 512]);
        assert_status(&mut driver, WRITE_ZEROES, 0, &segment(0, 2048, 1), 0, OK);
        assert_eq!(driver.read(0, 1 << 20), vec![0; 1 << 20]);
    }
}

#[test]
fn a_disk_without_storage_answers_everything() {
    for read_zeroes in [false, true] {
        let config = BlockConfig {
            null_size: 1 << 30,
            null_read_zeroes: read_zeroes,
            ..raw(Path::new("null-co://"))
        };
        let mut driver = Driver::open(&config);
        driver.write(1, &[7; 512]);
        driver.flush();
        assert_eq!(driver.read(1, 512), [if read_zeroes { 0 } else { 0xcc }; 512]);
        assert_status(&mut driver, WRITE_ZEROES, 0, &segment(0, 8, 1), 0, OK);
        assert_status(&mut driver, IN, 1 << 21, &[], 512, IOERR);
    }
}

#[test]
fn adjacent_requests_of_a_batch_keep_their_data_apart() {
    with_both(|driver| {
        let writes: Vec<Posted> = (0..12)
            .map(|n| driver.post(0, OUT, 20 + n, &pattern(512, n), 0))
            .collect();
        driver.kick(0);
        assert!(writes.into_iter().all(|posted| driver.answer(posted).status == OK));
        let reads: Vec<Posted> = (0..12)
            .map(|n| driver.post_skewed(0, IN, 20 + n, &[], 512, n))
            .collect();
        driver.kick(0);
        for (n, posted) in (0..).zip(reads) {
            assert_eq!(driver.answer(posted).data, pattern(512, n));
        }
    });
}
