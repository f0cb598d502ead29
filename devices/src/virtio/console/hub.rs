//! The worker that serves all queues of a device and the far ends of its ports, on an I/O thread.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::control::SerialEvent;
use super::lane::Lane;
use super::mailbox::{Answer, Mailbox, Request};
use super::message::{Event, FromDriver, HEADER_BYTES, Outbox, Size, ToDriver};
use super::port::{Port, PortKind};
use super::queue::{Queue, Role};
use crate::chardev::Chardev;
use crate::io_thread::{Interest, Source, Worker};
use crate::virtio::device::QueueStart;
use crate::virtio::listeners::Listeners;
use crate::virtio::virtq::QueueState;

/// Tokens: those of kicks are the queues' indices, then come those of far ends.
mod token {
    pub(super) const FAR_ENDS: u32 = 0x1_0000;
    pub(super) const MAILBOX: u32 = u32::MAX;
    pub(super) const TICK: u32 = u32::MAX - 1;
}

/// How often far ends are looked at that nobody tells of.
const TICK: Duration = Duration::from_secs(1);

/// See the [module](self).
pub(super) struct Hub {
    mailbox: Arc<Mailbox>,
    listeners: Arc<Listeners<SerialEvent>>,
    /// One for each number that a port can have.
    lanes: Vec<Lane>,
    /// Those of which something may be wanted before the thread sleeps.
    awake: Vec<u32>,
    to_driver: Option<Queue>,
    from_driver: Option<Queue>,
    outbox: Outbox,
    /// Messages went about since the thread slept.
    talking: bool,
    multiport: bool,
    /// The driver has said that it is ready for messages.
    listening: bool,
    sizes: Vec<(u32, Size)>,
    /// Far ends of ports that are no more, open until they are no longer watched.
    departed: Vec<Chardev>,
    /// Who waits for that.
    removed: Vec<Answer<()>>,
    sources_changed: bool,
    timer: TimerFd,
    ticking: bool,
}

impl Hub {
    pub(super) fn new(mailbox: Arc<Mailbox>, listeners: Arc<Listeners<SerialEvent>>, ports: u32) -> io::Result<Self> {
        Ok(Self {
            mailbox,
            listeners,
            lanes: (0..ports).map(|_| Lane::default()).collect(),
            awake: Vec::new(),
            to_driver: None,
            from_driver: None,
            outbox: Outbox::default(),
            talking: false,
            multiport: false,
            listening: false,
            sizes: Vec::new(),
            departed: Vec::new(),
            removed: Vec::new(),
            sources_changed: false,
            timer: TimerFd::new().map_err(io::Error::from)?,
            ticking: false,
        })
    }

    fn take_mail(&mut self) {
        let (requests, emergency) = self.mailbox.take();
        for request in requests {
            self.carry_out(request);
        }
        self.write_emergency(&emergency);
    }

    fn carry_out(&mut self, request: Request) {
        // Whoever asked may have stopped waiting; that is their affair.
        match request {
            Request::Activate { multiport, done } => {
                self.multiport = multiport;
                let _ = done.send(());
            }
            Request::Start(start) => self.start(*start),
            Request::Stop(index, answer) => {
                let _ = answer.send(self.stop(index));
            }
            Request::Reset(done) => {
                self.reset();
                let _ = done.send(());
            }
            Request::Add(port, done) => {
                self.add_port(*port);
                let _ = done.send(());
            }
            Request::Remove(number, done) => {
                self.remove_port(number);
                // Its far end is closed only when it is no longer watched.
                self.removed.push(done);
                self.sources_changed = true;
            }
            Request::Resize(number, size, done) => {
                self.resize(number, size);
                let _ = done.send(());
            }
        }
    }

    fn start(&mut self, start: QueueStart) {
        let role = Role::of(start.index);
        let queue = Queue::new(start);
        self.sources_changed = true;
        match role {
            Role::ToDriver => self.to_driver = Some(queue),
            Role::FromDriver => self.from_driver = Some(queue),
            Role::Input(number) | Role::Output(number) => {
                if let Some(lane) = self.lanes.get_mut(number as usize) {
                    match role {
                        Role::Input(_) => lane.start_input(queue),
                        _ => lane.start_output(queue),
                    }
                }
                // Such a driver cannot say that it has opened its only port.
                if number == 0 && !self.multiport {
                    self.guest_opened(0, true);
                }
                self.serve(number);
            }
        }
        self.serve_messages();
    }

