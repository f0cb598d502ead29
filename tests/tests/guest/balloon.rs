//! Memory that goes back and forth between Debian's kernels and the host: by a balloon, by free pages that the guest reports, and when
//! it runs out; and what the guest says of its memory.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::guest;
use tests::program::{Managed, Program};
use tests::resources::Extras;
use vmm::config::MachineConfig;

const MIB: u64 = 1 << 20;
/// Nothing takes longer in the emulated lab, if it comes at all.
const PATIENCE: Duration = Duration::from_secs(240);
/// Where a balloon is among QOM's objects.
const BALLOON: &str = "/machine/peripheral/balloon";

/// A guest that does what it is told, with a balloon.
fn config(kernel: &str, force_legacy: bool, memory: u64, words: &str, options: &str) -> MachineConfig {
    let extras = Extras::Tools { force_legacy };
    let config = guest::reporting_with(kernel, extras, &format!("quiet job=shell {words}")).unwrap();
    config
        .memory(memory)
        .device("virtio-balloon-pci", format!("id=balloon{options}"))
}

fn start(program: Program, config: &MachineConfig) -> Managed {
    let mut guest = program.start(config).unwrap();
    guest.process.line.hear("ready").unwrap();
    guest
}

fn actual(guest: &mut Managed) -> u64 {
    guest.monitor.ask("query-balloon", json!({})).unwrap()["actual"]
        .as_u64()
        .unwrap()
}

/// Asks the guest to keep so much memory, and waits until it does.
fn balloon(guest: &mut Managed, bytes: u64) {
    guest.monitor.ask("balloon", json!({ "value": bytes })).unwrap();
    let asked = Instant::now();
    while actual(guest) != bytes {
        assert!(asked.elapsed() < PATIENCE, "the guest stays at {} bytes", actual(guest));
        thread::sleep(Duration::from_millis(100));
    }
}

fn resident(guest: &mut Managed) -> u64 {
    guest.process.resident().unwrap()
}

/// The largest of a few figures: what works in the guest takes and gives all the time.
fn resident_at_work(guest: &mut Managed) -> u64 {
    let figures = (0..20).map(|_| {
        thread::sleep(Duration::from_millis(100));
        resident(guest)
    });
    figures.max().unwrap()
}

/// What the guest says of itself by the balloon.
fn statistics(guest: &mut Managed) -> Value {
    let property = json!({ "path": BALLOON, "property": "guest-stats" });
    guest.monitor.ask("qom-get", property).unwrap()
}

/// Those of the balloon are about those of /proc/meminfo, which was read before and after.
fn assert_statistics_are_the_guests(guest: &mut Managed) {
    let interval = json!({ "path": BALLOON, "property": "guest-stats-polling-interval", "value": 1 });
    guest.monitor.ask("qom-set", interval).unwrap();
    // Something in the page cache, and something free.
    guest.process.line.ask("fill 40").unwrap();
    let before = statistics(guest)["last-update"].as_i64().unwrap();
    let asked = Instant::now();
    let statistics = loop {
        let statistics = statistics(guest);
        if statistics["last-update"].as_i64().unwrap() > before + 1 {
            break statistics;
        }
        assert!(asked.elapsed() < PATIENCE, "{statistics}");
        thread::sleep(Duration::from_millis(200));
    };
    let lines = guest.process.line.ask("meminfo").unwrap();
    println!("{} beside {lines:?}", statistics["stats"]);
    let meminfo = |name: &str| {
        let line = lines.iter().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse::<u64>().unwrap() << 10
    };
    for (name, in_meminfo, tolerance) in [
        ("stat-total-memory", "MemTotal:", 0),
        ("stat-free-memory", "MemFree:", 8 * MIB),
        ("stat-available-memory", "MemAvailable:", 8 * MIB),
        ("stat-disk-caches", "Cached:", 2 * MIB),
    ] {
        let (theirs, ours) = (meminfo(in_meminfo), statistics["stats"][name].as_u64().unwrap());
        assert!(
            ours.abs_diff(theirs) <= tolerance,
            "{name} {ours}, {in_meminfo} {theirs}"
        );
    }
    let faults = statistics["stats"]["stat-minor-faults"].as_u64().unwrap();
    assert!(faults > 1000, "{faults}");
    for name in ["stat-swap-in", "stat-swap-out", "stat-htlb-pgfail"] {
        assert_eq!(statistics["stats"][name], 0, "{name}");
    }
    guest.process.line.ask("empty").unwrap();
}

/// Resident bytes of a guest of `memory` bytes that has touched most of it, then has half, then all again and touches it.
fn to_half_and_back(program: Program, kernel: &str, force_legacy: bool, memory: u64, words: &str) -> [u64; 3] {
    let mut guest = start(program, &config(kernel, force_legacy, memory, words, ""));
    assert_statistics_are_the_guests(&mut guest);
    let most = memory / MIB * 5 / 8;
    guest
        .process
        .line
        .ask(&format!("fill {most} && empty && churn"))
        .unwrap();
    let full = resident_at_work(&mut guest);
    balloon(&mut guest, memory / 2);
    let half = resident_at_work(&mut guest);
    balloon(&mut guest, memory);
    guest.process.line.ask(&format!("fill {most}")).unwrap();
    let again = resident_at_work(&mut guest);
    guest.process.line.ask("kill $worker; empty").unwrap();
    println!(
        "{program:?}, {} MiB, legacy {force_legacy}: resident {} MiB, with half {} MiB, with all {} MiB",
        memory / MIB,
        full / MIB,
        half / MIB,
        again / MIB
    );
    [full, half, again]
}

