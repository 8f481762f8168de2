//! What can go wrong with a machine: one opaque error for users of the library, with a kind to react
//! to, over the errors of each step in their own words.

use splitring_arch::acpi::AcpiError;
use splitring_arch::boot::BootError;
use splitring_arch::kernel::KernelError;
use splitring_arch::layout::LayoutError;
use splitring_devices::bus::BusError;
use splitring_devices::disk::DiskError;
pub use splitring_devices::kind::ErrorKind;
use splitring_devices::net::NetError;
use splitring_devices::pci::root::PciError;
use splitring_devices::scsi::ScsiError;
use splitring_devices::wiring::WiringError;
use splitring_devices::worker::PauseError;

use crate::config::ConfigError;
use crate::host::SoftwareKvm;
use crate::kick::KickError;
use crate::kvm::KvmError;
use crate::memory::MemoryError;

use crate::state::{ExitReason, MachineState};

/// Why an operation on a machine failed. Its text names object, operation, cause and remedy.
pub struct Error(Box<BuildError>);

impl Error {
    /// Returns what kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind()
    }

    /// Returns why the machine has ended, for errors of kind [`ErrorKind::Ended`].
    #[must_use]
    pub fn exit_reason(&self) -> Option<&ExitReason> {
        match self.0.as_ref() {
            BuildError::Ended(reason) => Some(reason),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind())
            .field("message", &self.0.to_string())
            .finish()
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The private enum is passed over: what it wraps is the next link.
        std::error::Error::source(self.0.as_ref())
    }
}

impl From<BuildError> for Error {
    fn from(error: BuildError) -> Self {
        Self(Box::new(error))
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        BuildError::from(error).into()
    }
}

impl From<ScsiError> for Error {
    fn from(error: ScsiError) -> Self {
        BuildError::from(AttachError::from(error)).into()
    }
}

impl From<SoftwareKvm> for Error {
    fn from(error: SoftwareKvm) -> Self {
        BuildError::from(error).into()
    }
}

impl From<KickError> for Error {
    fn from(error: KickError) -> Self {
        BuildError::from(error).into()
    }
}

/// Why a device can't be attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// The image.
    #[error("{id}: {error}")]
    Disk {
        /// The disk.
        id: String,
        /// What is wrong with it.
        error: DiskError,
    },
    /// A SCSI controller or a disk of it.
    #[error(transparent)]
    Scsi(#[from] ScsiError),
    /// The network's other end.
    #[error("{id}: {error}")]
    Net {
        /// The card.
        id: String,
        /// What is wrong.
        error: NetError,
    },
    /// The bus.
    #[error("{id}: {error}")]
    Pci {
        /// The device.
        id: String,
        /// Why it has no place.
        error: PciError,
    },
    /// The resources are those of another configuration.
    #[error("{id}: nothing was opened for it; open the resources for the same configuration")]
    NotOpened {
        /// The device.
        id: String,
    },
    /// More devices than slots.
    #[error("{id}: all 31 PCI slots are taken; give the machine fewer devices")]
    Full {
        /// The first without a slot.
        id: String,
    },
}

/// Everything that can go wrong, each step in its own words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
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
    #[error("cannot start the thread of {what}: {error}; {remedy}", remedy = thread_remedy(error))]
    Thread {
        /// Whose.
        what: String,
        /// Why not.
        error: std::io::Error,
    },
    /// The kick signal.
    #[error(transparent)]
    Kick(#[from] KickError),
    /// KVM works without hardware virtualisation.
    #[error(transparent)]
    SoftwareKvm(#[from] SoftwareKvm),
    /// A resource for a device that the configuration does not have.
    #[error("{id}: {what} is given for it, but the configuration has no such device")]
    NotInConfig {
        /// The id it was given for.
        id: String,
        /// What was given.
        what: &'static str,
    },
    /// The operation does not fit the state.
    #[error("cannot {operation}: the machine is {state}")]
    State {
        /// As a verb.
        operation: &'static str,
        /// What it is.
        state: MachineState,
    },
    /// It is over.
    #[error("the machine has ended: {0}")]
    Ended(ExitReason),
    /// Requests are still in flight.
    #[error("cannot pause: {0}")]
    Drain(PauseError),
    /// A vCPU does not answer or does not exist.
    #[error("vCPU {cpu}: {problem}")]
    Vcpu {
        /// Its number.
        cpu: u32,
        /// What is wrong.
        problem: String,
    },
    /// The power button's interrupt.
    #[error("cannot press the power button: {0}")]
    PowerButton(std::io::Error),
}

impl BuildError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_) | Self::Layout(_) | Self::NotInConfig { .. } => ErrorKind::Config,
            Self::Boot(
                BootError::CommandLineTooLong { .. } | BootError::CommandLineCharacter { .. },
            ) => ErrorKind::Config,
            Self::Kvm(_) | Self::SoftwareKvm(_) | Self::Vcpu { .. } => ErrorKind::Kvm,
            Self::Memory(_) | Self::Write { .. } => ErrorKind::Memory,
            Self::Kernel(_) | Self::Boot(_) => ErrorKind::Kernel,
            Self::Attach(AttachError::Disk { error, .. }) => error.kind(),
            Self::Attach(AttachError::Scsi(error)) => error.kind(),
            Self::Attach(AttachError::Net { error, .. }) => error.kind(),
            Self::Acpi(_)
            | Self::Place { .. }
            | Self::Pci(_)
            | Self::Attach(_)
            | Self::Wiring(_)
            | Self::PowerButton(_) => ErrorKind::Device,
            Self::Kick(error) => error.kind(),
            Self::Event(_) | Self::Thread { .. } => ErrorKind::Limit,
            Self::State { .. } => ErrorKind::State,
            Self::Ended(_) => ErrorKind::Ended,
            Self::Drain(_) => ErrorKind::Timeout,
        }
    }
}

/// What may help where a thread, or what it works with, is not to be had.
fn thread_remedy(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit on open files (`ulimit -n`)",
        Some(_) => "raise the limit on processes (`ulimit -u`)",
        None => "raise the limit on processes (`ulimit -u`) or on open files (`ulimit -n`)",
    }
}