    fn stop(&mut self, index: u16) -> Option<QueueState> {
        self.sources_changed = true;
        match Role::of(index) {
            Role::ToDriver => self.to_driver.take().map(Queue::stop),
            Role::FromDriver => self.from_driver.take().map(Queue::stop),
            Role::Input(number) => self.lanes.get_mut(number as usize)?.stop_input(),
            Role::Output(number) => self.lanes.get_mut(number as usize)?.stop_output(),
        }
    }

    fn reset(&mut self) {
        self.outbox.clear();
        self.listening = false;
        for number in 0..self.lanes.len() as u32 {
            self.guest_opened(number, false);
            if let Some(lane) = self.lanes.get_mut(number as usize) {
                lane.reset();
            }
            // Whoever has gone while the guest listened is not waited for any more.
            if self.port(number).is_some() {
                self.serve(number);
            }
        }
    }

    fn add_port(&mut self, port: Port) {
        let number = port.number;
        let Some(lane) = self.lanes.get_mut(number as usize) else {
            return;
        };
        let usable = !self.multiport && number == 0 && (lane.input.is_some() || lane.output.is_some());
        lane.port = Some(port);
        self.sources_changed = true;
        if usable {
            self.guest_opened(number, true);
        }
        if self.listening {
            self.outbox.added(number);
        }
        self.serve(number);
        self.serve_messages();
    }

    /// What the guest has written and nobody has taken goes too, as in QEMU (`remove_port`).
    fn remove_port(&mut self, number: u32) {
        let Some(lane) = self.lanes.get_mut(number as usize) else {
            return;
        };
        let Some(port) = lane.port.take() else { return };
        lane.discard_output();
        if port.guest_open {
            self.listeners.tell(&SerialEvent::opened(&port, false));
        }
        self.departed.extend(port.far);
        self.sizes.retain(|(sized, _)| *sized != number);
        self.sources_changed = true;
        if self.listening {
            self.outbox.removed(number);
        }
        self.serve_messages();
    }

    fn resize(&mut self, number: u32, size: Size) {
        self.sizes.retain(|(sized, _)| *sized != number);
        self.sizes.push((number, size));
        if self.listening && self.is_console(number) {
            self.outbox.resized(number, size);
            self.serve_messages();
        }
    }

    fn is_console(&self, number: u32) -> bool {
        self.port(number).is_some_and(|port| port.kind == PortKind::Console)
    }

    fn port(&self, number: u32) -> Option<&Port> {
        self.lanes.get(number as usize)?.port.as_ref()
    }

    fn ports(&self) -> impl Iterator<Item = &Port> {
        self.lanes.iter().filter_map(|lane| lane.port.as_ref())
    }

    fn far_ends(&self) -> impl Iterator<Item = (u32, &Chardev)> {
        self.ports().filter_map(|port| Some((port.number, port.far.as_ref()?)))
    }

    /// Writes to the first console that leads anywhere, past whatever is waiting (QEMU, `set_config`).
    fn write_emergency(&mut self, bytes: &[u8]) {
        let mut ports = self.lanes.iter_mut().filter_map(|lane| lane.port.as_mut());
        let console = ports.find(|port| port.kind == PortKind::Console && port.host_open);
        if let Some(far) = console.and_then(Port::open_far) {
            // It is a last resort; what does not fit is lost.
            let _ = far.write(bytes);
        }
    }

    /// Moves a port's bytes, and tells the driver if its far end has come or gone.
    fn serve(&mut self, number: u32) {
        let Some(lane) = self.lanes.get_mut(number as usize) else {
            return;
        };
        let mut escapes = Vec::new();
        lane.serve(&mut escapes);
        if !std::mem::replace(&mut lane.awake, true) {
            self.awake.push(number);
        }
        for escape in escapes {
            self.listeners.tell(&SerialEvent::Escape(escape));
        }
        let Some(port) = self.lanes.get_mut(number as usize).and_then(|lane| lane.port.as_mut()) else {
            return;
        };
        self.sources_changed |= port.far.as_ref().is_some_and(Chardev::sources_changed);
        let open = port.is_host_open();
        if std::mem::replace(&mut port.host_open, open) != open {
            if self.listening {
                self.outbox.host_opened(number, open);
            }
            self.serve_messages();
            // What the guest has written for somebody who has gone; or there is somebody now.
            self.serve(number);
        }
    }

