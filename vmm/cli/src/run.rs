//! `splitring run`: build, start, serve the console, report.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use splitring::config::VmConfig;
use splitring::scsi::ScsiHandle;
use splitring::{Console, Error, ErrorKind, ExitReason, Machine, Resources};

use crate::args::RunArgs;
use crate::terminal::{RawMode, Signals};
use crate::{Failure, console, descriptors, exit_code};

const CANNOT_START: &str = "cannot start the virtual machine";

/// Runs the machine; the result is the exit code.
pub(crate) fn run(args: RunArgs) -> Result<u8, Failure> {
    let config = args.config()?;
    if args.print_config {
        print!("{}", config.to_toml()?);
        return Ok(0);
    }
    config
        .validate()
        .context(CANNOT_START)
        .map_err(Failure::Usage)?;
    // Before any thread is there, so that none of them is interrupted.
    let signals = Signals::take().context("cannot take over the termination signals")?;
    let machine = start(config, args.any_kvm)?;
    let end = {
        let raw = RawMode::enter().context("cannot switch the terminal to raw mode")?;
        console::serve(&machine, &signals, raw.is_some())?
    };
    machine.stop();
    if args.metrics {
        print_metrics(&machine)?;
    }
    report(&end)
}

/// What happened, as one line of JSON: the exits, and what each disk's requests and each card's frames came to.
fn print_metrics(machine: &Machine) -> Result<(), Failure> {
    let disks = machine.disks();
    let disks: BTreeMap<_, _> = disks
        .iter()
        .filter_map(|disk| disk.id().zip(disk.totals()))
        .chain(machine.scsi().iter().flat_map(ScsiHandle::totals))
        .collect();
    let mut metrics = serde_json::to_value(machine.exits())?;
    metrics["disks"] = serde_json::to_value(disks)?;
    let nets = machine.nets();
    let nets: BTreeMap<_, _> = nets
        .iter()
        .filter_map(|net| net.id().zip(net.totals()))
        .collect();
    metrics["nets"] = serde_json::to_value(nets)?;
    eprintln!("{metrics}");
    Ok(())
}

fn start(config: VmConfig, any_kvm: bool) -> Result<Machine, Failure> {
    let console = Console::open(&config.serial).context(CANNOT_START)?;
    let mut options = Resources::options().any_kvm(any_kvm).console(console);
    if let Some(directory) = kernel_cache() {
        options = options.kernel_cache(directory);
    }
    for (id, fds) in descriptors::of_nets(&config).context(CANNOT_START)? {
        options = options.net_fds(&id, fds);
    }
    let resources = options.open(&config).map_err(refused)?;
    let machine = Machine::new(config, resources).map_err(refused)?;
    machine.start().context(CANNOT_START)?;
    Ok(machine)
}

/// `$XDG_CACHE_HOME/splitring/images`, else `$HOME/.cache/splitring/images`; relative paths there are to
/// be ignored (XDG base directory specification).
fn kernel_cache() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base =
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("splitring/images"))
}

fn refused(error: Error) -> Failure {
    let usage = error.kind() == ErrorKind::Config;
    let error = anyhow::Error::new(error).context(CANNOT_START);
    if usage {
        Failure::Usage(error)
    } else {
        Failure::Failed(error)
    }
}

fn report(reason: &ExitReason) -> Result<u8, Failure> {
    match reason {
        ExitReason::PowerOff | ExitReason::Reboot | ExitReason::Stopped => Ok(exit_code(reason)),
        ExitReason::TripleFault { .. } => {
            eprintln!("the virtual machine ended: {reason}");
            Ok(exit_code(reason))
        }
        _ => Err(Failure::Failed(
            anyhow::anyhow!("{reason}").context("the virtual machine ended"),
        )),
    }
}
