//! `cargo xtask bench`: what Innkeeper costs beside QEMU, measured in the same run on the same KVM.

mod balloon;
mod block;
mod boot;
mod child;
mod console;
mod counters;
mod guest;
mod load;
mod machines;
mod measure;
mod net;
mod place;
mod requests;
mod ring;
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
    Ring,
    /// Takes the figures of requests to a disk in a guest: 4 KiB at depths 1 and 32, and 1 MiB in sequence.
    #[command(alias = "blk")]
    Block(load::LoadArgs),
    Net(net::NetArgs),
    /// Takes the figures of a balloon: 1 GiB of memory out of a guest and back again.
    Balloon(load::LoadArgs),
    /// Takes the figures of bytes that go through a port and a console.
    Console(load::LoadArgs),
    #[command(hide = true)]
    Measure(measure::MeasureArgs),
    #[command(hide = true)]
    MeasureBlock(load::MeasureArgs),
    #[command(hide = true)]
    MeasureNet(net::measure::MeasureNetArgs),
    #[command(hide = true)]
    MeasureBalloon(load::MeasureArgs),
    #[command(hide = true)]
    MeasureConsole(load::MeasureArgs),
}

/// Runs it and returns the exit status for the process.
///
/// # Errors
/// When something of it cannot be built, fetched or measured.
pub fn bench(args: &BenchArgs) -> Result<u8> {
    match &args.benchmark {
        Benchmark::Boot(args) => boot::boot(args),
        Benchmark::Ring => ring::ring(),
        Benchmark::Block(args) => block::block(args),
        Benchmark::Net(args) => net::net(args),
        Benchmark::Balloon(args) => balloon::balloon(args),
        Benchmark::Console(args) => console::console(args),
        Benchmark::Measure(args) => measure::measure(args),
        Benchmark::MeasureBlock(args) => block::measure::measure(args),
        Benchmark::MeasureNet(args) => net::measure::measure(args),
        Benchmark::MeasureBalloon(args) => balloon::measure::measure(args),
        Benchmark::MeasureConsole(args) => console::measure::measure(args),
    }
}
