//! Runs the conformance suite of libiscsi in a guest, on a disk of the kernel, and parses its
//! output.

use std::time::{Duration, Instant};

use splitring_tests::guest::Guest;

/// Time limit of one family under software emulation.
const LIMIT: Duration = Duration::from_secs(540);

/// A part of the suite and its expected result.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    /// One disk, or two paths to one.
    pub(crate) devices: &'static str,
    /// Number of tests that it runs. A filter that matches nothing runs nothing and succeeds.
    pub(crate) run: u32,
    /// Tests that the suite skips, by suite and name or by suite and a star; each is justified
    /// where it is listed.
    pub(crate) skipped: &'static [&'static str],
    /// Tests that may fail, because they also fail on the kernel's own target.
    pub(crate) excused: &'static [&'static str],
}

impl Family {
    /// Returns a family that is run completely and passes.
    pub(crate) const fn whole(name: &'static str, devices: &'static str, run: u32) -> Self {
        Self {
            name,
            devices,
            run,
            skipped: &[],
            excused: &[],
        }
    }

    /// Runs it and asserts the expected result.
    #[track_caller]
    pub(crate) fn passes(&self, guest: &mut Guest) {
        let verdict = run(guest, self.name, self.devices);
        let Verdict {
            run,
            failed,
            skipped,
            words,
        } = &verdict;
        let title = format!("{} on {}", self.name, self.devices);
        println!(
            "{title}: {run} run, {} skipped, failed: {failed:?}",
            skipped.len()
        );
        for (test, reason) in skipped {
            println!("  {test}: {reason}");
        }
        assert_eq!(failed, self.excused, "{title}: {words}");
        assert_eq!(*run, self.run, "{title}: tests run");
        let unexpected: Vec<_> = skipped
            .iter()
            .filter(|(test, _)| !self.skipped.iter().any(|pattern| matches(pattern, test)))
            .collect();
        assert!(unexpected.is_empty(), "{title} skips also {unexpected:?}");
        for pattern in self.skipped {
            assert!(
                skipped.iter().any(|(test, _)| matches(pattern, test)),
                "{title} does not skip {pattern}"
            );
        }
    }
}

fn matches(pattern: &str, test: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => test.starts_with(start),
        None => test == pattern,
    }
}

/// The suite's result for one family.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) run: u32,
    /// By suite and name.
    pub(crate) failed: Vec<String>,
    /// By suite and name, each with the suite's reason.
    pub(crate) skipped: Vec<(String, String)>,
    /// The suite's output about the failures.
    words: String,
}

/// Extracts the results from the log, by test. A test may print several reasons for skipping: the
/// first is kept.
const FAILED: &str =
    r#"awk '/^Suite:/{s=$2} /^ *Test:/{t=$2} /^FAILED/||/\.\.\.FAILED/{print s "." t}' /tmp/log"#;
const SKIPPED: &str = r#"awk '/^Suite:/{s=$2} /^ *Test:/{t=$2} /\[SKIPPED\]/&&s{k=s "." t; sub(/^.*\[SKIPPED\] */, ""); if (k != last) print k "|" $0; last=k}' /tmp/log"#;
const WORDS: &str =
    r"grep -B6 -E '\[FAILED\]|CU_FAIL|^ +[0-9]+\. ' /tmp/log | cut -c1-160 | tail -60";

/// Runs a family.
pub(crate) fn run(guest: &mut Guest, family: &str, devices: &str) -> Verdict {
    // The log is long and the console slow, so only the results are printed. The run takes longer
    // than the limit of one line.
    guest.succeed(&format!(
        "rm -f /tmp/done; (iscsi-test-cu -d -S -f -V -t '{family}' {devices} >/tmp/log 2>&1; touch /tmp/done) &"
    ));
    let started = Instant::now();
    while guest.run("[ -e /tmp/done ]").status != 0 {
        assert!(started.elapsed() < LIMIT, "{family} does not end");
        std::thread::sleep(Duration::from_secs(1));
    }
    let summary = guest.run("grep -A3 'Run Summary' /tmp/log | grep tests || tail -5 /tmp/log");
    let numbers: Vec<u32> = summary
        .output
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [_total, run, _passed, failures, ..] = numbers[..] else {
        panic!("{family}: {}", summary.output)
    };
    let failed: Vec<String> = guest.succeed(FAILED).lines().map(str::to_owned).collect();
    assert_eq!(failures as usize, failed.len(), "{family}: {failed:?}");
    let skipped = guest.succeed(SKIPPED);
    let skipped = skipped.lines().filter_map(|line| line.split_once('|'));
    let skipped = skipped.map(|(test, why)| (test.to_owned(), why.trim().to_owned()));
    let words = if failed.is_empty() {
        String::new()
    } else {
        guest.run(WORDS).output
    };
    Verdict {
        run,
        skipped: skipped.collect(),
        words,
        failed,
    }
}
