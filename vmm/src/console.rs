//! The host side of a machine's serial port.
//!
//! The guest's output goes through a bounded buffer to the console's own thread, the only one that
//! writes to the target. A vCPU therefore never blocks in a write to the target, and holds no lock
//! while it waits for room in the buffer. Input goes through a bounded queue to the UART. This
//! module does not know the machine.

mod check;
mod error;
mod input;
mod output;
mod pty;
mod shared;
mod socket;
mod target;
#[cfg(test)]
mod tests;
mod thread;
mod wake;

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use splitring_devices::serial::Serial;

use crate::config::{SerialConfig, SerialPolicy, SerialTarget};
use crate::kick;
pub use error::ConsoleError;
use output::Output;
use pty::Pty;
use shared::ConsoleShared;
use socket::Socket;
use target::{ConsoleTarget, FdTarget, WriterTarget};

/// How much of the last output is kept for programs that open the pseudo-terminal or connect to the
/// socket later.
const HISTORY: usize = 64 << 10;
/// When the last clone is dropped: how long the target may make no progress with the remaining
/// output, and how long it may take in total.
const LAST_GRACE: Duration = Duration::from_millis(100);
const LAST_LIMIT: Duration = Duration::from_millis(500);
/// How long the thread may take to end, and how often it is kicked out of a system call meanwhile.
const END_LIMIT: Duration = Duration::from_millis(400);
const KICK_EVERY: Duration = Duration::from_millis(5);

/// The host side of a machine's serial port. It is opened once, before the machine is built, and
/// outlives its reboots. Clones are handles to the same console.
///
/// Output goes to the target through a buffer of 64 KiB; [`SerialPolicy`] decides what happens when
/// the buffer is full. Dropping the last clone gives the target up to half a second to take the
/// remaining output, and ends the console's thread.
#[derive(Clone)]
pub struct Console(Arc<ConsoleInner>);

struct ConsoleInner {
    shared: Arc<ConsoleShared>,
    thread: Option<JoinHandle<()>>,
    kind: ConsoleKind,
    pty: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConsoleKind {
    /// A target, and a thread that serves it.
    Open,
    /// A port without a target.
    Null,
    /// No port.
    Off,
}

impl Console {
    /// Opens what `config` names. Nothing is opened later.
    ///
    /// # Errors
    /// The file, socket or pseudo-terminal can't be opened, or the process has reached its limit of
    /// descriptors or threads.
    pub fn open(config: &SerialConfig) -> Result<Self, ConsoleError> {
        let console = match &config.target {
            SerialTarget::Tty => Self::stdout(),
            SerialTarget::File(path) => Self::file(path),
            SerialTarget::Pty => Self::pty(),
            SerialTarget::Socket(path) => Self::socket(path),
            SerialTarget::Null => Ok(Self::null()),
            SerialTarget::Off => Ok(Self::off()),
        }?;
        Ok(console.with_policy(config.policy))
    }

    /// Checks what `config` names without opening it, which would truncate a file or create a
    /// socket.
    ///
    /// # Errors
    /// What [`Console::open`] would return, as far as it can be found out in advance.
    pub fn check(config: &SerialConfig) -> Result<(), ConsoleError> {
        check::check(config)
    }

    /// Creates a console whose output goes to `writer`, which is called on the console's thread. A
    /// writer that blocks for ever keeps that thread, and blocks nothing else.
    ///
    /// # Errors
    /// The process has no more descriptors or threads.
    pub fn writer(writer: impl Write + Send + 'static) -> Result<Self, ConsoleError> {
        Self::start(0, None, |output| {
            Box::new(WriterTarget::new(writer, output))
        })
    }

    /// Creates a console whose output goes to an open file, pipe, socket or terminal. The status
    /// flags of the open file description are not changed.
    ///
    /// # Errors
    /// The process has no more descriptors or threads.
    pub fn descriptor(fd: OwnedFd) -> Result<Self, ConsoleError> {
        Self::named(fd, "the descriptor".to_owned())
    }

    /// Creates a console whose output goes to the process's standard output. The embedder passes
    /// input by [`Console::input`].
    ///
    /// # Errors
    /// The process has no more descriptors or threads.
    pub fn stdout() -> Result<Self, ConsoleError> {
        let fd = io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map_err(ConsoleError::Descriptor)?;
        Self::named(fd, "standard output".to_owned())
    }

