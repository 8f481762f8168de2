//! The end-to-end tests: built here, run where a stock kernel runs, by a few workers.
//!
//! They are the ignored tests of the `e2e_…` targets, so that nothing runs them by accident; those
//! called `soak_…` run in the soak tier only. A worker is one lab (or one process, where the host's
//! KVM does); workers share a list and claim one test after the other. If a lab dies, its test is
//! tried again in a new one, twice at most. A soak remembers what has passed and goes on where it was; everything else is
//! a run's own, so that two at once don't disturb each other.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::Tier;
use crate::assets::Cache;
use crate::guest::{self, ASSETS, BINARY};
use crate::host::{self, HostKvm};
use crate::lab;
use crate::progress::say;
use crate::tools;
use crate::vmm;

/// How often a test may lose its lab: the emulated machine dies now and then, whatever runs in it.
const TRIES: u32 = 3;

/// What a worker needs: the largest guest and its surroundings.
const WORKER_MEMORY_MIB: u32 = 8192;
/// Kernel modules for tests that make their own networks and block devices.
const MODULES: [&str; 8] = [
    "tun",
    "veth",
    "bridge",
    "loop",
    "8021q",
    "dm_log_writes",
    "sd_mod",
    // A disk with sectors that can go bad, in blocks of 4 KiB below sectors of 512, that discards.
    "scsi_debug dev_size_mb=16 physblk_exp=3 lbpu=1 delay=0",
];
const PLAIN_LIMIT: Duration = Duration::from_secs(20 * 60);
const SOAK_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// One test's own limit, in seconds.
const TEST_LIMIT: u32 = 600;

/// One test: where it is, what it is called, and a name for its files that no other test has.
#[derive(Debug)]
struct Test {
    binary: PathBuf,
    name: String,
    id: String,
}

/// Builds, prepares and runs those with `part` in their name.
pub(crate) fn run(tier: Tier, part: &str, yes: bool) -> Result<()> {
    let host = HostKvm::detect();
    let in_lab = !host.runs_stock_kernels();
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
    // A build meanwhile would put other programs under the feet of the running ones.
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
    let board = Board::set_up(scratch.path(), passed_dir, tests, &splitring)?;
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
        for worker in 0..host::slots(WORKER_MEMORY_MIB).min(board.open()) {
            let (board, options) = (&board, &options);
            scope.spawn(move || board.work(worker, in_lab.then_some(options)));
        }
    });
    board.report()
}

/// The `e2e_…` test executables.
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
        .filter(|(name, _)| name.starts_with("e2e_"))
        .collect())
}

