//! Runs the program on a terminal of its own, or on pipes.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use splitring_needs::tiny;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_splitring");
pub(crate) const POWERED_OFF: i32 = 0;
pub(crate) const STOPPED: i32 = 5;
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The longest time that a stop may take, with room for a busy host.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A terminal.
pub(crate) struct Terminal {
    /// The master: keyboard and screen.
    pub(crate) keyboard: File,
    /// The end that programs use.
    pub(crate) end: File,
    before: Termios,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let keyboard: OwnedFd = openpt(flags).expect("a terminal");
        grantpt(&keyboard).expect("grant");
        unlockpt(&keyboard).expect("unlock");
        let name = ptsname(&keyboard, Vec::new()).expect("name").into_bytes();
        let path = PathBuf::from(OsString::from_vec(name));
        let end = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("open the terminal");
        let before = tcgetattr(&end).expect("its modes");
        Self {
            keyboard: File::from(keyboard),
            end,
            before,
        }
    }

    pub(crate) fn stdio(&self) -> Stdio {
        Stdio::from(self.end.try_clone().expect("clone"))
    }

    pub(crate) fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.end).expect("modes").local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    pub(crate) fn is_as_before(&self) -> bool {
        let now = tcgetattr(&self.end).expect("modes");
        format!("{now:?}") == format!("{:?}", self.before)
    }

    /// Sets the modes of `stty sane`.
    pub(crate) fn make_sane(&self) {
        tcsetattr(&self.end, OptionalActions::Now, &self.before).expect("set the modes");
    }

    pub(crate) fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("type");
    }

    /// Reads the screen until it contains `text`.
    pub(crate) fn wait_for_text(&mut self, text: &str) -> String {
        let start = Instant::now();
        let mut shown = String::new();
        while !shown.contains(text) {
            assert!(start.elapsed() < PATIENCE, "no {text:?} in {shown:?}");
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            };
            let mut fds = [PollFd::new(&self.keyboard, PollFlags::IN)];
            if poll(&mut fds, Some(&wait)).expect("poll") > 0 {
                let mut bytes = [0; 4096];
                let len = self.keyboard.read(&mut bytes).expect("read the screen");
                shown.push_str(&String::from_utf8_lossy(&bytes[..len]));
            }
        }
        shown
    }
}

/// A machine on a terminal.
pub(crate) struct Session {
    pub(crate) terminal: Terminal,
    pub(crate) program: Child,
}

impl Session {
    /// Starts a guest that runs `code` on a terminal, and waits until the program has switched the
    /// terminal to raw mode.
    pub(crate) fn start(dir: &Path, code: &[u8], words: &[&str]) -> Self {
        let terminal = Terminal::new();
        let program = on_terminal(guest(dir, code, words), &terminal);
        let session = Self { terminal, program };
        wait_until("raw mode", || session.terminal.is_raw());
        session
    }

    /// Starts `splitring run` with these arguments on a terminal.
    pub(crate) fn run(words: &[&OsStr]) -> Self {
        let terminal = Terminal::new();
        let mut command = Command::new(PROGRAM);
        command.arg("run").args(words);
        let program = on_terminal(command, &terminal);
        Self { terminal, program }
    }

    pub(crate) fn signal(&self, what: Signal) {
        signal(&self.program, what);
    }

    /// Waits for the end of the program and checks the terminal's modes.
    pub(crate) fn end(mut self, how: &str) -> ExitStatus {
        let status = end(&mut self.program, how);
        assert!(self.terminal.is_as_before(), "after {how}");
        status
    }
}

/// Returns the command `splitring run` with a guest that runs `code`.
pub(crate) fn guest(dir: &Path, code: &[u8], words: &[&str]) -> Command {
    let kernel = tiny::kernel(dir, code);
    let mut command = Command::new(PROGRAM);
    command
        .args(["run", "--any-kvm", "--kernel-cache", "off", "--kernel"])
        .arg(kernel)
        .args(words);
    command
}

/// Starts a command with a terminal as its standard streams.
pub(crate) fn on_terminal(mut command: Command, terminal: &Terminal) -> Child {
    command
        .stdin(terminal.stdio())
        .stdout(terminal.stdio())
        .stderr(terminal.stdio())
        .spawn()
        .expect("start the program")
}

/// Starts a command with pipes as its standard streams.
pub(crate) fn on_pipes(mut command: Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the program")
}

/// Runs the command in a session of its own, with the terminal as its controlling terminal.
pub(crate) fn in_session(command: &Command) -> Command {
    let mut session = Command::new("setsid");
    session
        .arg("--ctty")
        .arg(command.get_program())
        .args(command.get_args());
    session
}

pub(crate) fn signal(program: &Child, signal: Signal) {
    let pid = i32::try_from(program.id()).expect("a process id");
    kill_process(Pid::from_raw(pid).expect("a process id"), signal).expect("signal");
}

/// Waits for the end of the program, with a limit.
pub(crate) fn end(program: &mut Child, how: &str) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = program.try_wait().expect("wait") {
            return status;
        }
        if start.elapsed() > PATIENCE {
            let _ = program.kill();
            let _ = program.wait();
            panic!("{how} does not end it");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the program handles its signals, which it does before it opens anything of the
/// machine.
pub(crate) fn wait_until_it_runs(program: &Child) {
    wait_until("a vCPU", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", program.id()));
        tasks.is_ok_and(|tasks| {
            tasks.flatten().any(|task| {
                fs::read_to_string(task.path().join("comm"))
                    .is_ok_and(|name| name.starts_with("vcpu"))
            })
        })
    });
}

/// Returns the CPU time of a process in clock ticks.
pub(crate) fn processor_time(program: &Child) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", program.id())).expect("stat");
    let (_, numbers) = stat.rsplit_once(')').expect("a name");
    let numbers: Vec<_> = numbers.split_whitespace().collect();
    let times = [11, 12].map(|at| numbers[at].parse::<u64>().expect("a number"));
    times.iter().sum()
}

/// Returns the state letter of a process.
pub(crate) fn state(program: &Child) -> char {
    let stat = fs::read_to_string(format!("/proc/{}/stat", program.id())).expect("stat");
    let (_, rest) = stat.rsplit_once(") ").expect("a name");
    rest.chars().next().expect("a state")
}

/// Waits until a guest that prints for ever is blocked, because its output is not read.
pub(crate) fn wait_until_it_waits(program: &Child) {
    let mut last = u64::MAX;
    wait_until("a guest that waits", || {
        let now = processor_time(program);
        thread::sleep(Duration::from_millis(150));
        let still = now == last && now > 0;
        last = now;
        still
    });
}
