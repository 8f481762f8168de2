//! The errors of a machine: one opaque error with a kind for users of the library, over one error
//! per step.

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
use crate::memory::{LiveError, MemoryError};

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
        // The private enum is skipped: the next link of the chain is what it wraps.
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
    /// A virtio-blk disk can't be opened or attached.
    #[error("{id}: {error}")]
    Disk {
        /// The disk's id.
        id: String,
        /// The cause.
        error: DiskError,
    },
    /// A SCSI controller or one of its disks can't be opened or attached.
    #[error(transparent)]
    Scsi(#[from] ScsiError),
    /// A network backend can't be opened.
    #[error("{id}: {error}")]
    Net {
        /// The network card's id.
        id: String,
        /// The cause.
        error: NetError,
    },
    /// Another device can't be attached.
    #[error("{id}: {problem}")]
    Device {
        /// The device's id.
        id: String,
        /// The cause.
        problem: String,
        /// What kind of failure it is.
        kind: ErrorKind,
    },
    /// A device can't be added to the PCI bus.
    #[error("{id}: {error}")]
    Pci {
        /// The device.
        id: String,
        /// The cause.
        error: PciError,
    },
    /// The resources were opened for another configuration.
    #[error("{id}: the resources have nothing for it; open them for the same configuration")]
    NotOpened {
        /// The device.
        id: String,
    },
    /// There are more devices than PCI slots.
    #[error("{id}: all 31 PCI slots are taken; give the machine fewer devices")]
    Full {
        /// The id of the first device without a slot.
        id: String,
    },
}

impl AttachError {
    /// `error` of the device `id`.
    pub(crate) fn device(id: &str, kind: ErrorKind, error: impl std::fmt::Display) -> Self {
        Self::Device {
            id: id.to_owned(),
            problem: error.to_string(),
            kind,
        }
    }
}

/// Every error of this library.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// KVM can't be used, or refuses an operation.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The memory size is not possible.
    #[error("memory: {0}")]
    Layout(#[from] LayoutError),
    /// Guest memory can't be allocated.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel or the initrd can't be loaded.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The boot parameters don't fit or are not valid.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The ACPI tables can't be built.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Two devices use the same address.
    #[error("cannot map {what}: {error}")]
    Place {
        /// The device.
        what: &'static str,
        /// The conflict.
        error: BusError,
    },
    /// A device can't be added to the PCI bus.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A device can't be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A notification or an interrupt can't be connected to KVM.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// The memory of a running machine can't be changed or watched.
    #[error(transparent)]
    Live(#[from] LiveError),
    /// Data doesn't fit into guest memory.
    #[error("cannot write {what} at guest address {guest:#x}")]
    Write {
        /// The data.
        what: &'static str,
        /// The guest-physical address.
        guest: u64,
    },
    /// An eventfd can't be created.
    #[error("cannot create an event descriptor: {0}; raise the limit on open files")]
    Event(std::io::Error),
    /// A thread can't be started.
    #[error("cannot start the thread of {what}: {error}; {remedy}", remedy = thread_remedy(error))]
    Thread {
        /// The thread's owner.
        what: String,
        /// The system's error.
        error: std::io::Error,
    },
    /// The kick signal can't be installed.
    #[error(transparent)]
    Kick(#[from] KickError),
    /// KVM has no hardware virtualisation.
    #[error(transparent)]
    SoftwareKvm(#[from] SoftwareKvm),
    /// A resource was supplied for a device that the configuration does not have.
    #[error("{id}: {what} was supplied for it, but the configuration has no such device")]
    NotInConfig {
        /// The id it was supplied for.
        id: String,
        /// What was supplied.
        what: &'static str,
    },
    /// The operation is not possible in this state.
    #[error("cannot {operation}: the machine is {state}")]
    State {
        /// The operation, as a verb.
        operation: &'static str,
        /// The state.
        state: MachineState,
    },
    /// The machine has ended.
    #[error("the machine has ended: {0}")]
    Ended(ExitReason),
    /// A pause timed out with requests in flight.
    #[error("cannot pause: {0}")]
    Drain(PauseError),
    /// A vCPU does not exist or does not respond.
    #[error("vCPU {cpu}: {problem}")]
    Vcpu {
        /// Its number.
        cpu: u32,
        /// The cause.
        problem: String,
    },
    /// The power button's interrupt can't be raised.
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
            Self::Memory(_) | Self::Live(_) | Self::Write { .. } => ErrorKind::Memory,
            Self::Kernel(_) | Self::Boot(_) => ErrorKind::Kernel,
            Self::Attach(AttachError::Disk { error, .. }) => error.kind(),
            Self::Attach(AttachError::Scsi(error)) => error.kind(),
            Self::Attach(AttachError::Net { error, .. }) => error.kind(),
            Self::Attach(AttachError::Device { kind, .. }) => *kind,
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

/// Returns the remedy if a thread, or a descriptor for it, can't be created.
fn thread_remedy(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit on open files (`ulimit -n`)",
        Some(_) => "raise the limit on processes (`ulimit -u`)",
        None => "raise the limit on processes (`ulimit -u`) or on open files (`ulimit -n`)",
    }
}
