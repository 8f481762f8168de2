//! A pseudo-terminal as a console's target. Output is kept while no program has it open, and sent
//! to the next one that opens it.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr};

use super::output::{CHUNK, ReaderId};
use super::target::{ConsoleTarget, Pass, Written, transfer};

const OPEN: OpenptFlags = OpenptFlags::RDWR
    .union(OpenptFlags::NOCTTY)
    .union(OpenptFlags::CLOEXEC);

/// A pseudo-terminal; see the module.
pub(super) struct Pty {
    master: OwnedFd,
    /// An inotify instance that reports when the other end is opened, which the master does not.
    watch: OwnedFd,
    path: PathBuf,
    /// A program may have the other end open.
    connected: bool,
    /// The other end was closed; input from it may still be unread.
    hung_up: bool,
    reader: Option<ReaderId>,
    /// The events of the master that are polled for.
    polled: Option<PollFlags>,
}

impl Pty {
    /// Creates a pseudo-terminal in raw mode whose other end is closed.
    pub(super) fn open() -> Result<Self, Errno> {
        let master = openpt(OPEN)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        // The open file description is not shared with another process.
        rustix::io::ioctl_fionbio(&master, true)?;
        let path = PathBuf::from(OsString::from_vec(
            ptsname(&master, Vec::new())?.into_bytes(),
        ));
        make_raw(&master)?;
        // The master reports a hang-up only after the other end was open once.
        drop(ioctl_tiocgptpeer(&master, OPEN)?);
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let watch = inotify::init(flags)?;
        inotify::add_watch(&watch, &path, inotify::WatchFlags::OPEN)?;
        Ok(Self {
            master,
            watch,
            path,
            connected: false,
            hung_up: false,
            reader: None,
            polled: None,
        })
    }

    /// Returns the path at which it can be opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn read_watch(&self) {
        let mut events = [0; 1024];
        // The contents of the events do not matter. The queue stays short: equal events are merged.
        while rustix::io::read(&self.watch, &mut events).is_ok() {}
    }

    /// Adds or removes the reader according to the state of the other end.
    fn settle(&mut self, pass: Pass<'_>, hung_up: bool) {
        self.hung_up = hung_up;
        match (hung_up, self.reader) {
            (true, Some(reader)) => {
                self.forget_unread();
                pass.output.remove_reader(reader);
                self.reader = None;
            }
            (false, None) => self.reader = Some(pass.output.add_reader()),
            _ => {}
        }
    }

    /// Handles that no program has it open and all of its input was read.
    fn disconnect(&mut self, pass: Pass<'_>) {
        self.settle(pass, true);
        self.connected = false;
        self.hung_up = false;
    }

    /// Empties the buffers of the other end. Unread output is part of the history, which the next
    /// reader gets.
    fn forget_unread(&self) {
        let _ = tcflush(&self.master, QueueSelector::OFlush);
        // The line discipline of the other end has a second buffer. Opening it here also causes an
        // inotify event, after which the hang-up is detected again.
        if let Ok(other) = ioctl_tiocgptpeer(&self.master, OPEN) {
            let _ = tcflush(&other, QueueSelector::IFlush);
        }
    }

    /// Reads input; returns whether the other end is still open.
    fn read(&mut self, pass: Pass<'_>) -> bool {
        let mut bytes = [0; CHUNK];
        let space = pass.input.space().min(CHUNK);
        if space == 0 {
            return true;
        }
        match rustix::io::read(&self.master, &mut bytes[..space]) {
            Ok(len) => {
                pass.input.accept(&bytes[..len]);
                true
            }
            Err(Errno::IO) => false,
            Err(_) => true,
        }
    }
}

fn make_raw(terminal: impl AsFd) -> Result<(), Errno> {
    let mut modes = tcgetattr(&terminal)?;
    modes.make_raw();
    tcsetattr(&terminal, OptionalActions::Now, &modes)
}

impl ConsoleTarget for Pty {
    fn prepare(&mut self, pass: Pass<'_>) -> Option<Duration> {
        let room = pass.input.space() > 0;
        // poll reports a hang-up as long as it lasts, so a closed master is polled only to be read.
        self.polled = (self.connected && (room || !self.hung_up)).then(|| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::IN, room);
            events.set(
                PollFlags::OUT,
                self.reader.is_some_and(|reader| pass.writes(reader)),
            );
            events
        });
        // Poll the master at once to see whether the other end is still open.
        let unsettled = self.connected && self.reader.is_none() && !self.hung_up;
        unsettled.then_some(Duration::ZERO)
    }

    fn add_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.push(PollFd::new(&self.watch, PollFlags::IN));
        if let Some(events) = self.polled {
            fds.push(PollFd::new(&self.master, events));
        }
    }

    fn serve(&mut self, pass: Pass<'_>, ready: &[PollFlags]) -> bool {
        if ready.first().is_some_and(|events| !events.is_empty()) {
            self.read_watch();
            // The last program may have left it in another mode, in which output would be echoed
            // back as input.
            let _ = make_raw(&self.master);
            self.connected = true;
        }
        let Some(events) = ready.get(1) else {
            return false;
        };
        self.settle(pass, events.contains(PollFlags::HUP));
        if events.intersects(PollFlags::IN | PollFlags::HUP) && !self.read(pass) {
            self.disconnect(pass);
        }
        match self.reader {
            Some(reader) if events.contains(PollFlags::OUT) => {
                let written = transfer(pass.output, reader, |bytes| {
                    Ok(rustix::io::write(&self.master, bytes)?)
                });
                // A failure is a hang-up, which the next poll reports.
                matches!(written, Written::Some)
            }
            _ => false,
        }
    }
}
