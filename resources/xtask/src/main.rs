//! The project's own commands: demo, test, lab, bench.

mod assets;
mod bench;
mod cleanup;
mod demo;
mod guest;
mod host;
mod initramfs;
mod kernel;
mod lab;
mod progress;
mod test;
mod tools;
mod vmm;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Install missing packages without asking
    #[arg(long, global = true)]
    yes: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a stock Debian kernel on a Debian root disk
    Demo {
        /// Run a short session in the guest and power off, even on a terminal
        #[arg(long)]
        batch: bool,
    },
    /// Run the tests: without options, all except the soak tests
    Test {
        /// Run only what needs no guest: formatting, lints, documentation, unit tests
        #[arg(long, conflicts_with = "soak")]
        quick: bool,
        /// Run all tests, including the soak tests
        #[arg(long)]
        soak: bool,
        /// Run only the end-to-end tests whose path contains TEXT
        #[arg(long, value_name = "TEXT", num_args = 0..=1, default_missing_value = "", conflicts_with = "quick")]
        only: Option<String>,
        /// Run the end-to-end tests in the lab, even if the host's KVM can run a stock kernel
        #[arg(long, conflicts_with = "quick")]
        lab: bool,
    },
    /// Measure against other VMMs and virtio implementations
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Run a command in the lab: a guest under software emulation with a complete KVM
    Lab(LabArgs),
    /// Fetch and prepare kernels and root disks, and print their paths
    Assets,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Cost of a boot, against QEMU: instructions, exits, memory
    Boot(bench::boot::Options),
    /// The freestanding guest under Splitring and under QEMU, on the host's own KVM
    Native(bench::native::Options),
    /// The ring engine alone, in one process, against virtio-queue
    Ring,
    /// fio on virtio-blk in a guest, against QEMU: rates, and instructions per request
    Blk(bench::devices::Options),
    /// fio on virtio-scsi in a guest, against QEMU: rates, and instructions per request
    Scsi(bench::devices::Options),
    /// iperf3 and ping over a TAP device, against QEMU with and without vhost
    Net(bench::devices::Options),
}

#[derive(Debug, Args)]
struct LabArgs {
    /// Count instructions: one CPU whose clock is deterministic, whatever the host does
    #[arg(long)]
    icount: bool,
    /// Run no other lab at the same time, for measurements
    #[arg(long)]
    alone: bool,
    /// Kill the lab after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    timeout: u64,
    /// Virtual CPUs of the lab; with more than one it crashes occasionally under a QEMU before 10.0
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Load this kernel module as well (tun, veth, bridge, vhost_net, loop, …)
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    match cleanup::install().and_then(|()| dispatch(Cli::parse())) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Demo { batch } => {
            demo::run(batch, cli.yes)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Test {
            quick,
            soak,
            only,
            lab,
        } => {
            let tier = match (quick, soak) {
                (true, _) => test::Tier::Quick,
                (_, true) => test::Tier::Soak,
                _ => test::Tier::Plain,
            };
            test::run(&test::Options {
                tier,
                only: only.as_deref(),
                lab,
                yes: cli.yes,
            })
        }
        Command::Bench { what } => {
            match what {
                Bench::Boot(options) => bench::boot::run(&options, cli.yes)?,
                Bench::Native(options) => bench::native::run(&options, cli.yes)?,
                Bench::Ring => bench::ring()?,
                Bench::Blk(options) => bench::devices::run("blk", &[], &options, cli.yes)?,
                Bench::Scsi(options) => bench::devices::run("scsi", &[], &options, cli.yes)?,
                Bench::Net(options) => bench::net::run(&options, cli.yes)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Assets => {
            let cache = assets::Cache::open()?;
            for flavour in kernel::Flavour::ALL {
                let kernel = guest::GuestKernel::get(&cache, flavour)?;
                println!("{}: {}", flavour.name(), kernel.dir().display());
            }
            for disk in guest::ROOTS {
                println!(
                    "disk {}: {}",
                    disk.name(),
                    disk.get(&cache, cli.yes)?.display()
                );
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Lab(arguments) => {
            let options = lab::Options {
                icount: arguments.icount,
                cpus: arguments.cpus,
                timeout: Duration::from_secs(arguments.timeout),
                modules: arguments.modules,
                alone: arguments.alone,
                yes: cli.yes,
            };
            let status = lab::run(&options, &arguments.command, lab::Output::Pass)?;
            Ok(ExitCode::from(u8::try_from(status.code).unwrap_or(u8::MAX)))
        }
    }
}
