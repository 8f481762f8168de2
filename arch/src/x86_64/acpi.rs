//! ACPI tables of a hardware-reduced machine, built from what devices claim.
//!
//! It knows ACPI 6.5; it does not know what the devices do: `vmm` fills a [`Platform`] from their claims.

use std::ops::Range;

/// Everything that the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// vCPUs; their APIC ids are 0..vcpus.
    pub vcpus: u32,
    /// The PCI host bridge.
    pub pci: Option<PciHost>,
    /// 16550 serial ports, COM1 first.
    pub serial: Vec<SerialPort>,
}

/// The PCI host bridge with bus 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciHost {
    /// Configuration space (ECAM) of bus 0.
    pub ecam: Range<u64>,
    /// 32-bit memory window.
    pub mmio32: Range<u64>,
    /// 64-bit memory window.
    pub mmio64: Range<u64>,
    /// Port window.
    pub io: Range<u16>,
    /// Whether CF8/CFC configuration ports are there.
    pub cf8: bool,
    /// Interrupt lines of the functions' INTx pins.
    pub intx: Vec<IntxRoute>,
}

/// Where a PCI device's INTx pin arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntxRoute {
    /// Device number on bus 0, 0..=31.
    pub device: u8,
    /// Pin: 0 is INTA, 3 is INTD.
    pub pin: u8,
    /// Interrupt line, level-triggered, active low by PCI, delivered active high by KVM.
    pub gsi: u32,
}

/// A 16550 in port space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialPort {
    /// First of its eight ports.
    pub port: u16,
    /// Interrupt line, edge-triggered.
    pub gsi: u32,
}

/// Tables that can't be built.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// The tables don't fit the BIOS area.
    #[error("the ACPI tables take {len} bytes; the BIOS area holds {room}")]
    TooLarge {
        /// Bytes of tables.
        len: usize,
        /// Bytes there are.
        room: u64,
    },
}

/// Finished tables, to be written at `base`.
#[derive(Debug, Clone)]
pub struct Tables {
    /// Guest address of the first byte, and of the RSDP.
    pub rsdp: u64,
    /// RSDP, then the other tables.
    pub bytes: Vec<u8>,
}

impl Platform {
    /// Builds the tables for the BIOS area ([`crate::layout::ACPI`]).
    pub fn build(&self) -> Result<Tables, AcpiError> {
        todo!()
    }
}
