//! Devices whose queues another process serves (vhost-user): a network card and a disk, with backends that come, go and
//! misbehave.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tests::driver::block::{ask, post, read, status, write};
use tests::driver::machine::{ram, shared_ram};
use tests::driver::net::{Card, TX, control};
use tests::driver::{Driver, Machine, Way, wait_for};
use tests::vhost_user::{Backend, Nature};
use virtio_bindings::virtio_blk::*;
use vmm::config::PciResources;
use vmm_sys_util::tempdir::TempDir;

use crate::net::frame;

/// The PCI capability of each structure of the modern face.
const VENDOR: u8 = 9;
const OK: u8 = VIRTIO_BLK_S_OK as u8;
/// VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const SET_PAIRS: (u32, u32) = (4, 0);
/// The link is up, in the status of a card.
const LINK_UP: u64 = 1;

/// Where devices and backends meet.
struct Place {
    _folder: TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new_with_prefix("/tmp/vhost-user-").unwrap();
        let path = folder.as_path().join("s");
        Self { _folder: folder, path }
    }

    /// A machine with a device that waits here, and its first backend.
    fn machine(&self, name: &str, options: &str, nature: Nature) -> (Machine, Backend) {
        let path = self.path.clone();
        let backend = std::thread::spawn(move || Backend::connect(&path, nature));
        let machine = shared(name, &format!("vhost-user=listen:{},{options}", self.path.display())).unwrap();
        (machine, backend.join().unwrap())
    }

    fn next(&self, nature: Nature) -> Backend {
        Backend::connect(&self.path, nature)
    }
}

fn shared(name: &str, options: &str) -> Result<Machine, tests::Error> {
    Machine::with(shared_ram()?, PciResources::Firmware, &[(name, options)])
}

fn net(options: &str) -> (Place, Machine, Backend) {
    let place = Place::new();
    let (machine, backend) = place.machine("virtio-net-pci", &format!("id=net0,{options}"), Nature::frames());
    (place, machine, backend)
}

fn disk(nature: &Nature, options: &str) -> (Place, Machine, Backend) {
    let place = Place::new();
    let (machine, backend) = place.machine("vhost-user-blk-pci", &format!("id=disk0,{options}"), nature.clone());
    (place, machine, backend)
}

/// A frame goes out and comes back.
fn reflect(card: &mut Card<'_>, seed: u8) {
    card.post(seed.into(), 2048);
    card.send(&frame(seed, 300));
    assert_eq!(card.receive(), frame(seed, 300), "{:?}, {seed}", card.driver.way);
}

/// Waits for this state of the link, as the driver sees it.
fn wait_for_link(card: &Card<'_>, state: u64) {
    wait_for("the link", || {
        (card.driver.transport.config(6, 2) == state).then_some(())
    });
}

fn rings(backend: &Backend) -> Vec<u32> {
    backend.rings().into_keys().collect()
}

#[test]
fn frames_come_back_each_way_and_a_reset_takes_the_queues_back() {
    let (_place, machine, backend) = net("");
    for way in Way::ALL {
        let mut card = Card::of_first(&machine, way);
        assert_eq!(rings(&backend), [0, 1]);
        assert_eq!(card.has(32), way.is_modern());
        assert_eq!(backend.told() & 1 << 32 != 0, way.is_modern());
        // What the backend does not know is not offered: here, checksums and RING_RESET.
        assert!(!card.has(0) && !card.has(40));
        (0..5).for_each(|seed| reflect(&mut card, seed));
        card.driver.reset();
        assert!(rings(&backend).is_empty());
    }
}

#[test]
fn a_backend_without_version_1_takes_the_legacy_face() {
    let old = Nature {
        features: Nature::frames().features & !(1 << 32),
        ..Nature::frames()
    };
    let place = Place::new();
    let (machine, _backend) = place.machine("virtio-net-pci", "", old.clone());
    let mut card = Card::of_first(&machine, Way::Legacy);
    assert!(card.driver.device.capabilities(VENDOR).is_empty(), "a modern face");
    reflect(&mut card, 1);
    let error = refused("virtio-net-pci", "disable-legacy=on", old);
    assert!(error.contains("leave out disable-legacy=on"), "{error}");
}

