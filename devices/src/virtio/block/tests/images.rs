//! Files, caches, locks, full disks.

use std::fs::File;
use std::process::Command;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof};
use proptest::strategy::Just;
use proptest::test_runner::TestCaseError;
use proptest::{prop_assert_eq, proptest};

use crate::virtio::block::backend::{Lock, RawImage};
use crate::virtio::block::options::{CacheMode, DetectZeroes};

use super::*;

const ALL_CACHES: [CacheMode; 5] = [
    CacheMode::Writeback,
    CacheMode::None,
    CacheMode::Writethrough,
    CacheMode::Directsync,
    CacheMode::Unsafe,
];

#[test]
fn data_is_the_same_whatever_the_cache_and_the_alignment() {
    for (aio, cache) in ENGINES.into_iter().flat_map(|aio| ALL_CACHES.map(|cache| (aio, cache))) {
        let file = image(1 << 20);
        let mut driver = Driver::open(&BlockConfig {
            cache,
            ..with_engine(&file, aio)
        });
        for (n, skew) in (0..).zip([0, 1, 256, 511, 512, 4095]) {
            let data = pattern(4096 + 512, n);
            let posted = driver.post_skewed(0, OUT, 8 + n, &data, 0, skew);
            driver.kick(0);
            assert_eq!(driver.answer(posted).status, OK, "{aio:?} {cache:?}");
            let posted = driver.post_skewed(0, IN, 8 + n, &[], data.len(), skew);
            driver.kick(0);
            assert_eq!(driver.answer(posted).data, data, "{aio:?} {cache:?}");
        }
        driver.flush();
        drop(driver);
        assert_eq!(
            std::fs::read(file.as_path()).unwrap()[13 * 512..22 * 512],
            pattern(4608, 5)
        );
    }
}

#[test]
fn a_part_of_a_sector_at_the_end_reads_as_zeroes_behind_it() {
    for (aio, cache) in ENGINES
        .into_iter()
        .flat_map(|aio| [(aio, CacheMode::Writeback), (aio, CacheMode::None)])
    {
        let file = TempFile::new().unwrap();
        std::fs::write(file.as_path(), [7; 4096 + 100]).unwrap();
        let mut driver = Driver::open(&BlockConfig {
            cache,
            ..with_engine(&file, aio)
        });
        assert_eq!(driver.control.disk().sectors(), 9);
        // Several requests in one transfer, the last ones behind the end.
        std::fs::OpenOptions::new()
            .write(true)
            .open(file.as_path())
            .unwrap()
            .set_len(1100)
            .unwrap();
        let posted: Vec<Posted> = (0..5).map(|sector| driver.post(0, IN, sector, &[], 512)).collect();
        driver.kick(0);
        let data: Vec<u8> = posted
            .into_iter()
            .flat_map(|posted| driver.answer(posted).data)
            .collect();
        assert_eq!(data[..1100], [7; 1100]);
        assert_eq!(data[1100..], [0; 5 * 512 - 1100]);
    }
}

#[test]
fn blocks_larger_than_a_sector_are_read_changed_and_written() {
    let file = image(1 << 20);
    let open = File::options().read(true).write(true).open(file.as_path()).unwrap();
    let image = Arc::new(RawImage::with_alignment(open, Lock::default(), 4096));
    let mut driver = Driver::on_image(image, &raw(file.as_path()));
    let mut model = std::fs::read(file.as_path()).unwrap();
    for (n, (sector, sectors)) in (0..).zip([(1, 1), (7, 2), (8, 8), (15, 300), (2047, 1), (0, 2048)]) {
        let (at, len) = (sector as usize * 512, sectors * 512);
        let data = pattern(len, n);
        driver.write(sector, &data);
        model[at..at + len].copy_from_slice(&data);
        assert_eq!(driver.read(sector, len), data);
    }
    assert_eq!(driver.ask(WRITE_ZEROES, 0, &segment(3, 200, 0), 0).status, OK);
    model[3 * 512..203 * 512].fill(0);
    assert_eq!(driver.read(0, 1 << 20), model);
    driver.flush();
    assert_eq!(std::fs::read(file.as_path()).unwrap(), model);
}

