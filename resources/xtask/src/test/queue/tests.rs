use std::os::unix::fs::PermissionsExt;

use super::*;

/// Replaces a test executable; its fourth argument is a test's name.
const PROGRAM: &str = r#"#!/bin/sh
    case $4 in
    good) sleep 0.3 ;;
    picky) echo "$4: no such disk" >>"$SPLITRING_SKIPPED" ;;
    # Its worker, the parent of timeout, is lost so many times.
    unlucky*)
      echo >>"$SPLITRING_ASSETS/$4"
      [ $(wc -l <"$SPLITRING_ASSETS/$4") -gt ${4#unlucky} ] || kill -9 $(cut -d ' ' -f 4 /proc/$PPID/stat) ;;
    *) exit 1 ;;
    esac
"#;

fn queue(dir: &Path, passed: &Path, names: &[&str]) -> TestQueue {
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
    TestQueue::create(dir, passed.to_owned(), tests.collect(), &binary).expect("a queue")
}

#[test]
fn two_soak_runs_at_the_same_time_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let passed = dir.path().join("passed");
    let queues = [&["good", "bad"][..], &["good"]].map(|names| {
        let place = dir.path().join(names.len().to_string());
        queue(&place, &passed, names)
    });
    std::thread::scope(|scope| {
        for queue in &queues {
            scope.spawn(|| queue.work(0, None));
        }
    });
    let [both, good] = queues;
    let summary = good.report();
    summary.verdict().expect("it has passed in one of them");
    let error = both.report().verdict().expect_err("one has failed");
    let error = error.to_string();
    assert_eq!(error, "1 of 2 failed: bad");
    let later = queue(&dir.path().join("later"), &passed, &["good", "bad"]);
    later.work(0, None);
    assert_eq!(later.result(&later.tests[0]), None, "it has passed before");
    assert_eq!(later.result(&later.tests[1]).as_deref(), Some("FAILED"));
}

/// Runs these tests in a queue of their own.
fn run(names: &[&str]) -> Summary {
    let dir = tempfile::tempdir().expect("a directory");
    let queue = queue(dir.path(), &dir.path().join("passed"), names);
    queue.work(0, None);
    queue.report()
}

#[test]
fn one_lost_lab_is_counted_and_two_fail_the_run() {
    let once = run(&["good", "unlucky1"]);
    assert_eq!(
        once.to_string(),
        "end-to-end tests: 2 passed, 0 failed, 1 lab lost"
    );
    assert_eq!(
        once.machine_readable(),
        "end-to-end: 2 passed, 0 failed, 0 skipped"
    );
    once.verdict().expect("one may be lost");
    let twice = run(&["good", "unlucky2"]);
    assert_eq!(
        twice.to_string(),
        "end-to-end tests: 2 passed, 0 failed, 2 labs lost"
    );
    let error = twice.verdict().expect_err("two are too many").to_string();
    assert!(error.contains("2 labs were lost"), "{error}");
    // A test whose lab crashes every time has failed.
    let never = run(&["unlucky9"]);
    assert_eq!(
        never.to_string(),
        "end-to-end tests: 0 passed, 1 failed, 3 labs lost"
    );
}

#[test]
fn a_skipped_test_is_counted_and_not_remembered_as_passed() {
    let dir = tempfile::tempdir().expect("a directory");
    let queue = queue(dir.path(), &dir.path().join("passed"), &["good", "picky"]);
    queue.work(0, None);
    assert_eq!(queue.remaining(), 1);
    let summary = queue.report();
    assert_eq!(
        summary.to_string(),
        "end-to-end tests: 1 passed, 0 failed, 1 skipped"
    );
    assert_eq!(
        summary.machine_readable(),
        "end-to-end: 1 passed, 0 failed, 1 skipped"
    );
    assert_eq!(summary.skipped, ["picky: no such disk"]);
    summary.verdict().expect("nothing has failed");
}