#[test]
fn messages_and_the_line_tell_of_what_comes_back() {
    let (_place, machine, _backend) = net("");
    let mut card = Card::of_first(&machine, Way::Modern);
    reflect(&mut card, 1);
    card.driver.wait_for_line();
    let mut driver = Driver::bind(&machine, machine.devices()[0], Way::Modern);
    driver.use_msix();
    driver.start();
    let mut card = Card::on(driver);
    reflect(&mut card, 2);
    card.driver.wait_for_message(1);
}

#[test]
fn a_pause_takes_the_queues_back_and_they_go_on_where_they_were() {
    for way in Way::ALL {
        let (_place, machine, backend) = net("");
        let mut card = Card::of_first(&machine, way);
        (0..3).for_each(|seed| reflect(&mut card, seed));
        let address = card.driver.device.address;
        machine.pause_and_save(address);
        assert!(rings(&backend).is_empty());
        machine.resume(address);
        assert_eq!(backend.rings(), [(0, 3), (1, 3)].into());
        (3..6).for_each(|seed| reflect(&mut card, seed));
    }
}

#[test]
fn a_backend_that_dies_takes_the_link_with_it_and_the_next_one_goes_on() {
    for way in Way::ALL {
        let (place, machine, backend) = net("");
        let mut card = Card::of_first(&machine, way);
        reflect(&mut card, 1);
        wait_for_link(&card, LINK_UP);
        backend.die();
        wait_for_link(&card, 0);
        // The guest does what it always does; nobody answers.
        card.post(2, 2048);
        let head = card.post_frame(&frame(2, 300));
        let next = place.next(Nature::frames());
        wait_for_link(&card, LINK_UP);
        assert_eq!(card.driver.complete(TX).head, u32::from(head), "{way:?}");
        assert_eq!(card.receive(), frame(2, 300), "{way:?}");
        assert_eq!(next.rings(), [(0, 1), (1, 1)].into());
        next.die();
        wait_for_link(&card, 0);
        // A driver that starts from nothing meanwhile.
        card.driver.start();
        let mut card = Card::on(card.driver);
        let last = place.next(Nature::frames());
        wait_for_link(&card, LINK_UP);
        reflect(&mut card, 3);
        assert_eq!(rings(&last), [0, 1]);
    }
}

#[test]
fn without_a_way_back_the_device_stands_still_and_can_be_reset_and_unplugged() {
    let place = Place::new();
    let listener = std::os::unix::net::UnixListener::bind(&place.path).unwrap();
    let options = format!("vhost-user={},id=disk0", place.path.display());
    let backend = std::thread::spawn(move || Backend::over(listener.accept().unwrap().0, Nature::disk(8)));
    let machine = shared("vhost-user-blk-pci", &options).unwrap();
    let backend = backend.join().unwrap();
    let mut driver = Driver::of_first(&machine, Way::Modern);
    assert_eq!(read(&mut driver, 2, 512), [2; 512]);
    backend.die();
    post(&mut driver, 0, VIRTIO_BLK_T_IN, 1, &[], 512);
    driver.kick(0);
    driver.start();
    driver.reset();
    machine.inventory().clear();
}

#[test]
fn a_disk_reads_and_writes_each_way() {
    let nature = Nature::disk(64);
    let (_place, machine, backend) = disk(&nature, "");
    for (round, way) in (1..).zip(Way::ALL) {
        let mut driver = Driver::of_first(&machine, way);
        assert_eq!(driver.transport.config(0, 4), 64);
        assert_eq!(driver.transport.queue_size(0), 128);
        assert_eq!(read(&mut driver, 60, 1024), [[60; 512], [61; 512]].concat(), "{way:?}");
        write(&mut driver, 5, &[0xa0 + round; 512]);
        assert_eq!(read(&mut driver, 5, 512), [0xa0 + round; 512]);
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[], 0).status, OK);
        assert_ne!(ask(&mut driver, VIRTIO_BLK_T_IN, 64, &[], 512).status, OK);
        for cache in [1, 0] {
            driver.transport.set_config(32, 1, cache.into());
            assert_eq!(driver.transport.config(32, 1), u64::from(cache));
            assert_eq!(backend.write_cache(), Some(cache), "{way:?}");
        }
    }
}

