//! Test support. [`fuzz`] has the bodies of the fuzz targets, [`machine`] runs a device in the
//! test's own process, [`arena`] is memory that several virtio implementations share, [`counting`]
//! counts allocations, [`scsi`] drives a SCSI
//! controller in it, [`pairs`] makes pairwise samples. The other modules are for the end-to-end
//! tests: the assets that `cargo xtask test` prepares, and a Splitring process whose guest is
//! driven over its serial console.
//!
//! End-to-end tests use Splitring through its command line, except with [`library`], which runs the
//! library in this process. A failure panics with the console's last lines.

pub mod acpi;
pub mod arena;
pub mod assets;
pub mod counting;
pub mod dmesg;
pub mod fuzz;
pub mod guest;
pub mod library;
pub mod machine;
pub mod network;
pub mod pairs;
pub mod resolver;
pub mod scsi;
pub mod terminal;
pub mod user;
