//! `splitring check`: checks what this host supports, as text or as JSON.

use std::fmt::Write;

use anyhow::Context;
use splitring::Console;
use splitring::host::{self, FindingOutcome};

use crate::args::{self, CheckArgs};
use crate::exit::Failure;
use crate::streams::print;

/// Runs the checks; returns exit code 0 if a stock kernel can run here and the configuration, if
/// given, is valid and its files can be opened.
pub(crate) fn check(args: &CheckArgs) -> Result<u8, Failure> {
    if let Some(path) = &args.file {
        let config = args::read_file(path)?;
        config
            .validate()
            .with_context(|| format!("the configuration {} is not valid", path.display()))
            .map_err(Failure::Usage)?;
        splitring::check_files(&config)
            .with_context(|| format!("{} can't be started", path.display()))?;
        Console::check(&config.serial)
            .with_context(|| format!("{} can't be started", path.display()))?;
    }
    let report = host::report();
    let mut text = String::new();
    if args.json {
        writeln!(text, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        for found in &report.findings {
            let mark = match found.outcome {
                FindingOutcome::Ok => "ok     ",
                FindingOutcome::Limited => "limited",
                _ => "FAILED ",
            };
            writeln!(text, "{mark} {:<11} {}", found.name, found.detail)?;
            if !found.remedy.is_empty() {
                writeln!(text, "{:>20}{}", "", found.remedy)?;
            }
        }
        text += if report.can_run {
            "stock kernels can run here\n"
        } else {
            "stock kernels cannot run here\n"
        };
    }
    print(&text)?;
    Ok(u8::from(!report.can_run))
}
