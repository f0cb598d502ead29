//! Monitors: where clients come from, and a thread for each monitor, which takes its client's commands one after the other.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::commands::Context;
use super::json::{Stream, Style};
use super::link::{FULL, Link, Monitors};
use super::people::Lines;
use super::protocol;
use super::target::Target;

/// Where a monitor's client is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// Clients connect to this socket, one at a time. With `wait` the first does so before the machine starts.
    UnixServer {
        /// The socket's path; it is made.
        path: PathBuf,
        /// Wait for the first client?
        wait: bool,
    },
    /// The client listens there.
    UnixClient {
        /// The socket's path.
        path: PathBuf,
    },
    /// As [`Self::UnixServer`], on a port of the host.
    TcpServer {
        /// `host:port`; the host is this one, by a loopback address.
        address: String,
        /// Wait for the first client?
        wait: bool,
    },
    /// As [`Self::UnixClient`], on a port of any host.
    TcpClient {
        /// `host:port`.
        address: String,
    },
    /// Standard input and output.
    Stdio,
}

impl Endpoint {
    /// As `query-chardev` shows it.
    fn filename(&self) -> String {
        match self {
            Self::UnixServer { path, .. } => format!("unix:{},server=on", path.display()),
            Self::UnixClient { path } => format!("unix:{}", path.display()),
            Self::TcpServer { address, .. } => format!("tcp:{address},server=on"),
            Self::TcpClient { address } => format!("tcp:{address}"),
            Self::Stdio => "stdio".to_owned(),
        }
    }
}

/// A monitor as the user wants it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MonitorConfig {
    /// The name of its character device.
    pub label: String,
    /// Where its client is.
    pub endpoint: Endpoint,
    /// How it speaks.
    pub language: Language,
}

/// How a monitor speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Language {
    /// QMP, its answers laid out like this.
    Control(Style),
    /// Lines for people.
    Lines,
}

/// A monitor cannot be had
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its endpoint
    #[error("monitor on {endpoint}: {source}")]
    Endpoint {
        /// As [`Endpoint`] is shown.
        endpoint: String,
        /// What the host says.
        source: io::Error,
    },
    /// A TCP port that others could reach
    #[error(
        "monitor on tcp:{0}: whoever connects rules the machine, so only loopback addresses are served; use 127.0.0.1, or a UNIX socket"
    )]
    NotLoopback(String),
}

/// A connection in both directions.
struct Connection {
    input: File,
    output: File,
    /// Was it made non-blocking by us, and is it others' too?
    shared: bool,
}

impl Connection {
    fn over(socket: OwnedFd) -> io::Result<Self> {
        set_nonblocking(socket.as_fd())?;
        Ok(Self {
            input: socket.try_clone()?.into(),
            output: socket.into(),
            shared: false,
        })
    }

