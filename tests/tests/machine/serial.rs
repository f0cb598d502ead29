//! Consoles and ports, from what is said about them to their bytes, each way.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use devices::chardev::ChardevConfig;
use devices::virtio::console::{PortConfig, PortKind, SerialEvent, Size};
use devices::virtio::virtq::testing::Buffer;
use tests::driver::serial::{FROM_DRIVER, Message, Serial, TO_DRIVER, event, feature, input, output};
use tests::driver::{Machine, Way, wait_for};

/// The path of a socket, removed when it goes.
struct Path(PathBuf);

impl Path {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("innkeeper-serial-{}-{count}.sock", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    /// The options of a port that listens there.
    fn listening(&self) -> String {
        format!("backend=socket,path={},server=on,wait=off", self.0.display())
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.0).unwrap()
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn message(port: u32, event: u16, value: u16) -> Message {
    Message::new(port, event, value)
}

fn named(port: u32, name: &str) -> Message {
    Message {
        payload: name.bytes().chain([0]).collect(),
        ..message(port, event::PORT_NAME, 1)
    }
}

#[test]
fn ports_are_introduced_in_qemus_order() {
    for way in Way::ALL {
        let machine = Machine::new(&[
            ("virtio-serial-pci", "id=vser0"),
            ("virtserialport", "bus=vser0.0,name=org.example.agent"),
            ("virtconsole", "bus=vser0.0,name=org.example.console,backend=null"),
            ("virtserialport", "nr=7,name=org.example.null,backend=null"),
            ("virtserialport", ""),
        ])
        .unwrap();
        let mut serial = Serial::new(&machine, way);
        let heard = serial.shake_hands(&[(0, 3), (1, 1), (2, 0), (7, 2)]);
        let expected = [
            message(0, event::CONSOLE_PORT, 1),
            named(0, "org.example.console"),
            message(0, event::PORT_OPEN, 1),
            named(1, "org.example.agent"),
            named(7, "org.example.null"),
            message(7, event::PORT_OPEN, 1),
        ];
        assert_eq!(heard, expected, "{way:?}");
    }
}

#[test]
fn bytes_go_both_ways_between_a_port_and_its_socket() {
    for way in Way::ALL {
        let path = Path::new();
        let machine = Machine::new(&[
            ("virtio-serial-pci", ""),
            ("virtserialport", &format!("name=x,{}", path.listening())),
        ])
        .unwrap();
        let mut serial = Serial::new(&machine, way);
        assert_eq!(serial.shake_hands(&[(1, 1)]), [named(1, "x")]);
        let mut client = path.connect();
        assert_eq!(serial.next_message(), message(1, event::PORT_OPEN, 1));
        serial.open(1, 4);
        client.write_all(b"ping").unwrap();
        assert_eq!(serial.receive(1, 4), b"ping");
        serial.send(1, b"pong!");
        let mut heard = [0; 5];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"pong!");
        drop(client);
        assert_eq!(serial.next_message(), message(1, event::PORT_OPEN, 0));
        // Nobody hears it, and it does not wait for anybody.
        serial.send(1, b"to nobody");
        let mut client = path.connect();
        assert_eq!(serial.next_message(), message(1, event::PORT_OPEN, 1));
        serial.send(1, b"hello");
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
}

#[test]
fn without_multiport_there_is_one_console() {
    for way in Way::ALL {
        let path = Path::new();
        let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtconsole", &path.listening())]).unwrap();
        let mut serial = Serial::with(&machine, way, feature::EMERG_WRITE);
        serial.give_room(0, 2);
        let mut client = path.connect();
        client.write_all(b"root\n").unwrap();
        assert_eq!(serial.receive(0, 5), b"root\n");
        serial.send(0, b"login: ");
        let mut heard = [0; 7];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"login: ");
    }
}

#[test]
fn emergency_output_goes_to_the_console_at_any_time() {
    let path = Path::new();
    let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtconsole", &path.listening())]).unwrap();
    let mut client = path.connect();
    let serial = Serial::new(&machine, Way::Modern);
    let mut heard = [0; 1];
    wait_for("an emergency", || {
        serial.driver.transport.set_config(8, 4, b'!'.into());
        client
            .set_read_timeout(Some(std::time::Duration::from_millis(100)))
            .unwrap();
        client.read_exact(&mut heard).ok()
    });
    assert_eq!(&heard, b"!");
    assert_eq!(serial.driver.transport.config(8, 4), 0);
    assert_eq!(serial.driver.transport.config(4, 4), 31);
}

/// Bytes that differ everywhere, told apart by `seed`.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A machine with a plain port that leads to a socket, opened at both ends.
fn open_port<'m>(machine: &'m Machine, path: &Path, way: Way, understood: u64) -> (Serial<'m>, UnixStream) {
    let client = path.connect();
    let mut serial = Serial::with(machine, way, understood);
    serial.tell(0, event::DEVICE_READY, 1);
    assert_eq!(serial.next_message(), message(1, event::PORT_ADD, 1));
    serial.tell(1, event::PORT_READY, 1);
    assert_eq!(serial.next_message(), message(1, event::PORT_OPEN, 1));
    (serial, client)
}

