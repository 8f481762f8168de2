//! Devices of the host's device mapper. Needs root and the modules, which the lab has.

use std::path::PathBuf;
use std::process::Command;

use crate::blk::block::run;

const DMSETUP: &str = "/usr/sbin/dmsetup";

/// A mapped device, which is removed on drop.
pub(crate) struct Mapped {
    name: String,
}

impl Mapped {
    /// Creates a device that is named after `id` and mapped by `table`.
    pub(crate) fn new(id: &str, table: &str) -> Self {
        let name = format!("splitring-{}-{id}", std::process::id());
        dmsetup(&["create", &name, "--table", table]);
        Self { name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn device(&self) -> PathBuf {
        let columns = ["info", "-c", "--noheadings", "-o", "minor", &self.name];
        format!("/dev/dm-{}", dmsetup(&columns)).into()
    }

    /// Replaces the table. The page cache of the device is kept.
    pub(crate) fn become_as(&self, table: &str) {
        dmsetup(&["suspend", "--nolockfs", &self.name]);
        dmsetup(&["load", &self.name, "--table", table]);
        dmsetup(&["resume", &self.name]);
    }

    /// Keeps what is asked of it from here on, and lets it go again.
    pub(crate) fn hang(&self, hangs: bool) {
        if hangs {
            dmsetup(&["suspend", "--nolockfs", "--noflush", &self.name]);
        } else {
            dmsetup(&["resume", &self.name]);
        }
    }

    pub(crate) fn message(&self, words: &[&str]) {
        dmsetup(&[&["message", &self.name, "0"], words].concat());
    }

    /// Removes the device. Requests of a killed process may take a little longer.
    pub(crate) fn remove(&self) {
        dmsetup(&["remove", "--retry", &self.name]);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // It may have been removed already, and a test that failed may have left it in use, or
        // suspended.
        let resume = words(&["resume", &self.name]);
        drop(Command::new(DMSETUP).args(resume).output());
        let words = words(&["remove", &self.name]);
        drop(Command::new(DMSETUP).args(words).output());
    }
}

/// Adds an option: in the lab no udev completes dmsetup's synchronisation.
fn words<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["--noudevsync", "--noudevrules"], arguments].concat()
}

fn dmsetup(arguments: &[&str]) -> String {
    run(DMSETUP, &words(arguments))
}
