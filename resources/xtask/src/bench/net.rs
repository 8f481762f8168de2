//! `cargo xtask bench net`: iperf3 and ping over a TAP device, against QEMU with and without the
//! kernel's vhost.
//!
//! The measurements are in the tests crate (`benches/devices/network.rs`).

use anyhow::Result;

use super::devices::{self, Options};

/// The benchmark creates a TAP device, mounts a disk image with the programs for the host's end,
/// and lets QEMU use vhost.
const MODULES: [&str; 3] = ["tun", "loop", "vhost_net"];

/// Measures network devices.
pub(crate) fn run(options: &Options, yes: bool) -> Result<()> {
    devices::run("net", &MODULES, options, yes)
}
