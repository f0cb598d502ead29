//! The far end of the load: on the other side of a tap interface, or of a stream that carries frames.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use xtask::Result;
use xtask::error::During;
use xtask::load::datagrams::{Datagrams, PORT, Request, Task, serve};
use xtask::load::widen;

use super::frames::{Ends, FrameStream};

/// A guest that has said nothing for so long is not going to.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves datagrams and streams at every address of this host, on threads that end with the process.
///
/// # Errors
/// The port is taken.
pub fn serve_addresses() -> Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", PORT)).during(|| format!("taking UDP port {PORT}"))?;
    widen(&socket).during(|| "making room for datagrams (run as root)")?;
    let timeout = socket.set_read_timeout(Some(PATIENCE));
    timeout.during(|| "limiting the time that a guest takes")?;
    let listener = TcpListener::bind(("0.0.0.0", PORT)).during(|| format!("taking TCP port {PORT}"))?;
    thread::spawn(move || {
        let mut wire = Answering { socket };
        loop {
            tell(serve(&mut wire));
        }
    });
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(|| tell(stream.and_then(blocks)));
        }
    });
    Ok(())
}

/// Serves datagrams to each card that connects to the UNIX socket at `path`, in frames between `ends`.
///
/// # Errors
/// There can be no such socket.
pub fn serve_frames(path: &Path, ends: Ends) -> Result<()> {
    let listener = UnixListener::bind(path).during(|| format!("listening at {}", path.display()))?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let served = stream.and_then(|stream: UnixStream| serve(&mut FrameStream::new(stream, ends)));
            tell(served);
        }
    });
    Ok(())
}

/// Guests boot, and are ended, while their far ends wait for them.
fn tell(result: io::Result<()>) {
    match result {
        Err(error) if !matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::WouldBlock) => {
            eprintln!("the guest's far end: {error}");
        }
        _ => {}
    }
}

/// A socket that answers whoever asked last.
struct Answering {
    socket: UdpSocket,
}

impl Datagrams for Answering {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send(datagram).map(drop)
    }

    fn receive(&mut self, datagram: &mut [u8]) -> io::Result<usize> {
        let (len, from) = self.socket.recv_from(datagram)?;
        if Request::parse(&datagram[..len]).is_some() {
            self.socket.connect(from)?;
        }
        Ok(len)
    }
}

/// One request for blocks of a stream.
fn blocks(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; xtask::load::datagrams::HEADER];
    stream.read_exact(&mut request)?;
    let Request { task, count, size } = Request::parse(&request).ok_or(io::ErrorKind::InvalidData)?;
    let mut block = vec![0; size as usize];
    for _ in 0..count {
        match task {
            Task::Source => stream.write_all(&block)?,
            _ => stream.read_exact(&mut block)?,
        }
    }
    match task {
        Task::Source => Ok(()),
        _ => stream.write_all(&[0]),
    }
}
