//! Splitring: a KVM-based virtual machine monitor, as a library.
//!
//! [`VmConfig`] describes a machine, [`Resources`] are its kernel, images, network backends and console,
//! opened once, and a [`Machine`] is made from both. Any number of machines live in one process. The library
//! owns one real-time signal of the process ([`set_kick_signal`]) and nothing else: no terminal, no panic
//! hook, no log subscriber, no `exit`.

#![warn(missing_debug_implementations)]

mod assemble;
mod attach;
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
mod resources;
pub mod scsi;
#[cfg(feature = "selftest")]
pub mod selftest;
mod state;
mod vcpu;

pub use attach::Place;
pub use config::VmConfig;
pub use console::{Console, ConsoleError};
pub use error::{Error, ErrorKind};
pub use events::{Event, Events};
pub use kick::{KickError, set_kick_signal};
pub use machine::Machine;
pub use registers::Registers;
pub use resources::{ResourceOptions, Resources, check_files};
pub use state::{ExitReason, MachineState, ShutdownOutcome};
pub use vcpu::ExitCounts;
