//! Consoles and ports, from what is said about them to their bytes, each way.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use tests::driver::serial::{Message, Serial, event, feature};
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