    fn guest_opened(&mut self, number: u32, open: bool) {
        let Some(port) = self.lanes.get_mut(number as usize).and_then(|lane| lane.port.as_mut()) else {
            return;
        };
        if std::mem::replace(&mut port.guest_open, open) != open {
            self.listeners.tell(&SerialEvent::opened(port, open));
        }
    }

    /// Exchanges messages with the driver, for as long as it takes ours.
    fn serve_messages(&mut self) {
        self.talking = true;
        self.send();
        let Some(queue) = &mut self.from_driver else { return };
        queue.disable_notify();
        for _ in 0..queue.size() {
            if self.outbox.is_full() {
                break;
            }
            let Some(queue) = &mut self.from_driver else { return };
            let Some(chain) = queue.pop() else { break };
            let mut header = [0; HEADER_BYTES];
            let complete = chain.reader().read_exact(&mut header).is_ok();
            queue.push(chain, 0);
            if let Some(message) = FromDriver::parse(header).filter(|_| complete) {
                self.receive(message);
            }
        }
        if let Some(queue) = &mut self.from_driver {
            queue.publish();
        }
        self.send();
    }

    fn receive(&mut self, message: FromDriver) {
        let (number, value) = (message.port, message.value);
        match message.event {
            Event::DeviceReady if value != 0 && self.multiport => {
                self.listening = true;
                let numbers: Vec<u32> = self.ports().map(|port| port.number).collect();
                for number in numbers {
                    self.outbox.added(number);
                }
            }
            Event::DeviceReady => tracing::debug!("virtio-serial: the driver failed to set the device up"),
            Event::PortReady if value != 0 => self.introduce(number),
            Event::PortReady => tracing::debug!("virtio-serial: the driver failed to set port {number} up"),
            Event::PortOpen => {
                self.guest_opened(number, value != 0);
                self.serve(number);
            }
            // Only the device says these.
            Event::PortAdd | Event::PortRemove | Event::ConsolePort | Event::Resize | Event::PortName => {}
        }
    }

    /// Tells the driver all about a port, in QEMU's order (`handle_control_message`).
    fn introduce(&mut self, number: u32) {
        let Some(port) = self.lanes.get(number as usize).and_then(|lane| lane.port.as_ref()) else {
            return;
        };
        if port.kind == PortKind::Console {
            self.outbox.answer(ToDriver::new(number, Event::ConsolePort, 1));
            if let Some((_, size)) = self.sizes.iter().find(|(sized, _)| *sized == number) {
                self.outbox.resized(number, *size);
            }
        }
        if let Some(name) = &port.name {
            self.outbox.answer(ToDriver::name(number, name));
        }
        if port.host_open {
            self.outbox.answer(ToDriver::new(number, Event::PortOpen, 1));
        }
    }

    /// Gives the driver as many messages as it has room for. One that does not fit is cut off.
    fn send(&mut self) {
        let Some(queue) = &mut self.to_driver else { return };
        queue.disable_notify();
        while let Some(message) = self.outbox.first() {
            let Some(chain) = queue.pop() else { break };
            let written = chain.writer().write(&message.bytes());
            queue.push(chain, written);
            self.outbox.remove_first();
        }
        queue.publish();
    }

    /// Asks to be kicked for messages, and for room for them. Returns whether there is some already.
    fn expect_messages(&mut self) -> bool {
        let mut more = false;
        if !self.outbox.is_full() {
            more |= self.from_driver.as_mut().is_some_and(Queue::enable_notify);
        }
        if self.outbox.first().is_some() {
            more |= self.to_driver.as_mut().is_some_and(Queue::enable_notify);
        }
        more
    }

    fn tick(&mut self) {
        // It has run out; whoever still wants it sets it again.
        self.ticking = false;
        let wanting = self.lanes.iter_mut().zip(0..);
        let wanting: Vec<u32> = wanting
            .filter_map(|(lane, number)| {
                let wants = lane.wants_tick();
                if wants {
                    lane.tick();
                }
                wants.then_some(number)
            })
            .collect();
        for number in wanting {
            self.serve(number);
        }
    }

