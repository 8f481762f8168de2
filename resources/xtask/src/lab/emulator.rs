//! The programs of the lab: QEMU and virtiofsd.
//!
//! Under QEMU 7.2 a lab with several CPUs crashes occasionally, under 10.0 it does not. Debian 12
//! installs 7.2 and has 10.0 in its backports; that is unpacked into the cache. The installed QEMU
//! is used if it is new enough, or if no newer one is available.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::assets::{Cache, suites};
use crate::cleanup::killed_with_parent;
use crate::progress::say;
use crate::tools::{self, Tool};

/// The first release that runs a lab with several CPUs reliably.
const RELIABLE: Version = Version(10, 0, 0);
/// The emulator and the matching firmware.
const PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];
/// Directories of the firmware in those packages.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// The QEMU that runs the lab.
#[derive(Debug)]
pub(crate) struct Emulator {
    program: PathBuf,
    /// Directories of its firmware; empty for the installed QEMU, which knows its own.
    firmware: Vec<PathBuf>,
}

impl Emulator {
    /// Returns this process's QEMU. The first call chooses it, which may fetch it, and prints the
    /// choice.
    pub(crate) fn get(cache: &Cache) -> &'static Self {
        static CHOSEN: OnceLock<Emulator> = OnceLock::new();
        CHOSEN.get_or_init(|| {
            let installed = Self {
                program: tools::QEMU.program().into(),
                firmware: Vec::new(),
            };
            let (chosen, name) = choose(installed.version(), || Self::from_backports(cache));
            say(format!("lab: {name}"));
            chosen.unwrap_or(installed)
        })
    }

    /// Returns the QEMU of the installed release's backports, unpacked in the cache, with its
    /// version and suite.
    ///
    /// # Errors
    ///
    /// It can't be fetched, does not run on this machine, or is not new enough.
    fn from_backports(cache: &Cache) -> Result<(Self, Version, String)> {
        let release = suites::release().context("this is not Debian")?;
        let suite = format!("{}-backports", release.codename);
        let root = cache.packages_from(&suite, "qemu", &PACKAGES)?;
        let emulator = Self {
            program: root.join("usr/bin").join(tools::QEMU.program()),
            firmware: FIRMWARE.map(|dir| root.join(dir)).into(),
        };
        let version = emulator.version()?;
        ensure!(
            version >= RELIABLE,
            "{suite} has no newer one than {version}"
        );
        Ok((emulator, version, suite))
    }

    /// Runs it with `--version`, which fails if one of its libraries is missing.
    fn version(&self) -> Result<Version> {
        let output = Command::new(&self.program)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        ensure!(
            output.status.success(),
            "{} does not run: {}",
            self.program.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Version::parse(&String::from_utf8_lossy(&output.stdout))
            .with_context(|| format!("{} does not print its version", self.program.display()))
    }

    /// Returns a command that is killed when this process ends. The caller adds the machine's
    /// options.
    pub(crate) fn command(&self) -> Command {
        let mut command = killed_with_parent(&self.program);
        for dir in &self.firmware {
            command.arg("-L").arg(dir);
        }
        command
    }
}

/// Returns the emulator to use (`None` for the installed one) and its description.
fn choose<T>(
    installed: Result<Version>,
    from_backports: impl FnOnce() -> Result<(T, Version, String)>,
) -> (Option<T>, String) {
    let old = match installed {
        Ok(version) if version >= RELIABLE => return (None, format!("QEMU {version} (installed)")),
        Ok(version) => version.to_string(),
        Err(_) => "of unknown version".to_owned(),
    };
    match from_backports() {
        Ok((emulator, version, suite)) => {
            (Some(emulator), format!("QEMU {version} (from {suite})"))
        }
        Err(why) => {
            let why = format!("{why:#}").replace('\n', "; ");
            (None, format!("QEMU {old} (installed; no newer one: {why})"))
        }
    }
}

/// A release of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl Version {
    /// Parses "QEMU emulator version 10.0.2 (Debian …)".
    fn parse(text: &str) -> Option<Self> {
        let number = text.split_once(" version ")?.1.split_whitespace().next()?;
        let mut parts = number.split('.').map(|part| part.parse().ok());
        let mut part = || parts.next().flatten();
        Some(Self(part()?, part()?, part().unwrap_or(0)))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Returns the daemon that shares the host's files with the lab: the one in C that came with QEMU
/// up to 7.2, or its successor in Rust.
pub(crate) fn virtiofsd() -> Tool {
    let newer = suites::release().is_none_or(|release| release.number.is_none_or(|at| at > 12));
    let present = |tool: &Tool| tool.present();
    let expected = if newer {
        tools::VIRTIOFSD
    } else {
        tools::QEMU_VIRTIOFSD
    };
    [tools::QEMU_VIRTIOFSD, tools::VIRTIOFSD]
        .into_iter()
        .find(present)
        .unwrap_or(expected)
}

/// Returns a command that serves the host's root directory on `socket`.
pub(crate) fn virtiofsd_command(socket: &Path) -> Command {
    let tool = virtiofsd();
    let mut command = killed_with_parent(tool.program());
    command.arg(format!("--socket-path={}", socket.display()));
    if tool == tools::VIRTIOFSD {
        command.args(["--shared-dir=/", "--sandbox=chroot", "--cache=auto"]);
    } else {
        command.args(["-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=auto"]);
    }
    command
}

#[cfg(test)]
mod tests;
