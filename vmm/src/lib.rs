//! Splitring: a KVM-based virtual machine monitor, as a library.
//!
//! [`VmConfig`] says what a machine is made of, [`Machine::build`] makes it, [`Machine::start`] gives a [`MachineHandle`] to the running one. Any number of machines
//! live in one process. The library owns nothing of the process but one real-time signal ([`set_kick_signal`]): no terminal, no panic hook, no log subscriber, no `exit`.

mod assemble;
mod attach;
pub mod config;
pub mod control;
pub mod host;
mod kick;
mod kvm;
mod machine;
mod memory;
#[cfg(feature = "selftest")]
pub mod selftest;
mod vcpu;

pub use assemble::BuildError;
pub use attach::{AttachError, OwnDisks, Place};
pub use config::VmConfig;
pub use control::End;
pub use kick::{KickError, set_kick_signal};
pub use kvm::KvmError;
pub use machine::{Console, Machine, MachineHandle};
pub use memory::MemoryError;
pub use splitring_arch::boot::BootError;
pub use splitring_devices::scsi;
pub use vcpu::ExitCounts;
