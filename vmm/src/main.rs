//! The `innkeeper` command: a thin shell over the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::cli::main()
}
