//! Random accesses of all widths to everything, with random guest memory.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// An access of a driver.
#[derive(Clone, Debug)]
enum Step {
    Read(u8, u64, usize),
    Write(u8, u64, usize, u64),
    ReadConfig(u16, usize),
    WriteConfig(u16, usize, u32),
    Poke(u64, u16),
    SignalQueue(u16),
    SignalConfig,
    BringUp,
    BringUpLegacy,
    Reset,
}

/// Offsets where something is, and some where nothing is.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..0x40u64,
        1 => (0..0x40u64).prop_map(|offset| 0x1000 + offset),
        2 => (0..0x48u64).prop_map(|offset| 0x2000 + offset),
        1 => (0..0x10u64).prop_map(|offset| 0x3000 + offset),
        1 => 0..0x4000u64,
        1 => any::<u64>(),
    ]
}

/// Values that mean something somewhere.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..0x10u64,
        2 => select(vec![0xff, 0x10, 0x20, 0x8000, 0xc000, 0xffff, 0x1_0000, 0x2_0000, 0x100, 0x80, 0xffff_ffff]),
        1 => any::<u64>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let bar = || select(vec![0u8, 0, 1, 2, 4, 4, 4, 5]);
    let config = || prop_oneof![3 => 0x84..0x9cu16, 2 => 0..0x100u16, 1 => any::<u16>()];
    prop_oneof![
        8 => (bar(), offset(), 1..=8usize).prop_map(|(bar, offset, len)| Step::Read(bar, offset, len)),
        16 => (bar(), offset(), 1..=8usize, value())
            .prop_map(|(bar, offset, len, value)| Step::Write(bar, offset, len, value)),
        2 => (config(), 1..=4usize).prop_map(|(offset, len)| Step::ReadConfig(offset, len)),
        4 => (config(), 1..=4usize, value())
            .prop_map(|(offset, len, value)| Step::WriteConfig(offset, len, value as u32)),
        2 => (0..0xf_fff0u64, any::<u16>()).prop_map(|(address, value)| Step::Poke(address, value)),
        1 => (0..3u16).prop_map(Step::SignalQueue),
        1 => Just(Step::SignalConfig),
        1 => Just(Step::BringUp),
        1 => Just(Step::BringUpLegacy),
        1 => Just(Step::Reset),
    ]
}

impl Bench {
    fn take(&mut self, step: Step) {
        match step {
            Step::Read(bar, offset, len) => drop(self.read(bar, offset, len)),
            Step::Write(bar, offset, len, value) => drop(self.write(bar, offset, len, value)),
            Step::ReadConfig(offset, len) => drop(self.config(offset, len)),
            Step::WriteConfig(offset, len, value) => drop(self.set_config(offset, len, value)),
            Step::Poke(address, value) => self.poke(address, value),
            Step::SignalQueue(queue) => {
                if let Some(start) = self.shared.queues.lock().unwrap().get(&queue) {
                    start.interrupt.signal();
                }
            }
            Step::SignalConfig => self.signal_config(),
            Step::BringUp => self.bring_up(),
            Step::BringUpLegacy => self.bring_up_legacy(),
            Step::Reset => drop(self.pci.reset()),
        }
        self.serve();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_a_driver_writes_does_harm(
        steps in prop::collection::vec(step(), 1..150),
        options in select(vec!["", "disable-legacy=on", "disable-modern=on", "modern-pio-notify=on", "vectors=0"]),
    ) {
        let mut bench = Bench::with(options);
        for step in steps {
            bench.take(step);
            let running = bench.running();
            let mut status = [0];
            let (bar, offset) = if options == "disable-modern=on" { (0, 0x12) } else { (4, 0x14) };
            bench.pci.read_bar(bar, offset, &mut status);
            let stopped = status[0] & status::FAILED != 0 || bench.config(0x04, 2) & 4 == 0;
            prop_assert!(!stopped || running.is_empty(), "queues run in status {:#x}", status[0]);
        }
        // Whatever happened, the next driver finds a device that works.
        bench.pci.reset();
        bench.set_config(0x04, 2, 7);
        if options == "disable-modern=on" { bench.bring_up_legacy() } else { bench.bring_up() }
        prop_assert_eq!(bench.running(), [0, 1]);
    }

    #[test]
    fn a_saved_state_reads_as_the_device_it_came_from(steps in prop::collection::vec(step(), 1..60)) {
        let mut bench = Bench::new();
        steps.into_iter().for_each(|step| bench.take(step));
        bench.pci.pause();
        let saved = bench.pci.save();
        let mut other = Bench::new();
        other.pci.pause();
        other.pci.restore(&saved).unwrap();
        prop_assert_eq!(other.pci.save(), saved);
        for offset in (0..0x40).step_by(4) {
            prop_assert_eq!(other.modern(offset, 4), bench.modern(offset, 4));
        }
    }
}