/// Sends everything through a port, as many chains at a time as the ring holds.
fn send_all(serial: &mut Serial<'_>, port: u32, bytes: &[u8]) {
    const CHUNK: usize = 0x2000;
    const SLOTS: u64 = 32;
    let at = serial.driver.data() + 0x10_0000;
    let mut on_the_way = 0;
    for (slot, chunk) in (0..).zip(bytes.chunks(CHUNK)) {
        if on_the_way == SLOTS {
            wait_for("output", || serial.sent(port));
            on_the_way -= 1;
        }
        // Chains come back in order, so this slot is free.
        serial.write(port, at + slot % SLOTS * CHUNK as u64, chunk);
        on_the_way += 1;
    }
    for _ in 0..on_the_way {
        wait_for("output", || serial.sent(port));
    }
}

#[test]
fn megabytes_go_both_ways_in_order_while_both_sides_dawdle() {
    const LEN: usize = 8 << 20;
    for (way, understood) in [
        (Way::Legacy, feature::MULTIPORT),
        (Way::Legacy, feature::MULTIPORT | feature::EVENT_IDX),
        (Way::Modern, feature::MULTIPORT),
        (Way::Modern, feature::MULTIPORT | feature::EVENT_IDX),
    ] {
        let path = Path::new();
        let options = format!("name=x,{}", path.listening());
        let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtserialport", &options)]).unwrap();
        let client = path.connect();
        let mut serial = Serial::with(&machine, way, understood);
        serial.shake_hands(&[(1, 2)]);
        serial.open(1, 32);
        let (there, back) = (noise(1, LEN), noise(2, LEN));
        thread::scope(|scope| {
            let mut writer = client.try_clone().unwrap();
            let back = &back;
            scope.spawn(move || {
                for (index, chunk) in back.chunks(100_000).enumerate() {
                    if index % 20 == 0 {
                        thread::sleep(Duration::from_millis(5));
                    }
                    writer.write_all(chunk).unwrap();
                }
            });
            let mut reader = client;
            let heard = scope.spawn(move || {
                thread::sleep(Duration::from_millis(300));
                let mut heard = vec![0; LEN];
                for chunk in heard.chunks_mut(1 << 20) {
                    thread::sleep(Duration::from_millis(10));
                    reader.read_exact(chunk).unwrap();
                }
                heard
            });
            send_all(&mut serial, 1, &there);
            assert!(
                heard.join().unwrap() == there,
                "{way:?}: what the guest said arrived otherwise"
            );
            let received = serial.receive(1, LEN);
            assert!(received == *back, "{way:?}: what the host said arrived otherwise");
        });
    }
}