    /// Creates a console whose output goes to a file, which is created or truncated, or to a device
    /// or a named pipe.
    ///
    /// # Errors
    /// The file can't be opened for writing, or as for [`Console::writer`].
    pub fn file(path: impl AsRef<Path>) -> Result<Self, ConsoleError> {
        let path = path.as_ref();
        // O_APPEND: log rotation may truncate the file. O_NONBLOCK: opening a named pipe without a
        // reader fails instead of blocking.
        let flags = libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(flags)
            .open(path)
            .map_err(|error| ConsoleError::file(path, error))?;
        Self::named(file.into(), path.display().to_string())
    }

    /// Creates a pseudo-terminal; [`Console::pty_path`] returns its path. A program that opens it
    /// reads the last 64 KiB of output first, then what follows; what it writes is the guest's
    /// input. While no program has it open, the guest does not wait.
    ///
    /// # Errors
    /// The system has no more pseudo-terminals or inotify instances, or as for [`Console::writer`].
    pub fn pty() -> Result<Self, ConsoleError> {
        let pty = Pty::open().map_err(|error| ConsoleError::Pty {
            error: error.into(),
            remedy: match error {
                rustix::io::Errno::MFILE => {
                    "raise the limit on open files, or fs.inotify.max_user_instances"
                }
                rustix::io::Errno::NOSPC => "raise kernel.pty.max",
                _ => "use serial=socket=PATH instead",
            },
        })?;
        let path = pty.path().to_owned();
        Self::start(HISTORY, Some(path), |_| Box::new(pty))
    }

    /// Creates a Unix stream socket at `path`. Every client reads the last 64 KiB of output first,
    /// then what follows. The guest's input comes from the client that connected first; when that
    /// one disconnects or ends its input, from the next one. Input of the others is discarded. A
    /// socket file that a dead process left at `path` is replaced. The file is removed when the
    /// last clone is dropped.
    ///
    /// # Errors
    /// There is a live socket or another kind of file at `path`, it can't be made there, or as for
    /// [`Console::writer`].
    pub fn socket(path: impl Into<PathBuf>) -> Result<Self, ConsoleError> {
        let socket = Socket::bind(path.into())?;
        Self::start(HISTORY, None, |_| Box::new(socket))
    }

    /// Creates a console that is not connected to anything: output is discarded, and input is kept
    /// in the UART only.
    #[must_use]
    pub fn null() -> Self {
        Self::without_thread(ConsoleKind::Null)
    }

    /// Creates the console of a machine without a serial port. Input is discarded.
    #[must_use]
    pub fn off() -> Self {
        Self::without_thread(ConsoleKind::Off)
    }

    /// Logs about this console within the machine's span from now on. The first span stays.
    pub(crate) fn log_within(&self, span: &tracing::Span) {
        let _ = self.0.shared.span.set(span.clone());
    }

    /// Sets the policy, for all clones.
    #[must_use]
    pub fn with_policy(self, policy: SerialPolicy) -> Self {
        self.0.shared.output.set_policy(policy);
        self
    }

    /// Returns the path at which the pseudo-terminal of [`Console::pty`] can be opened.
    #[must_use]
    pub fn pty_path(&self) -> Option<&Path> {
        self.0.pty.as_deref()
    }

    /// Passes input to the guest; returns how many bytes were accepted. Up to 2 MiB are kept until
    /// the guest reads them ([`Console::null`] keeps nothing). Never blocks.
    #[must_use]
    pub fn input(&self, bytes: &[u8]) -> usize {
        if self.0.kind == ConsoleKind::Off {
            return bytes.len();
        }
        let taken = self.0.shared.input.accept(bytes);
        self.0.shared.wake.signal();
        taken
    }

    /// Returns a descriptor that becomes readable when [`Console::input`] can accept more, after it
    /// accepted less than it was given. The caller only polls it. `None` for a console that keeps
    /// no input.
    #[must_use]
    pub fn input_room(&self) -> Option<BorrowedFd<'_>> {
        self.0.shared.input.room()
    }