    /// Lets the timer run if it is needed.
    fn set_timer(&mut self) {
        let needed = self.lanes.iter_mut().any(Lane::wants_tick);
        if std::mem::replace(&mut self.ticking, needed) == needed {
            return;
        }
        let set = if needed {
            self.timer.reset(TICK, None)
        } else {
            self.timer.clear()
        };
        if let Err(error) = set {
            tracing::error!("virtio-serial: no timer: {error}");
        }
    }

    /// A far end has something to say.
    fn far_end_ready(&mut self, token: u32) {
        let (number, token) = (token / Chardev::TOKENS, token % Chardev::TOKENS);
        let port = self.lanes.get_mut(number as usize).and_then(|lane| lane.port.as_mut());
        if let Some(far) = port.and_then(|port| port.far.as_mut()) {
            far.ready(token);
        }
        self.serve(number);
    }
}

impl Worker for Hub {
    fn sources(&self) -> Vec<Source> {
        let kick = |queue: &Queue| Source {
            fd: queue.kick_fd(),
            token: queue.index().into(),
            interest: Interest::Input,
        };
        let queues = self.lanes.iter().flat_map(|lane| lane.input.iter().chain(&lane.output));
        let queues = queues.chain(&self.to_driver).chain(&self.from_driver).map(kick);
        let far_ends = self
            .far_ends()
            .flat_map(|(number, far)| far.sources(token::FAR_ENDS + number * Chardev::TOKENS));
        let own = [
            Source::input(&self.mailbox.wake, token::MAILBOX),
            Source::input(&self.timer, token::TICK),
        ];
        own.into_iter().chain(queues).chain(far_ends).collect()
    }

    fn sources_changed(&self) -> bool {
        self.sources_changed
    }

    fn sources_taken(&mut self) {
        self.sources_changed = false;
        self.departed.clear();
        for done in self.removed.drain(..) {
            let _ = done.send(());
        }
        let ports = self.lanes.iter_mut().filter_map(|lane| lane.port.as_mut());
        ports
            .filter_map(|port| port.far.as_mut())
            .for_each(Chardev::sources_taken);
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn started(&mut self) {
        self.take_mail();
    }

    fn ready(&mut self, token: u32) {
        match token {
            token::MAILBOX => self.take_mail(),
            token::TICK => self.tick(),
            token::FAR_ENDS.. => self.far_end_ready(token - token::FAR_ENDS),
            queue => match Role::of(queue as u16) {
                Role::ToDriver | Role::FromDriver => self.serve_messages(),
                Role::Input(number) | Role::Output(number) => self.serve(number),
            },
        }
    }

    fn poll(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.awake.len() {
            let Some(&number) = self.awake.get(index) else { break };
            if self.lanes.get_mut(number as usize).is_some_and(Lane::has_work) {
                self.serve(number);
                any = true;
            }
        }
        let has_message = |queue: &Option<Queue>| queue.as_ref().is_some_and(Queue::has_available);
        let to_receive = !self.outbox.is_full() && has_message(&self.from_driver);
        if to_receive || self.outbox.first().is_some() && has_message(&self.to_driver) {
            self.serve_messages();
            any = true;
        }
        any
    }

    fn before_sleep(&mut self) -> bool {
        // The thread serves others too; most of the time there is nothing to do.
        if self.awake.is_empty() && !self.talking {
            return false;
        }
        let mut more = false;
        let lanes = &mut self.lanes;
        self.awake.retain(|&number| {
            let lane = lanes.get_mut(number as usize);
            lane.is_some_and(|lane| {
                lane.awake = lane.prepare_sleep();
                more |= lane.awake;
                lane.awake
            })
        });
        self.talking = self.expect_messages();
        self.set_timer();
        more || self.talking
    }

    fn panicked(&mut self) {
        let lanes = self.lanes.iter().flat_map(|lane| lane.input.iter().chain(&lane.output));
        lanes
            .chain(&self.to_driver)
            .chain(&self.from_driver)
            .for_each(Queue::fail);
        self.mailbox.close();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}
