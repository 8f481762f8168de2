//! Standard output and standard error. A reader that has gone away causes no panic, and one that
//! does not read blocks the program only briefly.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SendFlags;

use crate::exit::Failure;

/// How long a write to standard error may wait for the reader.
const STALL_LIMIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};
/// The same for a reader that has let a write time out.
const NO_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Prints the output of a command. A reader that stops reading (`| head`) is not an error.
///
/// # Errors
/// Standard output can't be written for another reason.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error)
            .context("cannot write to standard output")
            .map_err(Failure::Failed),
        _ => Ok(()),
    }
}

/// Prints to standard error. Errors are ignored.
pub(crate) fn eprint(text: &str) {
    let _ = Stderr.write(text.as_bytes());
}

/// Standard error for log lines, which come from every thread of a machine and must not block it.
/// Output that the reader does not accept in time is dropped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stderr;

/// How standard error is written without blocking.
enum StderrMode {
    /// A pipe or a terminal, reopened: other processes share the first open file description.
    Reopened(OwnedFd),
    /// A socket, written with MSG_DONTWAIT.
    Socket,
    /// A file, or a descriptor that can't be reopened.
    Blocking,
}

static STDERR_MODE: OnceLock<StderrMode> = OnceLock::new();
static STALLED: AtomicBool = AtomicBool::new(false);

fn stderr_mode() -> &'static StderrMode {
    STDERR_MODE.get_or_init(|| {
        let stderr = rustix::stdio::stderr();
        match rustix::fs::fstat(stderr).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Socket) => StderrMode::Socket,
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                rustix::fs::open("/proc/self/fd/2", flags, Mode::empty())
                    .map_or(StderrMode::Blocking, StderrMode::Reopened)
            }
            _ => StderrMode::Blocking,
        }
    })
}

impl StderrMode {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Reopened(fd) => fd.as_fd(),
            Self::Socket | Self::Blocking => rustix::stdio::stderr(),
        }
    }

    /// Writes some of `bytes`, or returns EAGAIN instead of blocking.
    fn write(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Reopened(fd) => rustix::io::write(fd, bytes),
            Self::Socket => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                rustix::net::send(self.fd(), bytes, flags)
            }
            Self::Blocking if self.is_ready(&NO_WAIT) => rustix::io::write(self.fd(), bytes),
            Self::Blocking => Err(rustix::io::Errno::AGAIN),
        }
    }

    fn is_ready(&self, timeout: &Timespec) -> bool {
        let fd = self.fd();
        poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(timeout)).is_ok_and(|ready| ready > 0)
    }
}

impl Write for Stderr {
    /// Accepts all bytes even if they can't be written: the caller could not handle an error.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr_mode = stderr_mode();
        let mut left = bytes;
        while !left.is_empty() {
            match stderr_mode.write(left) {
                Ok(written) => {
                    STALLED.store(false, Ordering::Relaxed);
                    left = left.get(written..).unwrap_or_default();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let stalled = STALLED.load(Ordering::Relaxed);
                    let limit = if stalled { &NO_WAIT } else { &STALL_LIMIT };
                    if !stderr_mode.is_ready(limit) {
                        STALLED.store(true, Ordering::Relaxed);
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
