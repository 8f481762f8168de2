//! The guest side of virtio over PCI, modern devices only (section 4.1).
//!
//! It accesses one function through [`PciFunction`]: its configuration space, and its BARs once
//! they are mapped. Finding functions on a bus and assigning BARs is up to the guest. The order of
//! section 3.1.1 is: [`Pci::new`], [`reset`](Pci::reset), [`negotiate`](Pci::negotiate), queues
//! with [`set_up_queue`](Pci::set_up_queue), [`set_driver_ok`](Pci::set_driver_ok). Queues are
//! polled, or MSI-X vectors set with [`Msix`].

use alloc::vec::Vec;

use super::queue::QueueAreas;
use crate::mem::mmio::{PciFunction, Registers};
use crate::mem::reset::{DeviceId, ResetProof};
use crate::spec::feature::VERSION_1;
use crate::spec::pci::{CAP_ID, Capability64, DEVICE_BASE, NO_VECTOR, VENDOR, cfg_type, common};
use crate::spec::status;

/// Registers of the PCI configuration space.
mod config {
    pub(super) const ID: u16 = 0x00;
    pub(super) const COMMAND: u16 = 0x04;
    pub(super) const CAPABILITIES: u16 = 0x34;
    /// Command: memory decoding and bus mastering.
    pub(super) const MEMORY_AND_MASTER: u32 = 0b110;
    /// Status, in the upper half of the command register: there is a capability list.
    pub(super) const HAS_CAPABILITIES: u32 = 1 << 20;
    pub(super) const MSIX_ID: u8 = 0x11;
    /// MSI-X message control, in the upper half of its first register: enable, function mask.
    pub(super) const MSIX_ENABLE: u32 = 1 << 31;
    pub(super) const MSIX_MASK: u32 = 1 << 30;
}

/// Capabilities are at multiples of 4 behind the header, which limits their number.
const MOST_CAPABILITIES: usize = 48;
/// The highest number of a BAR.
const LAST_BAR: u8 = 5;
/// How often the status is read before a reset counts as failed.
const RESET_READS: u32 = 1_000_000;
/// How often a configuration field that keeps changing is read again.
const CONFIG_READS: u32 = 1000;

/// Why a function can't be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// It is not a modern virtio device.
    #[error("vendor {vendor:#06x} device {device:#06x} is not a modern virtio device")]
    NotVirtio {
        /// PCI vendor.
        vendor: u16,
        /// PCI device.
        device: u16,
    },
    /// It lacks one of the structures that every device has.
    #[error("the device has no usable {0} capability")]
    Missing(&'static str),
    /// Its status did not become 0.
    #[error("the device did not finish its reset")]
    ResetStuck,
    /// It rejects these features.
    #[error("the device rejects the features {0:#x}")]
    FeaturesRefused(u64),
    /// It does not comply with version 1.
    #[error("the device does not offer VERSION_1")]
    Legacy,
    /// It has no such queue, or only a smaller one.
    #[error("the device has no queue {queue} of {size} entries")]
    NoQueue {
        /// Index of the queue.
        queue: u16,
        /// Entries wanted.
        size: u16,
    },
    /// It has no room for this interrupt vector.
    #[error("the device can't assign vector {0}")]
    NoVector(u16),
    /// Its configuration kept changing while it was read.
    #[error("the device's configuration keeps changing")]
    Unsteady,
}

/// A range of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRange {
    /// Number of the BAR, 0 to 5.
    pub bar: u8,
    /// Offset in the BAR.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// A modern virtio device behind a PCI function.
pub struct Pci<F: PciFunction> {
    function: F,
    common: F::Registers,
    notify: F::Registers,
    isr: F::Registers,
    device: Option<F::Registers>,
    multiplier: u64,
    /// The offset of each queue's notification address.
    notify_addresses: Vec<u64>,
    kind: u16,
    id: DeviceId,
}

