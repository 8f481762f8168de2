//! The targets that a console's thread writes to: the contract, and the targets without clients.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::input::Input;
use super::output::{CHUNK, Output, ReaderId};

/// How long to wait before the next attempt when a target is not ready and can't be polled.
const RETRY: Duration = Duration::from_millis(10);

/// The two buffers of a console, and whether to write output in this pass.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) output: &'a Output,
    pub(super) input: &'a Input,
    pub(super) write: bool,
}

impl Pass<'_> {
    /// Returns whether the target should write for this reader.
    pub(super) fn writes(&self, reader: ReaderId) -> bool {
        self.write && self.output.has_unread(reader)
    }
}

/// A kind of target. It is used on the console's thread only.
pub(super) trait ConsoleTarget: Send {
    /// Decides what to poll for; returns the longest time to wait.
    fn prepare(&mut self, pass: Pass<'_>) -> Option<Duration>;

    /// Adds the descriptors to poll.
    fn add_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>);

    /// Does what is possible without waiting; `ready` has the events of the descriptors that
    /// `add_fds` added, in their order. Returns whether something was written.
    fn serve(&mut self, pass: Pass<'_>, ready: &[PollFlags]) -> bool;
}

/// How an attempt to write ended.
#[derive(Debug)]
pub(super) enum Written {
    /// Some bytes were written, or none were left.
    Some,
    /// The target is not ready.
    NotReady,
    /// The target does not work.
    Failed(io::Error),
}

/// Writes a reader's next bytes by one call of `write`.
pub(super) fn transfer(
    output: &Output,
    reader: ReaderId,
    write: impl FnOnce(&[u8]) -> io::Result<usize>,
) -> Written {
    let mut chunk = [0; CHUNK];
    let (at, len) = output.peek(reader, &mut chunk);
    let bytes = chunk.get(..len).unwrap_or_default();
    if bytes.is_empty() {
        return Written::Some;
    }
    match write(bytes) {
        Ok(0) => Written::Failed(io::ErrorKind::WriteZero.into()),
        Ok(written) => {
            output.advance(reader, at, written.min(len));
            Written::Some
        }
        Err(error) => match error.kind() {
            // A kick: the thread checks whether it has to end, and tries again.
            io::ErrorKind::Interrupted => Written::Some,
            io::ErrorKind::WouldBlock => Written::NotReady,
            _ => Written::Failed(error),
        },
    }
}

/// A target with one reader and no input; it logs its failures once.
struct OutputOnly {
    name: String,
    reader: ReaderId,
    /// The last write failed, which was logged.
    failed: bool,
    not_before: Option<Instant>,
}

impl OutputOnly {
    fn new(name: String, output: &Output) -> Self {
        Self {
            name,
            reader: output.add_reader(),
            failed: false,
            not_before: None,
        }
    }

    /// Returns how long to wait before the next write.
    fn pause(&self) -> Duration {
        self.not_before
            .map(|at| at.saturating_duration_since(Instant::now()))
            .unwrap_or_default()
    }

    fn write(&mut self, output: &Output, write: impl FnOnce(&[u8]) -> io::Result<usize>) -> bool {
        self.not_before = None;
        match transfer(output, self.reader, write) {
            Written::Some => {
                if std::mem::take(&mut self.failed) {
                    tracing::info!("serial console: {} takes output again", self.name);
                }
                true
            }
            Written::NotReady => {
                self.not_before = Some(Instant::now() + RETRY);
                false
            }
            Written::Failed(error) => {
                output.discard(self.reader);
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(
                        "serial console: cannot write to {}: {error}; output is dropped until it works again",
                        self.name
                    );
                }
                true
            }
        }
    }
}

/// A writer supplied by the embedder. It may block the thread for any time.
pub(super) struct WriterTarget<W> {
    writer: W,
    sink: OutputOnly,
}

impl<W: Write + Send> WriterTarget<W> {
    pub(super) fn new(writer: W, output: &Output) -> Self {
        let sink = OutputOnly::new("the writer".to_owned(), output);
        Self { writer, sink }
    }
}

impl<W: Write + Send> ConsoleTarget for WriterTarget<W> {
    fn prepare(&mut self, pass: Pass<'_>) -> Option<Duration> {
        pass.writes(self.sink.reader).then(|| self.sink.pause())
    }

    fn add_fds<'a>(&'a self, _: &mut Vec<PollFd<'a>>) {}

    fn serve(&mut self, pass: Pass<'_>, _: &[PollFlags]) -> bool {
        if !pass.writes(self.sink.reader) || !self.sink.pause().is_zero() {
            return false;
        }
        let writer = &mut self.writer;
        self.sink.write(pass.output, |bytes| {
            let written = writer.write(bytes)?;
            // What was written counts, even if it can't be flushed now.
            let _ = writer.flush();
            Ok(written)
        })
    }
}

/// An open file, pipe or terminal. Other processes may share the open file description, so it is
/// not made non-blocking. A write that blocks although the descriptor was ready is interrupted by a
/// kick.
pub(super) struct FdTarget {
    fd: OwnedFd,
    sink: OutputOnly,
    /// Whether it is polled.
    polled: bool,
}

impl FdTarget {
    pub(super) fn new(fd: OwnedFd, name: String, output: &Output) -> Self {
        let sink = OutputOnly::new(name, output);
        Self {
            fd,
            sink,
            polled: false,
        }
    }
}

impl ConsoleTarget for FdTarget {
    fn prepare(&mut self, pass: Pass<'_>) -> Option<Duration> {
        let pause = self.sink.pause();
        let writes = pass.writes(self.sink.reader);
        self.polled = writes && pause.is_zero();
        (writes && !self.polled).then_some(pause)
    }

    fn add_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        if self.polled {
            fds.push(PollFd::new(&self.fd, PollFlags::OUT));
        }
    }

    fn serve(&mut self, pass: Pass<'_>, ready: &[PollFlags]) -> bool {
        // Errors and hang-ups show in the write.
        if ready.iter().all(|events| events.is_empty()) {
            return false;
        }
        let fd = &self.fd;
        self.sink
            .write(pass.output, |bytes| Ok(rustix::io::write(fd, bytes)?))
    }
}
