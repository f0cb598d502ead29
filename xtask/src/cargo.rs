//! Calling cargo for the workspace that this program belongs to.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use xtask::{Error, Result, tool};

/// A cargo command in the workspace's folder.
pub fn command(arguments: &[&str]) -> Command {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = tool::command(&program);
    // The locale is the user's again: it is cargo that speaks to the user.
    command.env_remove("LC_ALL").current_dir(workspace()).args(arguments);
    command
}

/// Builds and returns the path of the executable of the target with that name.
///
/// # Errors
/// When the build fails, or makes no such executable.
pub fn build(arguments: &[&str], target: &str) -> Result<PathBuf> {
    let mut command = command(arguments);
    command
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(std::process::Stdio::inherit());
    let messages = tool::text(&mut command)?;
    executable(&messages, target)
        .ok_or_else(|| Error::Other(format!("cargo {} made no executable {target}", arguments.join(" "))))
}

fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Finds the executable in cargo's messages, one JSON object a line.
fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == target)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_of_the_named_target_is_found_among_the_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"vmm"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"other"},"executable":"/t/other"}
{"reason":"compiler-artifact","target":{"name":"innkeeper"},"executable":"/t/innkeeper"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "innkeeper"), Some("/t/innkeeper".into()));
        assert_eq!(executable(messages, "vmm"), None);
    }
}
