//! What a test needs of the machine it runs on. A test that cannot run is skipped, never silently
//! passed.
//!
//! Each function probes for one thing and returns whether it is there. If it is not, the caller
//! returns, and the skipped test is noted: on standard error, and as a line in the file that
//! [`SKIPPED`] names, which `cargo xtask test` counts. Where the test runner has promised a thing
//! ([`REQUIRE_KVM`], [`REQUIRE_TOOLS`]) its absence is a failure instead.

use std::env;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write;
use std::panic::Location;
use std::path::Path;
use std::process::Command;
use std::thread;

/// Names the file to which a line per skipped test is appended.
pub const SKIPPED: &str = "SPLITRING_SKIPPED";
/// If set, a test that is skipped for want of `/dev/kvm` fails.
pub const REQUIRE_KVM: &str = "SPLITRING_REQUIRE_KVM";
/// If set, a test that is skipped for want of a program fails.
pub const REQUIRE_TOOLS: &str = "SPLITRING_REQUIRE_TOOLS";

/// A privilege that a test needs (`include/uapi/linux/capability.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// Networks: devices, addresses, packet filters.
    NetAdmin = 12,
    /// Mounts, namespaces, block devices, kernel settings.
    SysAdmin = 21,
    /// Device files.
    Mknod = 27,
}

/// Returns whether `/dev/kvm` opens.
///
/// # Panics
///
/// If it does not although [`REQUIRE_KVM`] is set.
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
/// If it is not although [`REQUIRE_TOOLS`] is set.
#[track_caller]
pub fn program(program: &str, package: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
        || absent(
            REQUIRE_TOOLS,
            format!("{program} is not installed (package {package})"),
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

/// Returns whether this process is root's: some tests become another user.
#[track_caller]
pub fn root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_uid(&status) == Some(0) || lack("this needs root, to become another user")
}

/// Returns whether this process has all of `capabilities` in effect.
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

/// Returns whether networks can be made here: namespaces, TAP devices, addresses.
#[track_caller]
pub fn networks() -> bool {
    capabilities(&[Capability::NetAdmin, Capability::SysAdmin]) && tun()
}

/// Returns whether loop devices can be made here, and file systems mounted.
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
    // The kernel loads it at its first use.
    let known = || {
        let probe = Command::new("modprobe")
            .args(["--dry-run", "--quiet", targets])
            .status();
        Path::new("/sys/module").join(targets).exists()
            || probe.is_ok_and(|status| status.success())
    };
    block_devices() && (known() || lack(format!("the kernel has no module {targets}")))
}

/// Notes that the calling test is skipped, wholly or in part, because of `why`. Returns `false`.
#[track_caller]
pub fn lack(why: impl Display) -> bool {
    let place = Location::caller();
    // A test's thread has its name; as the only one it may run in the main thread.
    let thread = thread::current();
    let name = thread.name().filter(|name| *name != "main");
    let name = name.map_or_else(
        || format!("{}:{}", place.file(), place.line()),
        str::to_owned,
    );
    let line = format!("{name}: {why}");
    eprintln!("skipped: {line}");
    if let Some(file) = env::var_os(SKIPPED) {
        // One write, so that lines of tests that run at the same time stay whole.
        let line = line.replace('\n', " ") + "\n";
        File::options()
            .append(true)
            .create(true)
            .open(&file)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| panic!("cannot note in {} a skip: {error}", file.display()));
    }
    false
}

/// A lack, unless the environment says that there is none.
#[track_caller]
fn absent(required: &str, why: String) -> bool {
    assert!(
        env::var_os(required).is_none(),
        "{why}, although {required} is set"
    );
    lack(why)
}

/// The second number behind `Uid:` in a process's status.
fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The bits behind `CapEff:` in a process's status.
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
