//! What guests find on the other side of their network cards: a network namespace of the test's own, an interface with a route, servers.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;
use crate::resources;

/// The address of [`NAME`], and of this host for whoever asks for it by that name.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// The only name that the name server knows.
pub const NAME: &str = "innkeeper.test";

/// How long a server may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` on a thread with a network and mounts of its own: an up loopback interface, and nothing else, that no other program sees.
/// When it panics, so does this.
///
/// # Errors
/// When the namespaces cannot be made: root can.
pub fn apart<T: Send>(test: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let outcome = thread::scope(|scope| scope.spawn(|| enter().map(|()| test())).join());
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn enter() -> Result<(), Error> {
    // SAFETY: unshare takes flags only. It changes this thread, which ends with the test, and its children.
    if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the target is a C string; the other pointers may be null when only the propagation is changed.
    let private = unsafe {
        libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        )
    };
    if private != 0 {
        return Err(io::Error::last_os_error().into());
    }
    ip("link set lo up")
}

/// Runs `ip` with these words.
///
/// # Errors
/// With its own words when it fails.
pub fn ip(words: &str) -> Result<(), Error> {
    run(Command::new("ip").args(words.split_whitespace()))
}

/// Runs a command to its end.
///
/// # Errors
/// With its own words when it fails.
pub fn run(command: &mut Command) -> Result<(), Error> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    Err(format!("{command:?}: {}: {words}", output.status).into())
}

/// Gives this namespace a card with an address and a default route, and a name server that knows [`NAME`].
///
/// # Errors
/// When something of it cannot be set up.
pub fn way_out() -> Result<(), Error> {
    ip("link add out0 type dummy")?;
    ip("addr add 203.0.113.2/24 dev out0")?;
    ip("link set out0 up")?;
    ip("route add default via 203.0.113.1")?;
    ip(&format!("addr add {ADDRESS}/32 dev lo"))?;
    let own = std::env::temp_dir().join("resolv.conf");
    fs::write(&own, "nameserver 127.0.0.1\n")?;
    if !fs::exists("/etc/resolv.conf")? {
        fs::write("/etc/resolv.conf", "")?;
    }
    run(Command::new("mount").arg("--bind").arg(&own).arg("/etc/resolv.conf"))?;
    serve_names()
}

/// Answers questions for the address of [`NAME`] on port 53 of the loopback interface, until the process ends.
fn serve_names() -> Result<(), Error> {
    let socket = UdpSocket::bind(("127.0.0.1", 53))?;
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            if let Some(answer) = answer(&question[..length]) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    Ok(())
}

/// The answer to a DNS question (RFC 1035, section 4): an address for the right name and type, "no such name" for other names.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    const TYPE_A: u16 = 1;
    let mut labels = question.get(HEADER..)?;
    let mut name = Vec::new();
    while let (&length, rest) = labels.split_first()?
        && length > 0
    {
        let (label, rest) = rest.split_at_checked(length.into())?;
        name.push(std::str::from_utf8(label).ok()?);
        labels = rest;
    }
    let kind = u16::from_be_bytes(labels.get(1..3)?.try_into().ok()?);
    let known = name.join(".").eq_ignore_ascii_case(NAME);
    let found = known && kind == TYPE_A;
    // An answer, with recursion; its code is 3 for a name that is not there.
    let flags = [0x85, if known { 0x80 } else { 0x83 }];
    let counts = [0, 1, 0, found.into(), 0, 0, 0, 0];
    let end = question.len() - labels.len() + 5;
    let mut answer = [&question[..2], &flags, &counts, question.get(HEADER..end)?].concat();
    if found {
        // The name as in the question, an address of the Internet, for a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(ADDRESS.octets());
    }
    Some(answer)
}

/// Serves `page` by HTTP on this port of every address, until the process ends.
///
/// # Errors
/// When the port is taken.
pub fn serve_page(port: u16, page: Vec<u8>) -> Result<(), Error> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let _ = give(&client, &page);
        }
    });
    Ok(())
}

fn give(mut client: &TcpStream, page: &[u8]) -> io::Result<()> {
    let request = BufReader::new(client).lines();
    request.map_while(Result::ok).find(String::is_empty);
    write!(client, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", page.len())?;
    client.write_all(page)
}

/// Fetches a page by HTTP.
///
/// # Errors
/// When there is no server, or no page.
pub fn fetch(server: SocketAddr, path: &str) -> Result<Vec<u8>, Error> {
    let mut client = TcpStream::connect_timeout(&server, PATIENCE)?;
    client.set_read_timeout(Some(PATIENCE))?;
    write!(client, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    io::Read::read_to_end(&mut client, &mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    match end {
        Some(end) if answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200") => {
            Ok(answer.split_off(end + 4))
        }
        _ => Err(format!("{server}{path}: {}", String::from_utf8_lossy(&answer)).into()),
    }
}

/// A running iperf3 server, which ends with this.
pub struct Iperf3(Child);

impl Iperf3 {
    /// Starts it on its usual port.
    ///
    /// # Errors
    /// When it cannot be started or does not come up.
    pub fn start() -> Result<Self, Error> {
        let mut command = resources::tool("iperf3")?;
        let server = Self(command.arg("-s").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        let deadline = Instant::now() + PATIENCE;
        while TcpListener::bind((Ipv4Addr::UNSPECIFIED, 5201)).is_ok() {
            if Instant::now() > deadline {
                return Err("iperf3 does not listen".into());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }
}

impl Drop for Iperf3 {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn question(name: &str, kind: u8) -> Vec<u8> {
        let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            question.push(u8::try_from(label.len()).unwrap());
            question.extend(label.bytes());
        }
        question.extend([0, 0, kind, 0, 1]);
        question
    }

    #[test]
    fn the_name_server_knows_one_name_and_its_address() {
        let asked = question("Innkeeper.Test", 1);
        let said = answer(&asked).unwrap();
        assert_eq!(said[..8], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1]);
        assert_eq!(said[12..asked.len()], asked[12..]);
        assert!(said.ends_with(&[0, 4, 198, 51, 100, 7]));
        assert_eq!(
            answer(&question("innkeeper.test", 28)).unwrap()[..8],
            [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 0]
        );
        assert_eq!(answer(&question("example.org", 1)).unwrap()[3], 0x83);
        assert_eq!(answer(&asked[..20]), None);
    }
}
