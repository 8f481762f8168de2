//! Debian's suites beside the one that is installed, from the mirror that this machine is set up for.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Signs every suite of Debian; where it is not installed, apt's trusted keys decide.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The Debian release that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Release {
    /// Its name, as "bookworm".
    pub(crate) codename: String,
    /// Its number, if it has one already.
    pub(crate) number: Option<u32>,
}

/// What `/etc/os-release` says; `None` if this is no Debian.
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

/// A line for apt that reads `suite` from the mirror of the installed release.
pub(super) fn source(suite: &str) -> Result<String> {
    let release = release().context("this is no Debian")?;
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

/// The address from which the main part of `codename` comes, whatever the sources call it.
fn mirror<'a>(targets: &'a str, codename: &str) -> Option<&'a str> {
    targets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?;
        let main = words.next()? == "main";
        (main && words.any(|name| name == codename)).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_of_the_release_itself() {
        let targets = "copy:/srv/security main bookworm-security bookworm-security\n\
                       copy:/srv/extra contrib bookworm bookworm\n\
                       copy:/srv/debian main oldstable bookworm\n\
                       copy:/srv/new main trixie trixie\n";
        assert_eq!(mirror(targets, "bookworm"), Some("copy:/srv/debian"));
        assert_eq!(mirror(targets, "trixie"), Some("copy:/srv/new"));
        assert_eq!(mirror(targets, "sid"), None);
        // Before the first update apt knows no codenames.
        assert_eq!(mirror("copy:/a main sid \n", "sid"), Some("copy:/a"));
    }

    #[test]
    fn another_distribution_is_no_debian() {
        let debian = "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n";
        let release = parse_release(debian).unwrap();
        assert_eq!(release.codename, "bookworm");
        assert_eq!(release.number, Some(12));
        let other = "ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n";
        assert_eq!(parse_release(other), None);
        let coming = "ID=debian\nVERSION_CODENAME=forky\n";
        assert_eq!(parse_release(coming).unwrap().number, None);
    }
}
