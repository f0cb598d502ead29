//! How guests end, start over and live side by side.

use std::io::{BufRead, BufReader};

use tests::guest;
use vmm::machine::console::Console;
use vmm::machine::{Machine, Outcome};

use crate::boot::{assert_machine, run};

each_kernel! {
    a_reboot_ends_a_machine_that_must_not_reboot(kernel) {
        let ended = run(guest::reporting(kernel, "end=reboot").unwrap().end_at_reset());
        assert_eq!(ended.outcome, Outcome::Reset);
    }

    a_panic_ends_a_machine_that_must_not_reboot(kernel) {
        let ended = run(guest::reporting(kernel, "end=panic panic=-1").unwrap().end_at_reset());
        assert_eq!(ended.outcome, Outcome::Reset);
        assert!(ended.console.contains("Kernel panic"));
    }

    a_reboot_starts_the_kernel_again(kernel) {
        let (serial, stream) = Console::stream().unwrap();
        let config = guest::reporting(kernel, "end=reboot").unwrap().cpus(2);
        let machine = Machine::new(config, serial).unwrap().start().unwrap();
        let mut reports = BufReader::new(stream).lines().map(Result::unwrap).filter(|line| line.trim_end() == "=== end");
        assert!(reports.next().is_some() && reports.next().is_some(), "the guest did not come up again");
        machine.stop();
        let (outcome, stats) = machine.wait();
        assert_eq!((outcome, stats.resets >= 1), (Outcome::Quit, true));
    }
}

#[test]
fn two_guests_live_in_one_process() {
    let guests = ["cloud", "generic"].map(|kernel| {
        std::thread::spawn(move || {
            run(guest::reporting(kernel, "")
                .unwrap()
                .cpus(if kernel == "cloud" { 1 } else { 2 }))
        })
    });
    for (guest, cpus) in guests.into_iter().zip([1, 2]) {
        let ended = guest.join().unwrap();
        assert_eq!(ended.outcome, Outcome::PowerOff);
        assert_machine(&ended.report, cpus);
    }
}

#[test]
fn a_guest_can_be_stopped_at_any_moment() {
    for line in ["Linux version", "ACPI: Core revision", "=== interrupts"] {
        let (serial, stream) = Console::stream().unwrap();
        let config = guest::reporting("cloud", "end=wait").unwrap().cpus(2);
        let machine = Machine::new(config, serial).unwrap().start().unwrap();
        let found = BufReader::new(stream)
            .lines()
            .map_while(Result::ok)
            .any(|heard| heard.contains(line));
        assert!(found, "{line}");
        machine.stop();
        assert_eq!(machine.wait().0, Outcome::Quit);
    }
}

#[test]
fn a_machine_that_is_dropped_ends() {
    let (serial, stream) = Console::stream().unwrap();
    let config = guest::reporting("cloud", "end=wait").unwrap();
    let machine = Machine::new(config, serial).unwrap().start().unwrap();
    let mut lines = BufReader::new(stream).lines();
    assert!(lines.any(|line| line.unwrap().contains("Linux version")));
    drop(machine);
    // The console closes when the machine is gone, however much it had still to say.
    assert!(lines.map_while(Result::ok).count() < 100_000);
}
