//! What the end-to-end tests share: the assets `cargo xtask test` prepares, and a Splitring process
//! whose guest is driven over its serial console.
//!
//! It knows Splitring by its command line only. A failure panics with the console's last lines.

pub mod acpi;
pub mod assets;
pub mod dmesg;
pub mod guest;
pub mod terminal;
