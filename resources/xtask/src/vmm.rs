//! Builds the VMM with cargo, and finds the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Returns a command for the cargo that runs this program, or else the one on the search path.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Returns the workspace's root: two levels above this crate.
pub(crate) fn workspace() -> &'static Path {
    const CRATE: &str = env!("CARGO_MANIFEST_DIR");
    Path::new(CRATE)
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new(CRATE))
}

/// Builds the VMM in release mode, with the embedded guest, and returns its path.
pub(crate) fn build() -> Result<PathBuf> {
    build_with(&[])
}

/// Like [`build`], statically linked.
pub(crate) fn build_static() -> Result<PathBuf> {
    const HOST: &str = "x86_64-unknown-linux-gnu";
    // A static program relocates itself; packed relocations make it 160 KiB smaller.
    const FLAGS: &str =
        r#""-Ctarget-feature=+crt-static", "-Clink-arg=-Wl,-z,pack-relative-relocs""#;
    let flags = format!("target.{HOST}.rustflags=[{FLAGS}]");
    // With an explicit target the flags don't apply to macros and build scripts, which must be
    // dynamic.
    build_with(&["--target", HOST, "--config", &flags])
}

fn build_with(arguments: &[&str]) -> Result<PathBuf> {
    const BUILD: [&str; 8] = [
        "build",
        "--release",
        "--package",
        "splitring-cli",
        "--bin",
        "splitring",
        "--features",
        "selftest",
    ];
    let built = executables(&[&BUILD, arguments].concat())?;
    built
        .into_iter()
        .next()
        .map(|(_, path)| path)
        .context("cargo built no splitring")
}

/// Runs a cargo command that builds, and returns the names of the targets and their executables.
pub(crate) fn executables(arguments: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let output = cargo()
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed; its message is above", arguments.join(" "));
    }
    let messages = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
    let mut found = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("not JSON")?;
        if let (Some(path), Some(name)) = (
            message["executable"].as_str(),
            message["target"]["name"].as_str(),
        ) {
            found.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(found)
}
