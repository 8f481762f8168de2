//! `cargo xtask bench net`: iperf3 and ping over a tap device, against QEMU with and without the kernel's vhost.
//!
//! What is measured is in the tests crate (`benches/devices/network.rs`).

use anyhow::Result;

use super::devices::{self, Options};

/// The bench makes a tap device, mounts a disk image for the programs at the host's end, and has QEMU use vhost.
const MODULES: [&str; 3] = ["tun", "loop", "vhost_net"];

/// Measures network cards.
pub(crate) fn run(options: &Options, yes: bool) -> Result<()> {
    devices::run("net", &MODULES, options, yes)
}
