//! Synthetic kernels, well-formed and hostile.

mod caching;
mod hostile;
pub(crate) mod images;

use std::io::Write;
use std::path::PathBuf;

use images::{BzImageFile, ElfFile, pack};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::*;
use crate::layout::{GIB, HIGH_MEMORY};

pub(crate) type Memory = GuestMemoryMmap<()>;

/// A temporary directory for kernel files, and optionally for a cache.
pub(crate) struct KernelDirectory {
    root: tempfile::TempDir,
}

impl KernelDirectory {
    pub(crate) fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.root.path().join(name);
        File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    }

    pub(crate) fn cache_directory(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    pub(crate) fn cache(&self) -> CachePolicy {
        CachePolicy::Directory(self.cache_directory())
    }
}

pub(crate) fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap()
}

/// Returns the content of the kernel's range after a copy.
fn copied(kernel: &Kernel) -> Vec<u8> {
    let memory = memory();
    kernel.copy_into(&memory).unwrap();
    content(&memory, kernel.range())
}

fn content(memory: &Memory, range: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
    memory
        .read_slice(&mut bytes, GuestAddress(range.start))
        .unwrap();
    bytes
}

#[test]
fn an_elf_kernel_with_a_pvh_note_is_entered_there() {
    let directory = KernelDirectory::new();
    let elf = ElfFile::kernel();
    let kernel = Kernel::open(&directory.file("vmlinux", &elf.build()), &CachePolicy::Off).unwrap();
    assert_eq!(kernel.entry(), EntryPoint::Pvh(0x100_0010));
    assert_eq!(kernel.range(), elf.range());
    assert!(kernel.setup_header().is_none());
    assert!(kernel.unsaved.is_none());
    assert_eq!(copied(&kernel), elf.memory());
}

#[test]
fn a_note_of_four_bytes_or_after_other_notes_is_found() {
    for notes in [
        images::note(b"Xen\0", 18, &0x100_0010u32.to_le_bytes()),
        [
            images::note(b"GNU\0", 3, &[7; 20]),
            images::note(b"Linux\0", 18, &[0; 5]),
            images::pvh_note(0x100_0010),
        ]
        .concat(),
    ] {
        let elf = ElfFile {
            notes,
            ..ElfFile::kernel()
        };
        let kernel = Kernel::open(
            &KernelDirectory::new().file("vmlinux", &elf.build()),
            &CachePolicy::Off,
        )
        .unwrap();
        assert_eq!(kernel.entry(), EntryPoint::Pvh(0x100_0010));
    }
}

#[test]
fn an_elf_kernel_without_a_note_is_entered_in_long_mode() {
    let elf = ElfFile {
        notes: images::note(b"GNU\0", 3, b"build-id"),
        ..ElfFile::kernel()
    };
    let kernel = Kernel::open(
        &KernelDirectory::new().file("vmlinux", &elf.build()),
        &CachePolicy::Off,
    )
    .unwrap();
    assert_eq!(kernel.entry(), EntryPoint::Linux64(elf.entry));
}

#[test]
fn every_payload_format_boots_the_kernel_inside() {
    let elf = ElfFile::kernel();
    // Relocations for the decompressor, as in a relocatable kernel.
    let packed = [elf.build(), vec![0x5a; 4096]].concat();
    for format in [
        Format::Gzip,
        Format::Lz4,
        Format::Zstd,
        Format::Xz,
        Format::Lzma,
    ] {
        let file = BzImageFile {
            payload: pack(&packed, format),
            ..BzImageFile::default()
        };
        let kernel = Kernel::open(
            &KernelDirectory::new().file("vmlinuz", &file.build()),
            &CachePolicy::Off,
        )
        .unwrap();
        assert_eq!(kernel.entry(), EntryPoint::Pvh(0x100_0010), "{format}");
        assert_eq!(copied(&kernel), elf.memory(), "{format}");
    }
}

#[test]
fn lz4_payloads_of_several_blocks_and_frames_unpack() {
    let bytes: Vec<u8> = (0..20_000_000u32)
        .map(|at| (at / 1000).to_le_bytes()[0])
        .collect();
    let payload = pack(&bytes, Format::Lz4);
    assert_eq!(unpack::unpack(&payload, Format::Lz4).unwrap(), bytes);
    let (frame, size) = payload.split_at(payload.len() - 4);
    let size = u32::from_le_bytes(size.try_into().unwrap()) * 2;
    let twice = [frame, frame, &size.to_le_bytes()].concat();
    assert_eq!(
        unpack::unpack(&twice, Format::Lz4).unwrap(),
        [&bytes[..], &bytes].concat()
    );
}

