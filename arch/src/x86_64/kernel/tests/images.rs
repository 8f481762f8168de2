//! Builds ELF files and bzImages: well-formed by default, broken where a test asks for it.

use std::io::Write;
use std::ops::Range;

use flate2::write::GzEncoder;
use liblzma::stream::{Action, Check, Filters, LzmaOptions, Stream};

use super::Format;

const HEADERS: usize = 0x1000;
const PROGRAM_HEADER: usize = 56;

#[derive(Clone)]
pub(crate) struct ElfFile {
    pub(crate) entry: u64,
    /// (guest address, bytes in the file, bytes in memory).
    pub(crate) segments: Vec<(u64, Vec<u8>, u64)>,
    pub(crate) notes: Vec<u8>,
}

impl ElfFile {
    /// Returns a small kernel: code, data with a hole before it and zeros inside, and
    /// zero-initialised data at the end.
    pub(crate) fn kernel() -> Self {
        let code = (0..0x2345u32).map(|at| at.to_le_bytes()[0] | 1).collect();
        let mut data = vec![0; 0x4_0000];
        data[..4].copy_from_slice(b"data");
        data[0x3_0000..0x3_0004].copy_from_slice(b"tail");
        Self {
            entry: 0x100_0040,
            segments: vec![(0x100_0000, code, 0x3000), (0x110_0000, data, 0x6_0000)],
            notes: pvh_note(0x100_0010),
        }
    }

    pub(crate) fn move_to(&mut self, start: u64) {
        let first = self.segments[0].0;
        for (guest, ..) in &mut self.segments {
            *guest = *guest - first + start;
        }
        self.entry = self.entry - first + start;
        self.notes = pvh_note(start + 0x10);
    }

    pub(crate) fn range(&self) -> Range<u64> {
        let (start, ..) = self.segments[0];
        let (last, _, len) = self.segments[self.segments.len() - 1];
        start..last + len
    }

    /// Returns the content of the range after loading.
    pub(crate) fn memory(&self) -> Vec<u8> {
        let range = self.range();
        let mut memory = vec![0; usize::try_from(range.end - range.start).unwrap()];
        for (guest, bytes, _) in &self.segments {
            let at = usize::try_from(guest - range.start).unwrap();
            memory[at..at + bytes.len()].copy_from_slice(bytes);
        }
        memory
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut file = vec![0; HEADERS];
        let mut table = Vec::new();
        for (guest, bytes, memory) in &self.segments {
            // Congruent to the guest address modulo the page size, as linkers do it.
            let offset =
                file.len().next_multiple_of(0x1000) + usize::try_from(guest % 0x1000).unwrap();
            file.resize(offset, 0xee);
            file.extend_from_slice(bytes);
            table.push(program_header(
                1,
                offset,
                *guest,
                bytes.len() as u64,
                *memory,
            ));
        }
        if !self.notes.is_empty() {
            table.push(program_header(
                4,
                file.len(),
                0,
                self.notes.len() as u64,
                self.notes.len() as u64,
            ));
            file.extend_from_slice(&self.notes);
        }
        // Sections that are not loaded.
        file.extend_from_slice(&[0xcc; 777]);
        let header = elf_header(self.entry, u16::try_from(table.len()).unwrap());
        file[..64].copy_from_slice(&header);
        let table = table.concat();
        file[64..64 + table.len()].copy_from_slice(&table);
        file
    }
}

