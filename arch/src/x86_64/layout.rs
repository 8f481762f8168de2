//! The guest's physical address map.
//!
//! This module knows addresses and sizes. It does not know what the devices at them do.
//!
//! ```text
//! 0x0000_0000_0000  RAM (low)      0x0500 GDT · 0x6000 PVH start_info, modules
//!                                  0x6800 PVH memory map · 0x8000 zero page
//!                                  0x9000 page tables (6 pages) · 0x2_0000 command line
//! 0x0000_0009_fc00  reserved       BIOS area: ACPI tables from 0xe_0000
//!                                  (the RSDP first, where kernels scan for it)
//! 0x0000_0010_0000  RAM            up to 3 GiB
//! 0x0000_c000_0000  32-bit hole    MMIO window, 512 MiB
//! 0x0000_e000_0000                 ECAM, 1 MiB: bus 0
//! 0x0000_fec0_0000                 I/O APIC
//! 0x0000_fee0_0000                 local APICs and MSI
//! 0x0000_feff_c000                 KVM identity map (1 page) and TSS (3 pages)
//! 0x0001_0000_0000  RAM (high)     what did not fit below the hole
//! top of RAM, 1 GiB aligned        64-bit MMIO window, up to 64 GiB
//! end of that window               memory that is added later, up to the physical address width
//! ```
//!
//! I/O ports: COM1 at 0x3f8, pvpanic at 0x505, the power registers (sleep, reset, event) at 0x600,
//! PCI windows from 0x1000, CF8/CFC if enabled.

use std::ops::Range;

/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte, in bytes.
pub const GIB: u64 = 1 << 30;
/// The page size that every address and length here is a multiple of.
pub const PAGE: u64 = 4096;

/// Global descriptor table of the 64-bit and PVH entries.
pub const GDT: u64 = 0x500;
/// PVH `hvm_start_info`.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH module list; one entry, the initrd.
pub const PVH_MODULES: u64 = 0x6100;
/// PVH memory map; space for 64 entries up to the zero page.
pub const PVH_MEMMAP: u64 = 0x6800;
/// Linux `boot_params`, one page.
pub const ZERO_PAGE: u64 = 0x8000;
/// Identity page tables of the 64-bit entry: PML4, PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes of command line that Linux keeps (`COMMAND_LINE_SIZE`), the NUL included.
pub const CMDLINE_MAX: usize = 2048;
/// End of the RAM below the BIOS area.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables; the RSDP is the first, on a 16-byte boundary in the area that kernels scan.
pub const ACPI: Range<u64> = 0xe_0000..0xf_f000;
/// Where a processor starts in real mode after a reset, and where kernels jump that want the
/// firmware to reset the machine.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Start of the RAM above the BIOS area, where kernels are loaded.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// The gap in RAM below 4 GiB.
pub const HOLE: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// 32-bit PCI memory window.
pub const MMIO32: Range<u64> = 0xc000_0000..0xe000_0000;
/// PCI configuration space of bus 0 (ECAM), 4 KiB per function.
pub const ECAM: Range<u64> = 0xe000_0000..0xe010_0000;
/// I/O APIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Interrupt lines of the I/O APIC.
pub const IOAPIC_PINS: u32 = 24;
/// Local APIC registers; the same 1 MiB holds the MSI doorbell.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// One page for `KVM_SET_IDENTITY_MAP_ADDR`.
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages for `KVM_SET_TSS_ADDR`.
pub const KVM_TSS: u64 = 0xfeff_d000;

/// First serial port.
pub const COM1: u16 = 0x3f8;
/// Interrupt line of the first serial port.
pub const COM1_GSI: u32 = 4;
/// ACPI sleep control register, one byte (FADT `SLEEP_CONTROL_REG`).
pub const SLEEP_CONTROL: u16 = 0x600;
/// `SLP_TYP` of S5 (soft off), as the tables declare it.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The value that the guest writes to [`SLEEP_CONTROL`] to power off: the sleep type in bits 2..=4,
/// and `SLP_EN`.
pub const SLEEP_CONTROL_S5: u8 = SLEEP_TYPE_S5 << 2 | 1 << 5;
/// ACPI sleep status register, one byte (FADT `SLEEP_STATUS_REG`).
pub const SLEEP_STATUS: u16 = 0x601;
/// ACPI reset register, one byte (FADT `RESET_REG`).
pub const RESET: u16 = 0x602;
/// The value that the guest writes to [`RESET`].
pub const RESET_VALUE: u8 = 1;
/// Pending events of the generic event device, one byte, cleared by a read: see
/// [`GED_POWER_BUTTON`].
pub const GED_EVENTS: u16 = 0x604;
/// Bit in [`GED_EVENTS`]: the power button was pressed.
pub const GED_POWER_BUTTON: u8 = 1;
/// Interrupt line of the generic event device (edge-triggered).
pub const GED_GSI: u32 = 5;
/// Ports of the power registers above.
pub const POWER_PORTS: Range<u16> = 0x600..0x608;
/// Port of the pvpanic device, one byte: QEMU's choice, where some guests look without ACPI.
pub const PVPANIC: u16 = 0x505;
/// PCI configuration address and data ports, if enabled.
pub const CF8: Range<u16> = 0xcf8..0xd00;
/// I/O ports that PCI functions may claim.
pub const PCI_IO: Range<u16> = 0x1000..0xf000;
/// Interrupt lines for PCI INTx, level-triggered, above those of the legacy PICs.
pub const PCI_INTX_GSI: Range<u32> = 16..24;

