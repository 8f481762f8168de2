//! ACPI tables of a hardware-reduced machine, built from the resources that its devices claim.
//!
//! Sources: ACPI 6.5 and the PCI firmware specification 3.3 (MCFG). This module does not know what
//! the devices do: `vmm` fills a [`Platform`] from their claims. The AML is in `dsdt`.
//!
//! A hardware-reduced platform (4.1) has no PM timer, no SCI and no fixed events. Sleep, reset and
//! the power button use the registers of [`crate::layout`]. A kernel that reads the FADT's flags
//! doesn't probe for a PIT, a PIC, a CMOS clock, an 8042 or VGA.

mod dsdt;
mod platform;
mod table;

use std::ops::Range;

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

pub use platform::{IntxRoute, PciHost, Platform, SerialPort};

use crate::cpuid::MAX_VCPUS;
use crate::layout;
use table::{OEM, OEM_REVISION, OEM_TABLE, bytes};

/// `IAPC_BOOT_ARCH` (table 5.10): no VGA, no ASPM, no CMOS clock. The bits that are 0 say: no
/// legacy devices, no 8042, MSI is supported.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 4 | 1 << 5;
/// Alignment of each table.
const ALIGN: usize = 64;
/// Device numbers of bus 0, and pins per device.
const PCI_DEVICES: u8 = 32;
const PCI_PINS: u8 = 4;

/// Tables that can't be built: an error of the caller, not of the guest or the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcpiError {
    /// The tables don't fit into the BIOS area.
    #[error("the ACPI tables take {len} bytes; the BIOS area holds {room}")]
    TooLarge {
        /// Bytes of tables.
        len: usize,
        /// Bytes of the BIOS area.
        room: u64,
    },
    /// An address, device, pin or interrupt line that the tables can't express.
    #[error("ACPI can't describe {what}")]
    Claim {
        /// The claim.
        what: String,
    },
}

/// The encoded tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Guest address of the first byte, which is the RSDP.
    pub rsdp: u64,
    /// All tables, to be written to [`Tables::rsdp`].
    pub bytes: Vec<u8>,
    /// Signature and range in `bytes` of each table except the RSDP, for dumps.
    pub index: Vec<([u8; 4], Range<usize>)>,
}

impl Platform {
    /// Builds the tables for the BIOS area ([`layout::ACPI`]).
    ///
    /// # Errors
    ///
    /// The tables are too large, or a claim can't be expressed.
    pub fn build(&self) -> Result<Tables, AcpiError> {
        self.check()?;
        let mut area = TableArea::new(layout::ACPI.start);
        let dsdt = area.push(*b"DSDT", &dsdt::build(self));
        let mut root = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
        root.add_entry(area.push(*b"FACP", &bytes(&fadt(dsdt))));
        root.add_entry(area.push(*b"APIC", &bytes(&self.madt())));
        if let Some(pci) = &self.pci {
            root.add_entry(area.push(*b"MCFG", &bytes(&mcfg(pci))));
        }
        let root = area.push(*b"XSDT", &bytes(&root));
        area.finish(&bytes(&Rsdp::new(OEM, root)))
    }

    fn check(&self) -> Result<(), AcpiError> {
        let fail = |what: String| Err(AcpiError::Claim { what });
        if self.vcpus > MAX_VCPUS {
            return fail(format!("{} vCPUs", self.vcpus));
        }
        for port in &self.serial {
            if port.port.checked_add(7).is_none() || self.serial.len() > 4 {
                return fail(format!(
                    "{} serial ports, one at {:#x}",
                    self.serial.len(),
                    port.port
                ));
            }
        }
        let Some(pci) = &self.pci else { return Ok(()) };
        for range in [&pci.ecam, &pci.mmio32] {
            if range.is_empty() || range.end > 1 << 32 {
                return fail(format!("a PCI range {range:#x?} outside the first 4 GiB"));
            }
        }
        if pci.ecam.end - pci.ecam.start != 1 << 20 || pci.mmio64.is_empty() || pci.io.is_empty() {
            return fail(format!(
                "a PCI host with ECAM {:#x?}, window {:#x?}, ports {:#x?}",
                pci.ecam, pci.mmio64, pci.io
            ));
        }
        for route in &pci.intx {
            if route.device >= PCI_DEVICES
                || route.pin >= PCI_PINS
                || route.gsi >= layout::IOAPIC_PINS
            {
                return fail(format!("{route:?}"));
            }
        }
        Ok(())
    }

    fn madt(&self) -> MADT {
        let local_apic = u32::try_from(layout::LOCAL_APIC).unwrap_or_default();
        let io_apic = u32::try_from(layout::IOAPIC).unwrap_or_default();
        let mut madt = MADT::new(
            OEM,
            OEM_TABLE,
            OEM_REVISION,
            LocalInterruptController::Address(local_apic),
        );
        for id in 0..u8::try_from(self.vcpus).unwrap_or(u8::MAX) {
            madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
        }
        madt.add_structure(IoApic::new(0, io_apic, 0));
        madt
    }
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let register = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // No fixed buttons: the power button is a device.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = register(layout::RESET);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = register(layout::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(layout::SLEEP_STATUS);
    fadt.finalize()
}

fn mcfg(pci: &PciHost) -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(pci.ecam.start, 0, 0, 0);
    mcfg
}

/// Tables one after the other, with space for the RSDP in front.
struct TableArea {
    base: u64,
    bytes: Vec<u8>,
    index: Vec<([u8; 4], Range<usize>)>,
}

impl TableArea {
    fn new(base: u64) -> Self {
        Self {
            base,
            bytes: vec![0; Rsdp::len().next_multiple_of(ALIGN)],
            index: Vec::new(),
        }
    }

    /// Appends a table and returns its guest address.
    fn push(&mut self, signature: [u8; 4], table: &[u8]) -> u64 {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(table);
        self.index.push((signature, start..self.bytes.len()));
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        self.base + start as u64
    }

    fn finish(mut self, rsdp: &[u8]) -> Result<Tables, AcpiError> {
        let room = layout::ACPI.end - layout::ACPI.start;
        if self.bytes.len() as u64 > room {
            return Err(AcpiError::TooLarge {
                len: self.bytes.len(),
                room,
            });
        }
        self.bytes[..rsdp.len()].copy_from_slice(rsdp);
        Ok(Tables {
            rsdp: self.base,
            bytes: self.bytes,
            index: self.index,
        })
    }
}

#[cfg(test)]
mod tests;
