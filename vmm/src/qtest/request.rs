//! Requests of the qtest protocol (QEMU softmmu/qtest.c): a line each, its words separated by single spaces.

use std::ops::RangeInclusive;

/// The most bytes that one request moves. libqtest's clients stay below 1 MiB.
pub const MAX_TRANSFER: u64 = 64 << 20;

/// How bytes are written in a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// Two lower-case digits a byte, behind `0x`.
    Hex,
    /// RFC 4648, with padding.
    Base64,
}

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// In which order the guest's processor stores the bytes of a word.
    Endianness,
    /// IN of so many bytes.
    In { port: u16, width: usize },
    /// OUT of so many bytes.
    Out { port: u16, width: usize, value: u32 },
    /// A load of so many bytes.
    Load { address: u64, width: usize },
    /// A store of so many bytes.
    Store { address: u64, width: usize, value: u64 },
    /// Bytes of memory.
    Read {
        address: u64,
        length: usize,
        encoding: Encoding,
    },
    /// Bytes for memory.
    Write { address: u64, data: Vec<u8> },
    /// One byte for a whole range of memory.
    Fill { address: u64, length: usize, byte: u8 },
    /// The clock goes on by so many nanoseconds, or to the next timer.
    ClockStep(Option<i64>),
    /// The clock goes to so many nanoseconds, unless it is there already.
    ClockSet(i64),
    /// Changes of the inputs of the chip of this name are to be told.
    InterceptInputs(&'a str),
}

/// Why a line is not followed; the client gets this text.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// No such word, or not here
    #[error("Unknown command '{0}'")]
    Unknown(String),
    /// Fewer words than the request has
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A word that should be a number
    #[error("'{0}' is not a {1}")]
    Number(String, &'static str),
    /// A number too large, or too small
    #[error("{what} {value:#x} is not in {least:#x} to {most:#x}")]
    Bounds {
        what: &'static str,
        value: u64,
        least: u64,
        most: u64,
    },
    /// Digits that are none
    #[error("the data is no {0}")]
    Data(&'static str),
}

impl<'a> Request<'a> {
    /// Reads a line, without the byte that ends it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &'a str) -> Result<Self, RequestError> {
        let mut words = Words(line.split(' '));
        let command = words.next("a command")?;
        let (width, plain) = (suffix_width(command), command.get(..command.len().saturating_sub(1)));
        match (command, plain.unwrap_or_default(), width) {
            ("endianness", ..) => Ok(Self::Endianness),
            ("read", ..) => Ok(Self::Read {
                address: words.number("address")?,
                length: words.length(1)?,
                encoding: Encoding::Hex,
            }),
            ("b64read", ..) => Ok(Self::Read {
                address: words.number("address")?,
                length: words.length(0)?,
                encoding: Encoding::Base64,
            }),
            ("write", ..) => words.write(hex),
            ("b64write", ..) => words.write(base64),
            ("memset", ..) => Ok(Self::Fill {
                address: words.number("address")?,
                length: words.length(0)?,
                // As C's memset: only the low byte counts.
                byte: words.number("byte")? as u8,
            }),
            ("clock_step", ..) => words.0.next().map(nanoseconds).transpose().map(Self::ClockStep),
            ("clock_set", ..) => words.next("time").and_then(nanoseconds).map(Self::ClockSet),
            ("irq_intercept_in", ..) => words.next("path").map(Self::InterceptInputs),
            (_, "in", Some(width @ ..=4)) => Ok(Self::In {
                port: words.port()?,
                width,
            }),
            (_, "out", Some(width @ ..=4)) => Ok(Self::Out {
                port: words.port()?,
                width,
                // Digits beyond the width are dropped, as a cast in C does.
                value: words.number("value")? as u32,
            }),
            (_, "read", Some(width)) => Ok(Self::Load {
                address: words.number("address")?,
                width,
            }),
            (_, "write", Some(width)) => Ok(Self::Store {
                address: words.number("address")?,
                width,
                value: words.number("value")?,
            }),
            _ => Err(RequestError::Unknown(command.to_owned())),
        }
    }
}

/// The bytes that the last letter of a request means.
fn suffix_width(command: &str) -> Option<usize> {
    Some(match command.as_bytes().last()? {
        b'b' => 1,
        b'w' => 2,
        b'l' => 4,
        b'q' => 8,
        _ => return None,
    })
}

