//! Boot parameters in guest memory: PVH `hvm_start_info` or the Linux zero page, and the command line.
//!
//! It knows both boot protocols' structures (Xen `docs/misc/pvh.pandoc`; Linux `Documentation/arch/x86/boot.rst`); it does not know files or
//! devices.

use std::ops::Range;

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::load_cmdline;
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::kernel::{Entry, Kernel};
use crate::layout::{
    CMDLINE, CMDLINE_MAX, Layout, PVH_MEMMAP, PVH_MODULES, PVH_START_INFO, RESET, RESET_VALUE,
    RESET_VECTOR, ZERO_PAGE,
};
use crate::regs;

/// `XEN_HVM_START_MAGIC_VALUE`.
const PVH_MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const PVH_VERSION: u32 = 1;
/// `type_of_loader` of loaders without a registered number.
const LOADER_UNDEFINED: u8 = 0xff;
/// Setup header of kernels that have none: magic, boot flag and the protocol version with all the fields we set.
const SETUP_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const SETUP_BOOT_FLAG: u16 = 0xaa55;
const SETUP_VERSION: u16 = 0x20f;

/// All the firmware there is, at the reset vector, in real mode: mov dx, RESET; mov al, RESET_VALUE; out dx, al; hlt; and again.
///
/// Linux jumps there to reboot a hardware-reduced machine: it prefers EFI to ACPI on those, and falls back to the BIOS without EFI
/// (`arch/x86/kernel/reboot.c`, `efi_reboot_required`).
const RESET_STUB: [u8; 9] = {
    let [low, high] = RESET.to_le_bytes();
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xf7]
};

