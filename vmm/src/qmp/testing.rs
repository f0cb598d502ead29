//! A machine without a processor, and a client for it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::{Arc, Mutex, MutexGuard};

use devices::platform::AcpiPm;
use devices::virtio::options::Pairs;
use serde_json::{Value, json};

use super::commands::Context;
use super::error::Error;
use super::event::Event;
use super::json::{Stream, Style};
use super::link::{Link, Monitors};
use super::protocol;
use super::target::{About, Order, RunState, Target};
use crate::machine::inventory::{Inventory, testing};
use crate::qemu::backends::Backends;

struct NoLine;

impl pci::InterruptLine for NoLine {
    fn set_level(&self, _: bool) {}
}

/// A machine that remembers what it was told to do.
pub(super) struct Paper {
    about: About,
    state: Mutex<RunState>,
    pub(super) orders: Mutex<Vec<Order>>,
    pub(super) inventory: Inventory,
    backends: Mutex<Backends>,
    pub(super) monitors: Monitors,
}

impl Paper {
    pub(super) fn new() -> Self {
        let about = About {
            name: Some("gast".into()),
            ..About::new(1, 64 << 20)
        };
        Self {
            about,
            state: Mutex::new(RunState::Running),
            orders: Mutex::default(),
            inventory: testing::inventory().with_hotplug(AcpiPm::new(Arc::new(NoLine)).events()),
            backends: Mutex::default(),
            monitors: Monitors::default(),
        }
    }
}

impl Target for Paper {
    fn about(&self) -> &About {
        &self.about
    }

    fn run_state(&self) -> RunState {
        *self.state.lock().unwrap()
    }

    fn order(&self, order: Order) -> Result<(), Error> {
        self.orders.lock().unwrap().push(order);
        let (state, event) = match order {
            Order::Stop => (RunState::Paused, Event::Stop),
            Order::Cont => (RunState::Running, Event::Resume),
            _ => return Ok(()),
        };
        *self.state.lock().unwrap() = state;
        self.monitors.emit(event);
        Ok(())
    }

    fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    fn backends(&self) -> &Mutex<Backends> {
        &self.backends
    }
}

/// A client of such a machine, without a socket between them.
pub(super) struct Client {
    pub(super) target: Arc<Paper>,
    pub(super) link: Arc<Link>,
    stream: Mutex<Stream>,
}

impl Client {
    /// One that has not negotiated.
    pub(super) fn raw() -> Self {
        let (target, link) = (Arc::new(Paper::new()), Arc::new(Link::new(Style::Line).unwrap()));
        target.monitors.add("compat_monitor0", "stdio", &link);
        link.set_connected(true);
        Self {
            target,
            link,
            stream: Mutex::default(),
        }
    }

    /// One that has.
    pub(super) fn new() -> Self {
        let client = Self::raw();
        client.link.set_negotiated();
        client
    }

    /// One whose machine has these devices, as `-device` writes them, and drives.
    pub(super) fn with(drives: &[&str], devices: &[&str]) -> Self {
        let client = Self::new();
        for drive in drives {
            let mut backends = client.target.backends.lock().unwrap();
            backends.add_drive(Pairs::parse(drive, None)).unwrap();
        }
        for device in devices {
            let mut pairs = Pairs::parse(device, Some("driver"));
            let driver = pairs.take("driver").unwrap();
            let config = client.target.backends.lock().unwrap().resolve(&driver, pairs).unwrap();
            client.target.inventory.plug(&config).unwrap();
        }
        client
    }

    /// What commands of this client work with.
    pub(super) fn context(&self) -> Context<'_> {
        Context {
            target: &*self.target,
            link: &self.link,
            monitors: &self.target.monitors,
        }
    }

    /// Sends bytes; returns what came back.
    pub(super) fn send(&self, mut bytes: &[u8]) -> Vec<Value> {
        let mut stream: MutexGuard<'_, Stream> = self.stream.lock().unwrap();
        let context = self.context();
        std::iter::from_fn(|| stream.next(&mut bytes))
            .map(|request| protocol::answer(request, &context))
            .collect()
    }

    /// Runs a command; returns its result or its error.
    pub(super) fn run(&self, command: &str, arguments: Value) -> Result<Value, Value> {
        let request = json!({"execute": command, "arguments": arguments});
        let mut answers = self.send(request.to_string().as_bytes());
        assert_eq!(answers.len(), 1, "{answers:?}");
        match answers.remove(0) {
            Value::Object(mut answer) => answer.remove("return").ok_or_else(|| answer.remove("error").unwrap()),
            other => panic!("{other}"),
        }
    }

    /// Runs a command that takes nothing and succeeds.
    pub(super) fn ask(&self, command: &str) -> Value {
        self.run(command, json!({})).unwrap()
    }

    /// Runs a command that fails; returns the class and the description.
    pub(super) fn fails(&self, command: &str, arguments: Value) -> (String, String) {
        let error = self.run(command, arguments).unwrap_err();
        let member = |name: &str| error[name].as_str().unwrap().to_owned();
        (member("class"), member("desc"))
    }

    /// What the monitor for people says to a line.
    pub(super) fn line(&self, line: &str) -> String {
        let text = self
            .run("human-monitor-command", json!({"command-line": line}))
            .unwrap();
        text.as_str().unwrap().replace("\r\n", "\n")
    }

    /// The bytes that wait for the client.
    pub(super) fn sent(&self) -> Vec<u8> {
        let mut text = Vec::new();
        self.link
            .drain(|waiting| {
                text.extend(waiting);
                Ok(waiting.len())
            })
            .unwrap();
        text
    }

    /// The events that have come.
    pub(super) fn events(&self) -> Vec<Value> {
        let text = self.sent();
        let mut rest = &text[..];
        let mut stream = Stream::default();
        std::iter::from_fn(|| stream.next(&mut rest))
            .map(Result::unwrap)
            .collect()
    }

    /// Their names.
    pub(super) fn event_names(&self) -> Vec<String> {
        let name = |event: Value| event["event"].as_str().unwrap().to_owned();
        self.events().into_iter().map(name).collect()
    }
}

/// The pair that [`Client::fails`] returns for an error without a class of its own.
pub(super) fn generic(description: impl Into<String>) -> (String, String) {
    ("GenericError".to_owned(), description.into())
}
