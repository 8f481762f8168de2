//! `splitring run`: build, start, serve the console, report.

use std::collections::BTreeMap;
use std::io;

use anyhow::Context;
use splitring::config::VmConfig;
use splitring::scsi::ScsiHandle;
use splitring::{BootError, BuildError, Console, End, Machine, MachineHandle, host};

use crate::args::RunArgs;
use crate::terminal::{RawMode, Signals};
use crate::{Failure, console, exit_code};

const CANNOT_START: &str = "cannot start the virtual machine";

/// Runs the machine; the result is the exit code.
pub(crate) fn run(args: RunArgs) -> Result<u8, Failure> {
    let config = args.config()?;
    if args.print_config {
        print!("{}", toml::to_string(&config)?);
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
fn print_metrics(machine: &MachineHandle) -> Result<(), Failure> {
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

fn start(config: VmConfig, any_kvm: bool) -> Result<MachineHandle, Failure> {
    let machine = Machine::build(config, Console::new(io::stdout())).map_err(refused)?;
    if !any_kvm {
        host::require_hardware().context(CANNOT_START)?;
    }
    Ok(machine.start().context(CANNOT_START)?)
}

fn refused(error: BuildError) -> Failure {
    let usage = matches!(
        error,
        BuildError::Config(_)
            | BuildError::Layout(_)
            | BuildError::Boot(
                BootError::CommandLineTooLong { .. } | BootError::CommandLineCharacter { .. }
            )
    );
    let error = anyhow::Error::new(error).context(CANNOT_START);
    if usage {
        Failure::Usage(error)
    } else {
        Failure::Failed(error)
    }
}

fn report(end: &End) -> Result<u8, Failure> {
    match end {
        End::Crashed { .. } | End::Failed(_) => Err(Failure::Failed(
            anyhow::anyhow!("{end}").context("the virtual machine ended"),
        )),
        End::TripleFault { .. } => {
            eprintln!("the virtual machine ended: {end}");
            Ok(exit_code(end))
        }
        _ => Ok(exit_code(end)),
    }
}