/// The tests in them that belong to `tier`.
fn list(binaries: &[(String, PathBuf)], tier: Tier) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for (target, binary) in binaries {
        let output = Command::new(binary)
            .args(["--list", "--ignored", "--format", "terse"])
            .output()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        let names = String::from_utf8(output.stdout).context("a test's name is not UTF-8")?;
        for name in names.lines().filter_map(|line| line.strip_suffix(": test")) {
            let long = name
                .rsplit("::")
                .next()
                .is_some_and(|last| last.starts_with("soak_"));
            if tier == Tier::Soak || !long {
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

/// Names these very files.
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

/// Where the workers of one run meet: the list, who claimed what, how it went. One file or directory per test,
/// so that a claim is one atomic mkdir, in a lab as on the host.
#[derive(Debug)]
struct Board {
    dir: PathBuf,
    /// What has passed in this or another run, a file each.
    passed: PathBuf,
    tests: Vec<Test>,
}

impl Board {
    /// A new board beside the assets in `dir`; `passed` may hold the results of other runs.
    fn set_up(dir: &Path, passed: PathBuf, tests: Vec<Test>, splitring: &Path) -> Result<Self> {
        let board = Self {
            dir: dir.join("board"),
            passed,
            tests,
        };
        let parts = ["claims", "results", "logs"].map(|part| board.dir.join(part));
        for part in parts.iter().chain([&board.passed]) {
            fs::create_dir_all(part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let line = |test: &Test| format!("{} {} {}\n", test.id, test.name, test.binary.display());
        let list: String = board.tests.iter().map(line).collect();
        let passed = board.tests.len() - board.open();
        if passed > 0 {
            say(format!("going on where it was: {passed} tests have passed"));
        }
        let script = WORKER
            .replace("@BOARD@", &board.dir.display().to_string())
            .replace("@PASSED@", &board.passed.display().to_string())
            .replace("@LIMIT@", &TEST_LIMIT.to_string())
            .replace("@BINARY@", &format!("{BINARY}='{}'", splitring.display()))
            .replace("@ASSETS@", &format!("{ASSETS}='{}'", dir.display()));
        fs::write(board.dir.join("tests"), list)
            .and_then(|()| fs::write(board.dir.join("worker"), script))
            .with_context(|| format!("cannot write to {}", board.dir.display()))?;
        Ok(board)
    }

    /// Works until nothing is left to claim; a lab that dies gets a successor.
    fn work(&self, worker: usize, lab: Option<&lab::Options>) {
        let command: Vec<OsString> = vec![
            "/bin/sh".into(),
            self.dir.join("worker").into(),
            worker.to_string().into(),
        ];
        let mut lost: BTreeMap<&str, u32> = BTreeMap::new();
        let mut stillborn = 0;
        loop {
            let outcome = match lab {
                Some(options) => lab::run(options, &command, lab::Output::Watch),
                None => lab::run_here(&command, lab::Output::Watch),
            };
            match outcome {
                Ok(lab::Outcome { code: 0, .. }) => return,
                Ok(outcome) => say(format!("worker {worker} ended with {}", outcome.code)),
                Err(error) => say(format!("worker {worker}: {error:#}")),
            }
            let Some(test) = self.unfinished(worker) else {
                // It ended between two tests, or before the first.
                stillborn += 1;
                if stillborn > 2 {
                    return;
                }
                continue;
            };
            let name = &test.name;
            let tries = lost.entry(&test.id).or_default();
            *tries += 1;
            if *tries == TRIES {
                say(format!("  the lab ended {TRIES} times during {name}"));
                self.give_up(test);
                continue;
            }
            say(format!("  the lab ended during {name}; once more"));
            self.release(test);
        }
    }

    /// The test `worker` has claimed without a result.
    fn unfinished(&self, worker: usize) -> Option<&Test> {
        self.tests.iter().find(|test| {
            let owner = fs::read_to_string(self.place("claims", test).join("worker"));
            owner.is_ok_and(|owner| owner.trim() == worker.to_string())
                && self.result(test).is_none()
        })
    }

    /// How many have not passed.
    fn open(&self) -> usize {
        let open = |test: &&Test| !self.has_passed(test);
        self.tests.iter().filter(open).count()
    }

    fn has_passed(&self, test: &Test) -> bool {
        self.passed.join(&test.id).exists()
    }

    fn result(&self, test: &Test) -> Option<String> {
        let text = fs::read_to_string(self.place("results", test)).ok()?;
        Some(text.trim().to_owned())
    }

    fn release(&self, test: &Test) {
        // Either may not be there.
        drop(fs::remove_file(self.place("results", test)));
        drop(fs::remove_dir_all(self.place("claims", test)));
    }

    /// Records a test that no lab survived, so that its worker goes on with the others.
    fn give_up(&self, test: &Test) {
        if let Err(error) = fs::write(self.place("results", test), "LOST") {
            say(format!("cannot record the loss of {}: {error}", test.name));
        }
    }

    fn place(&self, part: &str, test: &Test) -> PathBuf {
        self.dir.join(part).join(&test.id)
    }

    /// Prints the logs of what failed and the sum.
    fn report(&self) -> Result<()> {
        let mut failed = Vec::new();
        for test in &self.tests {
            match self.result(test).as_deref() {
                Some("ok") => {}
                Some(_) => {
                    let log = fs::read(self.place("logs", test)).unwrap_or_default();
                    println!("-- {}\n{}", test.name, String::from_utf8_lossy(&log).trim());
                    failed.push(test.name.as_str());
                }
                None if self.has_passed(test) => {}
                None => {
                    println!("-- {} did not end", test.name);
                    failed.push(test.name.as_str());
                }
            }
        }
        let passed = self.tests.len() - failed.len();
        println!("end-to-end tests: {passed} passed, {} failed", failed.len());
        if !failed.is_empty() {
            bail!(
                "{} of {} failed: {}",
                failed.len(),
                self.tests.len(),
                failed.join(", ")
            );
        }
        Ok(())
    }
}

/// Claims and runs one test after the other; `$1` is the worker's number.
const WORKER: &str = r#"
export @BINARY@ @ASSETS@
# What the VMM caches it caches for this run, in memory.
XDG_CACHE_HOME=$(mktemp -d -p /dev/shm) && export XDG_CACHE_HOME
trap 'rm -rf "$XDG_CACHE_HOME"' EXIT
cd '@BOARD@' || exit 1
while read -r id name binary; do
  # By another run meanwhile.
  [ -e "@PASSED@/$id" ] && continue
  mkdir "claims/$id" 2>/dev/null || continue
  echo "$1" >"claims/$id/worker"
  read -r since _ </proc/uptime
  if timeout -k 10 @LIMIT@ "$binary" --ignored --exact --show-output "$name" >"logs/$id" 2>&1 </dev/null
  then result=ok; : >"@PASSED@/$id"; else result=FAILED; fi
  read -r now _ </proc/uptime
  echo "  $result $name ($((${now%.*} - ${since%.*})) s)"
  echo $result >"results/$id"
done <tests
"#;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that passes the test `good`, after a while.
    const PROGRAM: &str = "#!/bin/sh\nsleep 0.3; [ \"$4\" = good ]\n";

    fn board(dir: &Path, passed: &Path, names: &[&str]) -> Board {
        let binary = dir.join("program");
        fs::create_dir_all(dir)
            .and_then(|()| fs::write(&binary, PROGRAM))
            .and_then(|()| fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)))
            .expect("a program");
        let tests = names.iter().map(|name| Test {
            binary: binary.clone(),
            name: (*name).to_owned(),
            id: format!("e2e.{name}"),
        });
        Board::set_up(dir, passed.to_owned(), tests.collect(), &binary).expect("a board")
    }

    #[test]
    fn two_soaks_at_once_do_not_disturb_each_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let passed = dir.path().join("passed");
        let boards = [&["good", "bad"][..], &["good"]].map(|names| {
            let place = dir.path().join(names.len().to_string());
            board(&place, &passed, names)
        });
        std::thread::scope(|scope| {
            for board in &boards {
                scope.spawn(|| board.work(0, None));
            }
        });
        let [both, good] = boards;
        good.report().expect("it has passed in one of them");
        let error = both.report().expect_err("one has failed").to_string();
        assert_eq!(error, "1 of 2 failed: bad");
        let later = board(&dir.path().join("later"), &passed, &["good", "bad"]);
        later.work(0, None);
        assert_eq!(later.result(&later.tests[0]), None, "it has passed before");
        assert_eq!(later.result(&later.tests[1]).as_deref(), Some("FAILED"));
    }
}
