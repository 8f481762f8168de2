//! What a test needs of the machine that it runs on. A test that cannot run is skipped and counted;
//! it never passes without running.
//!
//! Each function checks one requirement and returns whether it is met. If not, the caller returns,
//! and the skipped test is recorded: on standard error, and as a line in the file that [`SKIPPED`]
//! names, which `cargo xtask test` counts. If the test runner guarantees a requirement
//! ([`REQUIRE_KVM`], [`REQUIRE_TOOLS`]), its absence is a failure instead.

pub mod tiny;

use std::env;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write;
use std::panic::Location;
use std::path::Path;
use std::process::Command;
use std::thread;

/// The environment variable that names the file of skipped tests, to which a line per test is
/// appended.
pub const SKIPPED: &str = "SPLITRING_SKIPPED";
/// If this environment variable is set, a test fails instead of being skipped for lack of
/// `/dev/kvm`.
pub const REQUIRE_KVM: &str = "SPLITRING_REQUIRE_KVM";
/// If this environment variable is set, a test fails instead of being skipped for lack of a
/// program.
pub const REQUIRE_TOOLS: &str = "SPLITRING_REQUIRE_TOOLS";

/// A privilege that a test needs (`include/uapi/linux/capability.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// To configure networks: devices, addresses, packet filters.
    NetAdmin = 12,
    /// To use mounts, namespaces, block devices, kernel settings.
    SysAdmin = 21,
    /// To create device files.
    Mknod = 27,
}

/// Returns whether `/dev/kvm` opens.
///
/// # Panics
///
/// It does not open, but [`REQUIRE_KVM`] is set.
#[track_caller]
pub fn kvm() -> bool {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    let Err(error) = opened else { return true };
    absent(REQUIRE_KVM, format!("/dev/kvm does not open: {error}"))
}

/// Returns whether `program` is in the search path; `package` is the Debian package that has it.
///
/// # Panics
///
/// It is not, but [`REQUIRE_TOOLS`] is set.
#[track_caller]
pub fn program(program: &str, package: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
        || absent(
            REQUIRE_TOOLS,
            format!("{program} is not installed (package {package})"),
        )
}

/// Returns whether `/dev/vhost-net` opens.
#[track_caller]
pub fn vhost_net() -> bool {
    let opened = File::options()
        .read(true)
        .write(true)
        .open("/dev/vhost-net");
    opened.map_or_else(
        |error| lack(format!("/dev/vhost-net does not open: {error}")),
        |_| true,
    )
}

/// Returns whether `/dev/net/tun` opens.
#[track_caller]
pub fn tun() -> bool {
    let opened = File::options().read(true).write(true).open("/dev/net/tun");
    opened.map_or_else(
        |error| lack(format!("/dev/net/tun does not open: {error}")),
        |_| true,
    )
}

/// Returns whether this process runs as root: some tests change to another user.
#[track_caller]
pub fn root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_uid(&status) == Some(0) || lack("this needs root, to become another user")
}

/// Returns whether this process has all of `capabilities` in its effective set.
#[track_caller]
pub fn capabilities(capabilities: &[Capability]) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = effective_capabilities(&status);
    let missing: Vec<_> = capabilities
        .iter()
        .filter(|capability| held & (1 << **capability as u32) == 0)
        .collect();
    missing.is_empty() || lack(format!("this process lacks {missing:?}"))
}

/// Returns whether the kernel module `name` is loaded with each of these parameters.
#[track_caller]
pub fn module(name: &str, parameters: &[(&str, &str)]) -> bool {
    let dir = Path::new("/sys/module").join(name);
    if !dir.exists() {
        return lack(format!("the kernel module {name} is not loaded"));
    }
    let wrong = parameters.iter().find(|(parameter, value)| {
        let file = dir.join("parameters").join(parameter);
        fs::read_to_string(file).is_ok_and(|text| text.trim() != *value)
    });
    let Some((parameter, value)) = wrong else {
        return true;
    };
    lack(format!("{name} is loaded without {parameter}={value}"))
}

/// Returns whether networks can be created: namespaces, TAP devices, addresses.
#[track_caller]
pub fn networks() -> bool {
    capabilities(&[Capability::NetAdmin, Capability::SysAdmin]) && tun()
}

/// Returns whether loop devices can be created and file systems mounted.
#[track_caller]
pub fn block_devices() -> bool {
    let control = Path::new("/dev/loop-control");
    capabilities(&[Capability::SysAdmin])
        && (control.exists() || lack("there are no loop devices (module loop)"))
}

/// Returns whether the device mapper can be used over loop devices, with the targets of the kernel
/// module `targets`.
#[track_caller]
pub fn device_mapper(targets: &str) -> bool {
    // The kernel loads the module at its first use.
    let known = || {
        let probe = Command::new("modprobe")
            .args(["--dry-run", "--quiet", targets])
            .status();
        Path::new("/sys/module").join(targets).exists()
            || probe.is_ok_and(|status| status.success())
    };
    block_devices() && (known() || lack(format!("the kernel has no module {targets}")))
}

/// Records that the calling test is skipped, completely or in part, because of `why`. Returns
/// `false`.
#[track_caller]
pub fn lack(why: impl Display) -> bool {
    let place = Location::caller();
    // A test's thread has the test's name. A single test may run in the main thread.
    let thread = thread::current();
    let name = thread.name().filter(|name| *name != "main");
    let name = name.map_or_else(
        || format!("{}:{}", place.file(), place.line()),
        str::to_owned,
    );
    let line = format!("{name}: {why}");
    eprintln!("skipped: {line}");
    if let Some(file) = env::var_os(SKIPPED) {
        // One write per line, so that lines of concurrent tests don't mix.
        let line = line.replace('\n', " ") + "\n";
        File::options()
            .append(true)
            .create(true)
            .open(&file)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| {
                panic!(
                    "cannot record a skipped test in {}: {error}",
                    file.display()
                )
            });
    }
    false
}

/// Like [`lack`], but panics if the environment guarantees the requirement.
#[track_caller]
fn absent(required: &str, why: String) -> bool {
    assert!(
        env::var_os(required).is_none(),
        "{why}, although {required} is set"
    );
    lack(why)
}

/// Returns the second number of the line `Uid:` in a process's status.
fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Returns the bits of the line `CapEff:` in a process's status.
fn effective_capabilities(status: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .map(str::trim);
    line.and_then(|bits| u64::from_str_radix(bits, 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