fn elf_header(entry: u64, count: u16) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    header.extend(1u32.to_le_bytes());
    header.extend([entry, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    header.extend(0u32.to_le_bytes());
    header.extend(
        [64, 56, count, 0, 0, 0]
            .iter()
            .flat_map(|half: &u16| half.to_le_bytes()),
    );
    header
}

fn program_header(kind: u32, offset: usize, guest: u64, in_file: u64, in_memory: u64) -> Vec<u8> {
    let words = [
        offset as u64,
        guest | 0xffff_ffff_8000_0000,
        guest,
        in_file,
        in_memory,
        0x1000,
    ];
    let header: Vec<u8> = [kind, 7]
        .iter()
        .flat_map(|half| half.to_le_bytes())
        .chain(words.iter().flat_map(|word| word.to_le_bytes()))
        .collect();
    assert_eq!(header.len(), PROGRAM_HEADER);
    header
}

pub(crate) fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let lens = [name.len(), descriptor.len()].map(|len| u32::try_from(len).unwrap());
    let mut note: Vec<u8> = [lens[0], lens[1], kind]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    for part in [name, descriptor] {
        note.extend_from_slice(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

pub(crate) fn pvh_note(entry: u64) -> Vec<u8> {
    note(b"Xen\0", 18, &entry.to_le_bytes())
}

#[derive(Clone)]
pub(crate) struct BzImageFile {
    pub(crate) payload: Vec<u8>,
    pub(crate) version: u16,
    pub(crate) xloadflags: u16,
    pub(crate) init_size: u32,
    pub(crate) pref_address: u64,
    /// Added to the sizes that the header declares.
    pub(crate) lie: i64,
}

impl Default for BzImageFile {
    fn default() -> Self {
        Self {
            payload: Vec::new(),
            version: 0x20f,
            xloadflags: 0x7f,
            init_size: 0x20_0000,
            pref_address: 0x100_0000,
            lie: 0,
        }
    }
}

impl BzImageFile {
    const SETUP_SECTORS: u8 = 3;
    const PAYLOAD_OFFSET: u32 = 0x2cc;

    /// Returns everything after the real-mode part.
    pub(crate) fn protected(&self) -> Vec<u8> {
        let mut part = vec![0xf4; Self::PAYLOAD_OFFSET as usize];
        part.extend_from_slice(&self.payload);
        part.resize(part.len().next_multiple_of(16), 0);
        part
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut file = vec![0; (usize::from(Self::SETUP_SECTORS) + 1) * 512];
        let protected = self.protected();
        let shifted = |size: usize| u32::try_from(i64::try_from(size).unwrap() + self.lie).unwrap();
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[Self::SETUP_SECTORS]);
        put(0x1f4, &(shifted(protected.len()) / 16).to_le_bytes());
        put(0x1fe, &0xaa55u16.to_le_bytes());
        put(0x202, b"HdrS");
        put(0x206, &self.version.to_le_bytes());
        put(0x211, &[1]);
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x230, &0x20_0000u32.to_le_bytes());
        put(0x236, &self.xloadflags.to_le_bytes());
        put(0x248, &Self::PAYLOAD_OFFSET.to_le_bytes());
        put(
            0x24c,
            &if self.payload.is_empty() {
                0
            } else {
                shifted(self.payload.len())
            }
            .to_le_bytes(),
        );
        put(0x258, &self.pref_address.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        [file, protected].concat()
    }
}

/// Compresses as the kernel's build does: the unpacked size follows all formats except gzip, which
/// ends with it.
pub(crate) fn pack(bytes: &[u8], format: Format) -> Vec<u8> {
    let mut packed = match format {
        Format::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            return encoder.finish().unwrap();
        }
        Format::Lz4 => {
            let mut frame = 0x184c_2102u32.to_le_bytes().to_vec();
            for block in bytes.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                frame.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
                frame.extend(block);
            }
            frame
        }
        Format::Zstd => zstd::bulk::compress(bytes, 1).unwrap(),
        Format::Xz => {
            let mut filters = Filters::new();
            filters.x86().lzma2(&LzmaOptions::new_preset(1).unwrap());
            encode(
                bytes,
                Stream::new_stream_encoder(&filters, Check::Crc32).unwrap(),
            )
        }
        Format::Lzma => encode(
            bytes,
            Stream::new_lzma_encoder(&LzmaOptions::new_preset(1).unwrap()).unwrap(),
        ),
        Format::Bzip2 | Format::Lzo => unreachable!("no test packs {format}"),
    };
    packed.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    packed
}

fn encode(bytes: &[u8], mut stream: Stream) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 4096);
    let status = stream.process_vec(bytes, &mut out, Action::Finish).unwrap();
    assert_eq!(status, liblzma::stream::Status::StreamEnd);
    out
}
