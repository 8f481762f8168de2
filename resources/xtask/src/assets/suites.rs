//! Debian suites other than the installed one, from the mirror that this machine is configured for.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The keyring for all Debian suites. If it is not installed, apt's trusted keys apply.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The Debian release that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Release {
    /// Its name, such as "bookworm".
    pub(crate) codename: String,
    /// Its number, if it has been released.
    pub(crate) number: Option<u32>,
}

/// Returns the release in `/etc/os-release`; `None` if this is not Debian.
pub(crate) fn release() -> Option<Release> {
    parse_release(&fs::read_to_string("/etc/os-release").ok()?)
}

fn parse_release(text: &str) -> Option<Release> {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_matches('"').to_owned())
    };
    (value("ID=")? == "debian").then_some(())?;
    Some(Release {
        codename: value("VERSION_CODENAME=")?,
        number: value("VERSION_ID=").and_then(|number| number.parse().ok()),
    })
}

/// Returns a line for apt that reads `suite` from the mirror of the installed release.
pub(super) fn source(suite: &str) -> Result<String> {
    let release = release().context("this is not Debian")?;
    let output = Command::new("apt-get")
        .args(["indextargets", "--format"])
        .arg("$(REPO_URI) $(COMPONENT) $(RELEASE) $(CODENAME)")
        .arg("Created-By: Packages")
        .output()
        .context("cannot run apt-get")?;
    let targets = String::from_utf8_lossy(&output.stdout);
    let Some(mirror) = mirror(&targets, &release.codename) else {
        bail!(
            "this machine's package sources do not name Debian's {}",
            release.codename
        );
    };
    let signed = if Path::new(KEYRING).exists() {
        format!(" [signed-by={KEYRING}]")
    } else {
        String::new()
    };
    Ok(format!("deb{signed} {mirror} {suite} main\n"))
}

/// Returns the address of the main component of `codename`, whatever name the sources use for it.
fn mirror<'a>(targets: &'a str, codename: &str) -> Option<&'a str> {
    targets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?;
        let main = words.next()? == "main";
        (main && words.any(|name| name == codename)).then_some(address)
    })
}

#[cfg(test)]
mod tests;
