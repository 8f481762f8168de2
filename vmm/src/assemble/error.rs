//! What can go wrong on the way from configuration to machine, each step in its own words.

use splitring_arch::acpi::AcpiError;
use splitring_arch::boot::BootError;
use splitring_arch::kernel::KernelError;
use splitring_arch::layout::LayoutError;
use splitring_devices::bus::BusError;
use splitring_devices::pci::root::PciError;
use splitring_devices::wiring::WiringError;

use crate::attach::AttachError;
use crate::config::ConfigError;
use crate::kick::KickError;
use crate::kvm::KvmError;
use crate::memory::MemoryError;

/// Why a machine can't be built or started.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host's KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The amount of memory.
    #[error("memory: {0}")]
    Layout(#[from] LayoutError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel or initrd.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Boot parameters.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Two devices claim one address.
    #[error("cannot place {what}: {error}")]
    Place {
        /// The device.
        what: &'static str,
        /// With whom.
        error: BusError,
    },
    /// The PCI bus.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A device.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Devices' events.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// A table doesn't fit guest memory.
    #[error("cannot write {what} at guest address {guest:#x}")]
    Write {
        /// Which.
        what: &'static str,
        /// Where.
        guest: u64,
    },
    /// No descriptor.
    #[error("cannot create an event descriptor: {0}; raise the limit on open files")]
    Event(std::io::Error),
    /// No thread.
    #[error("cannot start the thread of {what}: {error}; raise the limit on processes")]
    Thread {
        /// Whose.
        what: String,
        /// Why not.
        error: std::io::Error,
    },
    /// The kick signal.
    #[error(transparent)]
    Kick(#[from] KickError),
}
