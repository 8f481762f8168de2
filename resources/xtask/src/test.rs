//! `cargo xtask test`: all checks of the project, in three tiers.
//!
//! - Quick: formatting, lints, documentation, unit and in-process tests.
//! - Plain: also the model checker and the end-to-end tests, on the host's KVM if that can run a
//!   stock kernel, otherwise in the lab.
//! - Soak: also the long matrices, AddressSanitizer, and the compatibility of the library's
//!   interface.
//!
//! A step that fails does not prevent the others from running.

mod e2e;
mod engine;
mod queue;
mod semver;
mod skipped;

use std::fs::File;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Result;

use crate::host::HostKvm;
use crate::lab;
use crate::progress::say;
use crate::tools;
use crate::vmm::cargo;
use skipped::Skipped;

/// The extent of a test run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Everything that needs no guest; at most 5 minutes.
    Quick,
    /// The default; at most half an hour.
    Plain,
    /// All tests, including the long matrices.
    Soak,
}

/// The name of a step, and its result.
type Verdict = (String, Result<()>);

/// What to run.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    pub(crate) tier: Tier,
    /// Run only the end-to-end tests whose path contains this text.
    pub(crate) only: Option<&'a str>,
    /// Run the end-to-end tests in the lab, even if the host's KVM can run them.
    pub(crate) lab: bool,
    /// Install missing packages without asking.
    pub(crate) yes: bool,
}

/// Runs the tests. Prints a line per step at the end, and one for the run.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let Options {
        tier,
        only,
        lab,
        yes,
    } = *options;
    let started = Instant::now();
    let skipped = Skipped::new()?;
    let mut end_to_end = queue::Summary::default();
    let mut verdicts: Vec<Verdict> = Vec::new();
    let mut step = |name: &str, work: &mut dyn FnMut() -> Result<()>| {
        say(format!("== {name}"));
        let since = Instant::now();
        let result = work();
        if let Err(error) = &result {
            say(format!("{name} failed: {error:#}"));
        }
        verdicts.push((
            format!("{name} ({:.0} s)", since.elapsed().as_secs_f64()),
            result,
        ));
    };
    if only.is_none() {
        for (name, arguments) in quick_steps() {
            step(name, &mut || run_cargo(arguments));
        }
        step("tests", &mut || run_tests(tier, &skipped, yes));
    }
    if tier != Tier::Quick && only.is_none() {
        step("rings under the model checker", &mut engine::model_checker);
        step("self-test on the host's KVM", &mut || {
            run_selftest(tier, &skipped)
        });
    }
    if tier == Tier::Soak && only.is_none() {
        step("long model runs and corpus", &mut engine::long);
        step("rings under AddressSanitizer", &mut engine::sanitized);
        step("the library's promised interface", &mut semver::check);
    }
    if tier != Tier::Quick {
        step("end-to-end tests", &mut || {
            end_to_end = e2e::run(tier, only.unwrap_or_default(), lab, yes)?;
            end_to_end.verdict()
        });
    }
    let skipped = [skipped.lines(), end_to_end.skipped].concat();
    Ok(close(&verdicts, &skipped, end_to_end.lost, started))
}

/// Runs the embedded guest on the host's KVM. This works on any KVM, so it needs no lab.
fn run_selftest(tier: Tier, skipped: &Skipped) -> Result<()> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        return skipped.note(&format!("self-test on the host's KVM: /dev/kvm: {error}"));
    }
    const PACKAGE: [&str; 5] = [
        "--quiet",
        "--package",
        "splitring-cli",
        "--features",
        "selftest",
    ];
    let words = |first, rest: &[&'static str]| [&[first][..], &PACKAGE, rest].concat();
    let mut tests = cargo_with_strict_docs(&words("test", &["--test", "selftest"]));
    tests.envs(skipped.environment(tier));
    succeed(tests)?;
    run_cargo(&words("run", &["--", "selftest", "--seconds", "0.1"]))
}

fn quick_steps() -> [(&'static str, &'static [&'static str]); 4] {
    [
        ("formatting", &["fmt", "--all", "--check"]),
        (
            "lints",
            &[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--all-features",
                "--",
                "-D",
                "warnings",
            ],
        ),
        (
            "library without features",
            &[
                "clippy",
                "--quiet",
                "-p",
                "splitring",
                "--lib",
                "--",
                "-D",
                "warnings",
            ],
        ),
        (
            "documentation",
            &[
                "doc",
                "--quiet",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ],
        ),
    ]
}

fn run_cargo(arguments: &[&str]) -> Result<()> {
    succeed(cargo_with_strict_docs(arguments))
}

fn cargo_with_strict_docs(arguments: &[&str]) -> Command {
    let mut command = cargo();
    command.args(arguments).env("RUSTDOCFLAGS", "-D warnings");
    command
}

/// Runs unit and in-process tests, with nextest if it is installed, and the documentation's
/// examples. The quick tier skips tests whose programs are missing; the other tiers install the
/// programs and require all tests to run.
fn run_tests(tier: Tier, skipped: &Skipped, yes: bool) -> Result<()> {
    let run_cargo = |arguments: &[&str]| {
        let mut command = cargo_with_strict_docs(arguments);
        command.envs(skipped.environment(tier));
        succeed(command)
    };
    if tier != Tier::Quick {
        let needed = [
            tools::IASL,
            tools::QEMU_IMG,
            tools::IP,
            tools::MKE2FS,
            tools::MKFS_XFS,
            tools::MKFS_BTRFS,
            tools::MFORMAT,
            tools::SFDISK,
            tools::GENISOIMAGE,
        ];
        tools::ensure(&needed, "the tests", yes)?;
        if !HostKvm::detect().runs_stock_kernels() {
            // The end-to-end tests need them anyway, and one of the tests here checks what is
            // missing besides.
            lab::ensure_programs(yes)?;
        }
    }
    let nextest = cargo()
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    let first = if nextest {
        run_cargo(&["nextest", "run", "--workspace", "--no-fail-fast"])
    } else {
        run_cargo(&[
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
        ])
    };
    let examples = run_cargo(&["test", "--quiet", "--workspace", "--doc"]);
    first.and(examples)
}

fn succeed(mut command: Command) -> Result<()> {
    let status = command.status()?;
    anyhow::ensure!(status.success(), "{status}");
    Ok(())
}

fn close(verdicts: &[Verdict], skipped: &[String], lost: usize, started: Instant) -> ExitCode {
    for line in skipped {
        println!("test: skipped: {line}");
    }
    for (name, result) in verdicts {
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test: {word}: {name}");
    }
    let failed = verdicts
        .iter()
        .filter(|(_, result)| result.is_err())
        .count();
    let took = started.elapsed().as_secs();
    let (steps, skipped) = (verdicts.len(), skipped.len());
    let rest = format!("in {took} s; skipped tests: {skipped}, lost labs: {lost}");
    if failed == 0 {
        println!("test: ok, {steps} steps {rest}");
        ExitCode::SUCCESS
    } else {
        println!("test: FAILED, {failed} of {steps} steps, {rest}");
        ExitCode::FAILURE
    }
}
