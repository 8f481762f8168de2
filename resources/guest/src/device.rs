//! Initialisation of a device: negotiation and queues, the same for every type.

use splitring_virtio::driver::pci::Pci;
use splitring_virtio::driver::{Identity, IndirectPolicy, Kick, Queue, QueueAreas, QueueOptions};
use splitring_virtio::spec::feature;

use crate::interrupts;
use crate::machine::Function;
use crate::suite::{TestError, Wait, bytes};

/// Descriptors of a queue, if the device supports as many.
const QUEUE_SIZE: u16 = 256;
/// Indirect descriptors reserved for each slot.
const TABLE: u16 = 16;

/// A configuration of a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// No indirect tables.
    Direct,
    /// Indirect tables if there is more than one segment.
    Indirect,
    /// The RFC's policy.
    Rfc,
    /// The driver's own policy.
    Auto,
    /// The RFC's policy, without EVENT_IDX.
    Flags,
}

impl Variant {
    pub(crate) const ALL: [Self; 5] = [
        Self::Direct,
        Self::Indirect,
        Self::Rfc,
        Self::Auto,
        Self::Flags,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Indirect => "indirect",
            Self::Rfc => "rfc",
            Self::Auto => "auto",
            Self::Flags => "flags",
        }
    }

    /// Returns the ring features, in addition to the device's own.
    fn features(self) -> u64 {
        let indirect = if self == Self::Direct {
            0
        } else {
            feature::INDIRECT_DESC
        };
        let event = if self == Self::Flags {
            0
        } else {
            feature::EVENT_IDX
        };
        indirect | event
    }

    fn policy(self) -> IndirectPolicy {
        match self {
            Self::Direct => IndirectPolicy::Never,
            Self::Indirect => IndirectPolicy::Always,
            Self::Rfc | Self::Flags => IndirectPolicy::Rfc,
            Self::Auto => IndirectPolicy::Auto,
        }
    }
}

/// A device that has been reset and whose features are negotiated.
pub(crate) struct Device {
    pci: Pci<Function>,
    variant: Variant,
    pub(crate) features: u64,
}

impl Device {
    /// Resets the device and negotiates `wanted` and the variant's features.
    pub(crate) fn negotiate(
        mut pci: Pci<Function>,
        variant: Variant,
        wanted: u64,
    ) -> Result<Self, TestError> {
        pci.reset().map_err(TestError::text)?;
        let features = pci
            .negotiate(wanted | variant.features())
            .map_err(TestError::text)?;
        Ok(Self {
            pci,
            variant,
            features,
        })
    }

    /// Reads the start of the configuration space.
    pub(crate) fn config(&self, into: &mut [u8]) -> Result<(), TestError> {
        self.pci.read_config(0, into).map_err(TestError::text)
    }

    /// Creates queue `index`. [`Self::enable`] configures it in the device, once its driver has it.
    pub(crate) fn queue<T: 'static>(&self, index: u16) -> Result<Queue<T>, TestError> {
        let size = self.pci.queue_max(index).min(QUEUE_SIZE);
        // QEMU's virtio-scsi reports readable bytes as written; that must not end the run.
        let options = QueueOptions::new(size, self.features)
            .tables(TABLE)
            .policy(self.variant.policy())
            .clamp_lengths();
        let memory = bytes(options.memory_len())?;
        Queue::new(options, memory, Identity, self.pci.id()).map_err(TestError::text)
    }

    pub(crate) fn enable(
        &mut self,
        index: u16,
        areas: QueueAreas,
        wait: Wait,
    ) -> Result<(), TestError> {
        let vector = match wait {
            Wait::Poll => None,
            Wait::Interrupt => Some(self.vector()?),
        };
        self.pci
            .set_up_queue(index, &areas, vector)
            .map_err(TestError::text)
    }

    /// Returns the MSI-X vector that raises the guest's interrupt.
    fn vector(&mut self) -> Result<u16, TestError> {
        let mut msix = self.pci.msix().map_err(TestError::text)?;
        if msix.set(0, interrupts::MESSAGE_ADDRESS, interrupts::MESSAGE_DATA) {
            Ok(0)
        } else {
            Err(TestError::new("no MSI-X vector"))
        }
    }

    /// Sets DRIVER_OK.
    pub(crate) fn set_driver_ok(&mut self) {
        self.pci.set_driver_ok();
    }

    /// Notifies queue `index`, if `kick` asks for it.
    pub(crate) fn kick(&self, index: u16, kick: Kick) {
        kick.send(|| self.pci.notify(index));
    }

    /// Returns the PCI function, to be initialised again.
    pub(crate) fn close(self) -> Pci<Function> {
        self.pci
    }
}
