//! A machine of paper, and a client for it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::{Arc, Mutex, MutexGuard};

use devices::virtio::info;
use pci::Bus;
use serde_json::{Value, json};

use super::commands::Context;
use super::error::Error;
use super::event::{DeviceDeleted, Event};
use super::json::{Stream, Style};
use super::link::{Link, Monitors};
use super::protocol;
use super::target::{About, Cpu, DeviceView, Order, RunState, Target};
use crate::config::DeviceConfig;
use crate::qemu::backends::Backends;

/// A machine that does what it is told and remembers it.
pub(super) struct Paper {
    pub(super) about: About,
    pub(super) state: Mutex<Option<RunState>>,
    pub(super) orders: Mutex<Vec<Order>>,
    pub(super) devices: Mutex<Vec<DeviceView>>,
    pub(super) backends: Mutex<Backends>,
    pub(super) bus: Bus,
    pub(super) monitors: Monitors,
}

impl Paper {
    pub(super) fn new() -> Self {
        let about = About {
            name: Some("gast".into()),
            kvm: true,
            cpu_model: "host".into(),
            cpus: vec![Cpu::default()],
            memory: 64 << 20,
            ..About::default()
        };
        Self {
            about,
            state: Mutex::new(Some(RunState::Running)),
            orders: Mutex::default(),
            devices: Mutex::default(),
            backends: Mutex::default(),
            bus: Bus::new(),
            monitors: Monitors::default(),
        }
    }
}

impl Target for Paper {
    fn about(&self) -> About {
        self.about.clone()
    }

    fn run_state(&self) -> RunState {
        self.state.lock().unwrap().unwrap()
    }

    fn order(&self, order: Order) -> Result<(), Error> {
        self.orders.lock().unwrap().push(order);
        let (state, event) = match order {
            Order::Stop => (RunState::Paused, Event::Stop),
            Order::Cont => (RunState::Running, Event::Resume),
            _ => return Ok(()),
        };
        *self.state.lock().unwrap() = Some(state);
        self.monitors.emit(event);
        Ok(())
    }

    fn pci(&self) -> Option<&Bus> {
        Some(&self.bus)
    }

    fn devices(&self) -> Vec<DeviceView> {
        self.devices.lock().unwrap().clone()
    }

    fn plug(&self, device: DeviceConfig) -> Result<(), Error> {
        let mut devices = self.devices.lock().unwrap();
        let id = device.options.get("id").map(str::to_owned);
        let path = match &id {
            Some(id) => format!("/machine/peripheral/{id}"),
            None => format!("/machine/peripheral-anon/device[{}]", devices.len()),
        };
        devices.push(DeviceView {
            driver: device.name,
            id,
            path,
            address: None,
            parent: None,
            options: device.options,
            control: info::Control::None,
            hotplugged: true,
        });
        Ok(())
    }

    fn unplug(&self, path: &str) -> Result<(), Error> {
        let mut devices = self.devices.lock().unwrap();
        let index = devices.iter().position(|device| device.path == path).unwrap();
        let gone = devices.remove(index);
        let path = gone.path;
        self.monitors
            .emit(Event::DeviceDeleted(DeviceDeleted { device: gone.id, path }));
        Ok(())
    }

    fn backends(&self) -> &Mutex<Backends> {
        &self.backends
    }
}

/// A client of a machine of paper, without a socket between them.
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

    /// Sends bytes; returns what came back.
    pub(super) fn send(&self, mut bytes: &[u8]) -> Vec<Value> {
        let mut stream: MutexGuard<'_, Stream> = self.stream.lock().unwrap();
        let context = Context {
            target: &*self.target,
            link: &self.link,
            monitors: &self.target.monitors,
        };
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

    /// Runs a command that fails; returns the class and the description.
    pub(super) fn fails(&self, command: &str, arguments: Value) -> (String, String) {
        let error = self.run(command, arguments).unwrap_err();
        let member = |name: &str| error[name].as_str().unwrap().to_owned();
        (member("class"), member("desc"))
    }

    /// The events that have come.
    pub(super) fn events(&self) -> Vec<Value> {
        let mut text = Vec::new();
        self.link
            .drain(|waiting| {
                text.extend(waiting);
                Ok(waiting.len())
            })
            .unwrap();
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
pub(super) fn generic(description: &str) -> (String, String) {
    ("GenericError".to_owned(), description.to_owned())
}
