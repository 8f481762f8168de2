//! The queue of end-to-end tests that the workers share: claims and results.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use splitring_needs::{REQUIRE_KVM, REQUIRE_TOOLS, SKIPPED};

use super::skipped;
use crate::guest::{ASSETS, BINARY};
use crate::lab;
use crate::progress::say;

/// How often a test runs if its lab crashes.
const MAX_TRIES: u32 = 3;
/// How many labs may crash in a run. More are a bug, in Splitring or in the lab.
const MAX_LOST_LABS: usize = 1;
/// Time limit of one test, in seconds.
const TEST_LIMIT: u32 = 600;

/// One test: its program, its name, and an identifier for its files.
#[derive(Debug)]
pub(super) struct Test {
    pub(super) binary: PathBuf,
    pub(super) name: String,
    pub(super) id: String,
}

/// The queue of tests in a run, with their claims and results. Each is a file or a directory per
/// test, so that a claim is one atomic mkdir, in a lab as well as on the host.
#[derive(Debug)]
pub(super) struct TestQueue {
    dir: PathBuf,
    /// One file for each test that has passed in this or another run.
    passed: PathBuf,
    tests: Vec<Test>,
    /// How many labs have crashed.
    lost: AtomicUsize,
}

/// The results of a run.
#[derive(Debug, Default)]
pub(super) struct Summary {
    passed: usize,
    failed: Vec<String>,
    /// The skipped tests, each with the reason.
    pub(super) skipped: Vec<String>,
    /// How many labs have crashed.
    pub(super) lost: usize,
}

impl Summary {
    /// Returns the closing line for programs: one word, and numbers of tests only.
    fn machine_readable(&self) -> String {
        let (passed, failed, skipped) = (self.passed, self.failed.len(), self.skipped.len());
        format!("end-to-end: {passed} passed, {failed} failed, {skipped} skipped")
    }

    /// Checks the results.
    ///
    /// # Errors
    ///
    /// Tests failed (the error names them), or too many labs crashed.
    pub(super) fn verdict(&self) -> Result<()> {
        let tests = self.passed + self.failed.len() + self.skipped.len();
        ensure!(
            self.failed.is_empty(),
            "{} of {tests} failed: {}",
            self.failed.len(),
            self.failed.join(", ")
        );
        ensure!(
            self.lost <= MAX_LOST_LABS,
            "{} labs were lost, of which only {MAX_LOST_LABS} may be",
            self.lost
        );
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, failed) = (self.passed, self.failed.len());
        write!(f, "end-to-end tests: {passed} passed, {failed} failed")?;
        if !self.skipped.is_empty() {
            write!(f, ", {} skipped", self.skipped.len())?;
        }
        match self.lost {
            0 => Ok(()),
            1 => write!(f, ", 1 lab lost"),
            lost => write!(f, ", {lost} labs lost"),
        }
    }
}