    /// Standard input and output, which other processes may have too: they stay as they are.
    fn stdio() -> io::Result<Self> {
        Ok(Self {
            input: io::stdin().as_fd().try_clone_to_owned()?.into(),
            output: io::stdout().as_fd().try_clone_to_owned()?.into(),
            shared: true,
        })
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    fn accept(&self) -> io::Result<Connection> {
        Connection::over(match self {
            Self::Unix(listener) => listener.accept()?.0.into(),
            Self::Tcp(listener) => no_delay(listener.accept()?.0)?.into(),
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// Monitors with their threads. Dropping it sends what is still to be sent and ends them.
pub struct Server {
    running: Vec<(Arc<Link>, JoinHandle<()>)>,
    ending: Arc<AtomicBool>,
    sockets: Vec<PathBuf>,
}

/// How long clients may take for the last answers when the machine has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes of stack of a monitor's thread: a value may nest deep.
const STACK: usize = 8 << 20;

impl Server {
    /// Opens the endpoints of `configs`, waits for the clients that are to be waited for, and serves them all for `target`.
    ///
    /// # Errors
    /// An endpoint cannot be had.
    pub fn start(configs: &[MonitorConfig], monitors: &Monitors, target: &Arc<dyn Target>) -> Result<Self, ServeError> {
        let mut server = Self {
            running: Vec::new(),
            ending: Arc::default(),
            sockets: Vec::new(),
        };
        for config in configs {
            server.add(config, monitors, target)?;
        }
        Ok(server)
    }

    fn add(&mut self, config: &MonitorConfig, monitors: &Monitors, target: &Arc<dyn Target>) -> Result<(), ServeError> {
        let failed = |source| ServeError::Endpoint {
            endpoint: config.endpoint.filename(),
            source,
        };
        let (listener, first) = open(&config.endpoint)?;
        if let (Some(Listener::Unix(_)), Endpoint::UnixServer { path, .. }) = (&listener, &config.endpoint) {
            self.sockets.push(path.clone());
        }
        let style = match config.language {
            Language::Control(style) => style,
            Language::Lines => Style::Line,
        };
        let link = Arc::new(Link::new(style).map_err(failed)?);
        monitors.add(&config.label, &config.endpoint.filename(), &link);
        let monitor = Monitor {
            listener,
            language: config.language,
            link: Arc::clone(&link),
            monitors: monitors.clone(),
            target: Arc::clone(target),
            ending: Arc::clone(&self.ending),
        };
        let builder = std::thread::Builder::new().name(format!("qmp {}", config.label));
        let thread = builder.stack_size(STACK).spawn(move || monitor.run(first));
        self.running.push((link, thread.map_err(failed)?));
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        for (link, _) in &self.running {
            link.wake();
        }
        for (_, thread) in self.running.drain(..) {
            // A panicked thread has said so itself.
            let _ = thread.join();
        }
        for path in &self.sockets {
            // Whoever removed it before was right too.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn open(endpoint: &Endpoint) -> Result<(Option<Listener>, Option<Connection>), ServeError> {
    let failed = |source| ServeError::Endpoint {
        endpoint: endpoint.filename(),
        source,
    };
    let listen = |listener: Listener, wait: bool| {
        let first = wait.then(|| listener.accept()).transpose()?;
        set_nonblocking(listener.fd())?;
        Ok((Some(listener), first))
    };
    let connected = |connection: io::Result<Connection>| Ok((None, Some(connection?)));
    let opened: io::Result<_> = match endpoint {
        Endpoint::UnixServer { path, wait } => bind_unix(path).and_then(|socket| listen(Listener::Unix(socket), *wait)),
        Endpoint::UnixClient { path } => connected(UnixStream::connect(path).and_then(|s| Connection::over(s.into()))),
        Endpoint::TcpServer { address, wait } => {
            let all: Vec<_> = address.to_socket_addrs().map_err(failed)?.collect();
            if !all.iter().all(|address| address.ip().is_loopback()) {
                return Err(ServeError::NotLoopback(address.clone()));
            }
            TcpListener::bind(&all[..]).and_then(|socket| listen(Listener::Tcp(socket), *wait))
        }
        Endpoint::TcpClient { address } => {
            let socket = TcpStream::connect(address).and_then(no_delay);
            connected(socket.and_then(|socket| Connection::over(socket.into())))
        }
        Endpoint::Stdio => connected(Connection::stdio()),
    };
    opened.map_err(failed)
}

/// Listens at `path`, in place of a socket that another process left there (QEMU does the same).
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let left = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if left {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

fn no_delay(socket: TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    Ok(socket)
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as it is borrowed, and no memory is passed.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let set = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if set < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// What a monitor's thread owns.
struct Monitor {
    listener: Option<Listener>,
    language: Language,
    link: Arc<Link>,
    monitors: Monitors,
    target: Arc<dyn Target>,
    ending: Arc<AtomicBool>,
}

/// What has come of the client's next request.
enum Input {
    Control(Stream),
    Lines(Lines),
}

impl Input {
    /// Greets a client.
    fn open(language: Language, link: &Link) -> Self {
        match language {
            Language::Control(_) => {
                link.send(&protocol::greeting());
                Self::Control(Stream::default())
            }
            Language::Lines => {
                Lines::greet(link);
                Self::Lines(Lines::default())
            }
        }
    }

    /// Takes a request from the front of `bytes`, does it and answers. `false` when none is complete.
    fn serve(&mut self, bytes: &mut &[u8], context: &Context<'_>) -> bool {
        match self {
            Self::Control(stream) => match stream.next(bytes) {
                Some(request) => {
                    context.link.send(&protocol::answer(request, context));
                    true
                }
                None => false,
            },
            Self::Lines(lines) => lines.serve(bytes, context),
        }
    }
}

/// Why a client is served no longer.
enum Gone {
    Client,
    Us,
}

impl Monitor {
    fn run(self, first: Option<Connection>) {
        let mut next = first;
        loop {
            if let Some(connection) = next.take() {
                self.link.set_connected(true);
                let gone = self.serve(connection);
                self.link.set_connected(false);
                if matches!(gone, Gone::Us) {
                    return;
                }
            }
            next = match &self.listener {
                Some(listener) => self.accept(listener),
                None => return,
            };
            if self.ending.load(Ordering::Acquire) {
                return;
            }
        }
    }

    /// Waits for the next client, or the end.
    fn accept(&self, listener: &Listener) -> Option<Connection> {
        let fds = [(listener.fd().as_raw_fd(), libc::POLLIN), (self.wake(), libc::POLLIN)];
        if wait(&fds, None).is_err() {
            // Out of kernel memory: once more, and not at full speed.
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = self.link.wake_fd().read();
        listener.accept().ok()
    }

    fn wake(&self) -> RawFd {
        self.link.wake_fd().as_raw_fd()
    }

    fn serve(&self, mut connection: Connection) -> Gone {
        let mut requests = Input::open(self.language, &self.link);
        let mut ends: Option<Instant> = None;
        let mut input_open = true;
        loop {
            if self.ending.load(Ordering::Acquire) {
                let end = *ends.get_or_insert_with(|| Instant::now() + LAST_WORDS);
                if self.link.waiting() == 0 || Instant::now() >= end {
                    return Gone::Us;
                }
            } else if !input_open && self.link.waiting() == 0 {
                return Gone::Client;
            }
            let taking = input_open && ends.is_none() && self.link.waiting() < FULL;
            let timeout = ends.map(|end| end.saturating_duration_since(Instant::now()));
            let Ok((readable, writable)) = self.wait(&connection, taking, timeout) else {
                return Gone::Client;
            };
            if writable && !self.write(&mut connection) {
                return Gone::Client;
            }
            if readable && taking {
                input_open = self.read(&mut connection, &mut requests);
            }
        }
    }

    /// Waits until something can be done; says whether there is input, and whether output can go.
    fn wait(&self, connection: &Connection, taking: bool, timeout: Option<Duration>) -> io::Result<(bool, bool)> {
        let input = if taking { libc::POLLIN } else { 0 };
        let output = if self.link.waiting() > 0 { libc::POLLOUT } else { 0 };
        let fds = [
            (connection.input.as_raw_fd(), input),
            (connection.output.as_raw_fd(), output),
            (self.wake(), libc::POLLIN),
        ];
        let [readable, writable, woken] = wait(&fds, timeout)?;
        if woken != 0 {
            let _ = self.link.wake_fd().read();
        }
        // Errors of the output are found by writing to it; a client that hung up is found by reading.
        Ok((readable != 0, writable & (libc::POLLOUT | libc::POLLERR) != 0))
    }

    /// Takes what has come, and does it. Says whether more can come.
    fn read(&self, connection: &mut Connection, requests: &mut Input) -> bool {
        let mut buffer = [0; 16 << 10];
        let count = match connection.input.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return is_for_now(&error),
        };
        let mut input = buffer.get(..count).unwrap_or_default();
        let context = Context {
            target: &*self.target,
            link: &self.link,
            monitors: &self.monitors,
        };
        while requests.serve(&mut input, &context) {
            // A buffer of small commands can make many answers: those go first.
            while self.link.waiting() >= FULL && !self.ending.load(Ordering::Acquire) {
                match self.wait(connection, false, None) {
                    Ok((_, true)) if self.write(connection) => {}
                    Ok((_, false)) => {}
                    _ => return false,
                }
            }
        }
        true
    }

    /// Sends what waits. Says whether more can go.
    fn write(&self, connection: &mut Connection) -> bool {
        // Others may rely on standard output's blocking; what surely fits in a pipe goes through without.
        let limit = if connection.shared { libc::PIPE_BUF } else { usize::MAX };
        let output = &mut connection.output;
        let sent = self
            .link
            .drain(|waiting| output.write(waiting.get(..limit).unwrap_or(waiting)));
        sent.map_or_else(|error| is_for_now(&error), |()| true)
    }
}

fn is_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Waits for one of the events, which stand beside their descriptors, and returns those that came.
fn wait<const N: usize>(fds: &[(RawFd, i16); N], timeout: Option<Duration>) -> io::Result<[i16; N]> {
    let mut polled = fds.map(|(fd, events)| libc::pollfd {
        // Without a wanted event a descriptor that has hung up would not let us wait.
        fd: if events == 0 { -1 } else { fd },
        events,
        revents: 0,
    });
    let timeout = timeout.map_or(-1, |timeout| i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: the array outlives the call and its length is right.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, timeout) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(polled.map(|fd| fd.revents))
}

#[cfg(test)]
mod tests;