/// The words of a line that are left.
struct Words<'a>(std::str::Split<'a, char>);

impl<'a> Words<'a> {
    fn next(&mut self, what: &'static str) -> Result<&'a str, RequestError> {
        let word = self.0.next().filter(|word| !word.is_empty());
        word.ok_or(RequestError::Missing(what))
    }

    fn number(&mut self, what: &'static str) -> Result<u64, RequestError> {
        let word = self.next(what)?;
        number(word).ok_or_else(|| RequestError::Number(word.to_owned(), what))
    }

    fn bounded(&mut self, what: &'static str, bounds: RangeInclusive<u64>) -> Result<u64, RequestError> {
        let value = self.number(what)?;
        let (least, most) = (*bounds.start(), *bounds.end());
        let error = || RequestError::Bounds {
            what,
            value,
            least,
            most,
        };
        bounds.contains(&value).then_some(value).ok_or_else(error)
    }

    fn port(&mut self) -> Result<u16, RequestError> {
        Ok(self.bounded("port", 0..=u64::from(u16::MAX))? as u16)
    }

    fn length(&mut self, least: u64) -> Result<usize, RequestError> {
        Ok(self.bounded("length", least..=MAX_TRANSFER)? as usize)
    }

    /// Reads a request to write, whose data may be shorter than its length says: zeros follow then.
    fn write(mut self, decode: fn(&str, usize) -> Result<Vec<u8>, RequestError>) -> Result<Request<'a>, RequestError> {
        let (address, length) = (self.number("address")?, self.length(0)?);
        let mut data = decode(self.next("data")?, length)?;
        data.resize(length, 0);
        Ok(Request::Write { address, data })
    }
}

/// A number in C's notation: hexadecimal, octal or decimal.
fn number(word: &str) -> Option<u64> {
    let lower = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
    match (lower, word.strip_prefix('0')) {
        (Some(digits), _) => u64::from_str_radix(digits, 16).ok(),
        (None, Some(digits)) if !digits.is_empty() => u64::from_str_radix(digits, 8).ok(),
        _ => word.parse().ok(),
    }
    .filter(|_| !word.contains('+'))
}

fn nanoseconds(word: &str) -> Result<i64, RequestError> {
    let error = || RequestError::Number(word.to_owned(), "time");
    let magnitude = number(word.strip_prefix('-').unwrap_or(word)).ok_or_else(error)?;
    let magnitude = i64::try_from(magnitude).map_err(|_| error())?;
    Ok(if word.starts_with('-') { -magnitude } else { magnitude })
}

fn hex(word: &str, length: usize) -> Result<Vec<u8>, RequestError> {
    let error = || RequestError::Data("hexadecimal number");
    let digits = word
        .strip_prefix("0x")
        .filter(|digits| !digits.is_empty())
        .ok_or_else(error)?;
    let nibble = |digit: &u8| char::from(*digit).to_digit(16).map(|nibble| nibble as u8);
    // A last digit without its other half is dropped, as QEMU does.
    let pairs = digits.as_bytes().chunks_exact(2).take(length);
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(nibble(high)? << 4 | nibble(low)?),
        _ => None,
    };
    pairs.map(byte).collect::<Option<_>>().ok_or_else(error)
}

/// The digits of Base64, in the order of their values.
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(word: &str, length: usize) -> Result<Vec<u8>, RequestError> {
    let mut data = Vec::with_capacity(word.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for digit in word.trim_end_matches('=').bytes() {
        let value = BASE64.iter().position(|known| *known == digit);
        let value = value.ok_or(RequestError::Data("Base64"))?;
        bits = bits << 6 | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            data.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    data.truncate(length);
    Ok(data)
}

/// Writes bytes as the answer to a request has them.
pub fn encode(data: &[u8], encoding: Encoding) -> String {
    match encoding {
        Encoding::Hex => {
            let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or_default();
            let digits = data.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]);
            "0x".chars().chain(digits).collect()
        }
        Encoding::Base64 => data.chunks(3).flat_map(base64_group).map(char::from).collect(),
    }
}

