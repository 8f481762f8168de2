//! Splitring: a KVM-based virtual machine monitor, as a library.
//!
//! [`VmConfig`] describes a machine, [`Resources`] are its kernel, images, network backends and console,
//! opened once, and a [`Machine`] is made from both. Any number of machines live in one process.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use splitring::config::{Bytes, DiskConfig, NetConfig};
//! use splitring::{Console, Machine, Resources, VmConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = VmConfig::new("vmlinuz")
//!     .cmdline("root=/dev/vda")
//!     .memory(Bytes::gib(1))
//!     .disk(DiskConfig::new("root.img"))
//!     .net(NetConfig::tap("tap0"));
//! let console = Console::file("console.log")?;
//! let resources = Resources::options().console(console).open(&config)?;
//! let machine = Machine::new(config, resources)?;
//! machine.start()?;
//! println!("{:?}", machine.shutdown(Duration::from_secs(30))?);
//! # Ok(())
//! # }
//! ```
//!
//! | module | what it has |
//! |---|---|
//! | [`config`] | what a machine is made of, from TOML or JSON or by setters |
//! | [`balloon`], [`disk`], [`net`], [`scsi`] | handles of running devices, and the contracts for disks and network backends of one's own |
//! | [`host`] | what this host can do |
//!
//! More is in the crate's `examples`: events in tokio, SCSI hot-plug, one hundred machines.
//!
//! # Errors
//! Every error has a `kind()`, an [`ErrorKind`], to react to, and a text that names object, operation, cause and remedy.
//! [`Error`], from operations on machines, is opaque; the others are non-exhaustive enums.
//!
//! # What it does to the process
//! It installs a handler for one real-time signal ([`set_kick_signal`]), starts threads, which end with their machines,
//! and, with [`NetConfig::passt`](config::NetConfig::passt), a child process. It touches no terminal unless a
//! [`Console`] is told to, installs no panic hook and no log subscriber, and never exits. It writes to images, console
//! targets, sockets and, if a directory was named for them, unpacked kernels. Machines of one process that open one
//! image as SCSI disks with `share` share that disk's reservations and mode pages; everything else of them is their own.
//!
//! # Panics, overflow and aborts
//! A panic on a thread of a machine is a bug; it ends that machine with [`ExitReason::Failed`]. That takes unwinding:
//! with `panic = "abort"` it ends the process. The arithmetic on guest numbers is checked by itself; switch
//! `overflow-checks` on in your own release profile to have the rest stopped, too, as this workspace's profile does.

#![warn(missing_debug_implementations)]

mod assemble;
mod attach;
pub mod balloon;
pub mod config;
mod console;
mod control;
pub mod disk;
mod error;
mod events;
pub mod host;
mod kick;
mod kvm;
mod lifecycle;
mod machine;
mod memory;
pub mod net;
mod registers;
mod registry;
mod resources;
pub mod scsi;
#[cfg(feature = "selftest")]
pub mod selftest;
mod state;
mod vcpu;

pub use attach::PciDevice;
pub use config::VmConfig;
pub use console::{Console, ConsoleError};
pub use error::{Error, ErrorKind};
pub use events::{Event, Events};
pub use kick::{KickError, set_kick_signal};
pub use machine::Machine;
pub use memory::SharedMemory;
pub use registers::Registers;
pub use resources::{ResourceOptions, Resources, check_files};
pub use state::{ExitReason, MachineState, ShutdownOutcome};
pub use vcpu::ExitCounts;

/// What [`PciDevice`] was called.
#[deprecated = "its name is `PciDevice`"]
pub type Place = PciDevice;
