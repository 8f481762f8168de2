//! A pseudo-terminal as a console's target: output is kept while nobody has it open, and shown to who opens it.

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
use super::target::{Pass, Target, Written, transfer};

const OPEN: OpenptFlags = OpenptFlags::RDWR
    .union(OpenptFlags::NOCTTY)
    .union(OpenptFlags::CLOEXEC);

/// See the module.
pub(super) struct Pty {
    master: OwnedFd,
    /// Says when somebody opens the other end: the master does not.
    watch: OwnedFd,
    path: PathBuf,
    /// Somebody may have it open.
    connected: bool,
    /// Whoever had it open has closed it; what was typed may still wait.
    hung_up: bool,
    reader: Option<ReaderId>,
    /// The events of the master that are waited for.
    polled: Option<PollFlags>,
}

impl Pty {
    /// Makes a pseudo-terminal in raw mode that nobody has open.
    pub(super) fn open() -> Result<Self, Errno> {
        let master = openpt(OPEN)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        // The description is this one's own.
        rustix::io::ioctl_fionbio(&master, true)?;
        let path = PathBuf::from(OsString::from_vec(
            ptsname(&master, Vec::new())?.into_bytes(),
        ));
        make_raw(&master)?;
        // It reports a hang-up only after it was closed once.
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

    /// Where it can be opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn read_watch(&self) {
        let mut events = [0; 1024];
        // Only that somebody opened it matters. The queue is short: equal events are one.
        while rustix::io::read(&self.watch, &mut events).is_ok() {}
    }

    /// Follows the state of the other end.
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

    /// Nobody has it open, and everything that was typed was read.
    fn disconnect(&mut self, pass: Pass<'_>) {
        self.settle(pass, true);
        self.connected = false;
        self.hung_up = false;
    }

    /// Empties the buffers of the other end: what was not read comes again, from the history.
    fn forget_unread(&self) {
        let _ = tcflush(&self.master, QueueSelector::OFlush);
        // The other end has a buffer of its own. That it is opened here is reported, too, and found out to be nothing.
        if let Ok(other) = ioctl_tiocgptpeer(&self.master, OPEN) {
            let _ = tcflush(&other, QueueSelector::IFlush);
        }
    }

    /// Returns whether the other end is still there.
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

impl Target for Pty {
    fn prepare(&mut self, pass: Pass<'_>) -> Option<Duration> {
        let room = pass.input.space() > 0;
        // A hang-up is reported as long as it lasts: nothing else can be waited for meanwhile.
        self.polled = (self.connected && (room || !self.hung_up)).then(|| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::IN, room);
            events.set(
                PollFlags::OUT,
                self.reader.is_some_and(|reader| pass.writes(reader)),
            );
            events
        });
        // Whether who opened it still has it open, a look at the master says.
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
            // Whoever had it before may have left it in another mode, in which the output would come back as input.
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
