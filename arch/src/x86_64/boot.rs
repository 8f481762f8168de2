//! Boot parameters in guest memory: PVH `hvm_start_info` or the Linux zero page, and the command
//! line.
//!
//! Sources: Xen `docs/misc/pvh.pandoc` and Linux `Documentation/arch/x86/boot.rst`. This module
//! does not know files or devices.

use std::ops::Range;

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::load_cmdline;
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::kernel::{EntryPoint, Kernel};
use crate::layout::{
    CMDLINE, CMDLINE_MAX, Layout, PVH_MEMMAP, PVH_MODULES, PVH_START_INFO, RESET, RESET_VALUE,
    RESET_VECTOR, ZERO_PAGE,
};
use crate::regs;

/// `XEN_HVM_START_MAGIC_VALUE`.
const PVH_MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const PVH_VERSION: u32 = 1;
/// `type_of_loader` of boot loaders without a registered number.
const LOADER_UNDEFINED: u8 = 0xff;
/// Setup header for kernels that have none: magic, boot flag, and the protocol version that has all
/// the fields that are set here.
const SETUP_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const SETUP_BOOT_FLAG: u16 = 0xaa55;
const SETUP_VERSION: u16 = 0x20f;

/// The whole firmware, at the reset vector, in real mode:
/// `mov dx, RESET; mov al, RESET_VALUE; out dx, al; hlt`, in a loop.
///
/// Linux jumps there to reboot a hardware-reduced machine: it prefers EFI to ACPI on those, and
/// falls back to the BIOS without EFI (`arch/x86/kernel/reboot.c`, `efi_reboot_required`).
const RESET_STUB: [u8; 9] = {
    let [low, high] = RESET.to_le_bytes();
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xf7]
};

/// Boot parameters that can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// Linux would truncate the command line.
    #[error("the kernel command line is {len} bytes long, the kernel keeps {max}; shorten it", max = CMDLINE_MAX - 1)]
    CommandLineTooLong {
        /// Length in bytes, including the defaults.
        len: usize,
    },
    /// A control character would end or corrupt the command line, and the kernel does not interpret
    /// characters beyond ASCII.
    #[error(
        "the kernel command line has {found:?} at byte {at}; use printable ASCII characters only"
    )]
    CommandLineCharacter {
        /// The character.
        found: char,
        /// Its byte offset.
        at: usize,
    },
    /// Guest memory is smaller than the structures, or they overlap.
    #[error("cannot write the boot parameters into guest memory: {0}")]
    Write(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The parameters that the kernel receives.
#[derive(Debug, Clone)]
pub struct BootParameters<'a> {
    /// The address map.
    pub layout: &'a Layout,
    /// Guest addresses of the initrd.
    pub initrd: Option<Range<u64>>,
    /// Command line, without the NUL.
    pub command_line: &'a str,
    /// Guest address of the RSDP.
    pub rsdp: u64,
}