#[test]
fn only_who_may_switches_the_write_cache() {
    let (_place, machine, backend) = disk(&Nature::disk(64), "config-wce=off");
    let driver = &mut Driver::of_first(&machine, Way::Modern);
    let shown = driver.transport.config(32, 1);
    driver.transport.set_config(32, 1, shown ^ 1);
    assert_eq!((driver.transport.config(32, 1), backend.write_cache()), (shown, None));
    assert_eq!(read(driver, 1, 512), [1; 512]);
}

#[test]
fn requests_that_a_dead_backend_left_are_answered_by_the_next() {
    let nature = Nature::disk(64);
    for way in Way::ALL {
        let idle = Nature {
            idle: true,
            ..nature.clone()
        };
        let (place, machine, backend) = disk(&idle, "");
        let mut driver = Driver::of_first(&machine, way);
        for slot in 0..8 {
            post(&mut driver, slot, VIRTIO_BLK_T_IN, slot, &[], 512);
        }
        driver.kick(0);
        backend.die();
        let _next = place.next(nature.clone());
        for _ in 0..8 {
            driver.complete(0);
        }
        assert_eq!(
            [0; 8].map(|_: u64| OK),
            std::array::from_fn(|slot| status(&driver, slot as u64)),
            "{way:?}"
        );
    }
}

#[test]
fn the_record_of_requests_in_flight_goes_from_backend_to_backend_until_a_reset() {
    let nature = Nature::disk(64);
    let (place, machine, backend) = disk(&nature, "queues=2");
    let mut driver = Driver::of_first(&machine, Way::Modern);
    let (first, made) = backend.inflight().unwrap();
    assert_eq!(made, 1);
    backend.die();
    let next = place.next(nature);
    wait_for("the queues", || (rings(&next) == [0, 1]).then_some(()));
    assert_eq!(next.inflight(), Some((first, 0)));
    driver.start();
    assert_eq!(next.inflight().unwrap().1, 1, "a record of its own");
}

#[test]
fn a_disk_that_grows_says_so() {
    let (_place, machine, backend) = disk(&Nature::disk(64), "");
    for (round, way) in Way::ALL.into_iter().enumerate() {
        let driver = Driver::of_first(&machine, way);
        let sectors = 100 + round;
        backend.resize(sectors);
        wait_for("a change", || (driver.transport.isr() & 2 != 0).then_some(()));
        assert_eq!(driver.transport.config(0, 4), sectors as u64, "{way:?}");
    }
}

#[test]
fn several_queues_of_a_disk_are_all_served() {
    let (_place, machine, backend) = disk(&Nature::disk(64), "queues=4");
    let mut driver = Driver::of_first(&machine, Way::Modern);
    assert_eq!(driver.transport.config(34, 2), 4);
    assert_eq!(
        (rings(&backend), backend.enabled()),
        (vec![0, 1, 2, 3], vec![0, 1, 2, 3])
    );
    assert_eq!(read(&mut driver, 1, 512), [1; 512]);
    let error = refused("vhost-user-blk-pci", "queues=5", Nature::disk(64));
    assert!(error.contains("it serves 4 queues, not 5"), "{error}");
}

#[test]
fn queue_pairs_carry_frames_as_the_driver_uses_them() {
    let (_place, machine, backend) = net("queues=2");
    let mut card = Card::of_first(&machine, Way::Modern);
    assert_eq!(rings(&backend), [0, 1, 2, 3]);
    wait_for("one pair", || (backend.enabled() == [0, 1]).then_some(()));
    assert_eq!(card.command(SET_PAIRS.0, SET_PAIRS.1, &2u16.to_le_bytes()), 0);
    wait_for("two pairs", || (backend.enabled() == [0, 1, 2, 3]).then_some(()));
    reflect(&mut card, 1);
    control(&machine).set_link(false);
    wait_for("no pairs", || backend.enabled().is_empty().then_some(()));
    control(&machine).set_link(true);
    wait_for("two pairs", || (backend.enabled() == [0, 1, 2, 3]).then_some(()));
    reflect(&mut card, 2);
}