#[test]
fn writes_of_zeroes_are_found_if_they_are_to_be() {
    use std::os::unix::fs::MetadataExt;

    for (detect_zeroes, saves) in [
        (DetectZeroes::Off, false),
        (DetectZeroes::On, false),
        (DetectZeroes::Unmap, true),
    ] {
        let file = image(1 << 20);
        let config = BlockConfig {
            detect_zeroes,
            discard: true,
            ..raw(file.as_path())
        };
        let mut driver = Driver::open(&config);
        driver.flush();
        let before = std::fs::metadata(file.as_path()).unwrap().blocks();
        driver.write(0, &vec![0; 512 << 10]);
        let mut nearly = vec![0; 8192];
        nearly[8191] = 1;
        driver.write(1024, &nearly);
        driver.flush();
        let after = std::fs::metadata(file.as_path()).unwrap().blocks();
        assert_eq!(
            after < before,
            saves,
            "{detect_zeroes:?}: {before} blocks, then {after}"
        );
        assert_eq!(driver.read(0, 512 << 10), vec![0; 512 << 10]);
        assert_eq!(driver.read(1024, 8192), nearly);
    }
}

#[test]
fn an_image_has_one_writer() {
    let file = image(1 << 20);
    let config = raw(file.as_path());
    let first = Disk::open(&config).unwrap();
    let error = Disk::open(&config).unwrap_err().to_string();
    assert!(
        error.contains("locked by another process") && error.contains("readonly=on"),
        "{error}"
    );
    assert!(
        Disk::open(&BlockConfig {
            readonly: true,
            ..config.clone()
        })
        .is_err()
    );
    // QEMU's tools see the lock too.
    let convert = || {
        let copy = TempFile::new().unwrap();
        let mut command = Command::new("qemu-img");
        command
            .args(["convert", "-f", "raw", "-O", "raw"])
            .arg(file.as_path())
            .arg(copy.as_path());
        command.output().map(|output| {
            (
                output.status.success(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        })
    };
    match convert() {
        Ok((success, message)) => assert!(!success && message.contains("lock"), "{message}"),
        Err(error) => eprintln!("not checked against qemu-img: {error}"),
    }
    drop(first);
    let reader = BlockConfig {
        readonly: true,
        ..config.clone()
    };
    let readers = [Disk::open(&reader).unwrap(), Disk::open(&reader).unwrap()];
    assert!(Disk::open(&config).is_err());
    if let Ok((success, message)) = convert() {
        assert!(success, "{message}");
    }
    drop(readers);
    Disk::open(&config).unwrap();
}

#[test]
fn raw_is_never_guessed() {
    let file = image(1 << 20);
    let auto = BlockConfig::new(file.as_path());
    let error = Disk::open(&auto).unwrap_err().to_string();
    assert!(error.contains("format=raw"), "{error}");
    // What a guest may have written on its raw disk, to read another file at the next start.
    let mut header = vec![0; 4096];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    header[15] = 104;
    std::fs::write(file.as_path(), header).unwrap();
    let error = Disk::open(&auto).unwrap_err().to_string();
    assert!(error.contains("format=qcow2"), "{error}");
    Disk::open(&raw(file.as_path())).unwrap();
}

#[test]
fn what_cannot_be_opened_says_why() {
    let error = Disk::open(&raw(Path::new("/nonexistent/image")))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("disk '/nonexistent/image': cannot be opened"),
        "{error}"
    );
    let file = image(4096);
    let qcow2 = BlockConfig {
        format: ImageFormat::Qcow2,
        ..BlockConfig::new(file.as_path())
    };
    assert!(Disk::open(&qcow2).is_err());
}

/// A small file system in memory, unmounted when it goes.
struct SmallFs(vmm_sys_util::tempdir::TempDir);

impl SmallFs {
    fn mount(size: &str) -> Result<Self, String> {
        let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let options = format!("size={size}");
        let command = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir.as_path())
            .output();
        match command {
            Ok(output) if output.status.success() => Ok(Self(dir)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.as_path()).output();
    }
}

#[test]
fn a_full_host_is_an_error_for_the_guest_and_no_more() {
    for aio in ENGINES {
        let fs = match SmallFs::mount("1M") {
            Ok(fs) => fs,
            Err(reason) => {
                eprintln!("not tested, a small file system cannot be mounted: {reason}");
                return;
            }
        };
        let path = fs.0.as_path().join("image");
        File::create(&path).unwrap().set_len(4 << 20).unwrap();
        {
            let mut driver = Driver::open(&BlockConfig {
                aio,
                discard: true,
                ..raw(&path)
            });
            let statuses: Vec<u8> = (0..8)
                .map(|n| driver.ask(OUT, n * 512, &pattern(256 << 10, n), 0).status)
                .collect();
            assert_eq!(statuses[..3], [OK; 3]);
            assert_eq!(statuses[4..], [IOERR; 4]);
            // Room is made, and it goes on. Zeroes without storage are written where the file
            // system can do no better.
            assert_eq!(driver.ask(DISCARD, 0, &segment(0, 1024, 0), 0).status, OK);
            driver.write(4096, &pattern(4096, 9));
            assert_eq!(driver.read(4096, 4096), pattern(4096, 9));
            assert_eq!(driver.ask(WRITE_ZEROES, 0, &segment(1024, 8, 0), 0).status, OK);
            assert_eq!(driver.read(1024, 4096), [0; 4096]);
            assert_eq!(driver.read(1032, 512), pattern(4608, 2)[4096..]);
        }
    }
}

/// What a driver may do to a small disk.
#[derive(Clone, Debug)]
enum Step {
    Read {
        sector: u64,
        sectors: usize,
    },
    Write {
        sector: u64,
        sectors: usize,
        seed: u64,
        skew: u64,
    },
    Zero {
        sector: u64,
        sectors: u32,
        unmap: bool,
    },
    Flush,
    /// Waits for everything.
    Wait,
}

const SMALL: u64 = 128;

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SMALL, 1..24u64).prop_map(|(sector, sectors)| (sector, sectors.min(SMALL - sector)));
    prop_oneof![
        range().prop_map(|(sector, sectors)| Step::Read {
            sector,
            sectors: sectors as usize
        }),
        (range(), any::<u64>(), 0..600u64).prop_map(|((sector, sectors), seed, skew)| Step::Write {
            sector,
            sectors: sectors as usize,
            seed,
            skew
        }),
        (range(), any::<bool>()).prop_map(|((sector, sectors), unmap)| Step::Zero {
            sector,
            sectors: sectors as u32,
            unmap
        }),
        Just(Step::Flush),
        Just(Step::Wait),
    ]
}

