//! MD5 sums, which busybox makes too: what a guest has read or written is what the host has.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Error;

/// The sum of `bytes`.
///
/// # Errors
/// The host has no md5sum.
pub fn md5(bytes: &[u8]) -> Result<String, Error> {
    let mut child = Command::new("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(bytes)?;
    }
    first_word(child.wait_with_output()?.stdout)
}

/// The sum of a file.
///
/// # Errors
/// It cannot be read, or the host has no md5sum.
pub fn md5_of_file(path: &Path) -> Result<String, Error> {
    let output = Command::new("md5sum").stdin(File::open(path)?).output()?;
    first_word(output.stdout)
}

fn first_word(output: Vec<u8>) -> Result<String, Error> {
    let text = String::from_utf8(output)?;
    Ok(text.split_whitespace().next().ok_or("md5sum said nothing")?.to_owned())
}
