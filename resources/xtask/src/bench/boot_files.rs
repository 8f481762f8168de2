//! Copies of all files that a boot reads, in memory, so that only the VMMs differ.
//!
//! The lab's own root is virtio-fs. Its CPU is idle while it waits for a reply, and the instruction
//! clock of an idle CPU jumps to the next timer. So in the lab the copies become the root
//! directory, together with QEMU and its libraries.

use std::fs;
use std::os::unix::fs::chroot;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::assets::run;
use crate::host;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Debian's directories of QEMU's firmware.
const FIRMWARE: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];
/// The dynamically linked program.
const DYNAMIC: &str = "splitring-dynamic";
const CMDLINE: &str = "console=ttyS0 quiet";
/// Guest memory.
pub(super) const GUEST_MIB: u64 = 256;
const DISK_BYTES: u64 = 64 << 20;

/// All files that a boot reads.
#[derive(Debug)]
pub(super) struct BootFiles {
    /// The directory of the files, as this process sees it.
    files: PathBuf,
    /// Removes the directory; in the lab its memory goes with the lab.
    _dir: Option<tempfile::TempDir>,
}

impl BootFiles {
    /// Copies all files. In the lab their directory becomes the root.
    pub(super) fn copy_all(splitring: &Path, dynamic: &Path, kernel: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in("/dev/shm")
            .context("cannot make a directory in memory")?;
        let root = dir.path();
        for name in ["vmlinux", "vmlinuz", "initramfs"] {
            copy(&kernel.join(name), &root.join(name))?;
        }
        copy(splitring, &root.join("splitring"))?;
        copy(dynamic, &root.join(DYNAMIC))?;
        let disk = fs::File::create(root.join("disk")).context("cannot make a disk")?;
        disk.set_len(DISK_BYTES).context("cannot make a disk")?;
        if !host::in_lab() {
            return Ok(Self {
                files: root.to_owned(),
                _dir: Some(dir),
            });
        }
        become_root(&dir.keep(), dynamic)?;
        Ok(Self {
            files: PathBuf::from("/"),
            _dir: None,
        })
    }

    /// Returns the path of a file.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    /// Returns a command that boots `kernel` in Splitring, with one vCPU.
    pub(super) fn splitring(&self, kernel: &str, session: &str, disk: bool) -> Command {
        let mut command = Command::new(self.file("splitring"));
        command
            .args(["run", "--rng", "off", "--memory", &format!("{GUEST_MIB}M")])
            .args([
                "--kernel",
                &self.path(kernel),
                "--initrd",
                &self.path("initramfs"),
            ])
            .args(["--cmdline", &format!("{CMDLINE} session={session}")])
            .env("XDG_CACHE_HOME", self.file("cache"));
        if disk {
            command.args(["--disk", &format!("path={}", self.path("disk"))]);
        }
        command
    }

    /// Returns the same command for the dynamically linked program.
    pub(super) fn dynamic(&self, command: Command) -> Command {
        let mut other = Command::new(self.file(DYNAMIC));
        other.args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                other.env(name, value);
            }
        }
        other
    }

    /// Returns a command for Debian's QEMU with the extracted kernel, with as few devices as
    /// options allow for q35.
    pub(super) fn qemu(&self, session: &str, disk: bool) -> Command {
        let mut command = Command::new(QEMU);
        command
            .args([
                "-M",
                "q35",
                "-accel",
                "kvm",
                "-cpu",
                "host",
                "-m",
                &GUEST_MIB.to_string(),
            ])
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-no-reboot",
                "-serial",
                "stdio",
            ])
            .args([
                "-kernel",
                &self.path("vmlinux"),
                "-initrd",
                &self.path("initramfs"),
            ])
            .args(["-append", &format!("{CMDLINE} session={session}")]);
        if disk {
            command
                .args([
                    "-drive",
                    &format!("file={},format=raw,if=none,id=d", self.path("disk")),
                ])
                .args(["-device", "virtio-blk-pci,drive=d,disable-legacy=on"]);
        }
        command
    }
}

/// Makes `root` the root directory of this process and its children, with QEMU in it and the
/// libraries of the program `dynamic`.
fn become_root(root: &Path, dynamic: &Path) -> Result<()> {
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    copy(Path::new(QEMU), &inside(Path::new(QEMU)))?;
    let output = Command::new("ldd").arg(QEMU).arg(dynamic).output();
    let libraries = String::from_utf8(output.context("cannot run ldd")?.stdout)?;
    // The list of each program has the program's name above it.
    let libraries = libraries.lines().filter(|line| !line.ends_with(':'));
    let cache = "/etc/ld.so.cache";
    for path in libraries
        .flat_map(str::split_whitespace)
        .chain([cache])
        .filter(|word| word.starts_with('/'))
    {
        copy(Path::new(path), &inside(Path::new(path)))?;
    }
    for directory in FIRMWARE {
        let entries =
            fs::read_dir(directory).with_context(|| format!("cannot list {directory}"))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.extension().is_some_and(|extension| extension == "bin") {
                copy(&path, &inside(&path))?;
            }
        }
    }
    for mount in ["/dev", "/proc", "/sys"] {
        let place = inside(Path::new(mount));
        fs::create_dir(&place).with_context(|| format!("cannot make {}", place.display()))?;
        run(Command::new("mount").args(["--rbind", mount]).arg(place))?;
    }
    chroot(root).context("cannot change the root directory")?;
    std::env::set_current_dir("/").context("cannot go to the root directory")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let made = to.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::copy(from, to))
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
