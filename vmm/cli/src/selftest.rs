//! `splitring selftest`: prints the results, the progress line and the verdict.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use splitring::host::{self, Virtualisation};
use splitring::selftest::{self, ReportLine, SelftestOptions, SelftestReport, Test, TestOutcome};

use crate::exit::Failure;
use crate::streams::{eprint, print};

/// The arguments of `splitring selftest`.
#[derive(Debug, Args)]
pub(crate) struct SelftestArgs {
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    /// Length of each timed loop in seconds
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Write the guest's image to PATH, for other virtual machine monitors, and exit
    #[arg(long, value_name = "PATH")]
    image: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give a number of seconds from 0.01 to 3600".to_owned()),
    }
}

/// Runs the self-test; returns exit code 1 if a test failed.
pub(crate) fn selftest(args: &SelftestArgs) -> Result<u8, Failure> {
    if let Some(path) = &args.image {
        let shown = path.display();
        std::fs::write(path, selftest::GUEST)
            .with_context(|| format!("cannot write the guest's image to {shown}"))?;
        return Ok(0);
    }
    let options = SelftestOptions::default().each(Duration::from_secs_f64(args.seconds));
    let mut progress = Progress::default();
    let result = selftest::run(options, |line| progress.show(line));
    progress.clear();
    let report = result
        .map_err(|error| Failure::Failed(anyhow::Error::new(error).context("selftest: failed")))?;
    let verdict = verdict(&report);
    if args.json {
        print(&format!("{}\n", json(&report)?))?;
        eprint(&format!("{verdict}\n"));
    } else {
        let mut text = String::new();
        show_tests(&report, &mut text)?;
        show_loops(&report, &mut text)?;
        print(&format!("{text}{verdict}\n"))?;
    }
    Ok(u8::from(!report.ok()))
}

fn json(report: &SelftestReport) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(report)?;
    value["ok"] = report.ok().into();
    value["host"] = kvm().into();
    serde_json::to_string_pretty(&value)
}

fn kvm() -> &'static str {
    match host::virtualisation() {
        Virtualisation::Hardware => "KVM with VMX or SVM",
        _ => "KVM without VMX or SVM",
    }
}

fn verdict(report: &SelftestReport) -> String {
    let failed = report
        .tests
        .iter()
        .filter(|test| matches!(test.outcome, TestOutcome::Failed(_)))
        .count();
    let skipped = report
        .tests
        .iter()
        .filter(|test| matches!(test.outcome, TestOutcome::Skipped(_)))
        .count();
    let passed = report.tests.len() - failed - skipped;
    let word = if report.ok() { "ok" } else { "FAILED" };
    format!(
        "selftest: {word}: {passed} passed, {failed} failed, {skipped} skipped, on {}",
        kvm()
    )
}

/// Prints one row per test with its variants, and one per failure or skip with its reason.
fn show_tests(report: &SelftestReport, to: &mut String) -> fmt::Result {
    writeln!(to, "{:<28} {:<8} variants", "test", "result")?;
    let mut rows: BTreeMap<String, Vec<(&str, &TestOutcome)>> = BTreeMap::new();
    for Test { name, outcome } in &report.tests {
        let (base, variant) = name.rsplit_once(' ').unwrap_or((name, ""));
        rows.entry(base.to_owned())
            .or_default()
            .push((variant, outcome));
    }
    for (base, variants) in &rows {
        let with = |wanted: fn(&TestOutcome) -> bool| {
            let names = variants
                .iter()
                .filter(move |(_, outcome)| wanted(outcome))
                .map(|(name, _)| *name);
            names.collect::<Vec<_>>().join(" ")
        };
        let ok = with(|outcome| *outcome == TestOutcome::Ok);
        if !ok.is_empty() {
            writeln!(to, "{base:<28} {:<8} {ok}", "ok")?;
        }
        for (name, outcome) in variants {
            match outcome {
                TestOutcome::Ok => {}
                TestOutcome::Skipped(why) => {
                    writeln!(to, "{base:<28} {:<8} {name}: {why}", "skipped")?
                }
                TestOutcome::Failed(why) => {
                    writeln!(to, "{base:<28} {:<8} {name}: {why}", "FAILED")?
                }
            }
        }
    }
    Ok(())
}

fn show_loops(report: &SelftestReport, to: &mut String) -> fmt::Result {
    writeln!(to)?;
    writeln!(
        to,
        "{:<36} {:>12} {:>10} {:>10}",
        "timed loop", "op/s", "ns/op", "exits/op"
    )?;
    for done in &report.loops {
        writeln!(
            to,
            "{:<36} {:>12.0} {:>10} {:>10.4}",
            done.name,
            done.rate(),
            done.each(),
            done.exits_each()
        )?;
    }
    Ok(())
}

/// A progress line on the terminal, which is overwritten and finally removed.
#[derive(Default)]
struct Progress {
    tests: usize,
    shown: bool,
}

impl Progress {
    fn show(&mut self, line: &ReportLine) {
        let text = match line {
            ReportLine::Test(test) => {
                self.tests += 1;
                format!("{} tests, last: {}", self.tests, test.name)
            }
            ReportLine::Begin(name) => format!("{} tests done, timing {name}", self.tests),
            _ => return,
        };
        self.write(&format!("\r\x1b[K{text}"));
        self.shown = true;
    }

    fn clear(&mut self) {
        if self.shown {
            self.write("\r\x1b[K");
        }
    }

    fn write(&self, text: &str) {
        let mut out = std::io::stderr();
        if out.is_terminal() {
            // A terminal that has gone away must not end the test.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
    }
}
