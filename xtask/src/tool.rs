//! Running external programs: their command line in every error, no standard input, plain English output.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::error::{During, Error, Result};

/// A command without standard input and with messages in plain English.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Runs a command that prints to our own terminal.
///
/// # Errors
/// When it cannot be started or its status is not 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    let status = command.status().during(|| format!("starting `{line}`"))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Tool {
        command: line,
        status: status.to_string(),
        stderr: String::new(),
    })
}

/// Runs a command and returns what it wrote to its standard output.
///
/// # Errors
/// When it cannot be started or its status is not 0; its standard error is then in the message.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let line = line_of(command);
    let Output { status, stdout, stderr } = command.output().during(|| format!("starting `{line}`"))?;
    if status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&stderr).trim_end().to_string();
    Err(Error::Tool {
        command: line,
        status: status.to_string(),
        stderr,
    })
}

/// As [`output`], as text.
///
/// # Errors
/// As [`output`].
pub fn text(command: &mut Command) -> Result<String> {
    output(command).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Where `$PATH` (with the folders of system programs added) has an executable of this name.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// Whether this process may install packages.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn line_of(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_failing_tool_is_named_with_its_arguments_and_its_words() {
        let message = text(command("sh").args(["-c", "echo sorry >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(message.contains("sh -c"), "{message}");
        assert!(message.contains("exit status: 3"), "{message}");
        assert!(message.contains("sorry"), "{message}");
    }

    #[test]
    fn programs_are_found_on_the_path_only() {
        assert!(find("sh").unwrap().is_absolute());
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
