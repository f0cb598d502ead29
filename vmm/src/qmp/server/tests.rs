#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader};

use serde_json::{Value, json};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::qmp::event::Event;
use crate::qmp::testing::Paper;

struct Fixture {
    dir: TempDir,
    paper: Arc<Paper>,
}

impl Fixture {
    fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
            paper: Arc::new(Paper::new()),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.as_path().join("qmp.sock")
    }

    fn start(&self, endpoint: Endpoint) -> Result<Server, ServeError> {
        let config = MonitorConfig {
            label: "mon0".into(),
            endpoint,
            language: Language::Control(Style::Line),
        };
        let target: Arc<dyn Target> = self.paper.clone();
        Server::start(&[config], &self.paper.monitors, &target)
    }

    fn serve(&self) -> Server {
        let path = self.path();
        self.start(Endpoint::UnixServer { path, wait: false }).unwrap()
    }

    fn connect(&self) -> Client {
        Client::over(UnixStream::connect(self.path()).unwrap())
    }
}

struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    fn over(socket: UnixStream) -> Self {
        Self {
            reader: BufReader::new(socket),
        }
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn send(&mut self, text: &str) {
        self.reader.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn negotiate(mut self) -> Self {
        assert!(self.receive()["QMP"]["version"].is_object());
        self.send("{'execute':'qmp_capabilities'}");
        assert_eq!(self.receive(), json!({"return": {}}));
        self
    }
}

#[test]
fn a_client_is_greeted_and_served_and_the_next_one_too() {
    let fixture = Fixture::new();
    let server = fixture.serve();
    for id in 0..3 {
        let mut client = fixture.connect().negotiate();
        client.send(&format!("{{'execute':'query-name','id':{id}}}"));
        assert_eq!(client.receive(), json!({"return": {"name": "gast"}, "id": id}));
    }
    drop(server);
    assert!(!fixture.path().exists());
}

#[test]
fn a_client_that_listens_is_connected_to() {
    let fixture = Fixture::new();
    let listener = UnixListener::bind(fixture.path()).unwrap();
    let path = fixture.path();
    let _server = fixture.start(Endpoint::UnixClient { path }).unwrap();
    Client::over(listener.accept().unwrap().0).negotiate();
}

#[test]
fn several_monitors_hear_of_one_event() {
    let fixture = Fixture::new();
    let _server = fixture.serve();
    let other = fixture.dir.as_path().join("other.sock");
    let endpoint = Endpoint::UnixServer {
        path: other.clone(),
        wait: false,
    };
    let _second = fixture.start(endpoint).unwrap();
    let mut clients = [
        fixture.connect().negotiate(),
        Client::over(UnixStream::connect(other).unwrap()).negotiate(),
    ];
    fixture.paper.monitors.emit(Event::Powerdown);
    for client in &mut clients {
        assert_eq!(client.receive()["event"], "POWERDOWN");
    }
}

#[test]
fn tcp_is_served_on_loopback_and_nowhere_else() {
    let fixture = Fixture::new();
    let refused = fixture.start(Endpoint::TcpServer {
        address: "0.0.0.0:0".into(),
        wait: false,
    });
    assert!(matches!(refused, Err(ServeError::NotLoopback(_))));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let _server = fixture.start(Endpoint::TcpClient { address }).unwrap();
    let mut line = String::new();
    BufReader::new(listener.accept().unwrap().0)
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with("{\"QMP\": "), "{line}");
}

#[test]
fn a_client_that_does_not_read_is_not_read_from_and_costs_bounded_memory() {
    let fixture = Fixture::new();
    let _server = fixture.serve();
    let mut deaf = fixture.connect().negotiate();
    deaf.reader.get_mut().set_nonblocking(true).unwrap();
    let command = b"{'execute':'query-qmp-schema'}".repeat(100);
    let mut sent = 0;
    // It stops to take commands at some point; until then there is a pause now and then.
    let mut refusals = 0;
    while refusals < 50 {
        match deaf.reader.get_mut().write(&command) {
            Ok(count) => sent += count,
            Err(_) => {
                refusals += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        assert!(sent < 64 << 20, "commands are taken without end");
    }
    for _ in 0..100_000 {
        fixture.paper.monitors.emit(Event::Stop);
    }
    let mut other = fixture.paper.monitors.views();
    assert!(other.pop().unwrap().connected);
    drop(deaf);
    fixture.connect().negotiate();
}

#[test]
fn what_was_answered_arrives_even_if_the_machine_ends_at_once() {
    let fixture = Fixture::new();
    let server = fixture.serve();
    let mut client = fixture.connect().negotiate();
    client.send("{'execute':'quit'}");
    while fixture.paper.orders.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    drop(server);
    assert_eq!(client.receive(), json!({"return": {}}));
}
