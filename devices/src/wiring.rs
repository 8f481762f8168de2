//! The one window devices have onto the hypervisor: doorbells in, interrupts out.
//!
//! The machine implements [`Wiring`] on KVM's ioeventfd and irqfd; tests implement it on plain memory.
//! It doesn't know virtio or PCI; a message-signalled interrupt is an address, a value and a requester.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

/// What a device may ask of the hypervisor. Nothing here is on the data path, and nothing takes a descriptor of its
/// own: a guest asks for these things, and must not fail for want of one.
pub trait Wiring: Send + Sync {
    /// From now on a guest write of any width to the guest-physical address `addr` signals `fd`, without an
    /// exit to user space.
    fn bind_notify(&self, addr: u64, fd: &Arc<EventFd>) -> Result<(), WiringError>;

    /// Undoes [`Wiring::bind_notify`] with the same address and descriptor.
    fn unbind_notify(&self, addr: u64, fd: &Arc<EventFd>) -> Result<(), WiringError>;

    /// A new message-signalled interrupt line: writing to `trigger` sends the message last routed. It goes away with
    /// the returned value.
    fn msi(&self, trigger: &Arc<EventFd>) -> Result<Box<dyn MsiLine>, WiringError>;

    /// A level-triggered line: `trigger` asserts `gsi`; the guest's end of interrupt deasserts it and signals
    /// `resample`, whose listener asserts it again if its reason persists. Several devices may share a line. The
    /// descriptors are disconnected from it with the returned value.
    fn intx(
        &self,
        gsi: u32,
        trigger: &Arc<EventFd>,
        resample: &Arc<EventFd>,
    ) -> Result<Box<dyn IntxLine>, WiringError>;
}

/// A function's connection to an interrupt line.
pub trait IntxLine: Send + Sync {}

/// One message-signalled interrupt.
pub trait MsiLine: Send + Sync {
    /// Sets the message to send from now on.
    fn route(&self, message: MsiMessage) -> Result<(), WiringError>;

    /// Sends the message at each signal of `trigger` as well, and at once if it is signalled already.
    fn attach(&self, trigger: &Arc<EventFd>) -> Result<(), WiringError>;

    /// Undoes [`MsiLine::attach`]: when this returns, signals of `trigger` send nothing any more.
    fn detach(&self, trigger: &Arc<EventFd>) -> Result<(), WiringError>;
}

/// What a device writes to raise an interrupt (PCI Local Bus 3.0 §6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// The 64-bit address written to.
    pub address: u64,
    /// The value written.
    pub data: u32,
    /// Who writes: bus, device and function as 8, 5 and 3 bits.
    pub requester: u16,
}

/// The hypervisor refused.
#[derive(Debug, Error)]
#[error("cannot {operation}: {source}")]
pub struct WiringError {
    /// What was asked, as a verb with its object.
    pub operation: String,
    /// What the hypervisor answered.
    pub source: io::Error,
}

impl WiringError {
    /// A refusal of `operation`, which reads on after "cannot".
    pub fn new(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            operation: operation.into(),
            source: source.into(),
        }
    }
}