fn assert_falls_and_rises([full, half, again]: [u64; 3], memory: u64) {
    let most = memory / 8 * 5;
    // What is not the guest's memory.
    let own = 32 * MIB;
    assert!(full > most, "{full}");
    assert!(half < memory / 2 + own, "{half}");
    assert!(again > most, "{again}");
}

#[test]
fn memory_goes_to_the_host_and_back_under_load() {
    let memory = 512 * MIB;
    assert_falls_and_rises(to_half_and_back(Program::Innkeeper, "cloud", false, memory, ""), memory);
    let legacy = to_half_and_back(Program::Innkeeper, "generic", true, memory, "acpi=off");
    assert_falls_and_rises(legacy, memory);
}

#[cfg(feature = "long")]
#[test]
fn memory_goes_to_the_host_and_back_as_under_qemu() {
    let memory = 1024 * MIB;
    for force_legacy in [false, true] {
        let [ours, theirs] = Program::ALL.map(|program| to_half_and_back(program, "cloud", force_legacy, memory, ""));
        assert_falls_and_rises(ours, memory);
        assert!(
            ours[1] < theirs[1] + 16 * MIB,
            "{} of ours, {} of QEMU's",
            ours[1],
            theirs[1]
        );
    }
    let other = to_half_and_back(Program::Innkeeper, "generic", false, memory, "acpi=off");
    assert_falls_and_rises(other, memory);
}

/// Waits until the resident size has not fallen for a while.
fn settled(guest: &mut Managed) -> u64 {
    /// The guest's kernel reports every two seconds (Linux, mm/page_reporting.c), in passes.
    const QUIET: Duration = Duration::from_secs(10);
    let (mut least, mut since) = (resident(guest), Instant::now());
    while since.elapsed() < QUIET {
        thread::sleep(Duration::from_millis(500));
        let now = resident(guest);
        if now + MIB / 2 < least {
            (least, since) = (now, Instant::now());
        }
    }
    resident(guest)
}

/// Resident bytes of a guest that reports free pages: idle, having used `used` bytes, and after it has freed them.
fn used_and_freed(program: Program, kernel: &str, force_legacy: bool, used: u64) -> [u64; 3] {
    let config = config(kernel, force_legacy, used + 512 * MIB, "", ",free-page-reporting=on");
    let mut guest = start(program, &config);
    let idle = settled(&mut guest);
    guest.process.line.ask(&format!("fill {}", used / MIB)).unwrap();
    let full = resident(&mut guest);
    guest.process.line.ask("empty").unwrap();
    let freed = settled(&mut guest);
    println!(
        "{program:?}, legacy {force_legacy}: resident {} MiB, with {} MiB used {} MiB, after they were freed {} MiB",
        idle / MIB,
        used / MIB,
        full / MIB,
        freed / MIB
    );
    [idle, full, freed]
}

fn assert_given_back([idle, full, freed]: [u64; 3], used: u64) {
    assert!(full > used, "{full}");
    assert!(freed * 100 <= idle * 115, "{freed} after {idle}");
}

#[test]
fn free_pages_go_back_to_the_host() {
    let used = 256 * MIB;
    assert_given_back(used_and_freed(Program::Innkeeper, "cloud", false, used), used);
}

#[cfg(feature = "long")]
#[test]
fn free_pages_go_back_to_the_host_as_under_qemu() {
    let used = 1024 * MIB;
    let [ours, theirs] = Program::ALL.map(|program| used_and_freed(program, "cloud", false, used));
    assert_given_back(ours, used);
    assert!(ours[2] <= theirs[2], "{} of ours, {} of QEMU's", ours[2], theirs[2]);
    assert_given_back(used_and_freed(Program::Innkeeper, "generic", true, used), used);
}

/// A guest with little memory left takes more. Returns what it says of that, and what it has afterwards.
fn run_out(kernel: &str, force_legacy: bool, words: &str, options: &str) -> (Vec<String>, u64) {
    let config = config(kernel, force_legacy, 512 * MIB, words, options);
    let mut guest = start(Program::Innkeeper, &config);
    balloon(&mut guest, 192 * MIB);
    let said = guest.process.line.ask("devour 256").unwrap();
    (said, actual(&mut guest))
}

#[test]
fn a_guest_that_runs_out_takes_memory_back() {
    let (said, left) = run_out("cloud", false, "", ",deflate-on-oom=on");
    assert_eq!(said, ["dd 0", "killed 0"]);
    assert!(left > 256 * MIB, "{left}");
}

#[cfg(feature = "long")]
#[test]
fn a_guest_that_runs_out_takes_memory_back_in_the_other_ways() {
    let (said, left) = run_out("cloud", false, "", "");
    assert_ne!(said, ["dd 0", "killed 0"], "it would have had enough anyway");
    assert_eq!(left, 192 * MIB);
    for (kernel, force_legacy, words) in [
        ("cloud", true, ""),
        ("generic", true, "acpi=off"),
        ("generic", false, "acpi=off"),
    ] {
        let (said, left) = run_out(kernel, force_legacy, words, ",deflate-on-oom=on");
        assert_eq!(said, ["dd 0", "killed 0"], "{kernel} {force_legacy} {words}");
        assert!(left > 256 * MIB, "{left}");
    }
}
