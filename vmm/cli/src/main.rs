//! The command `splitring`: parses arguments, runs a machine through the library and reports how it
//! ended.
//!
//! Owns what belongs to a process and not to the library: arguments, log subscriber, terminal, exit
//! codes.

#![deny(clippy::print_stdout, clippy::print_stderr)] // They panic if the reader is gone; `streams` does not.

mod args;
mod check;
mod crash;
mod descriptors;
mod devices;
mod exit;
mod help;
mod inspect;
mod keyboard;
mod keyvalue;
mod run;
#[cfg(feature = "selftest")]
mod selftest;
mod session;
mod signals;
mod streams;
mod terminal;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use exit::Failure;
use streams::{Stderr, eprint};

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logging(cli.verbose);
    let done = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Check(args) => check::check(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        #[cfg(feature = "selftest")]
        Command::Selftest(args) => selftest::selftest(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "splitring", &mut script);
            streams::print(&String::from_utf8_lossy(&script)).map(|()| 0)
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(Failure::Usage(error)) => {
            report_error(&error);
            ExitCode::from(2)
        }
        Err(Failure::Failed(error)) => {
            report_error(&error);
            ExitCode::from(1)
        }
    }
}

/// Prints the chain of an error, each link once: the outermost on the first line, its causes
/// indented below.
fn report_error(error: &anyhow::Error) {
    let mut last = error.to_string();
    eprint(&format!("error: {last}\n"));
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Many messages already contain their cause.
        if !last.contains(&cause) {
            eprint(&format!("  {cause}\n"));
            last = cause;
        }
    }
}

/// Installs the log subscriber: warnings, and more with each -v, go to standard error.
fn init_logging(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        2 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| Stderr)
        // It would report errors of writing to standard error on standard error.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(verbose > 1)
        .without_time()
        .init();
}
