//! A pseudo-terminal for programs that behave differently on one.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub struct Terminal {
    master: OwnedFd,
    end: OwnedFd,
}

impl Terminal {
    /// Opens a pseudo-terminal, in canonical mode with echo.
    pub fn open() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("a terminal of ours");
        unlockpt(&master).expect("a terminal of ours");
        let name = ptsname(&master, Vec::new()).expect("a terminal with a name");
        let end = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
            .expect("the terminal's end opens");
        Self { master, end }
    }

    /// Returns the end that a program runs on.
    pub fn end(&self) -> OwnedFd {
        self.end.try_clone().expect("a descriptor to spare")
    }

    /// Returns the end of the user.
    pub fn master(&self) -> File {
        self.master
            .try_clone()
            .expect("a descriptor to spare")
            .into()
    }

    /// Returns whether the terminal edits lines and echoes, as it does unless a program has changed
    /// that.
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.end).expect("a terminal").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}
