//! Storage of this machine made for one test: file systems and loop devices. It takes root and the
//! programs for it; where they are missing a test is skipped.

mod fuse;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use splitring_needs as needs;

pub(in crate::disk) use fuse::{FSYNC, FuseFile, WRITE};

/// Runs a program, with the privileges that it takes.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} {arguments:?}: {why}"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether this test may make file systems and devices; otherwise it is skipped.
#[track_caller]
fn may_mount() -> bool {
    needs::capabilities(&[needs::Capability::SysAdmin])
        && ["mount", "losetup"]
            .iter()
            .all(|program| needs::program(program, "mount"))
}

/// A directory on a file system of its own.
pub(in crate::disk) struct Mounted(tempfile::TempDir);

impl Mounted {
    pub(in crate::disk) fn new(kind: &str, options: &str) -> Option<Self> {
        Self::of("test", kind, options)
    }

    /// What is on `device`, which is made into an ext4 first.
    pub(in crate::disk) fn ext4(device: &Loop) -> Option<Self> {
        let device = device.path().display().to_string();
        if !needs::program("mkfs.ext4", "e2fsprogs") {
            return None;
        }
        run("mkfs.ext4", &["-q", &device]).expect("a file system");
        Self::of(&device, "ext4", "rw")
    }

    fn of(source: &str, kind: &str, options: &str) -> Option<Self> {
        if !may_mount() {
            return None;
        }
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().display().to_string();
        let mounted = run("mount", &["-t", kind, "-o", options, source, &path]);
        mounted
            .inspect_err(|why| {
                needs::lack(why);
            })
            .ok()?;
        Some(Self(dir))
    }

    pub(in crate::disk) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let path = self.path().display().to_string();
        run("umount", &["-l", &path]).expect("it was mounted");
    }
}

/// A block device whose sectors are in a file.
pub(in crate::disk) struct Loop(PathBuf);

impl Loop {
    pub(in crate::disk) fn new(file: &Path, sector: u32) -> Option<Self> {
        if !may_mount() {
            return None;
        }
        let (file, sector) = (file.display().to_string(), sector.to_string());
        let arguments = ["--show", "-f", "--sector-size", &sector, &file];
        let mut made = run("losetup", &arguments);
        // Two that look for a free device at once find the same one.
        for _ in 0..5 {
            if made.is_err() {
                made = run("losetup", &arguments);
            }
        }
        made.inspect_err(|why| {
            needs::lack(why);
        })
        .ok()
        .map(|device| Self(device.into()))
    }

    pub(in crate::disk) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let path = self.0.display().to_string();
        run("losetup", &["-d", &path]).expect("it was made");
    }
}

/// A block device that has no room for new data while it is full: what is cached above it can't be
/// written back then.
pub(in crate::disk) struct Medium {
    device: Loop,
    mounted: Mounted,
}

impl Medium {
    /// One of `bytes`, on a file system with half of that.
    pub(in crate::disk) fn new(bytes: u64) -> Option<Self> {
        let mounted = Mounted::new("tmpfs", &format!("size={}", bytes / 2))?;
        let path = mounted.path().join("sectors");
        let file = File::create(&path).expect("file");
        file.set_len(bytes).expect("size");
        let device = Loop::new(&path, 512)?;
        Some(Self { device, mounted })
    }

    pub(in crate::disk) fn path(&self) -> &Path {
        self.device.path()
    }

    /// Takes all its room, or gives it back.
    pub(in crate::disk) fn full(&self, full: bool) {
        let path = self.mounted.path().join("filler");
        if !full {
            return std::fs::remove_file(path).expect("the filler");
        }
        let mut filler = File::create(path).expect("the filler");
        while filler.write(&[0; 4096]).is_ok() {}
    }

    /// Has what is cached written back, by somebody with a description of his own. Whether that
    /// went well.
    pub(in crate::disk) fn write_back(&self) -> bool {
        let file = File::options().write(true).open(self.path());
        file.expect("the device").sync_data().is_ok()
    }
}
