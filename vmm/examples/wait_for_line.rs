//! Boots a kernel and waits for a line on its console.
//!
//! ```text
//! cargo run --example wait_for_line -- /boot/vmlinuz "Linux version"
//! ```

use std::io::{BufRead, BufReader};

use vmm::config::MachineConfig;
use vmm::machine::Machine;
use vmm::machine::console::Console;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(kernel), Some(wanted)) = (args.next(), args.next()) else {
        return Err("usage: wait_for_line KERNEL TEXT".into());
    };
    let (serial, stream) = Console::stream()?;
    let config = MachineConfig::new(kernel)
        .command_line("console=ttyS0 panic=-1")
        .end_at_reset();
    let guest = Machine::new(config, serial)?.start()?;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if line.contains(&wanted) {
            println!("found: {line}");
            guest.stop();
            guest.wait();
            return Ok(());
        }
    }
    let (outcome, _) = guest.wait();
    Err(format!("the guest ended without it: {outcome:?}").into())
}
