//! Storage of this machine made for one test: file systems and loop devices. It takes root and the programs for it;
//! where they are missing a test says that it was not tried.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program; `None` says why not, and that the test is left out.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("not tried: {program}: {error}");
            return None;
        }
    };
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        eprintln!("not tried: {program} {arguments:?}: {why}");
        return None;
    }
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A directory on a file system of its own.
pub(super) struct Mounted(tempfile::TempDir);

impl Mounted {
    pub(super) fn new(kind: &str, options: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not tried: needs root, to mount a {kind}");
            return None;
        }
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().display().to_string();
        run("mount", &["-t", kind, "-o", options, "test", &path])?;
        Some(Self(dir))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let path = self.path().display().to_string();
        run("umount", &["-l", &path]);
    }
}

/// A block device whose sectors are in a file.
pub(super) struct Loop(PathBuf);

impl Loop {
    pub(super) fn new(file: &Path, sector: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not tried: needs root, to make a loop device");
            return None;
        }
        let (file, sector) = (file.display().to_string(), sector.to_string());
        let arguments = ["--show", "-f", "--sector-size", &sector, &file];
        // Two that look for a free device at once find the same one.
        let mut tries = (0..5).map(|_| run("losetup", &arguments));
        tries.find_map(|device| device.map(|device| Self(device.into())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let path = self.0.display().to_string();
        run("losetup", &["-d", &path]);
    }
}