#[test]
fn a_far_end_that_does_not_read_stops_the_guest_and_nothing_else() {
    for way in Way::ALL {
        let (path, other) = (Path::new(), Path::new());
        let machine = Machine::new(&[
            ("virtio-serial-pci", ""),
            ("virtserialport", &format!("name=slow,{}", path.listening())),
            ("virtserialport", &format!("name=fast,{}", other.listening())),
        ])
        .unwrap();
        let (mut slow, mut fast) = (path.connect(), other.connect());
        let mut serial = Serial::new(&machine, way);
        serial.shake_hands(&[(1, 2), (2, 2)]);
        let at = serial.allocate(0x1_0000);
        let bytes = noise(3, 0x1_0000);
        for _ in 0..64 {
            serial.write(1, at, &bytes);
        }
        // Ports 1 and 2 share a thread; what went before is done when this is.
        serial.send(2, b"quick");
        let mut heard = [0; 5];
        fast.read_exact(&mut heard).unwrap();
        let mut sent = 0;
        while serial.sent(1).is_some() {
            sent += 1;
        }
        assert!(sent < 64, "4 MiB were taken for a socket that nobody reads");
        for _ in 0..64 {
            let mut heard = vec![0; bytes.len()];
            slow.read_exact(&mut heard).unwrap();
            assert!(heard == bytes, "{way:?}");
        }
        while sent < 64 {
            wait_for("output", || serial.sent(1));
            sent += 1;
        }
    }
}

#[test]
fn a_guest_that_does_not_read_stops_the_far_end() {
    let path = Path::new();
    let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtserialport", &path.listening())]).unwrap();
    let (mut serial, mut client) = open_port(&machine, &path, Way::Modern, feature::MULTIPORT);
    serial.tell(1, event::PORT_OPEN, 1);
    client.set_nonblocking(true).unwrap();
    let bytes = noise(4, 4 << 20);
    let mut taken = 0;
    while let Ok(count) = client.write(&bytes[taken..]) {
        taken += count;
    }
    assert!(taken < bytes.len(), "4 MiB were taken for a guest that does not read");
    serial.give_room(1, 8);
    assert!(serial.receive(1, taken) == bytes[..taken]);
}

#[test]
fn what_was_said_before_a_hang_up_is_heard() {
    for way in Way::ALL {
        let path = Path::new();
        let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtserialport", &path.listening())]).unwrap();
        let (mut serial, mut client) = open_port(&machine, &path, way, feature::MULTIPORT);
        serial.tell(1, event::PORT_OPEN, 1);
        let bytes = noise(5, 100_000);
        client.write_all(&bytes).unwrap();
        drop(client);
        serial.give_room(1, 4);
        assert!(serial.receive(1, bytes.len()) == bytes);
        assert_eq!(serial.next_message(), message(1, event::PORT_OPEN, 0));
    }
}

#[test]
fn a_port_that_the_guest_closed_hears_nothing_until_it_is_open_again() {
    let path = Path::new();
    let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtserialport", &path.listening())]).unwrap();
    let (mut serial, mut client) = open_port(&machine, &path, Way::Modern, feature::MULTIPORT);
    serial.open(1, 4);
    serial.tell(1, event::PORT_OPEN, 0);
    client.write_all(b"later").unwrap();
    serial.send(1, b"one way still works");
    assert_eq!(serial.received(1), b"");
    serial.tell(1, event::PORT_OPEN, 1);
    assert_eq!(serial.receive(1, 5), b"later");
    // One who went while the guest did not listen is no obstacle for the next.
    serial.tell(1, event::PORT_OPEN, 0);
    client.write_all(b"nobody").unwrap();
    drop(client);
    assert_eq!(serial.next_message(), message(1, event::PORT_OPEN, 0));
    let mut client = path.connect();
    assert_eq!(serial.next_message(), message(1, event::PORT_OPEN, 1));
    serial.tell(1, event::PORT_OPEN, 1);
    client.write_all(b"next").unwrap();
    assert_eq!(serial.receive(1, 4), b"next");
}

