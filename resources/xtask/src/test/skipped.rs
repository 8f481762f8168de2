//! Records of skipped tests: each test appends to a file that the environment names
//! (`tests/needs`).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use splitring_needs::{REQUIRE_KVM, REQUIRE_TOOLS, SKIPPED};
use tempfile::NamedTempFile;

use super::Tier;
use crate::progress::say;

/// The records of one run.
#[derive(Debug)]
pub(super) struct Skipped {
    notes: NamedTempFile,
}

impl Skipped {
    /// Starts a run without skipped tests.
    pub(super) fn new() -> Result<Self> {
        let notes = tempfile::Builder::new()
            // Several processes append to it.
            .append(true)
            .tempfile()
            .context("cannot make a file for the skipped tests")?;
        Ok(Self { notes })
    }

    /// Returns the environment for programs that run tests: the file for skipped ones, and the
    /// needs for which none may be skipped.
    pub(super) fn environment(&self, tier: Tier) -> Vec<(&'static str, &OsStr)> {
        let mut environment = vec![(SKIPPED, self.notes.path().as_os_str())];
        if kvm_opens() {
            environment.push((REQUIRE_KVM, OsStr::new("1")));
        }
        if tier != Tier::Quick {
            environment.push((REQUIRE_TOOLS, OsStr::new("1")));
        }
        environment
    }

    /// Records a skipped step, in the same way as a test does.
    pub(super) fn note(&self, line: &str) -> Result<()> {
        say(format!("skipped: {line}"));
        let mut file = self.notes.as_file();
        writeln!(file, "{line}").context("cannot note a skipped step")
    }

    /// Returns the skipped tests with their reasons, without duplicates.
    pub(super) fn lines(&self) -> Vec<String> {
        read(self.notes.path())
    }
}

/// Returns the lines of a file of records; empty if no test was skipped.
pub(super) fn read(notes: &Path) -> Vec<String> {
    let text = fs::read(notes).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines.dedup();
    lines
}

/// Returns whether `/dev/kvm` opens, so that no test may be skipped for lack of KVM.
fn kvm_opens() -> bool {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

#[cfg(test)]
mod tests;