impl TestQueue {
    /// Creates a queue beside the assets in `dir`. `passed` may have the results of other runs.
    pub(super) fn create(
        dir: &Path,
        passed: PathBuf,
        tests: Vec<Test>,
        splitring: &Path,
    ) -> Result<Self> {
        let queue = Self {
            dir: dir.join("queue"),
            passed,
            tests,
            lost: AtomicUsize::new(0),
        };
        let parts = ["claims", "results", "logs", "skipped"].map(|part| queue.dir.join(part));
        for part in parts.iter().chain([&queue.passed]) {
            fs::create_dir_all(part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let line = |test: &Test| format!("{} {} {}\n", test.id, test.name, test.binary.display());
        let list: String = queue.tests.iter().map(line).collect();
        let passed = queue.tests.len() - queue.remaining();
        if passed > 0 {
            say(format!(
                "continuing an interrupted run: {passed} tests have passed"
            ));
        }
        let script = WORKER
            .replace("@QUEUE@", &queue.dir.display().to_string())
            .replace("@PASSED@", &queue.passed.display().to_string())
            .replace("@LIMIT@", &TEST_LIMIT.to_string())
            .replace("@BINARY@", &format!("{BINARY}='{}'", splitring.display()))
            .replace("@ASSETS@", &format!("{ASSETS}='{}'", dir.display()))
            .replace("@REQUIRED@", &format!("{REQUIRE_KVM}=1 {REQUIRE_TOOLS}=1"))
            .replace("@SKIPPED@", SKIPPED);
        fs::write(queue.dir.join("tests"), list)
            .and_then(|()| fs::write(queue.dir.join("worker"), script))
            .with_context(|| format!("cannot write to {}", queue.dir.display()))?;
        Ok(queue)
    }

    /// Runs tests until none is left to claim. A lab that crashes is replaced by a new one.
    pub(super) fn work(&self, worker: usize, lab: Option<&lab::Options>) {
        let command: Vec<OsString> = vec![
            "/bin/sh".into(),
            self.dir.join("worker").into(),
            worker.to_string().into(),
        ];
        let mut lost: BTreeMap<&str, u32> = BTreeMap::new();
        let mut without_test = 0;
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
            self.lost.fetch_add(1, Ordering::Relaxed);
            let Some(test) = self.unfinished(worker) else {
                // It ended between two tests, or before the first.
                without_test += 1;
                if without_test > 2 {
                    return;
                }
                continue;
            };
            let name = &test.name;
            let tries = lost.entry(&test.id).or_default();
            *tries += 1;
            if *tries == MAX_TRIES {
                say(format!("  the lab ended {MAX_TRIES} times during {name}"));
                self.give_up(test);
                continue;
            }
            say(format!("  the lab ended during {name}; retrying"));
            self.release(test);
        }
    }

    /// Returns the test that `worker` has claimed and that has no result.
    fn unfinished(&self, worker: usize) -> Option<&Test> {
        self.tests.iter().find(|test| {
            let owner = fs::read_to_string(self.path("claims", test).join("worker"));
            owner.is_ok_and(|owner| owner.trim() == worker.to_string())
                && self.result(test).is_none()
        })
    }

    /// Returns how many tests have not passed.
    pub(super) fn remaining(&self) -> usize {
        let open = |test: &&Test| !self.has_passed(test);
        self.tests.iter().filter(open).count()
    }

    fn has_passed(&self, test: &Test) -> bool {
        self.passed.join(&test.id).exists()
    }

    fn result(&self, test: &Test) -> Option<String> {
        let text = fs::read_to_string(self.path("results", test)).ok()?;
        Some(text.trim().to_owned())
    }

    fn release(&self, test: &Test) {
        // Any of them may be missing.
        drop(fs::remove_file(self.path("results", test)));
        drop(fs::remove_file(self.path("skipped", test)));
        drop(fs::remove_dir_all(self.path("claims", test)));
    }

    /// Records that a test's lab crashed each time, so that its worker continues with the others.
    fn give_up(&self, test: &Test) {
        if let Err(error) = fs::write(self.path("results", test), "LOST") {
            say(format!("cannot record the loss of {}: {error}", test.name));
        }
    }

    fn path(&self, part: &str, test: &Test) -> PathBuf {
        self.dir.join(part).join(&test.id)
    }

    /// Prints the logs of the failed tests and two closing lines, and returns the results.
    pub(super) fn report(&self) -> Summary {
        let mut summary = Summary {
            lost: self.lost.load(Ordering::Relaxed),
            ..Summary::default()
        };
        for test in &self.tests {
            match self.result(test).as_deref() {
                Some("ok") => summary.passed += 1,
                Some("skipped") => {
                    let why = skipped::read(&self.path("skipped", test));
                    summary.skipped.push(why.join("; "));
                }
                Some(_) => {
                    let log = fs::read(self.path("logs", test)).unwrap_or_default();
                    println!("-- {}\n{}", test.name, String::from_utf8_lossy(&log).trim());
                    summary.failed.push(test.name.clone());
                }
                None if self.has_passed(test) => summary.passed += 1,
                None => {
                    println!("-- {} did not end", test.name);
                    summary.failed.push(test.name.clone());
                }
            }
        }
        println!("{summary}\n{}", summary.machine_readable());
        summary
    }
}

/// The script of a worker: claims and runs one test after the other. `$1` is the worker's number.
const WORKER: &str = r#"
export @BINARY@ @ASSETS@ @REQUIRED@
# What the VMM caches it caches for this run, in memory.
XDG_CACHE_HOME=$(mktemp -d -p /dev/shm) && export XDG_CACHE_HOME
trap 'rm -rf "$XDG_CACHE_HOME"' EXIT
cd '@QUEUE@' || exit 1
while read -r id name binary; do
  # By another run meanwhile.
  [ -e "@PASSED@/$id" ] && continue
  mkdir "claims/$id" 2>/dev/null || continue
  echo "$1" >"claims/$id/worker"
  read -r since _ </proc/uptime
  export @SKIPPED@='@QUEUE@'"/skipped/$id"
  if timeout -k 10 @LIMIT@ "$binary" --ignored --exact --show-output "$name" >"logs/$id" 2>&1 </dev/null
  then
    # A later run may be able to run what this one could not.
    if [ -e "skipped/$id" ]; then result=skipped; else result=ok; : >"@PASSED@/$id"; fi
  else result=FAILED; fi
  read -r now _ </proc/uptime
  echo "  $result $name ($((${now%.*} - ${since%.*})) s)"
  echo $result >"results/$id"
done <tests
"#;

#[cfg(test)]
mod tests;