#[test]
fn thirty_two_ports_at_once() {
    for way in [Way::Legacy, Way::Modern] {
        let paths: Vec<_> = (0..32).map(|_| Path::new()).collect();
        let options: Vec<_> = paths.iter().map(Path::listening).collect();
        let mut devices = vec![("virtio-serial-pci", "max_ports=33")];
        devices.extend(options.iter().map(|options| ("virtserialport", options.as_str())));
        let machine = Machine::new(&devices).unwrap();
        let mut clients: Vec<_> = paths.iter().map(Path::connect).collect();
        let mut serial = Serial::new(&machine, way);
        let ports: Vec<_> = (1..=32).map(|port| (port, 1)).collect();
        serial.shake_hands(&ports);
        for port in 1..=32 {
            serial.open(port, 2);
        }
        for (port, client) in (1..).zip(&mut clients) {
            client.write_all(&noise(port, 5000)).unwrap();
        }
        for (port, client) in (1..).zip(&mut clients) {
            let number = port as u32;
            assert_eq!(serial.receive(number, 5000), noise(port, 5000));
            serial.send(number, &noise(port + 100, 1000));
            let mut heard = vec![0; 1000];
            client.read_exact(&mut heard).unwrap();
            assert_eq!(heard, noise(port + 100, 1000));
        }
    }
}

/// A port on a socket, as management adds it.
fn port_at(path: &Path, name: &str) -> PortConfig {
    PortConfig {
        id: Some(name.to_owned()),
        name: Some(name.to_owned()),
        far: Some(ChardevConfig::listening(&path.0)),
        ..PortConfig::new(PortKind::Plain)
    }
}

#[test]
fn ports_come_and_go_while_they_are_open() {
    for way in Way::ALL {
        let machine = Machine::new(&[("virtio-serial-pci", "")]).unwrap();
        let mut serial = Serial::new(&machine, way);
        let control = serial.control();
        let (events, heard) = mpsc::channel();
        control.subscribe(move |event| events.send(event.clone()).unwrap());
        serial.shake_hands(&[]);
        for round in 0..5 {
            let path = Path::new();
            let number = control.add_port(port_at(&path, "x")).unwrap();
            assert_eq!((number, serial.next_message()), (1, message(1, event::PORT_ADD, 1)));
            serial.tell(1, event::PORT_READY, 1);
            assert_eq!(serial.next_message(), named(1, "x"));
            let mut client = path.connect();
            assert_eq!(serial.next_message(), message(1, event::PORT_OPEN, 1));
            if round == 0 {
                serial.give_room(1, 4);
            }
            serial.tell(1, event::PORT_OPEN, 1);
            client.write_all(b"hello").unwrap();
            assert_eq!(serial.receive(1, 5), b"hello");
            let at = serial.allocate(0x1_0000);
            for _ in 0..32 {
                serial.write(1, at, &[7; 0x1_0000]);
            }
            assert!(control.remove_port(1) && !control.remove_port(1));
            assert_eq!(serial.next_message(), message(1, event::PORT_REMOVE, 1));
            // What had not gone came back.
            for _ in 0..32 {
                wait_for("output", || serial.sent(1));
            }
            let change = |open| SerialEvent::PortChange {
                port: 1,
                id: Some("x".to_owned()),
                open,
            };
            let changes: Vec<_> = heard.try_iter().collect();
            assert_eq!(changes, [change(true), change(false)]);
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).unwrap();
            assert!(!path.0.exists(), "the socket goes with its port");
        }
        assert!(control.ports().is_empty());
    }
}

