//! Programs of the host that a command needs, and their installation.
//!
//! On a terminal the user is asked. With `--yes`, or as root without a terminal, packages are
//! installed with a message. An ordinary user gets the exact command to run.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::host;
use crate::progress::{Step, say};

/// A program and its Debian package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
}

/// The emulator of the lab.
pub(crate) const QEMU: Tool = Tool {
    program: "qemu-system-x86_64",
    package: "qemu-system-x86",
};
/// The daemon that shares the host's files with the lab, in Debian 12.
pub(crate) const QEMU_VIRTIOFSD: Tool = Tool {
    program: "/usr/lib/qemu/virtiofsd",
    package: "qemu-system-common",
};
/// Its successor, a separate package since Debian 13.
pub(crate) const VIRTIOFSD: Tool = Tool {
    program: "/usr/libexec/virtiofsd",
    package: "virtiofsd",
};
/// Builds the root disk's file tree.
pub(crate) const MMDEBSTRAP: Tool = Tool {
    program: "mmdebstrap",
    package: "mmdebstrap",
};
/// Makes the root disk's file system.
pub(crate) const MKE2FS: Tool = Tool {
    program: "/sbin/mke2fs",
    package: "e2fsprogs",
};
/// Lets an ordinary user build a file tree with more than one owner.
pub(crate) const NEWUIDMAP: Tool = Tool {
    program: "newuidmap",
    package: "uidmap",
};
/// User-space networking.
pub(crate) const PASST: Tool = Tool {
    program: "passt",
    package: "passt",
};
/// Writes CD-ROM images.
pub(crate) const GENISOIMAGE: Tool = Tool {
    program: "genisoimage",
    package: "genisoimage",
};
/// Makes btrfs file systems.
pub(crate) const MKFS_BTRFS: Tool = Tool {
    program: "/usr/sbin/mkfs.btrfs",
    package: "btrfs-progs",
};
/// Makes FAT file systems.
pub(crate) const MFORMAT: Tool = Tool {
    program: "mformat",
    package: "mtools",
};
/// Writes partition tables.
pub(crate) const SFDISK: Tool = Tool {
    program: "/usr/sbin/sfdisk",
    package: "fdisk",
};
/// Creates and checks qcow2 images.
pub(crate) const QEMU_IMG: Tool = Tool {
    program: "qemu-img",
    package: "qemu-utils",
};
/// Creates xfs file systems.
pub(crate) const MKFS_XFS: Tool = Tool {
    program: "/usr/sbin/mkfs.xfs",
    package: "xfsprogs",
};
/// Creates device-mapper devices, among them those that log all writes.
pub(crate) const DMSETUP: Tool = Tool {
    program: "/usr/sbin/dmsetup",
    package: "dmsetup",
};
/// Configures networks and namespaces.
pub(crate) const IP: Tool = Tool {
    program: "ip",
    package: "iproute2",
};
/// Disassembles ACPI tables.
pub(crate) const IASL: Tool = Tool {
    program: "iasl",
    package: "acpica-tools",
};

impl Tool {
    /// Its name, or its path if it is not on the search path.
    pub(crate) fn program(self) -> &'static str {
        self.program
    }

    /// Returns whether it is installed.
    pub(crate) fn present(self) -> bool {
        if self.program.starts_with('/') {
            return Path::new(self.program).exists();
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(self.program).exists())
    }
}

/// Makes sure that `tools` are installed for `purpose` ("the lab").
pub(crate) fn ensure(tools: &[Tool], purpose: &str, yes: bool) -> Result<()> {
    let mut packages: Vec<_> = tools
        .iter()
        .filter(|tool| !tool.present())
        .map(|tool| tool.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let by_hand = format!("sudo apt-get install --no-install-recommends {list}");
    if !host::is_root() {
        bail!(
            "{purpose} needs the Debian packages {list}; install them and try again:\n  {by_hand}"
        );
    }
    if !yes && std::io::stdin().is_terminal() && !ask(&format!("{purpose} needs {list}. Install?"))?
    {
        bail!(
            "{purpose} needs the Debian packages {list}; install them and try again:\n  {by_hand}"
        );
    }
    install(&packages, purpose)
}

fn ask(question: &str) -> Result<bool> {
    eprint!("{question} [Y/n] ");
    std::io::stderr()
        .flush()
        .context("cannot write to the terminal")?;
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the terminal")?;
    Ok(matches!(
        answer.trim().to_lowercase().as_str(),
        "" | "y" | "yes"
    ))
}

fn install(packages: &[&str], purpose: &str) -> Result<()> {
    say(format!("installing {} for {purpose}", packages.join(" ")));
    let apt = |arguments: &[&str]| -> Result<bool> {
        let output = Command::new("apt-get")
            .args(["-q", "-y", "--no-install-recommends"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()
            .context("cannot run apt-get")?;
        if !output.status.success() {
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output.status.success())
    };
    let install: Vec<_> = std::iter::once("install")
        .chain(packages.iter().copied())
        .collect();
    let step = Step::start("apt-get update");
    // An outdated list may be good enough; the installation will tell.
    apt(&["update"])?;
    drop(step);
    let _step = Step::start(format!("apt-get install {}", packages.join(" ")));
    if !apt(&install)? {
        bail!(
            "apt-get could not install {}; its message is above",
            packages.join(" ")
        );
    }
    Ok(())
}
