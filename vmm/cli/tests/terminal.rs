//! The terminal is as it was, whatever way the program goes.

#[path = "../../tests/tiny/mod.rs"]
mod tiny;

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

const STOPPED: i32 = 5;
const PATIENCE: Duration = Duration::from_secs(20);

/// A terminal and the program on it.
struct Session {
    keyboard: File,
    terminal: File,
    before: Termios,
    program: Child,
}

impl Session {
    /// Starts the program on a terminal of its own and waits until it has taken it over.
    fn start(dir: &Path) -> Self {
        let kernel = tiny::config(dir, tiny::SPIN).kernel.expect("a kernel");
        let session = Self::run(&["--any-kvm".as_ref(), "--kernel".as_ref(), kernel.as_ref()]);
        session.wait_for("raw mode", || session.is_raw());
        session
    }

    /// Starts `splitring run` with these words on a terminal of its own.
    fn run(words: &[&OsStr]) -> Self {
        let keyboard: OwnedFd =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&keyboard).expect("grant");
        unlockpt(&keyboard).expect("unlock");
        let name = ptsname(&keyboard, Vec::new()).expect("name").into_bytes();
        let terminal = OpenOptions::new()
            .read(true)
            .write(true)
            .open(OsString::from_vec(name))
            .expect("open the terminal");
        let before = tcgetattr(&terminal).expect("its modes");
        let end = || Stdio::from(terminal.try_clone().expect("clone"));
        let program = Command::new(env!("CARGO_BIN_EXE_splitring"))
            .arg("run")
            .args(words)
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("start the program");
        Self {
            keyboard: File::from(keyboard),
            terminal,
            before,
            program,
        }
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).expect("modes").local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn wait_for(&self, what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.program.id()).expect("a process id");
        kill_process(Pid::from_raw(pid).expect("a process id"), signal).expect("signal");
    }

    /// Waits for the end and checks the terminal.
    fn end(mut self, how: &str) -> ExitStatus {
        let status = self.program.wait().expect("wait");
        let after = tcgetattr(&self.terminal).expect("modes");
        assert_eq!(
            format!("{after:?}"),
            format!("{:?}", self.before),
            "after {how}"
        );
        status
    }
}

#[test]
fn ctrl_a_x_stops_the_machine_and_gives_the_terminal_back() {
    let Some(dir) = tiny::directory() else { return };
    let mut session = Session::start(dir.path());
    session.keyboard.write_all(b"\x01c").expect("type");
    let mut shown = String::new();
    while !shown.contains("power button") {
        let mut bytes = [0; 256];
        let len = session.keyboard.read(&mut bytes).expect("read the screen");
        shown.push_str(&String::from_utf8_lossy(&bytes[..len]));
    }
    assert!(shown.contains("Ctrl-A x"), "{shown}");
    session.keyboard.write_all(b"\x01x").expect("type");
    assert_eq!(session.end("Ctrl-A x").code(), Some(STOPPED));
}

#[test]
fn termination_signals_give_the_terminal_back() {
    let Some(dir) = tiny::directory() else { return };
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        let session = Session::start(dir.path());
        session.signal(signal);
        assert_eq!(session.end(&format!("{signal:?}")).code(), Some(STOPPED));
    }
}

#[test]
fn a_crash_gives_the_terminal_back() {
    let Some(dir) = tiny::directory() else { return };
    for signal in [Signal::SEGV, Signal::ABORT] {
        let session = Session::start(dir.path());
        session.signal(signal);
        let status = session.end(&format!("{signal:?}"));
        assert_eq!(
            status.signal(),
            Some(signal.as_raw()),
            "it dies of the same signal"
        );
    }
}

#[test]
fn a_refused_start_leaves_the_terminal_alone() {
    let Some(dir) = tiny::directory() else { return };
    let kernel = tiny::config(dir.path(), tiny::SPIN).kernel;
    let kernel = kernel.expect("a kernel").display().to_string();
    let absent = dir.path().join("absent").display().to_string();
    let cases: [(&str, &[&str], i32); 4] = [
        ("a mistyped flag", &["--kernle", &kernel], 2),
        ("no vCPUs", &["--kernel", &kernel, "--cpus", "0"], 2),
        ("a missing kernel", &["--kernel", &absent], 1),
        (
            "a missing disk",
            &["--any-kvm", "--kernel", &kernel, "--disk", &absent],
            1,
        ),
    ];
    for (name, words, code) in cases {
        let words: Vec<_> = words.iter().map(OsStr::new).collect();
        let session = Session::run(&words);
        let mut screen = session.keyboard.try_clone().expect("clone");
        assert_eq!(session.end(name).code(), Some(code), "{name}");
        let mut shown = [0; 4096];
        let len = screen.read(&mut shown).expect("read the screen");
        let shown = String::from_utf8_lossy(&shown[..len]);
        assert!(shown.contains("error"), "{name}: {shown}");
    }
}
