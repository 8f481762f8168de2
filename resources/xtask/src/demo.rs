//! `cargo xtask demo`: boots a stock Debian kernel with a Debian root disk; fetches and builds both
//! if necessary.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::assets::Cache;
use crate::guest::{self, GuestKernel};
use crate::host::{self, HostKvm};
use crate::kernel::Flavour;
use crate::lab;
use crate::progress::say;
use crate::vmm;

/// A day, for an interactive session.
const INTERACTIVE_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// The session takes about 20 s in the lab.
const BATCH_LIMIT: Duration = Duration::from_secs(300);

/// Runs the demo. `batch` runs the scripted session even on a terminal.
pub(crate) fn run(batch: bool, yes: bool) -> Result<()> {
    let batch = batch || !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal();
    let host = HostKvm::detect();
    let in_lab = !host.runs_stock_kernels();
    let place = if in_lab {
        "in the lab"
    } else {
        "on the host's KVM"
    };
    say(format!("{host}: the guest runs {place}"));
    if in_lab {
        lab::prepare(yes)?;
    }
    let cache = Cache::open()?;
    let kernel = GuestKernel::get(&cache, Flavour::Cloud612)?;
    let image = guest::DEMO_ROOT.get(&cache, yes)?;
    say("building splitring");
    let splitring = vmm::build()?;
    let scratch = cache.scratch("demo-")?;
    let disk = scratch.path().join("root.img");
    guest::copy_disk(&image, &disk)?;

    let session = if batch { "batch" } else { "shell" };
    let command: Vec<OsString> = vec![
        splitring.into(),
        "run".into(),
        "--kernel".into(),
        kernel.file("vmlinuz").into(),
        "--initrd".into(),
        kernel.file("initramfs").into(),
        "--cmdline".into(),
        format!("console=ttyS0 quiet root=/dev/vda session={session}").into(),
        "--memory".into(),
        "512M".into(),
        "--disk".into(),
        format!("path={}", disk.display()).into(),
    ];
    say(format!(
        "booting Debian's {} kernel {place}",
        kernel.release()
    ));
    if !batch {
        say("  a shell follows; leave it with \"exit\"; changes to the disk are discarded");
    }
    let output = start(&command, in_lab, batch, yes)?;
    if batch && !session_succeeded(&output, kernel.release()) {
        bail!(
            "the guest's session did not end with \"session: ok {}\"",
            kernel.release()
        );
    }
    println!(
        "demo: ok, stock Debian kernel {} ran {place}",
        kernel.release()
    );
    Ok(())
}

/// Runs the VMM on the host or in the lab, forwards its output, and returns the captured part of
/// it.
fn start(command: &[OsString], in_lab: bool, batch: bool, yes: bool) -> Result<Vec<u8>> {
    let (code, output) = if in_lab && !host::in_lab() {
        let options = lab::Options {
            timeout: if batch {
                BATCH_LIMIT
            } else {
                INTERACTIVE_LIMIT
            },
            yes,
            ..lab::Options::default()
        };
        let output = if batch {
            lab::Output::PassAndKeep
        } else {
            lab::Output::Pass
        };
        let outcome = lab::run(&options, command, output)?;
        (Some(outcome.code), outcome.output)
    } else {
        here(command, batch)?
    };
    match code {
        Some(0) => Ok(output),
        Some(code) => bail!("splitring ended with exit code {code}"),
        None => bail!("splitring was killed by a signal"),
    }
}

fn here(command: &[OsString], batch: bool) -> Result<(Option<i32>, Vec<u8>)> {
    let (program, arguments) = command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    if !batch {
        return Ok((
            command.status().context("cannot run splitring")?.code(),
            Vec::new(),
        ));
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run splitring")?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    Ok((output.status.code(), output.stdout))
}

fn session_succeeded(console: &[u8], release: &str) -> bool {
    let expected = format!("session: ok {release}");
    String::from_utf8_lossy(console)
        .lines()
        .any(|line| line.trim() == expected)
}

#[cfg(test)]
mod tests;