/// Boot parameters that can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// Linux would cut it off.
    #[error("the kernel command line is {len} bytes long, the kernel keeps {max}; shorten it", max = CMDLINE_MAX - 1)]
    CommandLineTooLong {
        /// Its length in bytes, the defaults included.
        len: usize,
    },
    /// A control character would end or garble it, and what is beyond ASCII means nothing to the kernel.
    #[error(
        "the kernel command line has {found:?} at byte {at}; use printable ASCII characters only"
    )]
    CommandLineCharacter {
        /// The character.
        found: char,
        /// Where it is.
        at: usize,
    },
    /// Memory is smaller than the structures, or they don't fit one another.
    #[error("cannot write the boot parameters into guest memory: {0}")]
    Write(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What the kernel is told.
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
    /// Writes what `kernel`'s entry expects into `memory`: start_info or zero page, the memory map in it, the command line, the GDT, and for
    /// the 64-bit entry page tables.
    pub fn write<M: GuestMemoryBackend>(
        &self,
        kernel: &Kernel,
        memory: &M,
    ) -> Result<(), BootError> {
        load_cmdline(memory, GuestAddress(CMDLINE), &checked(self.command_line)?)
            .map_err(write_error)?;
        match kernel.entry() {
            Entry::Pvh(_) => PvhBootConfigurator::write_bootparams(&self.start_info(), memory)
                .map_err(write_error)?,
            Entry::Linux64(_) => {
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

/// The low 32 bits.
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
/// A panic restarts at once: the machine ends (or starts again) instead of standing still.
const DEFAULT_PANIC: &str = "panic=-1";
/// Reboots go to the ACPI reset register. By itself Linux takes hardware-reduced tables for a machine with EFI, finds no
/// EFI services, and jumps to a BIOS that is not there.
const DEFAULT_REBOOT: &str = "reboot=acpi";

/// There is one serial port. Linux looks for three more at their old addresses, an exit for each register it tries.
const DEFAULT_PORTS: &str = "8250.nr_uarts=1";
/// Early in the boot Linux searches bus 0 for chipsets with errata through ports 0xcf8 and 0xcfc, some 120 exits. There is none here,
/// nor are these ports, unless asked for.
const DEFAULT_PCI: &str = "pci=noearly";

/// The command line: our defaults, then what the user gave, which wins. A default that the user sets is left out.
///
/// The ACPI tables say that there is no 8042, CMOS clock, PIT or VGA; only what they can't say is said here.
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
mod tests {
    use super::*;
    use crate::kernel::CachePolicy;
    use crate::kernel::tests::images::{BzImageFile, ElfFile};
    use crate::kernel::tests::{Bench, Memory, memory};
    use crate::layout::{ECAM, GDT, GIB, MemoryKind, PAGE_TABLES};

    const RSDP: u64 = 0xe_0000;

    fn open(bytes: &[u8]) -> Kernel {
        Kernel::open(&Bench::new().file("kernel", bytes), &CachePolicy::Off).unwrap()
    }

    fn write(
        kernel: &Kernel,
        initrd: Option<Range<u64>>,
        command_line: &str,
    ) -> Result<Memory, BootError> {
        let memory = memory();
        let layout = Layout::new(6 * GIB, 40).unwrap();
        BootParameters {
            layout: &layout,
            initrd,
            command_line,
            rsdp: RSDP,
        }
        .write(kernel, &memory)?;
        Ok(memory)
    }

    fn read<T: vm_memory::ByteValued>(memory: &Memory, at: u64) -> T {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Linux reboots through it; without it a hardware-reduced machine hung at every reboot.
    #[test]
    fn the_reset_vector_asks_for_a_reset_with_either_entry() {
        for kernel in [
            open(&ElfFile::kernel().build()),
            open(&BzImageFile::default().build()),
        ] {
            let memory = write(&kernel, None, "").unwrap();
            let code: [u8; 9] = read(&memory, RESET_VECTOR);
            let [low, high] = RESET.to_le_bytes();
            assert_eq!(code[..6], [0xba, low, high, 0xb0, RESET_VALUE, 0xee]);
        }
    }

    fn string(memory: &Memory, at: u64) -> String {
        let bytes: Vec<u8> = (at..)
            .map(|at| read(memory, at))
            .take_while(|byte| *byte != 0)
            .collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_pvh_kernel_finds_everything_through_start_info() {
        let kernel = open(&ElfFile::kernel().build());
        let memory = write(&kernel, Some(0x300_0000..0x300_1234), "quiet").unwrap();
        let info: hvm_start_info = read(&memory, PVH_START_INFO);
        assert_eq!(
            (info.magic, info.version, info.flags, info.rsdp_paddr),
            (0x336e_c578, 1, 0, RSDP)
        );
        assert_eq!(string(&memory, info.cmdline_paddr), "quiet");
        let module: hvm_modlist_entry = read(&memory, info.modlist_paddr);
        assert_eq!(
            (info.nr_modules, module.paddr, module.size),
            (1, 0x300_0000, 0x1234)
        );
        let map: Vec<hvm_memmap_table_entry> = (0..u64::from(info.memmap_entries))
            .map(|index| read(&memory, info.memmap_paddr + 24 * index))
            .collect();
        let usable: u64 = map
            .iter()
            .filter(|entry| entry.type_ == MemoryKind::Ram as u32)
            .map(|entry| entry.size)
            .sum();
        assert!(usable > 6 * GIB - (1 << 20));
        assert!(map.iter().any(|entry| entry.type_ == 2
            && entry.addr == ECAM.start
            && entry.size == ECAM.end - ECAM.start));
        assert_ne!(read::<u64>(&memory, GDT + 16), 0);
        let without = write(&kernel, None, "").unwrap();
        let info: hvm_start_info = read(&without, PVH_START_INFO);
        assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
    }

    #[test]
    fn a_64_bit_entry_finds_everything_in_the_zero_page() {
        let bzimage = open(&BzImageFile::default().build());
        let bare = open(
            &ElfFile {
                notes: Vec::new(),
                ..ElfFile::kernel()
            }
            .build(),
        );
        for kernel in [&bzimage, &bare] {
            let memory = write(kernel, Some(0x300_0000..0x300_1234), "quiet").unwrap();
            let page: boot_params = read(&memory, ZERO_PAGE);
            let header = page.hdr;
            assert_eq!(
                (
                    { header.header },
                    { header.boot_flag },
                    header.type_of_loader
                ),
                (0x5372_6448, 0xaa55, 0xff)
            );
            assert_eq!(
                ({ header.ramdisk_image }, { header.ramdisk_size }),
                (0x300_0000, 0x1234)
            );
            assert_eq!(string(&memory, u64::from(header.cmd_line_ptr)), "quiet");
            assert_eq!({ page.acpi_rsdp_addr }, RSDP);
            let map = Layout::new(6 * GIB, 40).unwrap().memory_map();
            assert_eq!(usize::from(page.e820_entries), map.len());
            for (entry, expected) in { page.e820_table }.iter().zip(&map) {
                assert_eq!(
                    { entry.addr }..{ entry.addr } + { entry.size },
                    expected.range
                );
                assert_eq!({ entry.r#type }, expected.kind as u32);
            }
            assert_eq!(read::<u64>(&memory, PAGE_TABLES) & 1, 1);
        }
        let page: boot_params = read(&write(&bzimage, None, "").unwrap(), ZERO_PAGE);
        assert_eq!(
            { page.hdr.init_size },
            BzImageFile::default().init_size,
            "the kernel's own header is kept"
        );
    }

    #[test]
    fn command_lines_that_the_kernel_would_cut_or_misread_are_refused() {
        let kernel = open(&ElfFile::kernel().build());
        let longest = "x".repeat(CMDLINE_MAX - 1);
        assert_eq!(
            string(&write(&kernel, None, &longest).unwrap(), CMDLINE),
            longest
        );
        let error = write(&kernel, None, &"x".repeat(CMDLINE_MAX)).unwrap_err();
        assert!(
            matches!(error, BootError::CommandLineTooLong { len: CMDLINE_MAX }),
            "{error}"
        );
        for bad in ["a\nb", "a\0b", "caf\u{e9}"] {
            assert!(
                matches!(
                    write(&kernel, None, bad),
                    Err(BootError::CommandLineCharacter { at: 1 | 3, .. })
                ),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn defaults_give_way_to_the_user() {
        for (user, expected) in [
            (
                None,
                "console=ttyS0 panic=-1 reboot=acpi 8250.nr_uarts=1 pci=noearly",
            ),
            (
                Some("8250.nr_uarts=4 pci=nomsi"),
                "console=ttyS0 panic=-1 reboot=acpi 8250.nr_uarts=4 pci=nomsi",
            ),
            (
                Some("  "),
                "console=ttyS0 panic=-1 reboot=acpi 8250.nr_uarts=1 pci=noearly",
            ),
            (
                Some("root=/dev/vda quiet"),
                "console=ttyS0 panic=-1 reboot=acpi 8250.nr_uarts=1 pci=noearly root=/dev/vda quiet",
            ),
            (
                Some("console=hvc0 reboot=t"),
                "panic=-1 8250.nr_uarts=1 pci=noearly console=hvc0 reboot=t",
            ),
            (
                Some("panic=5 console=ttyS0,115200"),
                "reboot=acpi 8250.nr_uarts=1 pci=noearly panic=5 console=ttyS0,115200",
            ),
            (
                Some("quiet -- panic=7"),
                "console=ttyS0 panic=-1 reboot=acpi 8250.nr_uarts=1 pci=noearly quiet -- panic=7",
            ),
        ] {
            assert_eq!(command_line(user), expected);
        }
    }
}
