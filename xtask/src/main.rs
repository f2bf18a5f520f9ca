//! The project's own commands, run as `cargo xtask <command>`.

mod bench;
mod cargo;
mod kernels;
mod qemu;

use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask <command>

  kernels        build the example kernels and run them in QEMU, in several configurations
  bench [CASE..] measure the page tables against a floor, and the code that a kernel gets
  lint-kernels   check their format and run clippy on them

QEMU_X86_64 in the environment names another qemu-system-x86_64.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["kernels"] => kernels::run(),
        ["bench", cases @ ..] => bench::run(cases),
        ["lint-kernels"] => kernels::lint(),
        [] | ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(())
        }
        unknown => Err(format!("no such command: {}\n\n{HELP}", unknown.join(" "))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
