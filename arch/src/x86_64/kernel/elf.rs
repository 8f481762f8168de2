//! ELF-64 kernels: segments and entry points.
//!
//! No number in the file is trusted until it has been compared with the file's length, and no
//! allocation is larger than a fixed limit. Sources: System V ABI (ELF-64), Xen
//! `docs/misc/pvh.pandoc` and `xen/include/public/elfnote.h`.

use std::ops::Range;

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS32, ELFDATA2LSB, Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE,
};
use vm_memory::ByteValued;

use super::entry::EntryPoint;
use super::plan::Source;
use crate::layout::HIGH_MEMORY;

/// The first bytes of an ELF file.
pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";
/// `EM_X86_64`.
const X86_64: u16 = 62;
/// Limit on program headers; a stock vmlinux has five.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// Limit on the size of the notes, which have a few hundred bytes.
const MAX_NOTES: u64 = 64 << 10;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const XEN_PHYS32_ENTRY: u32 = 18;
/// Alignment of a note's name and of its descriptor.
const NOTE_ALIGN: usize = 4;

/// A loadable segment that lies within the file and above 1 MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) guest: u64,
    pub(super) offset: u64,
    pub(super) file_len: u64,
    pub(super) memory_len: u64,
}

impl Segment {
    pub(super) fn range(&self) -> Range<u64> {
        self.guest..self.guest + self.memory_len
    }
}

/// An ELF kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ElfImage {
    /// Sorted and disjoint; at least one.
    pub(super) segments: Vec<Segment>,
    pub(super) entry: EntryPoint,
}

