//! The end-to-end tests: built here, run where a stock kernel runs, by a few workers.
//!
//! They are the ignored tests of the target `e2e`, so that nothing else runs them by accident.
//! Those below a module named `soak` run in the soak tier only. A worker is one lab, or one process
//! where the host's KVM can run a stock kernel. Workers share a list and claim one test after the
//! other. If a lab is lost, its test runs again in a new one, twice at most; a run that loses more
//! than one lab fails. A soak run remembers which tests have passed and continues after an
//! interruption. All other state belongs to one run, so that two runs at the same time don't
//! disturb each other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::Tier;
use super::queue::{Summary, Test, TestQueue};
use crate::assets::Cache;
use crate::guest;
use crate::host::{self, HostKvm};
use crate::lab;
use crate::progress::say;
use crate::tools;
use crate::vmm;

/// Memory of a worker: enough for the largest guest and the lab around it.
const WORKER_MEMORY_MIB: u32 = 8192;
/// Kernel modules for tests that create networks and block devices.
const MODULES: [&str; 13] = [
    "tun",
    "vhost_net",
    "veth",
    "bridge",
    "loop",
    "8021q",
    "dm_log_writes",
    "dm_thin_pool",
    "dm_crypt",
    "dm_delay",
    "xfs",
    "sd_mod",
    // A disk for tests of bad sectors and discard, with physical blocks of 4 KiB and logical ones
    // of 512 bytes.
    "scsi_debug dev_size_mb=16 physblk_exp=3 lbpu=1 lbpws=1 delay=0",
];
/// The target of the end-to-end tests: `tests/tests/e2e`.
const TARGET: &str = "e2e";
/// A module with this name holds tests of the soak tier.
const SOAK: &str = "soak";
/// Upper limits for a slow machine. A test or a lab that hangs is found earlier, by its own limit.
const PLAIN_LIMIT: Duration = Duration::from_secs(60 * 60);
const SOAK_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Builds, prepares and runs the tests whose path contains `part`; in the lab if `force_lab`, or if
/// the host's KVM can't run them. Prints and returns the results.
pub(crate) fn run(tier: Tier, part: &str, force_lab: bool, yes: bool) -> Result<Summary> {
    let host = HostKvm::detect();
    let in_lab = force_lab || !host.runs_stock_kernels();
    let place = if in_lab {
        "in the lab"
    } else {
        "on the host's KVM"
    };
    say(format!("{host}: end-to-end tests run {place}"));
    if in_lab {
        lab::prepare(yes)?;
    }
    let needed = [
        tools::IASL,
        tools::PASST,
        tools::GENISOIMAGE,
        tools::DMSETUP,
        tools::QEMU_IMG,
        tools::MKFS_XFS,
    ];
    tools::ensure(&needed, "the end-to-end tests", yes)?;
    let splitring = vmm::build()?;
    let binaries = binaries()?;
    let mut tests = list(&binaries, tier)?;
    tests.retain(|test| test.name.contains(part));
    ensure!(!tests.is_empty(), "there is no such end-to-end test");

    let cache = Cache::open()?;
    let scratch = cache.scratch("test-")?;
    let passed_dir = match tier {
        Tier::Soak => {
            let key = key(binaries.iter().map(|(_, path)| path).chain([&splitring]))?;
            cache.versioned("soak", &key, "starting a soak", |_| Ok(()))?
        }
        Tier::Quick | Tier::Plain => scratch.path().join("passed"),
    };
    guest::lay_out(&cache, scratch.path(), yes)?;
    // Running tests keep their programs even if a build replaces the originals.
    let keep = |file: &Path| -> Result<PathBuf> {
        let copy = scratch.path().join(file.file_name().context("no program")?);
        if !copy.exists() {
            fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
        }
        Ok(copy)
    };
    for test in &mut tests {
        test.binary = keep(&test.binary)?;
    }
    let splitring = keep(&splitring)?;
    let queue = TestQueue::create(scratch.path(), passed_dir, tests, &splitring)?;
    let options = lab::Options {
        timeout: if tier == Tier::Soak {
            SOAK_LIMIT
        } else {
            PLAIN_LIMIT
        },
        yes,
        modules: MODULES.map(str::to_owned).into(),
        ..lab::Options::default()
    };
    std::thread::scope(|scope| {
        for worker in 0..host::slots(WORKER_MEMORY_MIB).min(queue.remaining()) {
            let (queue, options) = (&queue, &options);
            scope.spawn(move || queue.work(worker, in_lab.then_some(options)));
        }
    });
    Ok(queue.report())
}

/// The test executables of [`TARGET`].
fn binaries() -> Result<Vec<(String, PathBuf)>> {
    let mut targets = vmm::executables(&[
        "test",
        "--no-run",
        "--package",
        "splitring-tests",
        "--tests",
    ])?;
    targets.sort();
    Ok(targets
        .into_iter()
        .filter(|(name, _)| name == TARGET)
        .collect())
}

/// Lists the tests in `binaries` that belong to `tier`.
fn list(binaries: &[(String, PathBuf)], tier: Tier) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for (target, binary) in binaries {
        let output = Command::new(binary)
            .args(["--list", "--ignored", "--format", "terse"])
            .output()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        let names = String::from_utf8(output.stdout).context("a test's name is not UTF-8")?;
        for name in names.lines().filter_map(|line| line.strip_suffix(": test")) {
            if runs_in(tier, name) {
                tests.push(Test {
                    binary: binary.clone(),
                    name: name.to_owned(),
                    id: format!("{target}.{name}").replace("::", "."),
                });
            }
        }
    }
    Ok(tests)
}

/// Returns whether the test with this path runs in `tier`.
fn runs_in(tier: Tier, path: &str) -> bool {
    tier == Tier::Soak || path.split("::").all(|module| module != SOAK)
}

/// Returns a hash of the files' contents.
fn key<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<String> {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(hash
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests;