#[test]
fn messages_wait_for_a_driver_without_buffers_and_do_not_pile_up() {
    let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtserialport", "name=x,backend=null")]).unwrap();
    let mut serial = Serial::new(&machine, Way::Modern);
    let path = Path::new();
    let control = serial.control();
    // Buffers go into the ring again only when a message is taken out; these are never taken out.
    for _ in 0..16 {
        serial.tell(0, event::DEVICE_READY, 1);
    }
    for _ in 0..1000 {
        let number = control.add_port(port_at(&path, "y")).unwrap();
        control.remove_port(number);
    }
    // The device stops listening, until its answers are taken.
    let at = serial.driver.data();
    machine.set_bytes(at, &[1, 0, 0, 0, 3, 0, 1, 0]);
    let mut waiting = 0;
    for _ in 0..2000 {
        if serial.driver.rings[usize::from(FROM_DRIVER)]
            .post(&[Buffer::readable(at, 8)])
            .is_none()
        {
            break;
        }
        waiting += 1;
        serial.driver.kick(FROM_DRIVER);
        // What the device takes comes back sooner or later; what it does not take stays.
        thread::sleep(Duration::from_millis(1));
        while serial.driver.rings[usize::from(FROM_DRIVER)].next_used().is_some() {
            waiting -= 1;
        }
    }
    assert!(waiting > 0, "2000 questions were taken without an answer");
    let mut answered = false;
    while waiting > 0 || !answered {
        answered |= serial.next_message().event == event::PORT_NAME;
        while serial.driver.rings[usize::from(FROM_DRIVER)].next_used().is_some() {
            waiting -= 1;
        }
    }
    // It listens again as soon as the answers that may still be on their way are taken.
    let ring = &mut serial.driver.rings[usize::from(FROM_DRIVER)];
    ring.post(&[Buffer::readable(at, 8)]).unwrap();
    serial.driver.kick(FROM_DRIVER);
    wait_for("one more question to be taken", || {
        serial.message();
        serial.driver.rings[usize::from(FROM_DRIVER)].next_used()
    });
    wait_for("its name", || {
        serial.message().filter(|message| *message == named(1, "x"))
    });
}

#[test]
fn the_size_of_a_console_reaches_the_driver() {
    for way in Way::ALL {
        let machine = Machine::new(&[
            ("virtio-serial-pci", "console-size=on"),
            ("virtconsole", "backend=null"),
        ])
        .unwrap();
        let mut serial = Serial::new(&machine, way);
        assert_ne!(serial.driver.features & feature::SIZE, 0);
        let control = serial.control();
        let resized = |columns: u16, rows: u16| Message {
            payload: [columns.to_le_bytes(), rows.to_le_bytes()].concat(),
            ..message(0, event::RESIZE, 0)
        };
        control.resize(0, Size { columns: 80, rows: 25 });
        let heard = serial.shake_hands(&[(0, 3)]);
        assert_eq!(heard[1], resized(80, 25));
        control.resize(0, Size { columns: 132, rows: 50 });
        assert_eq!(serial.next_message(), resized(132, 50));
        let config = |at| serial.driver.transport.config(at, 2);
        assert_eq!((config(0), config(2)), (132, 50));
    }
    let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtconsole", "")]).unwrap();
    let serial = Serial::new(&machine, Way::Modern);
    assert_eq!(serial.driver.features & feature::SIZE, 0, "as QEMU's");
}

#[test]
fn nonsense_on_the_queue_of_messages_is_passed_over() {
    for way in Way::ALL {
        let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtserialport", "name=x")]).unwrap();
        let mut serial = Serial::new(&machine, way);
        for len in 1..8 {
            serial.tell_bytes(&[0, 0, 0, 0, 0, 0, 1][..len.min(7)]);
        }
        for (port, event) in [
            (1, 8),
            (1, 0xffff),
            (1, event::PORT_ADD),
            (1, event::PORT_REMOVE),
            (1, event::PORT_NAME),
            (30, event::PORT_READY),
            (31, event::PORT_READY),
            (u32::MAX, event::PORT_READY),
            (u32::MAX, event::PORT_OPEN),
            (0x8000_0000, event::PORT_OPEN),
        ] {
            serial.tell(port, event, 1);
            serial.tell(port, event, 0);
        }
        // Not a byte to read, a message in a writable buffer, and one that is far too long.
        let at = serial.allocate(0x10_0000);
        let used = serial.driver.request(FROM_DRIVER, &[Buffer::writable(at, 64)]);
        assert_eq!(used.len, 0);
        let used = serial.driver.request(FROM_DRIVER, &[Buffer::readable(at, 0x10_0000)]);
        assert_eq!(used.len, 0);
        assert_eq!(serial.message(), None, "{way:?}");
        serial.shake_hands(&[(1, 1)]);
    }
}