/// Four digits for up to three bytes.
fn base64_group(bytes: &[u8]) -> [u8; 4] {
    let byte = |index| u32::from(bytes.get(index).copied().unwrap_or_default());
    let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
    let digit = |index: usize| match bytes.len() {
        count if index > count => b'=',
        _ => BASE64[(bits >> (18 - 6 * index) & 0x3f) as usize],
    };
    [0, 1, 2, 3].map(digit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_libqtest_sends_is_understood() {
        for (line, expected) in [
            ("endianness", Request::Endianness),
            ("inb 0x511", Request::In { port: 0x511, width: 1 }),
            (
                "outl 0xcf8 0x80002002",
                Request::Out {
                    port: 0xcf8,
                    width: 4,
                    value: 0x8000_2002,
                },
            ),
            (
                "readw 0x102002",
                Request::Load {
                    address: 0x10_2002,
                    width: 2,
                },
            ),
            (
                "writeq 0x100000 0xffffffffffffffff",
                Request::Store {
                    address: 0x10_0000,
                    width: 8,
                    value: u64::MAX,
                },
            ),
            (
                "read 0xe0000014 0x1",
                Request::Read {
                    address: 0xe000_0014,
                    length: 1,
                    encoding: Encoding::Hex,
                },
            ),
            (
                "write 0xe0000014 0x4 0x0f1E",
                Request::Write {
                    address: 0xe000_0014,
                    data: vec![0x0f, 0x1e, 0, 0],
                },
            ),
            (
                "b64write 0x10 0x5 YWJjZA==",
                Request::Write {
                    address: 0x10,
                    data: b"abcd\0".to_vec(),
                },
            ),
            (
                "memset 16 010 0x1ff",
                Request::Fill {
                    address: 16,
                    length: 8,
                    byte: 0xff,
                },
            ),
            ("clock_step", Request::ClockStep(None)),
            ("clock_step 100", Request::ClockStep(Some(100))),
            ("clock_step -1", Request::ClockStep(Some(-1))),
            ("clock_set 7", Request::ClockSet(7)),
            ("irq_intercept_in ioapic", Request::InterceptInputs("ioapic")),
        ] {
            assert_eq!(Request::parse(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn what_is_not_understood_says_why() {
        for (line, text) in [
            ("rtas x", "Unknown command 'rtas'"),
            ("module_load a b", "Unknown command 'module_load'"),
            ("inq 1", "Unknown command 'inq'"),
            ("", "a command is missing"),
            ("inb", "port is missing"),
            ("inb  1", "port is missing"),
            ("inb 0x10000", "port 0x10000 is not in 0x0 to 0xffff"),
            ("inb +1", "'+1' is not a port"),
            ("inb 09", "'09' is not a port"),
            ("read 0 0", "length 0x0 is not in 0x1 to 0x4000000"),
            ("read 0 0x4000001", "length 0x4000001 is not in 0x1 to 0x4000000"),
            ("write 0 1 0xg0", "the data is no hexadecimal number"),
            ("write 0 1 0x", "the data is no hexadecimal number"),
            ("b64write 0 1 %%", "the data is no Base64"),
            ("clock_set x", "'x' is not a time"),
        ] {
            assert_eq!(Request::parse(line).unwrap_err().to_string(), text, "{line}");
        }
    }

    #[test]
    fn data_beyond_the_length_is_dropped() {
        let expected = Request::Write {
            address: 0,
            data: vec![1],
        };
        assert_eq!(Request::parse("write 0 1 0x0102"), Ok(expected.clone()));
        assert_eq!(Request::parse("b64write 0 1 AQI="), Ok(expected));
    }

    #[test]
    fn base64_is_padded_as_the_rfc_says() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(encode(bytes.as_bytes(), Encoding::Base64), text);
        }
    }

    proptest! {
        #[test]
        fn bytes_come_back_from_either_encoding(bytes in prop::collection::vec(any::<u8>(), 1..50)) {
            prop_assert_eq!(&hex(&encode(&bytes, Encoding::Hex), usize::MAX).unwrap(), &bytes);
            prop_assert_eq!(&base64(&encode(&bytes, Encoding::Base64), usize::MAX).unwrap(), &bytes);
        }

        #[test]
        fn any_line_is_survived(line in "[a-z0-9x ]{0,40}|(in|out|read|write|memset|clock_step)[bwlq]? \\PC*") {
            let _ = Request::parse(&line);
        }
    }
}
