//! Checks the compatibility of the library's interface, with cargo-semver-checks.
//!
//! The baseline is the interface at the last commit that changed [`BASELINE`]. So a clone with its
//! history is enough, and the commit may be rebased. The tool checks one crate. Items that are
//! re-exported from the crates behind the facade are compared by `vmm/tests/public_api.rs`, in
//! every tier.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::succeed;
use crate::assets::Cache;
use crate::vmm::{cargo, workspace};

const TOOL: &str = "cargo-semver-checks";
/// This version reads the JSON of the pinned toolchain's rustdoc.
const VERSION: &str = "0.51.0";
/// The file that changes with a release or an intended break.
const BASELINE: &str = "vmm/semver-baseline";

/// Compares the library with its baseline. Additions are allowed.
pub(super) fn check() -> Result<()> {
    let baseline = baseline()?;
    let mut command = Command::new(tool()?);
    command
        .current_dir(workspace())
        .args([
            "semver-checks",
            "--package",
            "splitring",
            "--default-features",
        ])
        .args(["--release-type", "minor", "--baseline-rev", &baseline]);
    succeed(command).with_context(|| {
        format!(
            "the interface is not compatible with that of {baseline}; if the break is intended, give Cargo.toml a new version, \
             note the change in CHANGELOG.md, and put the version into {BASELINE}"
        )
    })
}

/// Returns the last commit that changed the file.
fn baseline() -> Result<String> {
    // In a shallow clone the oldest commit seems to have created every file.
    ensure!(
        git(&["rev-parse", "--is-shallow-repository"])? == "false",
        "the history is not complete, so the baseline cannot be found; git fetch --unshallow"
    );
    let commit = git(&["log", "-1", "--format=%H", "--", BASELINE])?;
    ensure!(!commit.is_empty(), "{BASELINE} is in no commit; commit it");
    Ok(commit)
}

fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .current_dir(workspace())
        .args(arguments)
        .output()
        .context("cannot run git")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "git {arguments:?}: {}",
        errors.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Returns the program. It is built once and kept in the cache.
fn tool() -> Result<PathBuf> {
    let what = format!("building {TOOL} {VERSION}, which takes some minutes once");
    let place = Cache::open()?.versioned(TOOL, VERSION, &what, |into| {
        let mut install = cargo();
        install
            .args(["install", "--quiet", "--locked", "--version", VERSION, TOOL])
            .arg("--root")
            .arg(into);
        succeed(install)
    })?;
    Ok(place.join("bin").join(TOOL))
}
