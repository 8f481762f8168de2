//! `cargo xtask bench blk|scsi|net`: a device in a stock guest, against Debian's QEMU.
//!
//! The measurements are in the tests crate (`benches/devices`). This module prepares them and runs
//! them twice: for rates, in interleaved pairs, each in a lab of its own so that a lost lab costs
//! one pair only; then under the clock that counts instructions.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::assets::Cache;
use crate::guest;
use crate::host::HostKvm;
use crate::lab;
use crate::progress::say;
use crate::tools;
use crate::vmm;

/// Time limits for one pair, and for counting instructions.
const PAIR_LIMIT: Duration = Duration::from_secs(600);
const COUNT_LIMIT: Duration = Duration::from_secs(3600);

/// What the bench calls the other build, and the window.
const BASE: &str = "SPLITRING_BASE_BIN";
const POLL_US: &str = "SPLITRING_POLL_US";
const AGAINST: &str = "SPLITRING_BENCH_AGAINST";

/// What to measure, and how often.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Interleaved pairs of runs
    #[arg(long, value_name = "N", default_value_t = 5)]
    pairs: usize,
    /// Skip the runs that count instructions
    #[arg(long)]
    no_count: bool,
    /// Skip the runs in pairs
    #[arg(long, conflicts_with = "no_count")]
    no_pairs: bool,
    /// CPUs of the lab for the rates; with two, as most users have, it crashes occasionally and the
    /// pair is repeated
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,
    /// Only workloads whose name contains TEXT, such as "randread", "QD1", "TCP" or "host→guest"
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Another build of Splitring to compare with
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Compare with these only, separated by commas, as "base", "QEMU" or "our blk"
    #[arg(long, value_name = "NAMES")]
    against: Option<String>,
    /// Microseconds that Splitring's device threads look for work before they sleep, rather than
    /// what they find good
    #[arg(long, value_name = "US")]
    poll_us: Option<u32>,
}

/// Measures `device` (`blk`, `scsi` or `net`) in a lab with these kernel modules.
pub(crate) fn run(device: &str, modules: &[&str], options: &Options, yes: bool) -> Result<()> {
    tools::ensure(&[tools::QEMU], "the comparison", yes)?;
    let host = HostKvm::detect();
    let cache = Cache::open()?;
    let scratch = cache.scratch("bench-")?;
    guest::lay_out(&cache, scratch.path(), yes)?;
    let splitring = vmm::build()?;
    let built = vmm::executables(&[
        "test",
        "--no-run",
        "--package",
        "splitring-tests",
        "--bench",
        "devices",
    ])?;
    let (_, bench) = built
        .into_iter()
        .next()
        .context("cargo built no benchmark")?;
    let command = |mode: &[&str]| -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![
            "/usr/bin/env".into(),
            format!("{}={}", guest::BINARY, splitring.display()).into(),
            format!("{}={}", guest::ASSETS, scratch.path().display()).into(),
        ];
        if let Some(base) = &options.base {
            words.push(format!("{BASE}={}", base.display()).into());
        }
        if let Some(names) = &options.against {
            words.push(format!("{AGAINST}={names}").into());
        }
        if let Some(window) = options.poll_us {
            words.push(format!("{POLL_US}={window}").into());
        }
        words.extend([bench.clone().into(), device.into()]);
        words.extend(mode.iter().map(OsString::from));
        words
    };
    let in_lab = !host.runs_stock_kernels();
    let lab = |icount: bool| lab::Options {
        icount,
        alone: true,
        cpus: options.cpus,
        timeout: if icount { COUNT_LIMIT } else { PAIR_LIMIT },
        modules: modules.iter().copied().map(str::to_owned).collect(),
        yes,
    };
    let measure = |in_lab: bool, icount: bool, mode: &[&str]| -> Result<String> {
        let outcome = if in_lab {
            lab::run(&lab(icount), &command(mode), lab::Output::PassAndKeep)?
        } else {
            lab::run_here(&command(mode), lab::Output::PassAndKeep)?
        };
        ensure!(
            outcome.code == 0,
            "the measurement ended with exit code {}",
            outcome.code
        );
        let output = String::from_utf8_lossy(&outcome.output).into_owned();
        Ok(output.lines().last().unwrap_or_default().to_owned())
    };
    // The emulated processor occasionally loses a guest or the lab.
    let go = |icount: bool, mode: &[&str]| {
        let again = |error| {
            say(format!("{error:#}; retrying"));
            measure(in_lab, icount, mode)
        };
        let first = measure(in_lab, icount, mode);
        if in_lab {
            first.or_else(again).or_else(again)
        } else {
            first
        }
    };
    let mut ratios = Vec::new();
    if !options.no_pairs {
        let figures = scratch.path().join("figures").display().to_string();
        for pair in 0..options.pairs {
            let pair = pair.to_string();
            go(false, &["pair", &pair, &figures, &options.only])?;
        }
        ratios.push(measure(false, false, &["pairs", &figures])?);
    }
    if in_lab && !options.no_count {
        ratios.push(go(true, &["count", &options.only])?);
    } else if !in_lab {
        say("this machine's clock does not count instructions: only rates");
    }
    println!("{}", ratios.join(" | "));
    Ok(())
}
