//! What a file is by its first bytes.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The magic number of qcow2 (QEMU, docs/interop/qcow2.txt).
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
/// Header of version 2: the backing file's name is at the 64-bit offset in bytes 8 to 15, 0 if
/// there is none.
const BACKING_OFFSET: std::ops::Range<usize> = 8..16;
/// Version 3: incompatible features, big-endian; bit 2 is an external data file.
const INCOMPATIBLE_FEATURES: std::ops::Range<usize> = 72..80;
const EXTERNAL_DATA_FILE: u8 = 1 << 2;

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// A qcow2 image.
    Qcow2 {
        /// It has a backing file or an external data file.
        refers_to_files: bool,
    },
    /// Anything else.
    Unknown,
}

/// Looks at the file at `path`.
///
/// # Errors
/// It cannot be read.
pub fn identify(path: &Path) -> io::Result<Found> {
    let mut header = Vec::new();
    File::open(path)?.take(80).read_to_end(&mut header)?;
    Ok(from_header(&header))
}

fn from_header(header: &[u8]) -> Found {
    if !header.starts_with(&QCOW2_MAGIC) {
        return Found::Unknown;
    }
    let field = |range: std::ops::Range<usize>| header.get(range).unwrap_or_default();
    let version = field(4..8);
    let backed = field(BACKING_OFFSET).iter().any(|&byte| byte != 0);
    let external = version != [0, 0, 0, 2]
        && field(INCOMPATIBLE_FEATURES)
            .last()
            .is_some_and(|byte| byte & EXTERNAL_DATA_FILE != 0);
    Found::Qcow2 {
        refers_to_files: backed || external,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u8, backing: u8, features: u8) -> Vec<u8> {
        let mut header = vec![0; 80];
        header[..4].copy_from_slice(&QCOW2_MAGIC);
        header[7] = version;
        header[15] = backing;
        header[79] = features;
        header
    }

    #[test]
    fn references_to_other_files_are_seen() {
        let plain = Found::Qcow2 { refers_to_files: false };
        let referring = Found::Qcow2 { refers_to_files: true };
        assert_eq!(from_header(&header(3, 0, 0)), plain);
        assert_eq!(from_header(&header(2, 0, EXTERNAL_DATA_FILE)), plain);
        assert_eq!(from_header(&header(3, 0, EXTERNAL_DATA_FILE)), referring);
        assert_eq!(from_header(&header(2, 104, 0)), referring);
        assert_eq!(from_header(&header(3, 104, 0)), referring);
    }

    #[test]
    fn everything_else_is_unknown() {
        for bytes in [&b""[..], b"QFI", b"\xfbIFQ\0\0\0\x03", &[0; 80]] {
            assert_eq!(from_header(bytes), Found::Unknown);
        }
        assert_eq!(from_header(b"QFI\xfb"), Found::Qcow2 { refers_to_files: false });
    }
}
