//! Descriptors that the operator names by number are taken over once, whatever the guest does.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use splitring_needs::tiny;

const USAGE: Option<i32> = Some(2);
const FAILURE: Option<i32> = Some(1);
const STOPPED: Option<i32> = Some(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// A descriptor that a program started from here inherits under the same number.
fn inherited(fd: impl AsFd) -> OwnedFd {
    // High enough that no other open gets the number meanwhile.
    let fd = rustix::io::fcntl_dupfd_cloexec(fd, 300).expect("a copy");
    fcntl_setfd(&fd, FdFlags::empty()).expect("inheritable");
    fd
}

fn program(dir: &Path, code: &[u8], words: &[String]) -> Command {
    let kernel: PathBuf = tiny::kernel(dir, code);
    let mut command = Command::new(env!("CARGO_BIN_EXE_splitring"));
    command
        .args([
            "run",
            "--any-kvm",
            "-v",
            "--kernel-cache",
            "off",
            "--kernel",
        ])
        .arg(kernel)
        .args(words)
        .stdin(Stdio::null());
    command
}

fn run(dir: &Path, words: &[String]) -> Output {
    let mut command = program(dir, tiny::RESET, words);
    command.output().expect("run")
}

fn net(text: &str) -> Vec<String> {
    vec!["--net".to_owned(), text.to_owned()]
}

#[test]
fn a_socket_that_was_handed_over_survives_reboots() {
    let Some(dir) = tiny::directory() else { return };
    let (_peer, card) = UnixStream::pair().expect("a pair");
    let card = inherited(card);
    let mut words = net(&format!("passt,fd={}", card.as_raw_fd()));
    words.extend(["--on-reboot".to_owned(), "restart".to_owned()]);
    let log = dir.path().join("log");
    let mut child = program(dir.path(), tiny::RESET, &words)
        .stderr(File::create(&log).expect("a log"))
        .spawn()
        .expect("starts");
    let reboots = || {
        let log = fs::read_to_string(&log).expect("the log");
        log.matches("rebooted").count()
    };
    let start = Instant::now();
    while reboots() < 3 {
        assert_eq!(child.try_wait().expect("wait"), None, "it ended");
        assert!(start.elapsed() < PATIENCE, "it does not reboot");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = Pid::from_child(&child);
    let number = card.as_raw_fd();
    let link = fs::read_link(format!("/proc/{}/fd/{number}", pid.as_raw_nonzero()));
    let own = fs::read_link(format!("/proc/self/fd/{number}")).expect("ours");
    assert_eq!(link.expect("theirs"), own, "it is still the card's");
    kill_process(pid, Signal::INT).expect("a signal");
    assert_eq!(child.wait().expect("ends").code(), STOPPED);
}

#[test]
fn a_number_that_is_named_twice_is_refused() {
    let Some(dir) = tiny::directory() else { return };
    let (_peer, card) = UnixStream::pair().expect("a pair");
    let card = inherited(card);
    let number = card.as_raw_fd().to_string();
    for (words, says) in [
        (
            [
                net(&format!("passt,fd={number}")),
                net(&format!("passt,fd={number}")),
            ]
            .concat(),
            "net0",
        ),
        (net(&format!("fd={number}:{number}")), "twice"),
    ] {
        let output = run(dir.path(), &words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), FAILURE, "{stderr}");
        assert!(stderr.contains(&format!("fd {number}")), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
}

#[test]
fn a_number_that_is_nothing_of_the_kind_is_named() {
    let Some(dir) = tiny::directory() else { return };
    let file = inherited(File::open("/dev/null").expect("a file"));
    let number = file.as_raw_fd();
    for (words, code, says) in [
        (format!("fd={number}"), FAILURE, "not a TAP interface"),
        (
            format!("passt,fd={number}"),
            FAILURE,
            "not a connected stream socket",
        ),
        ("fd=2".to_owned(), FAILURE, "not an open descriptor above 2"),
        (
            "fd=9999".to_owned(),
            FAILURE,
            "not an open descriptor above 2",
        ),
        ("passt,fd=3:4".to_owned(), USAGE, "passt takes one of fd="),
    ] {
        let output = run(dir.path(), &net(&words));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), code, "{words}: {stderr}");
        assert!(stderr.contains(says), "{words}: {stderr}");
    }
}

/// The program's own descriptors get the next free numbers, and must not be used for the card.
#[test]
fn a_number_that_nobody_opened_is_not_the_programs_own_by_then() {
    let Some(dir) = tiny::directory() else { return };
    let kernel = tiny::kernel(dir.path(), tiny::RESET);
    for number in 3..=9 {
        let closed = "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; exec \"$@\"";
        let output = Command::new("sh")
            .args([
                "-c",
                closed,
                "sh",
                env!("CARGO_BIN_EXE_splitring"),
                "run",
                "--any-kvm",
            ])
            .args(net(&format!("fd={number}")))
            .arg("--kernel")
            .arg(&kernel)
            .stdin(Stdio::null())
            .output()
            .expect("run");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), FAILURE, "{stderr}");
        assert!(
            stderr.contains("not an open descriptor"),
            "{number}: {stderr}"
        );
    }
}