/// Carries `steps` out and holds reads against a model. A step that touches sectors of one in
/// flight waits for it first, as drivers do.
fn check_against_model(driver: &mut Driver, steps: &[Step]) -> Result<Vec<u8>, TestCaseError> {
    let mut model = driver.read(0, SMALL as usize * 512);
    let mut in_flight: Vec<(Posted, std::ops::Range<u64>, Option<Vec<u8>>)> = Vec::new();
    for step in steps {
        let touched = match *step {
            Step::Read { sector, sectors } | Step::Write { sector, sectors, .. } => sector..sector + sectors as u64,
            Step::Zero { sector, sectors, .. } => sector..sector + u64::from(sectors),
            Step::Flush => 0..0,
            Step::Wait => 0..SMALL,
        };
        let overlaps = |other: &std::ops::Range<u64>| touched.start < other.end && other.start < touched.end;
        if in_flight.len() >= 12 || in_flight.iter().any(|(_, range, _)| overlaps(range)) {
            driver.kick(0);
            for (posted, _, expected) in in_flight.drain(..) {
                let answer = driver.answer(posted);
                prop_assert_eq!(answer.status, OK);
                prop_assert_eq!(expected.unwrap_or_default() == answer.data, true);
            }
        }
        let bytes = touched.start as usize * 512..touched.end as usize * 512;
        let (posted, expected) = match *step {
            Step::Read { sector, sectors } => (
                driver.post(0, IN, sector, &[], sectors * 512),
                Some(model[bytes].to_vec()),
            ),
            Step::Write {
                sector,
                sectors,
                seed,
                skew,
            } => {
                let data = pattern(sectors * 512, seed);
                model[bytes].copy_from_slice(&data);
                (driver.post_skewed(0, OUT, sector, &data, 0, skew), None)
            }
            Step::Zero { sector, sectors, unmap } => {
                model[bytes].fill(0);
                (
                    driver.post(0, WRITE_ZEROES, 0, &segment(sector, sectors, unmap.into()), 0),
                    None,
                )
            }
            Step::Flush => (driver.post(0, FLUSH, 0, &[], 0), None),
            Step::Wait => continue,
        };
        in_flight.push((posted, touched, expected));
    }
    driver.kick(0);
    for (posted, _, expected) in in_flight {
        let answer = driver.answer(posted);
        prop_assert_eq!(answer.status, OK);
        prop_assert_eq!(expected.unwrap_or_default() == answer.data, true);
    }
    prop_assert_eq!(driver.read(0, SMALL as usize * 512) == model, true);
    Ok(model)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_behaves_like_an_array(
        steps in vec(step(), 1..60),
        aio in prop_oneof![Just(AioMode::IoUring), Just(AioMode::Threads)],
        cache in 0..ALL_CACHES.len(),
    ) {
        let file = image(SMALL * 512);
        let config = BlockConfig { discard: true, cache: ALL_CACHES[cache], ..with_engine(&file, aio) };
        let mut driver = Driver::open(&config);
        let model = check_against_model(&mut driver, &steps)?;
        drop(driver);
        prop_assert_eq!(std::fs::read(file.as_path()).unwrap() == model, true);
    }
}
