use super::*;
use crate::kernel::CachePolicy;
use crate::kernel::tests::images::{BzImageFile, ElfFile};
use crate::kernel::tests::{KernelDirectory, Memory, memory};
use crate::layout::{ECAM, GDT, GIB, MemoryKind, PAGE_TABLES};

const RSDP: u64 = 0xe_0000;

fn open(bytes: &[u8]) -> Kernel {
    Kernel::open(
        &KernelDirectory::new().file("kernel", bytes),
        &CachePolicy::Off,
    )
    .unwrap()
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

/// Linux reboots through the reset vector. Without code there, a hardware-reduced machine hung at
/// every reboot.
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
fn command_lines_that_the_kernel_would_truncate_or_misread_are_refused() {
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
fn words_of_the_user_replace_defaults() {
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
