//! A Unix socket as a console's target: every client reads, the first one writes.

pub(super) mod bind;

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::error::ConsoleError;
use super::output::{CHUNK, ReaderId};
use super::target::{ConsoleTarget, Pass, Written, transfer};
use bind::SocketFile;

/// The most clients at a time.
const MAX_CLIENTS: usize = 64;
/// How long to wait before accepting again after the system refused a client, for lack of
/// descriptors.
const REFUSED: Duration = Duration::from_secs(1);

struct Client {
    stream: UnixStream,
    /// `None` after it has disconnected or stopped reading.
    reader: Option<ReaderId>,
    /// It has not ended its input.
    writes: bool,
    /// The events that are polled for.
    polled: Option<PollFlags>,
}

impl Client {
    /// Returns whether it has disconnected and all of its input was read.
    fn is_gone(&self) -> bool {
        self.reader.is_none() && !self.writes
    }

    fn close_reader(&mut self, pass: Pass<'_>) {
        if let Some(reader) = self.reader.take() {
            pass.output.remove_reader(reader);
        }
    }

    /// Reads input, at most `space` bytes of it.
    fn read(&mut self, space: usize, take: impl FnOnce(&[u8])) {
        let mut bytes = [0; CHUNK];
        match self.stream.read(&mut bytes[..space.min(CHUNK)]) {
            Ok(0) => self.writes = false,
            Ok(len) => take(&bytes[..len]),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                _ => self.writes = false,
            },
        }
    }
}

/// A listening Unix socket and its clients; see the module.
pub(super) struct Socket {
    listener: UnixListener,
    clients: Vec<Client>,
    refused: Option<Instant>,
    /// The listener is polled for new clients.
    accepts: bool,
    _file: SocketFile,
}

impl Socket {
    /// Creates a socket at `path` and listens.
    pub(super) fn bind(path: PathBuf) -> Result<Self, ConsoleError> {
        let (listener, file) = bind::bind(path)?;
        Ok(Self {
            listener,
            clients: Vec::new(),
            refused: None,
            accepts: true,
            _file: file,
        })
    }

    /// Returns the client whose input goes to the guest.
    fn writer(&self) -> Option<usize> {
        self.clients.iter().position(|client| client.writes)
    }

    fn accept(&mut self, pass: Pass<'_>) {
        self.refused = None;
        match self.listener.accept() {
            Ok((stream, _)) if self.clients.len() < MAX_CLIENTS => {
                if stream.set_nonblocking(true).is_ok() {
                    self.clients.push(Client {
                        stream,
                        reader: Some(pass.output.add_reader()),
                        writes: true,
                        polled: None,
                    });
                }
            }
            Ok(_) => {
                tracing::warn!(
                    "serial console: a client was refused: {MAX_CLIENTS} are connected already"
                );
                self.refused = Some(Instant::now());
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => {
                    tracing::warn!(%error, "serial console: cannot accept a client");
                    self.refused = Some(Instant::now());
                }
            },
        }
    }

    /// Returns how long to wait before the next client may be accepted.
    fn pause(&self) -> Duration {
        self.refused
            .map(|at| REFUSED.saturating_sub(at.elapsed()))
            .unwrap_or_default()
    }

    /// Serves one client; returns whether something was written.
    fn serve_client(&mut self, index: usize, pass: Pass<'_>, events: PollFlags) -> bool {
        let first = self.writer() == Some(index);
        let Some(client) = self.clients.get_mut(index) else {
            return false;
        };
        let gone = events.intersects(PollFlags::HUP | PollFlags::ERR);
        if gone {
            client.close_reader(pass);
        }
        if client.writes && (gone || events.contains(PollFlags::IN)) {
            if !first {
                client.read(CHUNK, |_| {});
                client.writes &= !gone;
            } else if pass.input.space() > 0 {
                client.read(pass.input.space(), |bytes| {
                    pass.input.accept(bytes);
                });
            }
        }
        let Some(reader) = client.reader.filter(|_| events.contains(PollFlags::OUT)) else {
            return false;
        };
        let stream = &mut client.stream;
        match transfer(pass.output, reader, |bytes| stream.write(bytes)) {
            Written::Some => true,
            Written::NotReady => false,
            Written::Failed(_) => {
                client.close_reader(pass);
                false
            }
        }
    }
}

impl ConsoleTarget for Socket {
    fn prepare(&mut self, pass: Pass<'_>) -> Option<Duration> {
        let writer = self.writer();
        let room = pass.input.space() > 0;
        for (index, client) in self.clients.iter_mut().enumerate() {
            let reads = client.writes && (room || writer != Some(index));
            // poll reports a hang-up as long as it lasts, so a client that has hung up is polled
            // only to read its remaining input.
            client.polled = (reads || client.reader.is_some()).then(|| {
                let mut events = PollFlags::empty();
                events.set(PollFlags::IN, reads);
                events.set(
                    PollFlags::OUT,
                    client.reader.is_some_and(|reader| pass.writes(reader)),
                );
                events
            });
        }
        let pause = self.pause();
        self.accepts = pause.is_zero();
        (!self.accepts).then_some(pause)
    }

    fn add_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        for client in &self.clients {
            if let Some(events) = client.polled {
                fds.push(PollFd::new(&client.stream, events));
            }
        }
        if self.accepts {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
    }

    fn serve(&mut self, pass: Pass<'_>, ready: &[PollFlags]) -> bool {
        let mut ready = ready.iter();
        let mut wrote = false;
        for index in 0..self.clients.len() {
            if self.clients[index].polled.is_some() {
                let events = ready.next().copied().unwrap_or(PollFlags::empty());
                wrote |= self.serve_client(index, pass, events);
            }
        }
        self.clients.retain(|client| !client.is_gone());
        if ready.next().is_some_and(|events| !events.is_empty()) {
            self.accept(pass);
        }
        wrote
    }
}
