//! The list of end-to-end tests that workers share: who claimed what, and how it went.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::guest::{ASSETS, BINARY};
use crate::lab;
use crate::progress::say;

/// How often a test may lose its lab: the emulated machine dies now and then, whatever runs in it.
const TRIES: u32 = 3;
/// One test's own limit, in seconds.
const TEST_LIMIT: u32 = 600;

/// One test: where it is, what it is called, and a name for its files that no other test has.
#[derive(Debug)]
pub(super) struct Test {
    pub(super) binary: PathBuf,
    pub(super) name: String,
    pub(super) id: String,
}

/// Where the workers of one run meet: the list, who claimed what, how it went. One file or directory per test,
/// so that a claim is one atomic mkdir, in a lab as on the host.
#[derive(Debug)]
pub(super) struct Board {
    dir: PathBuf,
    /// What has passed in this or another run, a file each.
    passed: PathBuf,
    tests: Vec<Test>,
}

impl Board {
    /// A new board beside the assets in `dir`; `passed` may hold the results of other runs.
    pub(super) fn set_up(
        dir: &Path,
        passed: PathBuf,
        tests: Vec<Test>,
        splitring: &Path,
    ) -> Result<Self> {
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
    pub(super) fn work(&self, worker: usize, lab: Option<&lab::Options>) {
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
    pub(super) fn open(&self) -> usize {
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
    pub(super) fn report(&self) -> Result<()> {
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