impl<F: PciFunction> Pci<F> {
    /// Finds the device's structures and enables memory decoding and bus mastering. The device is
    /// not accessed otherwise.
    ///
    /// # Errors
    /// The function is not a modern virtio device, or lacks a structure.
    pub fn new(mut function: F) -> Result<Self, PciError> {
        let [vendor, device] = halves(function.read_config(config::ID));
        let kind = device.checked_sub(DEVICE_BASE).filter(|_| vendor == VENDOR);
        let kind = kind.ok_or(PciError::NotVirtio { vendor, device })?;
        let command = function.read_config(config::COMMAND) & 0xffff;
        function.write_config(config::COMMAND, command | config::MEMORY_AND_MASTER);
        let (common, _) = map(&mut function, cfg_type::COMMON, common::SIZE)
            .ok_or(PciError::Missing("common"))?;
        let (notify, at) =
            map(&mut function, cfg_type::NOTIFY, 2).ok_or(PciError::Missing("notify"))?;
        let (isr, _) = map(&mut function, cfg_type::ISR, 1).ok_or(PciError::Missing("ISR"))?;
        let device = map(&mut function, cfg_type::DEVICE, 0);
        let multiplier = function.read_config(at.wrapping_add(16));
        Ok(Self {
            common,
            notify,
            isr,
            device: device.map(|(registers, _)| registers),
            multiplier: multiplier.into(),
            notify_addresses: Vec::new(),
            kind,
            id: DeviceId::new(),
            function,
        })
    }

    /// Returns the device identifier of section 5.
    pub const fn kind(&self) -> u16 {
        self.kind
    }

    /// Returns the identity of the device, for its queues.
    pub const fn id(&self) -> &DeviceId {
        &self.id
    }

    /// Returns the function, for access to what is not specific to virtio.
    pub const fn function(&mut self) -> &mut F {
        &mut self.function
    }

    /// Resets the device and blocks until it has finished. After that it uses no memory, and the
    /// proof makes its queues return their buffers.
    ///
    /// # Errors
    /// The device does not finish its reset.
    pub fn reset(&mut self) -> Result<ResetProof, PciError> {
        self.common.write8(common::DEVICE_STATUS, 0);
        for _ in 0..RESET_READS {
            if self.status() == 0 {
                self.notify_addresses.clear();
                return Ok(self.id.reset_seen());
            }
            core::hint::spin_loop();
        }
        Err(PciError::ResetStuck)
    }

    /// Returns the device status field.
    pub fn status(&self) -> u8 {
        self.common.read8(common::DEVICE_STATUS)
    }

    /// Returns whether the device has failed and has to be reset.
    pub fn needs_reset(&self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }

    fn add_status(&self, bit: u8) {
        let status = self.status() | bit;
        self.common.write8(common::DEVICE_STATUS, status);
    }