    /// Returns how many bytes of output were dropped, because of the policy or because the target
    /// failed. A byte that several readers missed counts once for each.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.shared.output.dropped()
    }

    /// Blocks until the target has taken all output so far, or has made no progress for `grace`.
    /// Returns how many bytes are left. The console's thread continues to write them; they are lost
    /// if the last clone is dropped before that.
    pub fn finish(&self, grace: Duration) -> u64 {
        self.finish_within(grace, Duration::MAX)
    }

    /// As [`Console::finish`], but blocks for at most `limit`.
    pub fn finish_within(&self, grace: Duration, limit: Duration) -> u64 {
        self.0.shared.output.finish(grace, limit)
    }

    /// Interrupts every [`RoomWaiter::wait_for_room`]: the current waits, and for each waiter the
    /// next one. Call it after changing the state that vCPU threads check, together with the kick.
    pub(crate) fn interrupt(&self) {
        self.0.shared.output.interrupt();
    }

    /// Returns the object with which a vCPU thread waits for room.
    pub(crate) fn waiter(&self) -> RoomWaiter {
        RoomWaiter {
            seen: self.0.shared.output.interruptions(),
            shared: Arc::clone(&self.0.shared),
        }
    }

    /// Whether the machine has a serial port.
    pub(crate) fn has_port(&self) -> bool {
        self.0.kind != ConsoleKind::Off
    }

    /// Returns the writer for the UART's output. Writing to it never blocks.
    pub(crate) fn output(&self) -> splitring_devices::serial::Output {
        Box::new(UartOutput(Arc::clone(&self.0.shared)))
    }

    /// Connects the UART that input is for; one that was connected before is disconnected.
    ///
    /// # Errors
    /// The process has no more descriptors.
    pub(crate) fn attach(&self, port: Arc<Serial>) -> io::Result<()> {
        self.0.shared.input.attach(port)?;
        self.0.shared.wake.signal();
        Ok(())
    }

    /// Disconnects a UART, if it is still the one that is connected. Input waits for the next one.
    pub(crate) fn detach(&self, port: &Arc<Serial>) {
        self.0.shared.input.detach(port);
    }

    fn without_thread(kind: ConsoleKind) -> Self {
        Self(Arc::new(ConsoleInner {
            shared: Arc::new(ConsoleShared::idle()),
            thread: None,
            kind,
            pty: None,
        }))
    }

    fn named(fd: OwnedFd, name: String) -> Result<Self, ConsoleError> {
        let target = |output: &Output| Box::new(FdTarget::new(fd, name, output)) as _;
        Self::start(0, None, target)
    }

    fn start(
        history: usize,
        pty: Option<PathBuf>,
        target: impl FnOnce(&Output) -> Box<dyn ConsoleTarget>,
    ) -> Result<Self, ConsoleError> {
        kick::ensure_installed()?;
        let shared = Arc::new(ConsoleShared::new(history)?);
        let target = target(&shared.output);
        let its = Arc::clone(&shared);
        let span = tracing::Span::current();
        let thread = std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || span.in_scope(|| thread::run(&its, target)))
            .map_err(ConsoleError::Thread)?;
        Ok(Self(Arc::new(ConsoleInner {
            shared,
            thread: Some(thread),
            kind: ConsoleKind::Open,
            pty,
        })))
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("kind", &self.0.kind)
            .field("pty", &self.0.pty)
            .field("dropped", &self.dropped())
            .finish_non_exhaustive()
    }
}

/// Writes the UART's output into the buffer.
struct UartOutput(Arc<ConsoleShared>);

impl Write for UartOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.output.push(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits for room in the output buffer, on behalf of one vCPU thread.
#[derive(Debug)]
pub(crate) struct RoomWaiter {
    shared: Arc<ConsoleShared>,
    /// Interruptions when the last wait returned.
    seen: u64,
}

impl RoomWaiter {
    /// Blocks while the buffer is full and the policy is to wait, unless [`Console::interrupt`] was
    /// called since the last return. Call it after a port write, with no lock held, and before the
    /// thread checks whether it has to pause or stop: a request made before the return is seen by
    /// that check, a later one interrupts the next wait.
    pub(crate) fn wait_for_room(&mut self) {
        self.seen = self.shared.output.wait_for_room(self.seen);
    }
}

impl Drop for ConsoleInner {
    fn drop(&mut self) {
        // A connected UART and the shared state hold references to each other.
        self.shared.input.disconnect();
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.shared.output.finish(LAST_GRACE, LAST_LIMIT);
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake.signal();
        let start = Instant::now();
        let mut ended = self.shared.output.wait_closed(KICK_EVERY);
        while !ended && start.elapsed() < END_LIMIT {
            // A kick that arrives just before a system call does not interrupt it: repeat.
            self.shared.kicks.kick_all();
            ended = self.shared.output.wait_closed(KICK_EVERY);
        }
        if ended {
            // The thread catches its own panics.
            let _ = thread.join();
        } else {
            let _in_span = self.shared.span.get().map(tracing::Span::enter);
            tracing::warn!("serial console: the target blocks for ever; its thread is abandoned");
        }
    }
}
