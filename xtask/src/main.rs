//! `cargo xtask`: the project's own commands.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod cargo;
mod demo;
mod lab_command;
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
}

/// When a command of the project cannot do what it was asked, as of `timeout` and its kind.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::demo(&args),
        Command::Test(args) => test_command::test(&args),
        Command::Lab(args) => lab_command::lab(args),
    };
    result.map_or_else(
        |error| {
            eprintln!("error: {error}");
            ExitCode::from(FAILED)
        },
        ExitCode::from,
    )
}
