//! QEMU's test programs, their tests, and which of these cannot pass.

use std::path::Path;

use xtask::{Result, tool};

use super::variant::{Stage, Variant};

/// A test program of QEMU.
pub struct Suite {
    /// Its name below `tests/qtest` in the build folder.
    pub program: &'static str,
    /// Whether its devices can be made to appear otherwise.
    has_variants: bool,
    /// Its tests that cannot pass here.
    gaps: &'static [Gap],
}

/// Tests that cannot pass, for now or ever.
struct Gap {
    /// What their paths have in common.
    pattern: &'static str,
    /// The one variant that it concerns; otherwise all.
    variant: Option<Variant>,
    reason: &'static str,
}

const fn gap(pattern: &'static str, reason: &'static str) -> Gap {
    let variant = None;
    Gap {
        pattern,
        variant,
        reason,
    }
}

/// QEMU's storage daemon serves no legacy drivers.
const fn legacy_disk(pattern: &'static str) -> Gap {
    Gap {
        variant: Some(Variant::Legacy),
        ..gap(pattern, "the storage daemon knows no legacy drivers; fails on QEMU too")
    }
}

/// The programs that concern what Innkeeper has.
pub const SUITES: [Suite; 5] = [
    Suite {
        program: "qos-test",
        has_variants: true,
        gaps: &[
            gap("/vhost-user/migrate", "there is no migration"),
            Gap {
                pattern: "/vhost-user/",
                variant: Some(Variant::Modern),
                reason: "the test's backend knows no VERSION_1; fails on QEMU too",
            },
            legacy_disk("/vhost-user-blk-tests/"),
            legacy_disk("/vhost-user-blk-pci-tests/idx"),
            Gap {
                pattern: "/nxvirtq",
                variant: Some(Variant::Modern),
                reason: "it writes to the legacy face; fails on QEMU too",
            },
        ],
    },
    Suite {
        program: "qmp-test",
        has_variants: false,
        gaps: &[
            gap("/oob", "exec-oob is not offered"),
            gap(
                "/preconfig",
                "there is no configuration by QMP before the machine is made",
            ),
        ],
    },
    Suite {
        program: "device-plug-test",
        has_variants: false,
        gaps: &[gap("/q35-", "the pc machine only")],
    },
    Suite {
        program: "drive_del-test",
        has_variants: false,
        gaps: &[
            gap("_q35", "the pc machine only"),
            gap("/drive_del_device_del", "needs virtio-scsi"),
            gap("/device_del/empty", "needs virtio-scsi"),
        ],
    },
    Suite {
        program: "fw_cfg-test",
        has_variants: false,
        gaps: &[],
    },
];

/// One test of a program.
pub struct Test {
    /// Its whole path, as the program wants it.
    pub path: String,
    gaps: Vec<&'static Gap>,
}

/// What all paths of the device tests begin with.
const PREFIXES: [&str; 2] = ["/x86_64/pc/i440FX-pcihost/pci-bus-pc/pci-bus/", "/x86_64/"];

impl Test {
    /// The test of this path.
    #[cfg(test)]
    pub fn new(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            gaps: Vec::new(),
        }
    }

    /// Why it cannot pass with devices that appear as `variant`, if that is known.
    pub fn gap(&self, variant: Variant) -> Option<&'static str> {
        let concerns = |gap: &&&Gap| gap.variant.is_none_or(|only| only == variant);
        self.gaps.iter().find(concerns).map(|gap| gap.reason)
    }

    /// Its path without what all of them have.
    pub fn title(&self) -> &str {
        let short = |prefix| self.path.strip_prefix(prefix);
        PREFIXES.into_iter().find_map(short).unwrap_or(&self.path)
    }
}

impl Suite {
    /// Whether its tests make sense with devices that appear as `variant`.
    pub fn runs_on(&self, variant: Variant) -> bool {
        self.has_variants || variant == Variant::Transitional
    }

    /// Its tests, as far as the program under test has the devices for them.
    ///
    /// # Errors
    /// The program under test does not even say what it has.
    pub fn list(&self, programs: &Path, stage: &Stage) -> Result<Vec<Test>> {
        let mut command = tool::command(&programs.join(self.program).to_string_lossy());
        stage.prepare(&mut command, Variant::Transitional);
        Ok(self.tests(&tool::text(command.arg("-l"))?))
    }

    /// The tests in what the program lists, in the order of their paths.
    fn tests(&self, list: &str) -> Vec<Test> {
        let mut tests: Vec<_> = list
            .lines()
            .filter(|line| line.starts_with('/'))
            .map(|path| Test {
                path: path.to_owned(),
                gaps: self.gaps.iter().filter(|gap| path.contains(gap.pattern)).collect(),
            })
            .collect();
        tests.sort_by(|one, other| one.path.cmp(&other.path));
        tests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_the_lines_with_paths_and_gaps_are_found_by_pattern() {
        let list = "1..3\n# random seed: R02S\n/x86_64/qmp/protocol\n/x86_64/qmp/oob\n# End of qmp tests\n";
        let tests = SUITES[1].tests(list);
        let known = |test: &Test| test.gap(Variant::Modern).is_some();
        let titles: Vec<_> = tests.iter().map(|test| (test.title(), known(test))).collect();
        assert_eq!(titles, [("qmp/oob", true), ("qmp/protocol", false)]);
    }

    #[test]
    fn a_gap_may_concern_one_variant() {
        let tests = SUITES[0].tests("/x/nxvirtq\n");
        let known = |variant: &Variant| tests.iter().any(|test| test.gap(*variant).is_some());
        assert_eq!(Variant::ALL.map(|variant| known(&variant)), [false, false, true]);
    }

    #[test]
    fn titles_of_device_tests_begin_with_the_device() {
        let test = Test::new(&format!("{}virtio-rng-pci/virtio-rng-pci-tests/hotplug", PREFIXES[0]));
        assert_eq!(test.title(), "virtio-rng-pci/virtio-rng-pci-tests/hotplug");
    }
}
