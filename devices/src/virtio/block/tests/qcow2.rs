//! qcow2 images, held against QEMU's own tool.

use std::process::Command;

use vmm_sys_util::tempdir::TempDir;

use super::*;

/// Runs qemu-img; `None`, with a printed reason, where there is none.
fn qemu_img(dir: &TempDir, arguments: &[&str]) -> Option<String> {
    match Command::new("qemu-img")
        .args(arguments)
        .current_dir(dir.as_path())
        .output()
    {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "qemu-img {arguments:?}: {text}{errors}");
            Some(text)
        }
        Err(error) => {
            eprintln!("not tested without qemu-img: {error}");
            None
        }
    }
}

fn config(dir: &TempDir, name: &str) -> BlockConfig {
    BlockConfig {
        queue_size: QUEUE_SIZE,
        discard: true,
        ..BlockConfig::new(dir.as_path().join(name))
    }
}

fn content(dir: &TempDir, name: &str) -> Vec<u8> {
    qemu_img(dir, &["convert", "-f", "qcow2", "-O", "raw", name, "content.raw"]).unwrap();
    std::fs::read(dir.as_path().join("content.raw")).unwrap()
}

/// Writes here and there, several requests at a time, and keeps the model in step.
fn scribble(driver: &mut Driver, model: &mut [u8], rounds: u64) {
    let sectors = model.len() as u64 / 512;
    let mut state = 12345u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for round in 0..rounds {
        let mut posted = Vec::new();
        // Each writes in a stripe of its own, so that they do not overlap.
        let stripe = sectors / 8;
        for n in 0..8 {
            let sector = n * stripe + random(stripe - 40);
            let len = 512 * (1 + random(40)) as usize;
            let at = sector as usize * 512;
            if random(5) == 0 {
                let unmap = random(2) as u32;
                posted.push(driver.post(0, WRITE_ZEROES, 0, &segment(sector, len as u32 / 512, unmap), 0));
                model[at..at + len].fill(0);
            } else {
                let data = pattern(len, round * 8 + n);
                posted.push(driver.post(0, OUT, sector, &data, 0));
                model[at..at + len].copy_from_slice(&data);
            }
        }
        driver.kick(0);
        for posted in posted {
            assert_eq!(driver.answer(posted).status, OK);
        }
    }
}

#[test]
fn what_we_write_qemu_reads() {
    let dir = TempDir::new().unwrap();
    for options in [
        "compat=1.1",
        "compat=0.10",
        "compat=1.1,cluster_size=4k",
        "compat=1.1,lazy_refcounts=on",
    ] {
        if qemu_img(
            &dir,
            &["create", "-q", "-f", "qcow2", "-o", options, "disk.qcow2", "16M"],
        )
        .is_none()
        {
            return;
        }
        let mut model = vec![0; 16 << 20];
        {
            let mut driver = Driver::open(&config(&dir, "disk.qcow2"));
            assert_eq!(driver.control.disk().sectors(), 32768);
            scribble(&mut driver, &mut model, 40);
            driver.flush();
            for chunk in 0..16 {
                assert!(
                    driver.read(chunk * 2048, 1 << 20) == model[(chunk as usize) << 20..][..1 << 20],
                    "{options}"
                );
            }
        }
        qemu_img(&dir, &["check", "-q", "disk.qcow2"]);
        assert!(content(&dir, "disk.qcow2") == model, "{options}");
    }
}

#[test]
fn what_qemu_writes_we_read() {
    let dir = TempDir::new().unwrap();
    let model = pattern(4 << 20, 77);
    std::fs::write(dir.as_path().join("source.raw"), &model).unwrap();
    for compressed in [&[][..], &["-c"]] {
        let arguments = [
            &["convert", "-f", "raw", "-O", "qcow2"],
            compressed,
            &["source.raw", "disk.qcow2"],
        ]
        .concat();
        if qemu_img(&dir, &arguments).is_none() {
            return;
        }
        let mut driver = Driver::open(&BlockConfig {
            readonly: true,
            ..config(&dir, "disk.qcow2")
        });
        assert!(driver.read(0, 4 << 20) == model);
        assert_eq!(driver.ask(OUT, 0, &[1; 512], 0).status, IOERR);
    }
}

