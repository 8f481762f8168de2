//! Cleanup of what must not outlive a command: child processes, scratch directories, a terminal in
//! raw mode.
//!
//! Each has a guard, whose drop cleans up. The signal thread does so when the command is
//! interrupted. Children also have a parent-death signal, in case this process is killed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Mutex;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

/// The exit status after signal N is 128 + N, as in shells.
const SIGNAL_EXIT_BASE: i32 = 128;

#[derive(Debug)]
struct Pending {
    children: Vec<Pid>,
    dirs: Vec<PathBuf>,
    terminal: Option<Termios>,
}

static PENDING: Mutex<Pending> = Mutex::new(Pending {
    children: Vec::new(),
    dirs: Vec::new(),
    terminal: None,
});

fn pending() -> std::sync::MutexGuard<'static, Pending> {
    // A panic elsewhere must not prevent the cleanup.
    PENDING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Starts the thread that cleans up when the command is interrupted.
pub(crate) fn install() -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT]).context("cannot watch for signals")?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            clean_up();
            std::process::exit(SIGNAL_EXIT_BASE + signal);
        }
    });
    Ok(())
}

/// Kills the children, removes the scratch directories, restores the terminal.
fn clean_up() {
    let mut pending = pending();
    for pid in pending.children.drain(..) {
        // It may have ended already.
        let _ = kill_process(pid, Signal::KILL);
    }
    for dir in pending.dirs.drain(..) {
        drop(std::fs::remove_dir_all(dir));
    }
    if let Some(saved) = pending.terminal.take() {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &saved);
    }
}

/// Returns a command that is killed when this process dies for any reason.
///
/// The parent-death signal is tied to the spawning thread: spawn from one that lives as long as the
/// process.
pub(crate) fn killed_with_parent(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A running child that is killed and reaped on drop.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: Option<Pid>,
}

impl Process {
    /// Spawns `command`, named `what` in errors.
    pub(crate) fn spawn(command: &mut Command, what: &str) -> Result<Self> {
        let child = command.spawn().with_context(|| {
            format!("cannot start {what} ({})", command.get_program().display())
        })?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        pending().children.extend(pid);
        Ok(Self { child, pid })
    }

    /// Returns the process ID.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.child
            .try_wait()
            .context("cannot wait for a child process")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        pending().children.retain(|pid| Some(*pid) != self.pid);
        // Both fail only if the process has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A directory that is removed on drop.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Creates a directory below `parent`.
    pub(crate) fn new(parent: &Path, prefix: &str) -> Result<Self> {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot make directory {}", parent.display()))?;
        let dir = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(parent)
            .with_context(|| format!("cannot make a scratch directory in {}", parent.display()))?
            .keep();
        pending().dirs.push(dir.clone());
        Ok(Self(dir))
    }

    /// Returns its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        pending().dirs.retain(|dir| *dir != self.0);
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// The terminal in raw mode until dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Puts standard input's terminal into raw mode.
    pub(crate) fn enter() -> Result<Self> {
        let saved = tcgetattr(std::io::stdin()).context("cannot read the terminal's modes")?;
        let mut raw = saved.clone();
        raw.make_raw();
        pending().terminal = Some(saved);
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .context("cannot set the terminal's modes")?;
        Ok(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(saved) = pending().terminal.take() {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &saved);
        }
    }
}
