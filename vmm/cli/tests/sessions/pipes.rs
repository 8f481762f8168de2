//! Pipes that are not read, or no longer read: the program neither panics nor aborts nor hangs.

use std::io;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::session::{POWERED_OFF, PROGRAM, SOON, STOPPED, end, guest, signal, wait_until_it_runs};
use splitring_needs::tiny::{POWEROFF, PRINT, SPIN, directory};

/// A pipe whose reader has gone.
fn closed() -> io::PipeWriter {
    io::pipe().expect("a pipe").1
}

/// A full pipe that is not read.
fn full() -> (io::PipeReader, io::PipeWriter) {
    let (reader, writer) = io::pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&writer, true).expect("non-blocking");
    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("blocking");
    (reader, writer)
}

#[test]
fn output_to_a_closed_pipe_ends_quietly() {
    let cases: [&[&str]; 6] = [
        &["check"],
        &["check", "--json"],
        &["completions", "bash"],
        &["run", "--print-config", "--kernel", "/k"],
        &["--help"],
        &["run", "--help"],
    ];
    for words in cases {
        let output = Command::new(PROGRAM)
            .args(words)
            .stdout(closed())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start")
            .wait_with_output()
            .expect("wait");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, "", "{words:?}");
        // The exit code of `check` tells whether the host can run a stock kernel.
        assert!(matches!(output.status.code(), Some(0 | 1)), "{words:?}");
    }
}

#[test]
fn output_to_a_full_device_is_a_failure() {
    let full = std::fs::File::create("/dev/full").expect("open");
    let output = Command::new(PROGRAM)
        .args(["completions", "bash"])
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .expect("start")
        .wait_with_output()
        .expect("wait");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot write to standard output"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn errors_to_a_closed_pipe_keep_their_exit_code() {
    for (words, code) in [
        (&["run", "--kernle"][..], 2),
        (&["run", "--kernel", "/absent"][..], 1),
        (&["run"][..], 2),
    ] {
        let status = Command::new(PROGRAM)
            .args(words)
            .stderr(closed())
            .status()
            .expect("run");
        assert_eq!(status.code(), Some(code), "{words:?}");
    }
}

#[test]
fn a_warning_of_a_running_machine_to_a_closed_pipe_is_lost() {
    let Some(dir) = directory() else { return };
    // The console's target has gone away, which causes a warning; so has the reader of the warning.
    let status = guest(dir.path(), PRINT, &["--metrics"])
        .stdin(Stdio::null())
        .stdout(closed())
        .stderr(closed())
        .status()
        .expect("run");
    assert_eq!(status.code(), Some(POWERED_OFF));
    // The same with a reader: there is one warning.
    let output = guest(dir.path(), PRINT, &[])
        .stdin(Stdio::null())
        .stdout(closed())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start")
        .wait_with_output()
        .expect("wait");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("WARN").count(), 1, "{said}");
    assert!(said.contains("output is dropped"), "{said}");
}

#[test]
fn standard_error_that_nobody_reads_holds_nothing_up() {
    let Some(dir) = directory() else { return };
    let (_reader, writer) = full();
    let start = Instant::now();
    // At this level every exit is logged.
    let mut command = guest(dir.path(), POWEROFF, &["--metrics", "-vvv"]);
    let mut program = command
        .stdin(Stdio::null())
        .stdout(closed())
        .stderr(writer.try_clone().expect("clone"))
        .spawn()
        .expect("start");
    assert_eq!(end(&mut program, "nothing").code(), Some(POWERED_OFF));
    assert!(start.elapsed() < SOON);

    let mut command = guest(dir.path(), SPIN, &["--shutdown-timeout", "0"]);
    let mut program = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().expect("clone"))
        .stderr(writer)
        .spawn()
        .expect("start");
    wait_until_it_runs(&program);
    signal(&program, rustix::process::Signal::TERM);
    assert_eq!(end(&mut program, "SIGTERM").code(), Some(STOPPED));
}
