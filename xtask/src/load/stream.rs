//! A load of bytes through a stream: one end [sends](send) or [receives](receive), the other [serves](serve).

use std::io::{self, Read, Write};

/// Bytes of a block.
pub const BLOCK: usize = 64 << 10;

/// What the far end is to do: the first byte of a request, before the number of blocks.
const TAKE: u8 = b'T';
const GIVE: u8 = b'G';
/// What it says when it has taken everything.
const TAKEN: u8 = b'D';

/// Sends so many blocks to somebody who [serves](serve); returns when all have come.
///
/// # Errors
/// Those of the stream.
pub fn send(stream: &mut (impl Read + Write), blocks: u32) -> io::Result<()> {
    request(stream, TAKE, blocks)?;
    let block = vec![b'x'; BLOCK];
    (0..blocks).try_for_each(|_| stream.write_all(&block))?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    match answer {
        [TAKEN] => Ok(()),
        [other] => Err(io::Error::other(format!("the far end says {other:#x}"))),
    }
}

/// Receives so many blocks from somebody who [serves](serve).
///
/// # Errors
/// Those of the stream.
pub fn receive(stream: &mut (impl Read + Write), blocks: u32) -> io::Result<()> {
    request(stream, GIVE, blocks)?;
    take(stream, blocks)
}

fn request(stream: &mut impl Write, what: u8, blocks: u32) -> io::Result<()> {
    let [a, b, c, d] = blocks.to_le_bytes();
    stream.write_all(&[what, a, b, c, d])
}

fn take(stream: &mut impl Read, blocks: u32) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    (0..blocks).try_for_each(|_| stream.read_exact(&mut block))
}

/// Does what is asked for, until the stream ends.
///
/// # Errors
/// Those of the stream.
pub fn serve(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let block = vec![b'x'; BLOCK];
    loop {
        let mut request = [0; 5];
        stream.read_exact(&mut request)?;
        let [what, a, b, c, d] = request;
        let blocks = u32::from_le_bytes([a, b, c, d]);
        match what {
            TAKE => {
                take(stream, blocks)?;
                stream.write_all(&[TAKEN])?;
            }
            GIVE => (0..blocks).try_for_each(|_| stream.write_all(&block))?,
            _ => return Err(io::Error::other(format!("nothing to do is called {what:#x}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn blocks_go_both_ways_until_the_stream_ends() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || serve(&mut far));
        send(&mut near, 3).unwrap();
        receive(&mut near, 2).unwrap();
        send(&mut near, 0).unwrap();
        drop(near);
        assert_eq!(server.join().unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
