//! `cargo xtask`: the project's own commands.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod cargo;
mod demo;
mod lab_command;
mod qos;
mod test_command;
mod way;

/// The project's own commands.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Demo(demo::DemoArgs),
    Test(test_command::TestArgs),
    Lab(lab_command::LabArgs),
    Bench(bench::BenchArgs),
    Qos(qos::QosArgs),
}

fn main() -> ExitCode {
    if let Some(error) = qos::stand_in() {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let (result, failed) = match Cli::parse().command {
        Command::Demo(args) => (demo::demo(&args), 1),
        Command::Test(args) => (test_command::test(&args), 1),
        Command::Bench(args) => (bench::bench(&args), 1),
        Command::Qos(args) => (qos::qos(&args), 1),
        // Low numbers are the command's own.
        Command::Lab(args) => (lab_command::lab(args), lab_command::LAB_FAILED),
    };
    result.map_or_else(
        |error| {
            eprintln!("error: {error}");
            ExitCode::from(failed)
        },
        ExitCode::from,
    )
}
