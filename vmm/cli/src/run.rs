//! `splitring run`: builds and starts the machine, serves its console, and reports its end.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use splitring::config::VmConfig;
use splitring::scsi::ScsiHandle;
use splitring::{Console, Error, ErrorKind, ExitReason, Machine, Resources};

use crate::args::RunArgs;
use crate::descriptors;
use crate::exit::{Failure, exit_code};
use crate::session::Session;
use crate::signals::Signals;
use crate::streams::{eprint, print};

const CANNOT_START: &str = "cannot start the virtual machine";

/// Runs the machine; returns the exit code.
pub(crate) fn run(args: RunArgs) -> Result<u8, Failure> {
    let config = args.config()?;
    if args.print_config {
        return print(&config.to_toml()?).map(|()| 0);
    }
    config
        .validate()
        .context(CANNOT_START)
        .map_err(Failure::Usage)?;
    // Before this program opens any file, which could get a number that the operator named by
    // mistake.
    let nets = descriptors::take_over_net_fds(&config).context(CANNOT_START)?;
    let signals = Signals::install().context("cannot take over the termination signals")?;
    let serial = config.serial.clone();
    let console = Console::open(&config.serial).context(CANNOT_START)?;
    if let Some(path) = console.pty_path() {
        eprint(&format!("serial console: {}\n", path.display()));
    }
    let machine = start(config, console.clone(), nets, args.any_kvm)?;
    let timeout = Duration::from_secs(args.shutdown_timeout.into());
    let end = Session::new(&machine, &console, &serial, signals, timeout)
        .context("cannot switch the terminal to raw mode")?
        .serve()?;
    machine.stop();
    if args.metrics {
        print_metrics(&machine, &console)?;
    }
    report(&end)
}

/// Prints one line of JSON: the exit counts, each disk's and network card's I/O counters, the
/// balloon's counters with the guest's last statistics, and the bytes of serial output that were
/// dropped.
fn print_metrics(machine: &Machine, console: &Console) -> Result<(), Failure> {
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
    if let Some(balloon) = machine.balloon() {
        metrics["balloon"] = serde_json::to_value(balloon.totals())?;
    }
    let lost = console.dropped() + console.finish(Duration::ZERO);
    metrics["serial"] = serde_json::json!({ "dropped": lost });
    eprint(&format!("{metrics}\n"));
    Ok(())
}

fn start(
    config: VmConfig,
    console: Console,
    nets: BTreeMap<String, Vec<OwnedFd>>,
    any_kvm: bool,
) -> Result<Machine, Failure> {
    let mut options = Resources::options().any_kvm(any_kvm).console(console);
    if let Some(directory) = kernel_cache() {
        options = options.kernel_cache(directory);
    }
    for (id, fds) in nets {
        options = options.net_fds(&id, fds);
    }
    let resources = options.open(&config).map_err(refused)?;
    let machine = Machine::new(config, resources).map_err(refused)?;
    machine.start().context(CANNOT_START)?;
    Ok(machine)
}

/// Returns `$XDG_CACHE_HOME/splitring/images`, or else `$HOME/.cache/splitring/images`. Relative
/// paths in these variables are ignored (XDG base directory specification).
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
            eprint(&format!("the virtual machine ended: {reason}\n"));
            Ok(exit_code(reason))
        }
        _ => Err(Failure::Failed(
            anyhow::anyhow!("{reason}").context("the virtual machine ended"),
        )),
    }
}
