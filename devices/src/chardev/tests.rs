//! Far ends of every kind, without a device.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;

/// A folder of its own, removed when it goes.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("innkeeper-chardev-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(config: &ChardevConfig) -> Chardev {
    Chardev::open(config, "test").unwrap()
}

/// Does what an owner's loop does: passes on what is ready, as if everything were.
fn turn(far: &mut Chardev) {
    for source in far.sources(0) {
        far.ready(source.token);
    }
    far.sources_taken();
}

fn read(far: &mut Chardev) -> Result<Vec<u8>, ErrorKind> {
    let mut bytes = [0; 100];
    let count = far.read(&mut bytes, &mut Vec::new()).map_err(|error| error.kind())?;
    Ok(bytes[..count].to_vec())
}

/// Reads until something else than "not now" comes.
fn read_soon(far: &mut Chardev) -> Vec<u8> {
    for _ in 0..10_000 {
        turn(far);
        match read(far) {
            Ok(bytes) => return bytes,
            Err(kind) => assert_eq!(kind, ErrorKind::WouldBlock),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("nothing came");
}

fn client_of(path: &Path, seconds: u32) -> ChardevConfig {
    ChardevConfig::Socket {
        address: SocketAddress::Unix(path.into()),
        role: Role::Client {
            reconnect: NonZeroU32::new(seconds),
        },
    }
}

#[test]
fn nothing_takes_everything_and_says_nothing() {
    let mut far = open(&ChardevConfig::Null);
    assert!(far.is_open() && far.can_write() && !far.can_read());
    assert_eq!(far.write(b"gone").unwrap(), 4);
    assert!(far.sources(0).is_empty());
}

#[test]
fn a_server_has_one_client_after_the_other() {
    let folder = Folder::new();
    let path = folder.path("socket");
    let mut far = open(&ChardevConfig::listening(&path));
    assert!(!far.is_open() && far.can_write());
    assert_eq!(far.write(b"to nobody").unwrap(), 9);
    let mut first = UnixStream::connect(&path).unwrap();
    let mut second = UnixStream::connect(&path).unwrap();
    turn(&mut far);
    assert!(far.is_open());
    assert_eq!(
        far.sources(7).iter().map(|source| source.token).collect::<Vec<_>>(),
        [7, 8]
    );
    first.write_all(b"one").unwrap();
    second.write_all(b"two").unwrap();
    assert_eq!(read_soon(&mut far), b"one");
    assert_eq!(read(&mut far), Err(ErrorKind::WouldBlock));
    assert!(!far.can_read());
    drop(first);
    assert_eq!(read_soon(&mut far), b"");
    assert!(!far.is_open() && far.sources_changed());
    assert_eq!(read_soon(&mut far), b"two");
    assert_eq!(far.write(b"hello").unwrap(), 5);
    let mut heard = [0; 5];
    second.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    drop(far);
    assert!(!path.exists());
}

#[test]
fn what_a_client_said_before_it_went_is_read_even_if_it_cannot_be_answered() {
    let folder = Folder::new();
    let path = folder.path("socket");
    let mut far = open(&ChardevConfig::listening(&path));
    let mut client = UnixStream::connect(&path).unwrap();
    turn(&mut far);
    client.write_all(b"farewell").unwrap();
    drop(client);
    assert_eq!(far.write(b"answer").unwrap(), 6);
    assert!(far.is_open());
    assert_eq!(read_soon(&mut far), b"farewell");
    assert_eq!(read_soon(&mut far), b"");
    assert!(!far.is_open());
}

#[test]
fn an_owner_who_does_not_read_notices_a_hang_up() {
    let folder = Folder::new();
    let path = folder.path("socket");
    let mut far = open(&ChardevConfig::listening(&path));
    let mut client = UnixStream::connect(&path).unwrap();
    turn(&mut far);
    client.write_all(b"unread").unwrap();
    far.notice_hang_up();
    assert!(far.is_open());
    drop(client);
    far.notice_hang_up();
    assert!(!far.is_open());
}

#[test]
fn a_socket_that_is_full_can_be_written_again_when_it_was_read() {
    let folder = Folder::new();
    let path = folder.path("socket");
    let mut far = open(&ChardevConfig::listening(&path));
    let mut client = UnixStream::connect(&path).unwrap();
    turn(&mut far);
    let mut written = 0;
    while far.can_write() {
        written += far.write(&[1; 4096]).unwrap_or(0);
    }
    assert_eq!(far.write(b"x").unwrap_err().kind(), ErrorKind::WouldBlock);
    client.read_exact(&mut vec![0; written]).unwrap();
    turn(&mut far);
    assert!(far.can_write());
}

#[test]
fn a_socket_at_which_nobody_listens_is_replaced_and_another_file_is_not() {
    let folder = Folder::new();
    let (stale, file) = (folder.path("stale"), folder.path("file"));
    drop(UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    drop(open(&ChardevConfig::listening(&stale)));
    std::fs::write(&file, "precious").unwrap();
    let error = Chardev::open(&ChardevConfig::listening(&file), "port x").unwrap_err();
    assert!(error.to_string().starts_with("port x: UNIX socket "), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let _listening = UnixListener::bind(&stale).unwrap();
    assert!(Chardev::open(&ChardevConfig::listening(&stale), "port x").is_err());
}

#[test]
fn a_client_connects_at_once_or_again_and_again() {
    let folder = Folder::new();
    let path = folder.path("socket");
    assert!(Chardev::open(&client_of(&path, 0), "test").is_err());
    let mut far = open(&client_of(&path, 2));
    assert!(!far.is_open() && far.wants_tick());
    let listener = UnixListener::bind(&path).unwrap();
    far.tick();
    assert!(!far.is_open(), "a second too early");
    far.tick();
    turn(&mut far);
    assert!(far.is_open() && !far.wants_tick());
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"welcome").unwrap();
    assert_eq!(read_soon(&mut far), b"welcome");
    drop(server);
    assert_eq!(read_soon(&mut far), b"");
    assert!(!far.is_open() && far.wants_tick());
    far.sources_taken();
    (0..2).for_each(|_| far.tick());
    turn(&mut far);
    assert!(far.is_open());
}

#[test]
fn tcp_works_as_unix_sockets_do() {
    let server = ChardevConfig::Socket {
        address: SocketAddress::Tcp {
            host: "127.0.0.1".into(),
            port: 0,
        },
        role: Role::Server { wait: false },
    };
    let mut server = open(&server);
    let port = server.description().rsplit(':').next().unwrap().parse().unwrap();
    let client = ChardevConfig::Socket {
        address: SocketAddress::Tcp {
            host: "127.0.0.1".into(),
            port,
        },
        role: Role::Client {
            reconnect: NonZeroU32::new(1),
        },
    };
    let mut client = open(&client);
    for _ in 0..10_000 {
        turn(&mut server);
        turn(&mut client);
        if server.is_open() && client.is_open() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(client.write(b"over the net").unwrap(), 12);
    assert_eq!(read_soon(&mut server), b"over the net");
}

#[test]
fn a_pseudo_terminal_is_open_while_somebody_has_it_open() {
    let mut far = open(&ChardevConfig::Pty);
    let name = far.description().rsplit(' ').next().unwrap().to_owned();
    assert!(!far.is_open() && far.wants_tick());
    for _ in 0..100 {
        assert_eq!(far.write(&[b'x'; 4096]).unwrap(), 4096, "nobody hears");
    }
    far.tick();
    assert!(!far.is_open());
    let mut terminal = std::fs::File::options().read(true).write(true).open(&name).unwrap();
    far.tick();
    assert!(far.is_open() && !far.wants_tick());
    far.write(b"login: \r\n").unwrap();
    let mut heard = [0; 9];
    terminal.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"login: \r\n");
    terminal.write_all(b"ro\x03ot\r").unwrap();
    assert_eq!(read_soon(&mut far), b"ro\x03ot\r", "as it was typed, and no echo");
    drop(terminal);
    assert_eq!(read_soon(&mut far), b"");
    assert!(!far.is_open());
}

#[test]
fn files_are_emptied_or_continued() {
    let folder = Folder::new();
    let path = folder.path("log");
    let file = |append| ChardevConfig::File {
        path: path.clone(),
        append,
    };
    for (append, expected) in [(false, "new"), (true, "newnew"), (false, "new")] {
        let mut far = open(&file(append));
        assert!(far.is_open() && far.sources(0).is_empty());
        far.write(b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }
}

#[test]
fn pipes_have_a_direction_each() {
    let folder = Folder::new();
    let path = folder.path("pipe");
    let config = ChardevConfig::Pipe { path: path.clone() };
    assert!(Chardev::open(&config, "test").is_err());
    for suffix in [".in", ".out"] {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        let name = std::ffi::CString::new(name.into_encoded_bytes()).unwrap();
        assert_eq!(make_fifo(&name), 0);
    }
    let mut far = open(&config);
    let end = |suffix: &str| {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        std::fs::File::options().read(true).write(true).open(name).unwrap()
    };
    end(".in").write_all(b"in").unwrap();
    assert_eq!(read_soon(&mut far), b"in");
    far.write(b"out").unwrap();
    let mut heard = [0; 3];
    end(".out").read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"out");
    assert!(far.is_open());
}

fn make_fifo(name: &std::ffi::CStr) -> i32 {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let made = rustix::fs::mknodat(rustix::fs::CWD, name, rustix::fs::FileType::Fifo, mode, 0);
    i32::from(made.is_err())
}

#[test]
fn a_descriptor_is_taken_over_once_and_only_if_it_was_inherited() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let number = theirs.as_raw_fd();
    let own = Chardev::open(&ChardevConfig::Fd(number), "port x");
    assert!(own.is_err(), "it is our own, so it was not inherited");
    // What was inherited does not close when another program is run.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
    let number = theirs.into_raw_fd();
    let mut far = open(&ChardevConfig::Fd(number));
    far.write(b"x").unwrap();
    let mut ours = ours;
    ours.read_exact(&mut [0]).unwrap();
    drop(far);
    assert_eq!(ours.read(&mut [0]).unwrap(), 0, "the far end hears that it is closed");
    let error = Chardev::open(&ChardevConfig::Fd(1 << 19), "port x").unwrap_err();
    assert!(error.to_string().contains("descriptor 524288"), "{error}");
}

#[test]
fn a_ring_keeps_what_was_written() {
    let mut far = open(&ChardevConfig::Ring { size: 4 });
    assert!(far.is_open() && far.writes_bytes_only());
    far.write(b"abcdef").unwrap();
    assert_eq!(far.ring().unwrap().read(10), b"cdef");
}