impl BootParameters<'_> {
    /// Writes everything that `kernel`'s entry point expects into `memory`: start_info or zero page
    /// with the memory map, the command line, the GDT, and page tables for the 64-bit entry.
    ///
    /// # Errors
    ///
    /// The command line is too long or has characters that the kernel can't read, or `memory` is
    /// too small.
    pub fn write<M: GuestMemoryBackend>(
        &self,
        kernel: &Kernel,
        memory: &M,
    ) -> Result<(), BootError> {
        load_cmdline(memory, GuestAddress(CMDLINE), &checked(self.command_line)?)
            .map_err(write_error)?;
        match kernel.entry() {
            EntryPoint::Pvh(_) => PvhBootConfigurator::write_bootparams(&self.start_info(), memory)
                .map_err(write_error)?,
            EntryPoint::Linux64(_) => {
                let page = BootParams::new(&self.zero_page(kernel), GuestAddress(ZERO_PAGE));
                LinuxBootConfigurator::write_bootparams(&page, memory).map_err(write_error)?;
            }
        }
        memory
            .write_slice(&RESET_STUB, GuestAddress(RESET_VECTOR))
            .map_err(write_error)?;
        for (address, bytes) in regs::tables(kernel.entry()) {
            memory
                .write_slice(&bytes, GuestAddress(address))
                .map_err(write_error)?;
        }
        Ok(())
    }

    fn start_info(&self) -> BootParams {
        let map: Vec<_> = self
            .layout
            .memory_map()
            .into_iter()
            .map(|entry| hvm_memmap_table_entry {
                addr: entry.range.start,
                size: entry.range.end - entry.range.start,
                type_: entry.kind as u32,
                reserved: 0,
            })
            .collect();
        let modules: Vec<_> = self
            .initrd
            .iter()
            .map(|range| hvm_modlist_entry {
                paddr: range.start,
                size: range.end - range.start,
                ..Default::default()
            })
            .collect();
        let info = hvm_start_info {
            magic: PVH_MAGIC,
            version: PVH_VERSION,
            nr_modules: u32::from(self.initrd.is_some()),
            modlist_paddr: if modules.is_empty() { 0 } else { PVH_MODULES },
            cmdline_paddr: CMDLINE,
            rsdp_paddr: self.rsdp,
            memmap_paddr: PVH_MEMMAP,
            memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let mut parameters = BootParams::new(&info, GuestAddress(PVH_START_INFO));
        parameters.set_sections(&map, GuestAddress(PVH_MEMMAP));
        if !modules.is_empty() {
            parameters.set_modules(&modules, GuestAddress(PVH_MODULES));
        }
        parameters
    }

    fn zero_page(&self, kernel: &Kernel) -> boot_params {
        let mut page = boot_params::default();
        if let Some(header) = kernel.setup_header() {
            page.hdr = *header;
        } else {
            page.hdr.header = SETUP_MAGIC;
            page.hdr.boot_flag = SETUP_BOOT_FLAG;
            page.hdr.version = SETUP_VERSION;
        }
        page.hdr.type_of_loader = LOADER_UNDEFINED;
        page.hdr.code32_start = low_half(kernel.range().start);
        page.hdr.cmd_line_ptr = low_half(CMDLINE);
        page.acpi_rsdp_addr = self.rsdp;
        if let Some(range) = &self.initrd {
            let size = range.end - range.start;
            page.hdr.ramdisk_image = low_half(range.start);
            page.hdr.ramdisk_size = low_half(size);
            page.ext_ramdisk_image = low_half(range.start >> 32);
            page.ext_ramdisk_size = low_half(size >> 32);
        }
        let map = self.layout.memory_map();
        page.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
        for (slot, entry) in page.e820_table.iter_mut().zip(map) {
            *slot = boot_e820_entry {
                addr: entry.range.start,
                size: entry.range.end - entry.range.start,
                r#type: entry.kind as u32,
            };
        }
        page
    }
}

/// Returns the low 32 bits.
fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn write_error(error: impl std::error::Error + Send + Sync + 'static) -> BootError {
    BootError::Write(Box::new(error))
}

fn checked(line: &str) -> Result<Cmdline, BootError> {
    if line.len() >= CMDLINE_MAX {
        return Err(BootError::CommandLineTooLong { len: line.len() });
    }
    if let Some((at, found)) = line.char_indices().find(|(_, c)| !matches!(c, ' '..='~')) {
        return Err(BootError::CommandLineCharacter { found, at });
    }
    Cmdline::try_from(line, CMDLINE_MAX).map_err(write_error)
}

/// Console on the first serial port.
const DEFAULT_CONSOLE: &str = "console=ttyS0";
/// After a panic the kernel resets at once, so that the machine ends (or restarts) instead of
/// hanging.
const DEFAULT_PANIC: &str = "panic=-1";
/// Reboots use the ACPI reset register. By default Linux assumes EFI on a machine with
/// hardware-reduced tables, finds no EFI services, and jumps to a BIOS that does not exist.
const DEFAULT_REBOOT: &str = "reboot=acpi";

/// There is one serial port. Linux probes for three more at their legacy addresses, with one exit
/// per register.
const DEFAULT_PORTS: &str = "8250.nr_uarts=1";
/// Early in the boot Linux searches bus 0 for chipsets with errata through ports 0xcf8 and 0xcfc,
/// with about 120 exits. The machine has no such chipset, and these ports only if enabled.
const DEFAULT_PCI: &str = "pci=noearly";

/// Returns the command line: the defaults, then `user`, which takes precedence. A default that
/// `user` sets is left out.
///
/// The ACPI tables say that there is no 8042, CMOS clock, PIT or VGA. The defaults say what the
/// tables can't.
#[must_use]
pub fn command_line(user: Option<&str>) -> String {
    let user = user.unwrap_or_default().trim();
    let defaults = [
        DEFAULT_CONSOLE,
        DEFAULT_PANIC,
        DEFAULT_REBOOT,
        DEFAULT_PORTS,
        DEFAULT_PCI,
    ]
    .into_iter()
    .filter(|default| {
        let key = default.split_inclusive('=').next().unwrap_or_default();
        !user
            .split_ascii_whitespace()
            .take_while(|word| *word != "--")
            .any(|word| word.starts_with(key))
    });
    defaults
        .chain((!user.is_empty()).then_some(user))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests;
