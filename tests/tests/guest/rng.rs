//! Randomness of the host, as Debian's kernels and their tests for randomness see it.

use tests::guest;
use tests::resources::Extras;

use crate::boot::run;

/// Blocks of 20,000 bits in 2 MiB.
const BLOCKS: u64 = (2 << 20) * 8 / 20_000;
/// Blocks of truly random bits that fail: 8 of 10,000 do (FIPS 140-2), so less than one is to be expected, and ten never come.
const FAILURES: u64 = 10;

fn is_random(kernel: &str, force_legacy: bool, words: &str) {
    let extras = Extras::Tools { force_legacy };
    let config = guest::reporting_with(kernel, extras, &format!("quiet job=rng {words}")).unwrap();
    let report = run(config.end_at_reset().device("virtio-rng-pci", "")).report;
    let said = report.section("job");
    assert_eq!(said[..3], ["virtio_rng.0", "virtio_rng.0", "2097152"], "{said:?}");
    let figure = |name: &str| -> u64 {
        let line = said.iter().find_map(|line| line.split_once(name));
        line.unwrap_or_else(|| panic!("no '{name}' in {said:?}"))
            .1
            .trim()
            .parse()
            .unwrap()
    };
    let (good, bad) = (figure("FIPS 140-2 successes: "), figure("FIPS 140-2 failures: "));
    println!("{kernel}, legacy {force_legacy}: {good} blocks are random, {bad} are not");
    assert_eq!(good + bad, BLOCKS);
    assert!(bad < FAILURES, "{said:?}");
}

#[test]
fn what_the_guest_gets_is_random() {
    is_random("cloud", false, "");
    is_random("generic", true, "acpi=off end=reboot");
}

#[cfg(feature = "long")]
#[test]
fn what_the_guest_gets_is_random_in_the_other_ways() {
    is_random("cloud", true, "");
    is_random("generic", false, "acpi=off end=reboot");
}
