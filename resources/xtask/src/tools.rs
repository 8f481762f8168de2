//! Programs of the host that a command needs, and how they get there.
//!
//! On a terminal we ask; with `--yes`, or without a terminal as root, we install and say so; an
//! ordinary user gets the exact command to run.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::host;
use crate::progress::{Step, say};

/// A program and the Debian package that holds it.
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
/// The daemon that shows the host's files inside the lab, as Debian 12 has it.
pub(crate) const QEMU_VIRTIOFSD: Tool = Tool {
    program: "/usr/lib/qemu/virtiofsd",
    package: "qemu-system-common",
};
/// Its successor, a program of its own from Debian 13 on.
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
/// Burns CD-ROMs.
pub(crate) const GENISOIMAGE: Tool = Tool {
    program: "genisoimage",
    package: "genisoimage",
};
/// Makes and judges qcow2 images.
pub(crate) const QEMU_IMG: Tool = Tool {
    program: "qemu-img",
    package: "qemu-utils",
};
/// Makes the block devices that write down what is written.
pub(crate) const DMSETUP: Tool = Tool {
    program: "/usr/sbin/dmsetup",
    package: "dmsetup",
};
/// Sets up networks of namespaces.
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
    /// Its name, or its path if that is where it has to be.
    pub(crate) fn program(self) -> &'static str {
        self.program
    }

    /// Whether it is there.
    pub(crate) fn present(self) -> bool {
        if self.program.starts_with('/') {
            return Path::new(self.program).exists();
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(self.program).exists())
    }
}

/// Sees to it that `tools` are there, for the sake of `purpose` ("the lab").
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
        bail!("{purpose} can't go on without {list}; to install by hand:\n  {by_hand}");
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
    // An old list may still do; the installation decides.
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
