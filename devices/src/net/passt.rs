//! passt: user-space networking for a guest whose user has no privilege at all.
//!
//! passt(1) speaks QEMU's stream protocol: each frame behind its length as a 32-bit big-endian number,
//! without a `virtio_net_hdr`. So nothing can be left unfinished in either direction.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{SocketType, getpeername, sockopt};
use splitring_virtio::spec::net::{HEADER_SIZE, Header};
use zerocopy::{FromZeros, IntoBytes};

use super::buffers::{GuestBuffers, wire_len};
use super::header::MAX_FRAME;
use super::port::{FramePort, NetBackend, Offloads};

/// How long a passt we started may take to end after its socket closed, before it is killed.
const END_LIMIT: Duration = Duration::from_secs(2);
/// The socket's number in a passt that we start, the first behind standard error.
const CHILD_FD: RawFd = 3;
/// Bytes in front of the stream, so that a frame's header, which passt does not send, has room in front of each frame in
/// place of its length.
const HEADROOM: usize = HEADER_SIZE - 4;
/// Bytes of the stream held at most: some full-sized frames.
const READ_AHEAD: usize = 256 << 10;

/// Why passt can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PasstError {
    /// The program is not there.
    #[error(
        "cannot start passt: {0}; install it (Debian: `apt install passt`), or name the socket of a running one with socket="
    )]
    Start(#[source] io::Error),
    /// It ended at once.
    #[error("passt ended with {0} when it was started; what it printed stands above")]
    Ended(std::process::ExitStatus),
    /// Nobody answers at the socket.
    #[error("cannot connect to passt at {}: {source}; start it first: `passt --socket {}`", path.display(), path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A descriptor that was handed over is something else.
    #[error(
        "fd {0}: not a connected stream socket; hand over the card's end of the connection to passt"
    )]
    NotASocket(i32),
    /// The connection can't be prepared.
    #[error("cannot prepare the connection to passt: {0}")]
    Socket(#[source] io::Error),
}

impl PasstError {
    /// Returns [`ErrorKind::Network`](crate::kind::ErrorKind::Network).
    #[must_use]
    pub fn kind(&self) -> crate::kind::ErrorKind {
        crate::kind::ErrorKind::Network
    }
}

/// A connection to passt, and the process if we started it.
#[derive(Debug)]
pub struct Passt {
    stream: Arc<UnixStream>,
    /// While no port is open.
    buffers: Arc<Mutex<Buffers>>,
    child: Option<Child>,
}