/// What is said of a backend to which we go, and which will not do.
fn refused(name: &str, options: &str, nature: Nature) -> String {
    let place = Place::new();
    let listener = std::os::unix::net::UnixListener::bind(&place.path).unwrap();
    let options = format!("vhost-user={},{options}", place.path.display());
    let backend = std::thread::spawn(move || Backend::over(listener.accept().unwrap().0, nature));
    let error = shared(name, &options).err().expect("a refusal").to_string();
    drop(backend.join().unwrap());
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn backends_that_will_not_do_are_refused_with_the_reason() {
    let frames = Nature::frames();
    let old = Nature {
        features: 1 << 32,
        ..frames.clone()
    };
    let error = refused("virtio-net-pci", "", old);
    assert!(error.contains("VHOST_USER_F_PROTOCOL_FEATURES"), "{error}");
    // Frames are no disk: there is no configuration.
    let error = refused("vhost-user-blk-pci", "", frames.clone());
    assert!(error.contains("it lacks protocol features 0x200"), "{error}");
    let error = refused("virtio-net-pci", "queues=3", frames);
    assert!(error.contains("it serves 2 queues, not 3"), "{error}");
    let nobody = shared("virtio-net-pci", "vhost-user=/nonexistent/s")
        .err()
        .unwrap()
        .to_string();
    assert!(nobody.contains("start the backend first"), "{nobody}");
}

#[test]
fn private_memory_is_not_given_away() {
    let place = Place::new();
    let options = format!("vhost-user=listen:{}", place.path.display());
    let machine = Machine::with(ram().unwrap(), PciResources::Firmware, &[("virtio-net-pci", &options)]);
    let error = machine.err().unwrap().to_string();
    assert!(error.contains("guest memory is private to this process"), "{error}");
}

/// Talks nonsense to whoever listens, until that one hangs up.
fn babble(path: &Path, bytes: &[u8]) {
    let mut socket = wait_for("a device that listens", || UnixStream::connect(path).ok());
    let _ = socket.write_all(bytes);
    let mut all = Vec::new();
    // Requests come as long as it believes us.
    let _ = std::io::Read::read_to_end(&mut socket, &mut all);
}

#[test]
fn nonsense_is_cut_off_and_the_next_backend_serves() {
    let (place, machine, backend) = net("");
    let mut card = Card::of_first(&machine, Way::Modern);
    reflect(&mut card, 1);
    backend.die();
    let header = |request: u32, flags: u32, size: u32| [request, flags, size].map(u32::to_le_bytes).concat();
    let answers = [
        vec![0xff; 4096],
        vec![0; 4096],
        // The answer to another question, one that is too long, one that is no answer.
        [header(15, 5, 8), vec![0; 8]].concat(),
        [header(1, 5, u32::MAX), vec![0; 64]].concat(),
        [header(1, 1, 8), vec![0xff; 8]].concat(),
        // Features as they have to be, and then nothing that makes sense.
        [header(1, 5, 8), (1u64 << 30).to_le_bytes().to_vec(), vec![7; 64]].concat(),
        // All features, and protocol features of which half do not exist.
        [
            header(1, 5, 8),
            vec![0xff; 8],
            header(15, 5, 8),
            vec![0xff; 8],
            vec![0; 64],
        ]
        .concat(),
    ];
    for answer in &answers {
        babble(&place.path, answer);
    }
    // One that has less to offer than the guest was promised.
    let poor = place.next(Nature {
        features: Nature::frames().features & !(1 << 15),
        ..Nature::frames()
    });
    wait_for("a refusal", || poor.is_over().then_some(()));
    let good = place.next(Nature::frames());
    wait_for_link(&card, LINK_UP);
    reflect(&mut card, 2);
    assert_eq!(rings(&good), [0, 1]);
}

#[test]
fn a_machine_that_goes_hangs_up() {
    for name in ["virtio-net-pci", "vhost-user-blk-pci"] {
        let place = Place::new();
        let nature = if name == "virtio-net-pci" {
            Nature::frames()
        } else {
            Nature::disk(8)
        };
        let (machine, backend) = place.machine(name, "", nature);
        let driver = Driver::of_first(&machine, Way::Modern);
        drop(driver);
        drop(machine);
        wait_for("the end", || backend.is_over().then_some(()));
        assert!(!place.path.exists(), "the socket is left behind");
    }
}
