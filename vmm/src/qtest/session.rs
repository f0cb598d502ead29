//! Follows a test's requests, one after the other.

use std::io::{self, BufRead, BufReader, Read};

use super::channel::{Connection, Output};
use super::machine::QtestMachine;
use super::request::{MAX_TRANSFER, Request, RequestError, encode};

/// Bytes of the longest line: the most data that a request can have, two digits each, and its words.
const LONGEST_LINE: u64 = 2 * MAX_TRANSFER + 256;

/// Serves a test until it closes its end.
///
/// # Errors
/// The connection failed.
pub fn serve(machine: &QtestMachine, connection: Connection) -> io::Result<()> {
    let Connection { input, output } = connection;
    output.log('I', "OPENED");
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    loop {
        line.clear();
        input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        // Without its end it is the rest of a line that will never be complete, or too long.
        let Some(text) = line.strip_suffix(b"\n") else {
            output.log('I', "CLOSED");
            return Ok(());
        };
        let text = String::from_utf8_lossy(text);
        output.log('R', &text);
        let answer = match Request::parse(&text).and_then(|request| answer(machine, &output, request)) {
            Ok(answer) => answer,
            Err(error) => format!("FAIL {error}"),
        };
        output.send(&answer)?;
    }
}

fn answer(machine: &QtestMachine, output: &Output, request: Request<'_>) -> Result<String, RequestError> {
    let done = || Ok("OK".to_owned());
    match request {
        Request::Endianness => Ok("OK little".to_owned()),
        Request::In { port, width } => {
            let mut data = [0; 4];
            machine.read_port(port, &mut data[..width]);
            Ok(format!("OK {:#06x}", u32::from_le_bytes(data)))
        }
        Request::Out { port, width, value } => {
            machine.write_port(port, &value.to_le_bytes()[..width]);
            done()
        }
        Request::Load { address, width } => {
            let mut data = [0; 8];
            machine.read_memory(address, &mut data[..width]);
            Ok(format!("OK {:#018x}", u64::from_le_bytes(data)))
        }
        Request::Store { address, width, value } => {
            machine.write_memory(address, &value.to_le_bytes()[..width]);
            done()
        }
        Request::Read {
            address,
            length,
            encoding,
        } => {
            let mut data = vec![0; length];
            machine.read_memory(address, &mut data);
            Ok(format!("OK {}", encode(&data, encoding)))
        }
        Request::Write { address, data } => {
            machine.write_memory(address, &data);
            done()
        }
        Request::Fill { address, length, byte } => {
            machine.write_memory(address, &vec![byte; length]);
            done()
        }
        Request::ClockStep(step) => {
            let clock = machine.clock();
            let now = step.map_or_else(|| clock.step_to_next(), |step| clock.step(step));
            Ok(format!("OK {now}"))
        }
        Request::ClockSet(time) => {
            let time = u64::try_from(time).unwrap_or(0);
            Ok(format!("OK {}", machine.clock().set(time)))
        }
        Request::InterceptInputs(path) => match machine.intercept(path, output) {
            true => done(),
            false => Ok("FAIL Unknown device".to_owned()),
        },
    }
}