    /// Returns the offered features.
    pub fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.common.write32(common::DEVICE_FEATURE_SELECT, select);
            u64::from(self.common.read32(common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// Accepts the features that are both wanted and offered, and VERSION_1; returns them.
    ///
    /// # Errors
    /// The device is a legacy device, or rejects the combination; it is then marked as failed.
    pub fn negotiate(&mut self, wanted: u64) -> Result<u64, PciError> {
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        let offered = self.offered();
        if offered & VERSION_1 == 0 {
            self.fail();
            return Err(PciError::Legacy);
        }
        let accepted = offered & (wanted | VERSION_1);
        let [low, high] = [accepted, accepted >> 32].map(low_half);
        for (select, half) in [(0, low), (1, high)] {
            self.common.write32(common::DRIVER_FEATURE_SELECT, select);
            self.common.write32(common::DRIVER_FEATURE, half);
        }
        self.add_status(status::FEATURES_OK);
        if self.status() & status::FEATURES_OK == 0 {
            self.fail();
            return Err(PciError::FeaturesRefused(accepted));
        }
        Ok(accepted)
    }

    /// Sets the FAILED status bit.
    pub fn fail(&self) {
        self.add_status(status::FAILED);
    }

    /// Returns the number of queues.
    pub fn queues(&self) -> u16 {
        self.common.read16(common::NUM_QUEUES)
    }

    /// Returns the maximum number of entries of queue `index`, or 0 if there is none.
    pub fn queue_max(&self, index: u16) -> u16 {
        self.common.write16(common::QUEUE_SELECT, index);
        self.common.read16(common::QUEUE_SIZE)
    }

    /// Passes the addresses of queue `index` to the device and enables the queue. Used buffers
    /// raise MSI-X vector `vector`; without one the queue is polled or uses the INTx line.
    ///
    /// # Errors
    /// There is no such queue, or no such vector.
    pub fn set_up_queue(
        &mut self,
        index: u16,
        areas: &QueueAreas,
        vector: Option<u16>,
    ) -> Result<(), PciError> {
        let size = areas.size;
        if self.queue_max(index) < size {
            return Err(PciError::NoQueue { queue: index, size });
        }
        let registers = &self.common;
        registers.write16(common::QUEUE_SIZE, size);
        if registers.read16(common::QUEUE_SIZE) != size {
            return Err(PciError::NoQueue { queue: index, size });
        }
        set_vector(registers, common::QUEUE_MSIX_VECTOR, vector)?;
        for (at, area) in [
            (common::QUEUE_DESC, areas.descriptors),
            (common::QUEUE_DRIVER, areas.driver),
            (common::QUEUE_DEVICE, areas.device),
        ] {
            // 64-bit registers are written as two halves (section 4.1.3.1).
            registers.write32(at, low_half(area));
            registers.write32(at.wrapping_add(4), low_half(area >> 32));
        }
        let offset_units = u64::from(registers.read16(common::QUEUE_NOTIFY_OFF));
        let at = usize::from(index);
        if self.notify_addresses.len() <= at {
            self.notify_addresses.resize(at.saturating_add(1), u64::MAX);
        }
        if let Some(slot) = self.notify_addresses.get_mut(at) {
            *slot = offset_units.saturating_mul(self.multiplier);
        }
        registers.write16(common::QUEUE_ENABLE, 1);
        Ok(())
    }

    /// Sets the MSI-X vector of configuration changes, or none.
    ///
    /// # Errors
    /// There is no such vector.
    pub fn set_config_vector(&mut self, vector: Option<u16>) -> Result<(), PciError> {
        set_vector(&self.common, common::CONFIG_MSIX_VECTOR, vector)
    }

    /// Sets DRIVER_OK: the device may run from now on.
    pub fn set_driver_ok(&mut self) {
        self.add_status(status::DRIVER_OK);
    }

    /// Notifies the device that queue `index` has new buffers.
    #[inline]
    pub fn notify(&self, index: u16) {
        if let Some(offset) = self.notify_addresses.get(usize::from(index)) {
            self.notify.write16(*offset, index);
        }
    }

    /// Reads, and thereby clears, the interrupt status: bits of `spec::pci::isr`. For INTx only.
    pub fn interrupt_status(&self) -> u8 {
        self.isr.read8(0)
    }

    /// Reads `data.len()` bytes of the device's configuration at `offset`, all of one generation.
    ///
    /// # Errors
    /// The device has no configuration, or it keeps changing.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) -> Result<(), PciError> {
        let registers = self.device.as_ref();
        let registers = registers.ok_or(PciError::Missing("device"))?;
        let generation = || self.common.read8(common::CONFIG_GENERATION);
        for _ in 0..CONFIG_READS {
            let before = generation();
            for (at, byte) in (offset..).zip(data.iter_mut()) {
                *byte = registers.read8(at);
            }
            if generation() == before {
                return Ok(());
            }
        }
        Err(PciError::Unsteady)
    }

    /// Writes one byte of the device's configuration.
    ///
    /// # Errors
    /// The device has no configuration.
    pub fn write_config(&mut self, offset: u64, value: u8) -> Result<(), PciError> {
        let registers = self.device.as_ref();
        registers
            .ok_or(PciError::Missing("device"))?
            .write8(offset, value);
        Ok(())
    }

    /// Returns the range of the shared memory region `id` (section 4.1.4.7), if the device has one
    /// with this identifier. The device's section specifies the regions and their contents.
    pub fn shared_memory(&self, id: u8) -> Option<BarRange> {
        let function = &self.function;
        virtio_capabilities(function, cfg_type::SHARED_MEMORY).find_map(|at| {
            let [_, _, cap_len, _] = function.read_config(at).to_le_bytes();
            let [_, found, ..] = function.read_config(at.wrapping_add(4)).to_le_bytes();
            if found != id || usize::from(cap_len) < size_of::<Capability64>() {
                return None;
            }
            let low = range_of(function, at);
            let high = |offset| u64::from(function.read_config(at.wrapping_add(offset))) << 32;
            let range = BarRange {
                offset: low.offset | high(16),
                len: low.len | high(20),
                ..low
            };
            let fits = range.offset.checked_add(range.len).is_some();
            (range.bar <= LAST_BAR && range.len > 0 && fits).then_some(range)
        })
    }

    /// Returns the MSI-X table, with every vector masked and MSI-X enabled.
    ///
    /// # Errors
    /// The function has no MSI-X.
    pub fn msix(&mut self) -> Result<Msix<F::Registers>, PciError> {
        let missing = PciError::Missing("MSI-X");
        let function = &mut self.function;
        let at = capabilities(function)
            .into_iter()
            .find(|at| id_of(function.read_config(*at)) == config::MSIX_ID)
            .ok_or(missing)?;
        let control = function.read_config(at);
        let entries = (control >> 16 & 0x7ff).saturating_add(1);
        let table = function.read_config(at.wrapping_add(4));
        let [bar, ..] = (table & 7).to_le_bytes();
        let len = u64::from(entries).saturating_mul(MSIX_ENTRY);
        let mapped = function.map_bar(bar, u64::from(table & !7), len);
        let msix = Msix {
            table: mapped.ok_or(missing)?,
            entries: halves(entries)[0],
        };
        for entry in 0..msix.entries {
            msix.mask(entry, true);
        }
        let control = control | config::MSIX_ENABLE;
        function.write_config(at, control & !config::MSIX_MASK);
        Ok(msix)
    }
}

/// Bytes of an entry of the MSI-X table.
const MSIX_ENTRY: u64 = 16;

/// A function's MSI-X table.
pub struct Msix<R: Registers> {
    table: R,
    entries: u16,
}

impl<R: Registers> Msix<R> {
    /// Returns the number of vectors.
    pub const fn vectors(&self) -> u16 {
        self.entries
    }