impl Passt {
    /// Starts `passt` on a socket pair. `forwards` are its own port options: (`-t` or `-u`, ports).
    pub fn spawn(forwards: &[(&str, String)]) -> Result<Self, PasstError> {
        let (ours, theirs) = UnixStream::pair().map_err(PasstError::Socket)?;
        let mut command = Command::new("passt");
        let number = CHILD_FD.to_string();
        command.args(["--foreground", "--quiet", "--fd", &number]);
        // Moved in the child: made inheritable here it would also go to what other threads start meanwhile.
        let socket = FdMapping {
            parent_fd: theirs.into(),
            child_fd: CHILD_FD,
        };
        command
            .fd_mappings(vec![socket])
            .map_err(|e| PasstError::Socket(io::Error::other(e)))?;
        for (option, ports) in forwards {
            command.args([*option, ports.as_str()]);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(PasstError::Start)?;
        // Holds its end of the pair: our end must see when that goes.
        drop(command);
        // It checks its options at once, so one that can't run is seen here and not as a silent network.
        std::thread::sleep(Duration::from_millis(50));
        if let Ok(Some(status)) = child.try_wait() {
            return Err(PasstError::Ended(status));
        }
        Self::over(ours, Some(child))
    }

    /// Connects to a passt that listens at `path`.
    pub fn connect(path: &Path) -> Result<Self, PasstError> {
        let stream = UnixStream::connect(path).map_err(|source| PasstError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::over(stream, None)
    }

    /// Uses a connected stream socket.
    ///
    /// # Errors
    /// It is something else.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, PasstError> {
        let stream = sockopt::socket_type(&fd).is_ok_and(|kind| kind == SocketType::STREAM);
        if !stream || getpeername(&fd).is_err() {
            return Err(PasstError::NotASocket(fd.as_raw_fd()));
        }
        Self::over(UnixStream::from(fd), None)
    }

    fn over(stream: UnixStream, child: Option<Child>) -> Result<Self, PasstError> {
        stream.set_nonblocking(true).map_err(PasstError::Socket)?;
        Ok(Self {
            stream: Arc::new(stream),
            buffers: Arc::default(),
            child,
        })
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // It ends by itself when the connection does.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let deadline = Instant::now().checked_add(END_LIMIT);
        while let Ok(None) = child.try_wait() {
            if deadline.is_none_or(|deadline| Instant::now() >= deadline) {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl NetBackend for Passt {
    fn offloads(&self) -> Offloads {
        Offloads::empty()
    }

    fn max_pairs(&self) -> u16 {
        1
    }

    fn open_port(&self, _: u16) -> io::Result<Box<dyn FramePort>> {
        Ok(Box::new(PasstPort {
            stream: Arc::clone(&self.stream),
            buffers: mem::take(&mut *lock(&self.buffers)),
            home: Arc::clone(&self.buffers),
            rest: 0..0,
        }))
    }

    fn set_guest_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_pairs(&self, _: u16) -> io::Result<()> {
        Ok(())
    }
}

/// What was read and not taken, and what was taken and not sent. It outlives a port: a reset of the device must not lose
/// the place in either stream.
#[derive(Debug, Default)]
struct Buffers {
    inbound: Inbound,
    outbound: Outbound,
}

fn lock(buffers: &Mutex<Buffers>) -> MutexGuard<'_, Buffers> {
    buffers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes read from the stream and not yet taken as frames.
#[derive(Debug)]
struct Inbound {
    /// Made once, at its full length: zeroing it for each read would cost more than the read.
    bytes: Vec<u8>,
    taken: usize,
    filled: usize,
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            taken: HEADROOM,
            filled: HEADROOM,
        }
    }
}

impl Inbound {
    /// Where the next whole frame is, behind a header, if one is here; `Err` if the other side's framing can't be right.
    fn next(&mut self) -> io::Result<Option<Range<usize>>> {
        let ahead = self.bytes.get(self.taken..self.filled).unwrap_or_default();
        let Some((len, rest)) = ahead.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*len);
        if u64::from(len) > MAX_FRAME {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "passt sent a frame longer than any frame",
            ));
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if rest.len() < len {
            return Ok(None);
        }
        let start = self.taken.saturating_add(4);
        let end = start.saturating_add(len);
        self.taken = end;
        let header = start.saturating_sub(HEADER_SIZE);
        if let Some(place) = self.bytes.get_mut(header..start) {
            place.copy_from_slice(Header::new_zeroed().as_bytes());
        }
        Ok(Some(header..end))
    }

    /// Reads more; `false` if nothing waits.
    fn fill(&mut self, mut stream: &UnixStream) -> io::Result<bool> {
        self.bytes.resize(READ_AHEAD, 0);
        self.bytes.copy_within(self.taken..self.filled, HEADROOM);
        self.filled = HEADROOM.saturating_add(self.filled.saturating_sub(self.taken));
        self.taken = HEADROOM;
        let answer = loop {
            match stream.read(self.bytes.get_mut(self.filled..).unwrap_or_default()) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.filled = self.filled.saturating_add(*answer.as_ref().unwrap_or(&0));
        match answer {
            Ok(0) => Err(io::Error::new(
                ErrorKind::ConnectionAborted,
                "passt closed the connection",
            )),
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// A frame the socket has taken only part of: the rest must go before anything else.
#[derive(Debug, Default)]
struct Outbound {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbound {
    /// Sends what is left; `false` if some of it still is.
    fn flush(&mut self, mut stream: &UnixStream) -> io::Result<bool> {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match stream.write(rest) {
                Ok(count) => self.sent = self.sent.saturating_add(count),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(true)
    }
}

struct PasstPort {
    stream: Arc<UnixStream>,
    buffers: Buffers,
    /// Where the buffers go with the port's end.
    home: Arc<Mutex<Buffers>>,
    /// What the last frame had left, in the inbound bytes.
    rest: Range<usize>,
}

impl std::ops::Drop for PasstPort {
    fn drop(&mut self) {
        *lock(&self.home) = mem::take(&mut self.buffers);
    }
}

impl FramePort for PasstPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn receive(&mut self, into: GuestBuffers<'_>) -> io::Result<Option<u64>> {
        let inbound = &mut self.buffers.inbound;
        let frame = loop {
            if let Some(frame) = inbound.next()? {
                break frame;
            }
            if !inbound.fill(&self.stream)? {
                return Ok(None);
            }
        };
        let bytes = inbound.bytes.get(frame.clone()).unwrap_or_default();
        into.store(&[bytes]);
        let taken = into.len();
        self.rest = frame.start.saturating_add(taken).min(frame.end)..frame.end;
        Ok(Some(wire_len(frame.len())))
    }

    fn rest(&self) -> &[u8] {
        let inbound = &self.buffers.inbound.bytes;
        inbound.get(self.rest.clone()).unwrap_or_default()
    }

    fn send(&mut self, _: &Header, frame: GuestBuffers<'_>) -> io::Result<bool> {
        let outbound = &mut self.buffers.outbound;
        if !outbound.flush(&self.stream)? {
            return Ok(false);
        }
        let len = frame.len();
        let prefix = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
        outbound.bytes.extend(prefix);
        outbound.bytes.resize(len.saturating_add(prefix.len()), 0);
        if let Some(target) = outbound.bytes.get_mut(prefix.len()..) {
            frame.fetch(target);
        }
        // What the socket does not take now goes before the next frame.
        outbound.flush(&self.stream)?;
        Ok(true)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.buffers.outbound.flush(&self.stream).map(drop)
    }
}
