//! Block devices made by the device mapper of the machine it runs on. Needs root and the modules, which the lab has.

use std::path::PathBuf;
use std::process::Command;

use crate::blk::block::run;

const DMSETUP: &str = "/usr/sbin/dmsetup";

/// A mapped device; gone when dropped.
pub(crate) struct Mapped {
    name: String,
}

impl Mapped {
    /// One called after `id` that does as `table` says.
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

    /// Has it do as `table` says from here on. What the page cache has for it stays there.
    pub(crate) fn become_as(&self, table: &str) {
        dmsetup(&["suspend", "--nolockfs", &self.name]);
        dmsetup(&["load", &self.name, "--table", table]);
        dmsetup(&["resume", &self.name]);
    }

    pub(crate) fn message(&self, words: &[&str]) {
        dmsetup(&[&["message", &self.name, "0"], words].concat());
    }

    /// Ends it. What a killed user had under way may take a little longer.
    pub(crate) fn remove(&self) {
        dmsetup(&["remove", "--retry", &self.name]);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // It may be gone already, and a test that failed may have left it in use.
        let words = words(&["remove", &self.name]);
        drop(Command::new(DMSETUP).args(words).output());
    }
}

/// In the lab nobody answers it from udev.
fn words<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["--noudevsync", "--noudevrules"], arguments].concat()
}

fn dmsetup(arguments: &[&str]) -> String {
    run(DMSETUP, &words(arguments))
}