#[test]
fn buffers_of_any_kind_come_back() {
    for way in Way::ALL {
        let path = Path::new();
        let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtserialport", &path.listening())]).unwrap();
        let (mut serial, mut client) = open_port(&machine, &path, way, feature::MULTIPORT);
        serial.tell(1, event::PORT_OPEN, 1);
        let at = serial.allocate(0x1_0000);
        // Output into which the device may write, output outside RAM, input that the device may read.
        for buffers in [
            vec![Buffer::writable(at, 64)],
            vec![Buffer::readable(0xf000_0000, 64)],
            vec![Buffer::readable(at, 0)],
        ] {
            serial.driver.request(output(1), &buffers);
        }
        // The last one of these gets the bytes; those in front of it have no room, or are nowhere.
        serial.driver.post(input(1), &[Buffer::readable(at, 64)]);
        serial.driver.post(input(1), &[Buffer::writable(0xf000_0000, 64)]);
        let pieces: Vec<_> = (0..5).map(|piece| Buffer::writable(at + 16 * piece, 1)).collect();
        let head = serial.driver.post(input(1), &pieces);
        serial.driver.kick(input(1));
        client.write_all(b"abcde").unwrap();
        let mut written = 0;
        for _ in 0..3 {
            let used = serial.driver.complete(input(1));
            written += used.len;
            assert!(used.len == 0 || used.head == u32::from(head));
        }
        assert_eq!(written, 5);
        let letters: Vec<u8> = (0..5).flat_map(|piece| machine.bytes(at + 16 * piece, 1)).collect();
        assert_eq!(letters, b"abcde");
        // A message that does not fit is cut off.
        serial.send(1, b"still alive");
        let mut heard = [0; 11];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still alive");
    }
}

#[test]
fn rings_of_the_queues_may_break_and_start_again() {
    for way in Way::ALL {
        let path = Path::new();
        let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtserialport", &path.listening())]).unwrap();
        for queue in [input(1), output(1), TO_DRIVER, FROM_DRIVER] {
            let (mut serial, mut client) = open_port(&machine, &path, way, feature::MULTIPORT);
            serial.tell(1, event::PORT_OPEN, 1);
            client.write_all(b"waiting").unwrap();
            let index = serial.driver.rings[usize::from(queue)].avail_index();
            serial.driver.rings[usize::from(queue)].set_avail_index(index.wrapping_add(1000));
            serial.driver.kick(queue);
            if way.is_modern() && queue != TO_DRIVER {
                serial.driver.wait_until_broken();
            }
            drop(client);
            serial.driver.reset();
        }
        let (mut serial, mut client) = open_port(&machine, &path, way, feature::MULTIPORT);
        serial.open(1, 2);
        client.write_all(b"again").unwrap();
        assert_eq!(serial.receive(1, 5), b"again");
    }
}

#[test]
fn a_device_that_is_reset_while_it_is_busy_lets_go_of_everything() {
    for way in Way::ALL {
        let path = Path::new();
        let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtserialport", &path.listening())]).unwrap();
        for _ in 0..20 {
            let (mut serial, mut client) = open_port(&machine, &path, way, feature::MULTIPORT);
            serial.tell(1, event::PORT_OPEN, 1);
            let at = serial.allocate(0x1_0000);
            // Room for the far end's bytes where nothing may move after the reset.
            serial.give(input(1), at, 0x1_0000);
            serial.driver.kick(input(1));
            for _ in 0..16 {
                serial.write(1, at + 0x1_0000, &[3; 0x1_0000]);
            }
            client.write_all(&[4; 100]).unwrap();
            serial.driver.reset();
            machine.set_bytes(at, &[5; 200]);
            client.write_all(&[6; 100]).unwrap();
            serial.start(feature::MULTIPORT);
            assert_eq!(machine.bytes(at, 200), [5; 200], "{way:?}");
            assert!(!serial.driver.line().high, "{way:?}");
        }
    }
}

