//! Files that are not kernels, or that have false headers.

use proptest::prelude::*;

use super::images::{BzImageFile, ElfFile, note, pack};
use super::*;

fn open(bytes: &[u8]) -> Result<Kernel, KernelError> {
    Kernel::open(
        &KernelDirectory::new().file("kernel", bytes),
        &CachePolicy::Off,
    )
}

/// A well-formed ELF file with the bytes at an offset replaced.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = ElfFile::kernel().build();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

/// Returns the offset of a field in a program header.
fn in_program_header(index: usize, field: usize) -> usize {
    64 + index * 56 + field
}

#[test]
fn files_that_are_not_kernels_are_identified_in_the_error() {
    for (bytes, expected) in [
        (&b"#!/bin/sh\n"[..], "a script"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"070701", "cpio"),
        (b"QFI\xfb", "qcow2"),
        (&[0; 4096], "unknown format"),
        (b"x", "unknown format"),
    ] {
        let error = open(bytes).unwrap_err();
        assert!(matches!(error, KernelError::NotAKernel { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(matches!(open(b"").unwrap_err(), KernelError::Empty { .. }));
    let directory = KernelDirectory::new();
    let error = Kernel::open(directory.root.path(), &CachePolicy::Off).unwrap_err();
    assert!(
        matches!(
            error,
            KernelError::NotAFile {
                what: "a directory",
                ..
            }
        ),
        "{error}"
    );
    let error = Kernel::open(Path::new("/dev/null"), &CachePolicy::Off).unwrap_err();
    assert!(
        matches!(
            error,
            KernelError::NotAFile {
                what: "a device",
                ..
            }
        ),
        "{error}"
    );
    let error = Kernel::open(Path::new("/nonexistent/vmlinuz"), &CachePolicy::Off).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot open /nonexistent/vmlinuz: No such file"),
        "{error}"
    );
}

#[test]
fn elf_files_that_are_not_x86_64_kernels_are_refused() {
    let error = open(&patched(4, &[1])).unwrap_err();
    assert!(matches!(error, KernelError::Elf32 { .. }), "{error}");
    assert!(matches!(
        open(b"\x7fELF\x01\x01\x01\0").unwrap_err(),
        KernelError::Elf32 { .. }
    ));
    let error = open(&patched(18, &183u16.to_le_bytes())).unwrap_err();
    assert!(
        matches!(error, KernelError::WrongMachine { machine: 183, .. }),
        "{error}"
    );
}

#[test]
fn malformed_elf_files_are_refused() {
    let max = u64::MAX.to_le_bytes();
    let below = 0x1000u64.to_le_bytes();
    for (name, bytes) in [
        ("big-endian", patched(5, &[2])),
        ("no program headers", patched(56, &[0, 0])),
        ("too many program headers", patched(56, &[0xff, 0xff])),
        ("program headers of another size", patched(54, &[55, 0])),
        ("program headers inside the header", patched(32, &[8])),
        ("program header table overflows", patched(32, &max)),
        (
            "segment offset overflows",
            patched(in_program_header(0, 8), &max),
        ),
        (
            "segment address overflows",
            patched(in_program_header(1, 24), &(u64::MAX - 100).to_le_bytes()),
        ),
        (
            "segment below 1 MiB",
            patched(in_program_header(0, 24), &below),
        ),
        (
            "segment longer in the file",
            patched(in_program_header(0, 40), &[1, 0, 0, 0, 0, 0, 0, 0]),
        ),
        (
            "segment beyond physical memory",
            patched(in_program_header(1, 40), &(1u64 << 60).to_le_bytes()),
        ),
        (
            "segments overlap",
            patched(in_program_header(0, 40), &0x20_0000u64.to_le_bytes()),
        ),
        (
            "nothing to load",
            patched(in_program_header(0, 0), &[0; 57]),
        ),
        (
            "entry outside",
            ElfFile {
                notes: note(b"Xen\0", 18, &[0xff; 8]),
                ..ElfFile::kernel()
            }
            .build(),
        ),
        (
            "entry in the BSS",
            ElfFile {
                notes: images::pvh_note(0x115_0000),
                ..ElfFile::kernel()
            }
            .build(),
        ),
        (
            "virtual entry",
            ElfFile {
                notes: Vec::new(),
                entry: 0xffff_ffff_8100_0000,
                ..ElfFile::kernel()
            }
            .build(),
        ),
        (
            "short note",
            ElfFile {
                notes: note(b"Xen\0", 18, &[1, 2]),
                ..ElfFile::kernel()
            }
            .build(),
        ),
        (
            "note offset overflows",
            patched(in_program_header(2, 8), &max),
        ),
    ] {
        // "Nothing to load" must clear the types of both segments.
        let mut bytes = bytes;
        if name == "nothing to load" {
            bytes[in_program_header(1, 0)] = 0;
        }
        let error = open(&bytes).expect_err(name);
        assert!(
            matches!(error, KernelError::Malformed { .. }),
            "{name}: {error}"
        );
    }
}

#[test]
fn truncated_files_report_the_expected_length() {
    let elf = ElfFile::kernel().build();
    let bzimage = BzImageFile {
        payload: pack(&elf, Format::Zstd),
        ..BzImageFile::default()
    }
    .build();
    for (bytes, len) in [
        (&elf, 6),
        (&elf, 40),
        (&elf, 100),
        (&elf, 0x2000),
        (&bzimage, 0x230),
        (&bzimage, 1000),
        (&bzimage, 3000),
    ] {
        let error = open(&bytes[..len]).unwrap_err();
        let KernelError::Truncated {
            needed,
            len: stated,
            ..
        } = &error
        else {
            panic!("{len}: {error}")
        };
        assert!(*needed > len as u64 && *stated == len as u64, "{error}");
    }
}

#[test]
fn damaged_payloads_are_an_error_and_not_a_silent_guest() {
    let elf = ElfFile::kernel().build();
    for format in [
        Format::Gzip,
        Format::Lz4,
        Format::Zstd,
        Format::Xz,
        Format::Lzma,
    ] {
        let payload = pack(&elf, format);
        let mut short = payload.clone();
        let size = short.split_off(short.len() - 4);
        short.truncate(short.len() / 2);
        short.extend_from_slice(&size);
        let mut small = payload.clone();
        let at = small.len() - 4;
        small[at..].copy_from_slice(&100u32.to_le_bytes());
        let mut huge = payload;
        huge[at..].copy_from_slice(&u32::MAX.to_le_bytes());
        for (name, payload) in [
            ("short", short),
            ("too small a size", small),
            ("too large a size", huge),
        ] {
            let error = open(
                &BzImageFile {
                    payload,
                    ..BzImageFile::default()
                }
                .build(),
            )
            .expect_err(name);
            assert!(
                matches!(&error, KernelError::Payload { format: found, .. } if *found == format),
                "{format} {name}: {error}"
            );
        }
    }
}

#[test]
fn a_bzimage_without_a_64_bit_entry_needs_its_payload() {
    for file in [
        BzImageFile {
            version: 0x20b,
            ..BzImageFile::default()
        },
        BzImageFile {
            xloadflags: 0,
            ..BzImageFile::default()
        },
        BzImageFile {
            pref_address: 0x1000,
            ..BzImageFile::default()
        },
        BzImageFile {
            pref_address: u64::MAX - 5,
            ..BzImageFile::default()
        },
    ] {
        let error = open(&file.build()).unwrap_err();
        assert!(matches!(error, KernelError::NoEntry { .. }), "{error}");
    }
    let old = BzImageFile {
        version: 0x207,
        payload: pack(&ElfFile::kernel().build(), Format::Gzip),
        ..BzImageFile::default()
    };
    assert!(
        open(&old.build())
            .unwrap_err()
            .to_string()
            .contains("boot protocol 2.07")
    );
    let mut low = BzImageFile::default().build();
    low[0x211] = 0;
    assert!(matches!(
        open(&low).unwrap_err(),
        KernelError::Malformed { .. }
    ));
    let lie = BzImageFile {
        payload: vec![0x42; 256],
        lie: 0x10_0000,
        ..BzImageFile::default()
    };
    assert!(matches!(
        open(&lie.build()).unwrap_err(),
        KernelError::Truncated { .. }
    ));
}

/// A well-formed file with some bytes of its headers changed at random.
fn mutated(file: Vec<u8>, header: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec((0..header, any::<u8>()), 1..12).prop_map(move |changes| {
        let mut bytes = file.clone();
        for (at, value) in changes {
            bytes[at] = value;
        }
        bytes
    })
}

/// Whatever a hostile file leads to lies where kernels may lie, and copying it ends.
fn check(bytes: &[u8]) {
    let Ok(kernel) = open(bytes) else { return };
    assert!(kernel.range().start >= HIGH_MEMORY && kernel.range().start < kernel.range().end);
    let len: u64 = kernel.plan.pieces.iter().map(|piece| piece.len).sum();
    assert!(len <= unpack::MAX_UNPACKED as u64);
    let layout = Layout::new(64 * MIB, 40).unwrap();
    if kernel.check_fits(&layout).is_ok() {
        kernel.copy_into(&memory()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_elf_header_panics(bytes in mutated(ElfFile::kernel().build(), 64 + 3 * 56)) {
        check(&bytes);
    }

    #[test]
    fn no_note_panics(notes in proptest::collection::vec(any::<u8>(), 0..200)) {
        check(&ElfFile { notes, ..ElfFile::kernel() }.build());
    }

    #[test]
    fn no_bzimage_header_panics(bytes in mutated(BzImageFile { payload: pack(&ElfFile::kernel().build(), Format::Lz4), ..BzImageFile::default() }.build(), 0x270)) {
        check(&bytes);
    }

    #[test]
    fn no_payload_panics(
        format in prop::sample::select(vec![Format::Gzip, Format::Lz4, Format::Zstd, Format::Xz, Format::Lzma]),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut payload = pack(&ElfFile::kernel().build(), format);
        for (at, value) in changes {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        let _ = unpack::unpack(&payload, format);
    }

    #[test]
    fn no_random_file_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000), magic in 0..3) {
        let mut bytes = bytes;
        match magic {
            0 => bytes.splice(0..0, *b"\x7fELF\x02\x01").for_each(drop),
            1 if bytes.len() > 0x206 => bytes[0x202..0x206].copy_from_slice(b"HdrS"),
            _ => {}
        }
        check(&bytes);
    }
}