#[test]
fn a_bzimage_that_cannot_be_unpacked_decompresses_itself() {
    let no_note = ElfFile {
        notes: Vec::new(),
        ..ElfFile::kernel()
    };
    for (name, payload) in [
        ("bzip2", b"BZh91AY&SY\0\0\0\0".to_vec()),
        ("lzo", b"\x89LZO\0\r\n\x1a\n\0\0\0\0".to_vec()),
        ("unknown", vec![7; 100]),
        ("no payload", Vec::new()),
        ("no PVH note", pack(&no_note.build(), Format::Zstd)),
        ("not an ELF file", pack(&[0x90; 4096], Format::Gzip)),
        (
            "a broken ELF file",
            pack(&ElfFile::kernel().build()[..200], Format::Gzip),
        ),
    ] {
        let file = BzImageFile {
            payload,
            ..BzImageFile::default()
        };
        let directory = KernelDirectory::new();
        let kernel = Kernel::open(
            &directory.file("vmlinuz", &file.build()),
            &directory.cache(),
        )
        .unwrap();
        assert_eq!(kernel.entry(), EntryPoint::Linux64(0x100_0200), "{name}");
        assert_eq!(
            kernel.range(),
            0x100_0000..0x100_0000 + u64::from(file.init_size)
        );
        assert_eq!(
            kernel.setup_header().map(|header| header.init_size),
            Some(file.init_size)
        );
        let loaded = copied(&kernel);
        assert!(loaded.starts_with(&file.protected()), "{name}");
    }
}

fn placed(path: &Path, layout: &Layout, kernel: &Kernel) -> Result<Initrd, KernelError> {
    Initrd::place(Initrd::open(path)?, path, layout, kernel)
}

#[test]
fn a_kernel_or_initrd_that_does_not_fit_reports_the_memory_needed() {
    let directory = KernelDirectory::new();
    let elf = ElfFile::kernel();
    let kernel = Kernel::open(&directory.file("vmlinux", &elf.build()), &CachePolicy::Off).unwrap();
    let (small, big) = (
        Layout::new(16 * MIB, 40).unwrap(),
        Layout::new(6 * GIB, 40).unwrap(),
    );
    kernel.check_fits(&big).unwrap();
    let error = kernel.check_fits(&small).unwrap_err();
    assert!(
        matches!(error, KernelError::KernelDoesNotFit { remedy: 18, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("at least 18 MiB"), "{error}");
    let path = directory.file("initrd", &vec![3; 5 << 20]);
    let initrd = placed(&path, &big, &kernel).unwrap();
    assert_eq!(initrd.range(), (2 * GIB - 5 * MIB)..2 * GIB);
    let tight = Layout::new(kernel.range().end + 6 * MIB, 40).unwrap();
    let initrd = placed(&path, &tight, &kernel).unwrap();
    assert!(initrd.range().start >= kernel.range().end);
    let memory = memory();
    initrd.copy_into(&memory).unwrap();
    assert!(
        content(&memory, initrd.range())
            .iter()
            .all(|byte| *byte == 3)
    );
    let error = placed(&path, &Layout::new(20 * MIB, 40).unwrap(), &kernel).unwrap_err();
    assert!(
        matches!(
            error,
            KernelError::InitrdDoesNotFit {
                size: 0x50_0000,
                ..
            }
        ),
        "{error}"
    );
    let error = placed(&directory.file("empty", b""), &big, &kernel).unwrap_err();
    assert!(matches!(error, KernelError::Empty { .. }), "{error}");
}

#[test]
fn a_kernel_starts_at_one_mebibyte_or_above() {
    let mut elf = ElfFile::kernel();
    elf.move_to(HIGH_MEMORY);
    let kernel = Kernel::open(
        &KernelDirectory::new().file("vmlinux", &elf.build()),
        &CachePolicy::Off,
    )
    .unwrap();
    assert_eq!(copied(&kernel), elf.memory());
    elf.move_to(HIGH_MEMORY - 1);
    let error = Kernel::open(
        &KernelDirectory::new().file("vmlinux", &elf.build()),
        &CachePolicy::Off,
    )
    .unwrap_err();
    assert!(error.to_string().contains("below 1 MiB"), "{error}");
}
