//! `cargo xtask bench`: comparisons with other implementations, in one run, on the same machine.
//!
//! A benchmark has an outer half, which prepares and starts the lab, and an inner half, which
//! measures and prints. The inner half runs in the lab, or on the host if its KVM can run a stock
//! kernel.

pub(crate) mod boot;
mod boot_files;
pub(crate) mod devices;
mod memory;
pub(crate) mod native;
pub(crate) mod net;
mod stats;
mod trace;

use std::ffi::OsString;

use anyhow::{Context, Result, ensure};

use crate::host::{self, HostKvm};
use crate::lab;
use crate::progress::say;
use crate::vmm;

/// Runs this program again with `arguments`, where a stock kernel can run.
fn inside(options: &lab::Options, arguments: &[OsString]) -> Result<()> {
    let host = HostKvm::detect();
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let command: Vec<OsString> = std::iter::once(program.into())
        .chain(arguments.iter().cloned())
        .collect();
    let outcome = if host.runs_stock_kernels() {
        ensure!(
            host::is_root(),
            "this benchmark reads the kernel's trace buffer; run it as root"
        );
        say(format!(
            "{host}: measuring on the host, in time instead of instructions"
        ));
        lab::run_here(&command, lab::Output::Watch)?
    } else {
        say(format!("{host}: measuring in the lab"));
        lab::run(options, &command, lab::Output::Watch)?
    };
    ensure!(
        outcome.code == 0,
        "the measurement ended with exit code {}",
        outcome.code
    );
    Ok(())
}

/// Runs the ring benchmark, which needs no guest.
pub(crate) fn ring() -> Result<()> {
    let status = vmm::cargo()
        .args(["bench", "--package", "splitring-tests", "--bench", "ring"])
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the benchmark failed: {status}");
    Ok(())
}