#[test]
fn an_image_on_top_of_others_leaves_them_alone() {
    let dir = TempDir::new().unwrap();
    let mut model = pattern(2 << 20, 5);
    std::fs::write(dir.as_path().join("base.raw"), &model).unwrap();
    let create = |name: &str, backing: &str, format: &str| {
        qemu_img(
            &dir,
            &["create", "-q", "-f", "qcow2", "-b", backing, "-F", format, name],
        )
    };
    if create("middle.qcow2", "base.raw", "raw").is_none() {
        return;
    }
    create("top.qcow2", "middle.qcow2", "qcow2");
    let before = std::fs::read(dir.as_path().join("middle.qcow2")).unwrap();

    // Its format has to be said: it refers to other files.
    assert!(Disk::open(&config(&dir, "top.qcow2")).is_err());
    let explicit = BlockConfig {
        format: ImageFormat::Qcow2,
        ..config(&dir, "top.qcow2")
    };
    {
        let mut driver = Driver::open(&explicit);
        assert!(driver.read(0, 2 << 20) == model);
        scribble(&mut driver, &mut model, 10);
        assert_eq!(driver.ask(DISCARD, 0, &segment(0, 128, 0), 0).status, OK);
        driver.flush();
        // Those below are locked against writers.
        let base = BlockConfig {
            format: ImageFormat::Raw,
            ..config(&dir, "base.raw")
        };
        assert!(Disk::open(&base).unwrap_err().to_string().contains("locked"));
        let after = driver.read(128, (2 << 20) - (64 << 10));
        assert!(after == model[64 << 10..]);
    }
    qemu_img(&dir, &["check", "-q", "top.qcow2"]);
    assert!(content(&dir, "top.qcow2")[64 << 10..] == model[64 << 10..]);
    assert_eq!(std::fs::read(dir.as_path().join("middle.qcow2")).unwrap(), before);
    assert!(std::fs::read(dir.as_path().join("base.raw")).unwrap() == pattern(2 << 20, 5));
}

#[test]
fn a_chain_that_is_not_clear_is_refused() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.as_path().join("base.raw"), [0; 65536]).unwrap();
    let create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.raw",
        "-F",
        "raw",
        "top.qcow2",
    ];
    if qemu_img(&dir, &create).is_none() {
        return;
    }
    let explicit = BlockConfig {
        format: ImageFormat::Qcow2,
        ..config(&dir, "top.qcow2")
    };
    Disk::open(&explicit).unwrap();
    // A backing file without a format could be anything: the header extension that says it becomes
    // one that nobody knows.
    let path = dir.as_path().join("top.qcow2");
    let intact = std::fs::read(&path).unwrap();
    let extension = intact
        .windows(4)
        .position(|bytes| bytes == [0xe2, 0x79, 0x2a, 0xca])
        .unwrap();
    let mut silent = intact.clone();
    silent[extension] = 0x11;
    std::fs::write(&path, silent).unwrap();
    let error = Disk::open(&explicit).unwrap_err().to_string();
    assert!(error.contains("format of its backing file"), "{error}");
    std::fs::write(&path, intact).unwrap();
    // One that bites its tail: the second opening finds the lock of the first, or an end is put to
    // it.
    qemu_img(&dir, &["rebase", "-u", "-b", "top.qcow2", "-F", "qcow2", "top.qcow2"]);
    assert!(Disk::open(&explicit).is_err());
    assert!(
        Disk::open(&BlockConfig {
            readonly: true,
            ..explicit.clone()
        })
        .is_err()
    );
    qemu_img(&dir, &["rebase", "-u", "-b", "missing", "-F", "raw", "top.qcow2"]);
    let error = Disk::open(&explicit).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn a_qcow2_disk_grows() {
    let dir = TempDir::new().unwrap();
    if qemu_img(&dir, &["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"]).is_none() {
        return;
    }
    {
        let mut driver = Driver::open(&config(&dir, "disk.qcow2"));
        driver.write(2047, &[7; 512]);
        driver.control.resize(3 << 20).unwrap();
        while driver.wait_interrupt() != 0 {}
        assert_eq!(driver.control.disk().sectors(), 6144);
        driver.write(6143, &[8; 512]);
        assert_eq!(driver.read(2047, 1024)[511..514], [7, 0, 0]);
    }
    qemu_img(&dir, &["check", "-q", "disk.qcow2"]);
    let content = content(&dir, "disk.qcow2");
    assert_eq!((content.len(), content[6143 * 512]), (3 << 20, 8));
}
