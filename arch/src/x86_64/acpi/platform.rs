//! Input of the tables: the machine as its devices claim it.

use std::ops::Range;

/// Everything that the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Number of vCPUs; their APIC IDs are 0..vcpus.
    pub vcpus: u32,
    /// The PCI host bridge.
    pub pci: Option<PciHost>,
    /// 16550 serial ports, COM1 first.
    pub serial: Vec<SerialPort>,
    /// Whether there is a pvpanic device at [`layout::PVPANIC`](crate::layout::PVPANIC).
    pub pvpanic: bool,
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
    /// Whether the CF8/CFC configuration ports are there.
    pub cf8: bool,
    /// Interrupt lines of the devices' INTx pins.
    pub intx: Vec<IntxRoute>,
}

/// The interrupt line of a PCI device's INTx pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntxRoute {
    /// Device number on bus 0, 0..=31.
    pub device: u8,
    /// Pin: 0 is INTA, 3 is INTD.
    pub pin: u8,
    /// Interrupt line, level-triggered.
    pub gsi: u32,
}

/// A 16550 UART in port space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialPort {
    /// First of its eight ports.
    pub port: u16,
    /// Interrupt line, edge-triggered.
    pub gsi: u32,
}