/// A defect of an ELF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ElfError {
    Elf32,
    WrongMachine(u16),
    Truncated { what: &'static str, needed: u64 },
    Malformed(&'static str),
    Unreadable,
}

impl ElfImage {
    /// Parses and checks the headers of an ELF file of `len` bytes.
    pub(super) fn parse(source: &Source, len: u64) -> Result<Self, ElfError> {
        let header = header(source, len)?;
        let table = program_headers(source, len, &header)?;
        let segments = segments(&table, len)?;
        let mut pvh = None;
        for note in table.iter().filter(|entry| entry.p_type == PT_NOTE) {
            pvh = pvh.or(pvh_entry(source, len, note)?);
        }
        let entry = pvh.map_or(EntryPoint::Linux64(header.e_entry), EntryPoint::Pvh);
        let address = match entry {
            EntryPoint::Pvh(address) => u64::from(address),
            EntryPoint::Linux64(address) => address,
        };
        if !segments
            .iter()
            .any(|segment| (segment.guest..segment.guest + segment.file_len).contains(&address))
        {
            return Err(ElfError::Malformed(
                "the entry point is not a physical address inside a loaded segment",
            ));
        }
        Ok(Self { segments, entry })
    }

    /// Returns the guest addresses from the first segment to the end of the last.
    pub(super) fn range(&self) -> Range<u64> {
        let start = self.segments.first().map_or(0, |segment| segment.guest);
        start
            ..self
                .segments
                .iter()
                .map(|segment| segment.range().end)
                .max()
                .unwrap_or(start)
    }
}

fn header(source: &Source, len: u64) -> Result<Elf64_Ehdr, ElfError> {
    let mut ident = [0; 8];
    source
        .read_exact_at(&mut ident, 0)
        .map_err(|_| ElfError::Truncated {
            what: "the ELF header",
            needed: 64,
        })?;
    // A 32-bit file gets its own error, even where it is too short for the 64-bit header.
    if ident[EI_CLASS] == ELFCLASS32 {
        return Err(ElfError::Elf32);
    }
    let mut header = Elf64_Ehdr::default();
    let needed = header.as_slice().len() as u64;
    if len < needed {
        return Err(ElfError::Truncated {
            what: "the ELF header",
            needed,
        });
    }
    source
        .read_exact_at(header.as_mut_slice(), 0)
        .map_err(|_| ElfError::Unreadable)?;
    if header.e_ident[EI_DATA] != ELFDATA2LSB {
        return Err(ElfError::Malformed("it is big-endian"));
    }
    if header.e_machine != X86_64 {
        return Err(ElfError::WrongMachine(header.e_machine));
    }
    Ok(header)
}

fn program_headers(
    source: &Source,
    len: u64,
    header: &Elf64_Ehdr,
) -> Result<Vec<Elf64_Phdr>, ElfError> {
    const SIZE: usize = size_of::<Elf64_Phdr>();
    if header.e_phnum == 0 {
        return Err(ElfError::Malformed(
            "it has no program headers (an object file or a module?)",
        ));
    }
    if header.e_phnum > MAX_PROGRAM_HEADERS
        || usize::from(header.e_phentsize) != SIZE
        || header.e_phoff < size_of::<Elf64_Ehdr>() as u64
    {
        return Err(ElfError::Malformed(
            "impossible number, size or offset of the program headers",
        ));
    }
    let needed = header
        .e_phoff
        .checked_add(u64::from(header.e_phnum) * SIZE as u64);
    let needed = needed.ok_or(ElfError::Malformed(
        "the offset of the program headers overflows",
    ))?;
    if needed > len {
        return Err(ElfError::Truncated {
            what: "the program header table",
            needed,
        });
    }
    let mut table = vec![Elf64_Phdr::default(); usize::from(header.e_phnum)];
    for (entry, index) in table.iter_mut().zip(0u64..) {
        source
            .read_exact_at(entry.as_mut_slice(), header.e_phoff + index * SIZE as u64)
            .map_err(|_| ElfError::Unreadable)?;
    }
    Ok(table)
}

fn segments(table: &[Elf64_Phdr], len: u64) -> Result<Vec<Segment>, ElfError> {
    let mut segments = Vec::new();
    for entry in table
        .iter()
        .filter(|entry| entry.p_type == PT_LOAD && entry.p_memsz > 0)
    {
        if entry.p_filesz > entry.p_memsz {
            return Err(ElfError::Malformed(
                "a segment has more bytes in the file than in memory",
            ));
        }
        let end = entry
            .p_offset
            .checked_add(entry.p_filesz)
            .ok_or(ElfError::Malformed(
                "a segment's offset in the file overflows",
            ))?;
        if end > len {
            return Err(ElfError::Truncated {
                what: "a segment",
                needed: end,
            });
        }
        if entry.p_paddr < HIGH_MEMORY {
            return Err(ElfError::Malformed(
                "a segment's physical address lies below 1 MiB (a user-space program?)",
            ));
        }
        if entry
            .p_paddr
            .checked_add(entry.p_memsz)
            .is_none_or(|end| end > 1 << 52)
        {
            return Err(ElfError::Malformed(
                "a segment lies outside physical memory",
            ));
        }
        segments.push(Segment {
            guest: entry.p_paddr,
            offset: entry.p_offset,
            file_len: entry.p_filesz,
            memory_len: entry.p_memsz,
        });
    }
    if segments.is_empty() {
        return Err(ElfError::Malformed("it has no loadable segment"));
    }
    segments.sort_by_key(|segment| segment.guest);
    if segments
        .windows(2)
        .any(|pair| pair[0].range().end > pair[1].guest)
    {
        return Err(ElfError::Malformed("its segments overlap in memory"));
    }
    Ok(segments)
}

/// Returns the 32-bit entry point from a note segment, if there is one.
fn pvh_entry(source: &Source, len: u64, segment: &Elf64_Phdr) -> Result<Option<u32>, ElfError> {
    let end = segment
        .p_offset
        .checked_add(segment.p_filesz)
        .ok_or(ElfError::Malformed(
            "the notes' offset in the file overflows",
        ))?;
    if end > len {
        return Err(ElfError::Truncated {
            what: "the note segment",
            needed: end,
        });
    }
    let size =
        usize::try_from(segment.p_filesz.min(MAX_NOTES)).map_err(|_| ElfError::Unreadable)?;
    let mut notes = vec![0; size];
    source
        .read_exact_at(&mut notes, segment.p_offset)
        .map_err(|_| ElfError::Unreadable)?;
    let mut rest = notes.as_slice();
    while let Some((note, next)) = split_note(rest) {
        if note.kind == XEN_PHYS32_ENTRY && note.name == b"Xen\0" {
            // Linux writes 8 bytes on x86-64, other kernels 4. The entry point has 32 bits in both
            // cases.
            let entry = note.descriptor.first_chunk().ok_or(ElfError::Malformed(
                "its PVH note is shorter than an address",
            ))?;
            return Ok(Some(u32::from_le_bytes(*entry)));
        }
        rest = next;
    }
    Ok(None)
}

struct ElfNote<'a> {
    name: &'a [u8],
    kind: u32,
    descriptor: &'a [u8],
}

/// Returns the first note and the rest; `None` at the end or at a malformed note.
fn split_note(bytes: &[u8]) -> Option<(ElfNote<'_>, &[u8])> {
    let word = |index: usize| Some(u32::from_le_bytes(*bytes.get(index * 4..)?.first_chunk()?));
    let name_len = usize::try_from(word(0)?).ok()?;
    let descriptor_len = usize::try_from(word(1)?).ok()?;
    let kind = word(2)?;
    let name_end = name_len.checked_add(12)?;
    let start = name_end.checked_next_multiple_of(NOTE_ALIGN)?;
    let end = start.checked_add(descriptor_len)?;
    let next = end.checked_next_multiple_of(NOTE_ALIGN)?.min(bytes.len());
    let note = ElfNote {
        name: bytes.get(12..name_end)?,
        kind,
        descriptor: bytes.get(start..end)?,
    };
    Some((note, bytes.get(next..)?))
}
