//! Where guests run: directly on this host's KVM, or in the lab.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use xtask::Result;
use xtask::lab::process;

/// Which of the two, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// This host's KVM runs guest kernel code in hardware.
    Host,
    /// It does not, for this reason.
    Lab(String),
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => write!(
                formatter,
                "directly on this host: its KVM runs guest kernel code in hardware"
            ),
            Self::Lab(why) => write!(formatter, "in the lab: {why}"),
        }
    }
}

/// A probe that takes longer has hung.
const PROBE_LIMIT: Duration = Duration::from_secs(60);

/// Asks `innkeeper check`, unless the lab is wanted anyway.
///
/// # Errors
/// When the probe cannot be started.
pub fn decide(innkeeper: &Path, lab_wanted: bool) -> Result<Way> {
    if lab_wanted {
        return Ok(Way::Lab("as asked for".into()));
    }
    let mut answer = String::new();
    let mut collect = |line: &[u8]| answer.push_str(&String::from_utf8_lossy(line));
    let mut probe = Command::new(innkeeper);
    // Its status says whether anything is amiss; here only one of its answers matters.
    process::watch(
        probe.args(["check", "--machine-readable"]),
        &[],
        PROBE_LIMIT,
        &mut collect,
    )?;
    Ok(read(&answer))
}

/// Reads `kvm.ring0=hardware|interpreted|none` among lines of `key=value`.
fn read(answer: &str) -> Way {
    match answer.lines().find_map(|line| line.strip_prefix("kvm.ring0=")) {
        Some("hardware") => Way::Host,
        Some("interpreted") => Way::Lab("this host's KVM interprets guest kernel code".into()),
        Some(_) => Way::Lab("this host has no KVM that could be used".into()),
        None => Way::Lab("`innkeeper check` has not found out how this host's KVM runs guest kernel code".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hardware_is_good_enough_for_guests_on_the_host() {
        assert_eq!(read("kvm.present=yes\nkvm.ring0=hardware\n"), Way::Host);
        for answer in [
            "kvm.ring0=interpreted\n",
            "kvm.ring0=none\n",
            "kvm.ring0=\n",
            "",
            "kvm.ring0=hardware?\n",
        ] {
            assert!(matches!(read(answer), Way::Lab(_)), "{answer:?}");
        }
    }
}
