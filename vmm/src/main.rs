//! The `splitring` command line: parse, build, run, report.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
