//! What the tests share. [`fuzz`] holds the bodies of the fuzz targets, [`machine`] runs a device in process, [`pairs`]
//! takes samples; the rest is for the end-to-end tests: the assets `cargo xtask test` prepares, and a Splitring process whose guest is driven
//! over its serial console.
//!
//! Those know Splitring by its command line, but for [`live`], which is the library in this process. A failure panics
//! with the console's last lines.

pub mod acpi;
pub mod arena;
pub mod assets;
pub mod counting;
pub mod dmesg;
pub mod fuzz;
pub mod guest;
pub mod live;
pub mod machine;
pub mod network;
pub mod pairs;
pub mod resolver;
pub mod terminal;
pub mod user;
