//! `cargo xtask bench`: what Innkeeper costs beside QEMU, measured in the same run on the same KVM.

mod boot;
mod machines;
mod measure;
mod samples;
mod table;
mod trace;

use clap::{Args, Subcommand};
use xtask::Result;

/// What Innkeeper costs beside QEMU, measured in the same run on the same KVM.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand, Debug)]
enum Benchmark {
    Boot(boot::BootArgs),
    #[command(hide = true)]
    Measure(measure::MeasureArgs),
}

/// Runs it and returns the exit status for the process.
///
/// # Errors
/// When something of it cannot be built, fetched or measured.
pub fn bench(args: &BenchArgs) -> Result<u8> {
    match &args.benchmark {
        Benchmark::Boot(args) => boot::boot(args),
        Benchmark::Measure(args) => measure::measure(args),
    }
}