/// Minimum memory of a machine: the boot structures, and a small Linux kernel.
pub const MIN_MEMORY: u64 = 16 * MIB;
/// Maximum size of the 64-bit MMIO window. A larger one only costs the guest page tables.
const MMIO64_MAX: u64 = 64 * GIB;
/// Minimum size of the 64-bit MMIO window.
const MMIO64_MIN: u64 = GIB;

/// An unusable memory size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// RAM and the 64-bit MMIO window don't fit into the guest's physical address space.
    #[error(
        "memory size {size} exceeds what {bits} physical address bits can hold; give at most {max} bytes"
    )]
    TooLarge {
        /// Requested bytes.
        size: u64,
        /// Physical address bits of the vCPUs.
        bits: u8,
        /// The maximum that fits, in bytes.
        max: u64,
    },
}

/// The type of an address range in the firmware's memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// Usable RAM.
    Ram = 1,
    /// Not usable as RAM.
    Reserved = 2,
}

/// One entry of the memory map that the guest boots with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// Guest-physical addresses.
    pub range: Range<u64>,
    /// Their type.
    pub kind: MemoryKind,
}

/// The parts of the map that depend on the memory size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    ram: Vec<Range<u64>>,
    mmio64: Range<u64>,
    /// End of the guest's physical addresses.
    limit: u64,
}

impl Layout {
    /// Lays out `memory` bytes of RAM (whole pages, at least [`MIN_MEMORY`]) for vCPUs with
    /// `physical_bits` address bits (CPUID 0x8000_0008 EAX).
    ///
    /// # Errors
    ///
    /// The memory doesn't fit into that address space.
    pub fn new(memory: u64, physical_bits: u8) -> Result<Self, LayoutError> {
        let limit = 1u64 << physical_bits.clamp(33, 52);
        let low = memory.min(HOLE.start);
        let high = memory - low;
        let too_large = LayoutError::TooLarge {
            size: memory,
            bits: physical_bits,
            max: limit - HOLE.end - MMIO64_MIN + HOLE.start,
        };
        let Some(top) = HOLE
            .end
            .checked_add(high)
            .and_then(|end| end.checked_next_multiple_of(GIB))
        else {
            return Err(too_large);
        };
        if limit.checked_sub(top).is_none_or(|room| room < MMIO64_MIN) {
            return Err(too_large);
        }
        // The host bridge decodes power-of-two ranges well only if they are aligned; 1 GiB is
        // enough for BARs of up to that size.
        let mmio64 = top..limit.min(top + MMIO64_MAX);
        let ram = [0..low, HOLE.end..HOLE.end + high]
            .into_iter()
            .filter(|range| !range.is_empty())
            .collect();
        Ok(Self { ram, mmio64, limit })
    }

    /// Returns RAM as the guest's memory slots: one range, or two with the 32-bit hole between
    /// them. The first starts at 0 and includes the BIOS area.
    #[must_use]
    pub fn ram(&self) -> &[Range<u64>] {
        &self.ram
    }

    /// Returns the size of RAM in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.ram.iter().map(|range| range.end - range.start).sum()
    }

    /// Returns the end of the RAM below 4 GiB.
    #[must_use]
    pub fn low_end(&self) -> u64 {
        self.ram.first().map_or(0, |range| range.end)
    }

    /// Returns the 64-bit PCI memory window: at least 1 GiB, above all RAM.
    #[must_use]
    pub fn mmio64(&self) -> Range<u64> {
        self.mmio64.clone()
    }

    /// Returns the addresses for memory that is added while the machine runs: above everything
    /// else, aligned to 1 GiB. It may be empty.
    #[must_use]
    pub fn spare(&self) -> Range<u64> {
        self.mmio64.end..self.limit
    }

    /// Returns the firmware memory map (E820): usable RAM, and the reserved ranges that Linux must
    /// find there (otherwise it ignores ECAM).
    #[must_use]
    pub fn memory_map(&self) -> Vec<MemoryMapEntry> {
        use MemoryKind::{Ram, Reserved};
        let mut map = vec![
            MemoryMapEntry {
                range: 0..LOW_RAM_END,
                kind: Ram,
            },
            MemoryMapEntry {
                range: LOW_RAM_END..HIGH_MEMORY,
                kind: Reserved,
            },
            MemoryMapEntry {
                range: HIGH_MEMORY..self.low_end(),
                kind: Ram,
            },
            MemoryMapEntry {
                range: ECAM,
                kind: Reserved,
            },
            MemoryMapEntry {
                range: KVM_IDENTITY_MAP..KVM_TSS + 3 * PAGE,
                kind: Reserved,
            },
        ];
        map.extend(self.ram.iter().skip(1).map(|range| MemoryMapEntry {
            range: range.clone(),
            kind: Ram,
        }));
        map
    }
}

#[cfg(test)]
mod tests;