    /// Makes vector `vector` write `data` to `address`, and unmasks it. Returns false if there is
    /// no such vector.
    pub fn set(&mut self, vector: u16, address: u64, data: u32) -> bool {
        if vector >= self.entries {
            return false;
        }
        self.mask(vector, true);
        let at = u64::from(vector).wrapping_mul(MSIX_ENTRY);
        self.table.write32(at, low_half(address));
        self.table
            .write32(at.wrapping_add(4), low_half(address >> 32));
        self.table.write32(at.wrapping_add(8), data);
        self.mask(vector, false);
        true
    }

    /// Masks or unmasks a vector.
    pub fn mask(&self, vector: u16, masked: bool) {
        let at = u64::from(vector).wrapping_mul(MSIX_ENTRY);
        self.table.write32(at.wrapping_add(12), u32::from(masked));
    }
}

/// Assigns a vector and checks that the device accepted it.
fn set_vector(registers: &impl Registers, at: u64, vector: Option<u16>) -> Result<(), PciError> {
    let wanted = vector.unwrap_or(NO_VECTOR);
    registers.write16(at, wanted);
    if registers.read16(at) == wanted {
        Ok(())
    } else {
        Err(PciError::NoVector(wanted))
    }
}

/// Returns the offsets of the function's capabilities. A circular list ends at the limit.
fn capabilities(function: &impl PciFunction) -> Vec<u16> {
    let mut found = Vec::new();
    if function.read_config(config::COMMAND) & config::HAS_CAPABILITIES == 0 {
        return found;
    }
    let [first, ..] = function.read_config(config::CAPABILITIES).to_le_bytes();
    let mut at = u16::from(first & !3);
    while at >= 0x40 && found.len() < MOST_CAPABILITIES {
        found.push(at);
        let [_, next, ..] = function.read_config(at).to_le_bytes();
        at = u16::from(next & !3);
    }
    found
}

/// Maps the first usable structure of this type with at least `least` bytes; also returns the
/// offset of its capability. Structures in unknown BARs are skipped (section 4.1.4).
fn map<F: PciFunction>(function: &mut F, kind: u8, least: u64) -> Option<(F::Registers, u16)> {
    let found: Vec<u16> = virtio_capabilities(function, kind).collect();
    for at in found {
        let range = range_of(function, at);
        if range.bar > LAST_BAR || range.len < least {
            continue;
        }
        if let Some(registers) = function.map_bar(range.bar, range.offset, range.len) {
            return Some((registers, at));
        }
    }
    None
}

/// Returns the offsets of the virtio capabilities of this type.
fn virtio_capabilities<F: PciFunction>(function: &F, kind: u8) -> impl Iterator<Item = u16> {
    capabilities(function).into_iter().filter(move |at| {
        let [id, _, _, cfg_type] = function.read_config(*at).to_le_bytes();
        id == CAP_ID && cfg_type == kind
    })
}

/// Returns the range that the virtio capability at `at` names, by 32-bit offset and length.
fn range_of(function: &impl PciFunction, at: u16) -> BarRange {
    let [bar, ..] = function.read_config(at.wrapping_add(4)).to_le_bytes();
    BarRange {
        bar,
        offset: function.read_config(at.wrapping_add(8)).into(),
        len: function.read_config(at.wrapping_add(12)).into(),
    }
}

const fn id_of(register: u32) -> u8 {
    let [id, ..] = register.to_le_bytes();
    id
}

const fn halves(register: u32) -> [u16; 2] {
    let [a, b, c, d] = register.to_le_bytes();
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

const fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests;