#[test]
fn a_pause_loses_nothing() {
    for way in Way::ALL {
        let path = Path::new();
        let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtserialport", &path.listening())]).unwrap();
        let (mut serial, mut client) = open_port(&machine, &path, way, feature::MULTIPORT);
        serial.open(1, 4);
        let address = serial.driver.device.address;
        let bytes = noise(6, 0x1_0000);
        let at = serial.allocate(0x1_0000);
        for _ in 0..32 {
            serial.write(1, at, &bytes);
        }
        let mut heard: Vec<u8> = Vec::new();
        let mut some = vec![0; 70_001];
        client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        while let Ok(count) = client.read(&mut some) {
            heard.extend(&some[..count]);
            if count == 0 {
                break;
            }
            machine.pause_and_save(address);
            machine.resume(address);
        }
        assert!(heard == bytes.repeat(32), "{way:?}");
        client.write_all(b"back").unwrap();
        assert_eq!(serial.receive(1, 4), b"back");
    }
}

#[test]
fn a_console_whose_far_end_does_not_read_does_not_hold_the_guest_forever() {
    let path = Path::new();
    let machine = Machine::new(&[("virtio-serial-pci", ""), ("virtconsole", &path.listening())]).unwrap();
    let mut client = path.connect();
    let mut serial = Serial::new(&machine, Way::Modern);
    serial.shake_hands(&[(0, 2)]);
    let at = serial.allocate(0x1_0000);
    for round in 0..64 {
        serial.write(0, at, &[round; 0x1_0000]);
    }
    for _ in 0..64 {
        wait_for("output", || serial.sent(0));
    }
    // What was lost is lost; what comes now is heard again.
    let (done, finished) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut heard = Vec::new();
        let mut some = vec![0; 0x1_0000];
        while !heard.ends_with(b"back again") {
            let count = client.read(&mut some).unwrap();
            heard.extend(&some[..count]);
        }
        done.send(()).unwrap();
    });
    wait_for("the console", || {
        serial.send(0, b"back again");
        finished.try_recv().ok()
    });
    reader.join().unwrap();
}

#[test]
fn the_users_mistakes_are_named() {
    for (devices, complaint) in [
        (
            vec![("virtserialport", "")],
            "virtserialport: there is no bus for it; add a virtio-serial-pci before it",
        ),
        (
            vec![("virtio-serial-pci", "max_ports=512")],
            "virtio-serial-pci: max_ports=512: expected a number from 1 to 511",
        ),
        (
            vec![("virtio-serial-pci", ""), ("virtserialport", "nr=0")],
            "virtserialport: nr=0: port 0 is reserved for a console; leave nr= out",
        ),
        (
            vec![
                ("virtio-serial-pci", ""),
                ("virtserialport", "name=a"),
                ("virtserialport", "name=a"),
            ],
            "virtserialport a: there is a port of the name 'a' already; give each a name of its own",
        ),
        (
            vec![
                ("virtio-serial-pci", ""),
                (
                    "virtserialport",
                    "name=a,backend=socket,path=/nowhere/x,server=on,wait=off",
                ),
            ],
            "virtserialport a: UNIX socket /nowhere/x: No such file or directory (os error 2); \
             give an address that nobody uses, in a folder that you may write to",
        ),
    ] {
        let error = Machine::new(&devices).err().unwrap().to_string();
        assert_eq!(error, complaint);
    }
}
