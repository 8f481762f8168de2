//! Kernels as flat images of guest memory in the cache: one page-aligned piece to map.
//!
//! Offset and guest address agree modulo 2 MiB, so that a file system with large folios can back the mapping with large pages. Gaps between
//! segments are holes in the file; zero-initialised data behind the last byte is not stored.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::cache::{Cache, Cached, Part, Stamp};
use super::{Entry, Image, ImageFile, Kernel, LoadPlan, Piece, Source};
use crate::layout::{HIGH_MEMORY, MIB, PAGE};

/// Guest address and file offset agree modulo this.
const CONGRUENCE: u64 = 2 * MIB;
/// Gaps up to the size of the segments and this are kept as holes; a sparser kernel is not cached.
const MAX_GAPS: u64 = 64 * MIB;

/// What the loader writes into a cache record: everything about a kernel but its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Note {
    entry: Entry,
    /// Page-aligned guest address of the first byte.
    start: u64,
    /// Offset of that byte in the image.
    offset: u64,
    /// Bytes in the image from there; whole pages.
    len: u64,
    /// First address that the kernel uses, and the one behind the last.
    first: u64,
    end: u64,
}

impl Note {
    fn encode(&self) -> String {
        let (kind, address) = match self.entry {
            Entry::Pvh(address) => ("pvh", u64::from(address)),
            Entry::Linux64(address) => ("linux64", address),
        };
        format!(
            "kernel {kind} {address} {} {} {} {} {}",
            self.start, self.offset, self.len, self.first, self.end
        )
    }

    fn decode(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix("kernel ")?.split(' ');
        let kind = words.next()?;
        let mut number = || words.next()?.parse::<u64>().ok();
        let address = number()?;
        let entry = match kind {
            "pvh" => Entry::Pvh(u32::try_from(address).ok()?),
            "linux64" => Entry::Linux64(address),
            _ => return None,
        };
        let note = Self {
            entry,
            start: number()?,
            offset: number()?,
            len: number()?,
            first: number()?,
            end: number()?,
        };
        let aligned = [note.start, note.offset, note.len]
            .iter()
            .all(|value| value.is_multiple_of(PAGE));
        (aligned && note.start >= HIGH_MEMORY && words.next().is_none()).then_some(note)
    }
}

/// A kernel from its cached image; `None` if the record is about something else.
pub(super) fn from_cache(path: &Path, cached: Cached) -> Option<Kernel> {
    let note = Note::decode(&cached.note)?;
    if Some(cached.file.metadata().ok()?.len()) != note.offset.checked_add(note.len) {
        return None;
    }
    let source = Source::File(ImageFile::new(cached.file));
    let piece = Piece {
        guest: note.start,
        source,
        offset: note.offset,
        len: note.len,
        mappable: true,
    };
    let stored = note.start.checked_add(note.len)?;
    let zero = (note.end > stored)
        .then_some(stored..note.end)
        .into_iter()
        .collect();
    let plan = LoadPlan {
        pieces: vec![piece],
        zero,
    };
    Some(Kernel {
        path: path.to_owned(),
        image: Image::Flat,
        plan,
        entry: note.entry,
        range: note.first..note.end,
    })
}

/// Stores an ELF kernel as a flat image; `None` if it is too sparse for that.
pub(super) fn into_cache(
    kernel: &Kernel,
    cache: &Cache,
    digest: Option<blake3::Hash>,
    source: (&File, &Stamp),
) -> io::Result<Option<Kernel>> {
    let (Some(first), Some(last)) = (kernel.plan.pieces.first(), kernel.plan.pieces.last()) else {
        return Ok(None);
    };
    let start = first.guest - first.guest % PAGE;
    let end = (last.guest + last.len).next_multiple_of(PAGE);
    let stored: u64 = kernel.plan.pieces.iter().map(|piece| piece.len).sum();
    if end - start > 2 * stored + MAX_GAPS {
        return Ok(None);
    }
    let offset = start % CONGRUENCE;
    let note = Note {
        entry: kernel.entry,
        start,
        offset,
        len: end - start,
        first: kernel.range.start,
        end: kernel.range.end,
    };
    let bytes = read_whole(&kernel.image)?;
    let digest = match digest {
        Some(digest) => digest,
        None => {
            let digest = blake3::hash(&bytes);
            if let Some(cached) = cache.find_content(&digest, source.0, source.1) {
                return Ok(from_cache(&kernel.path, cached));
            }
            digest
        }
    };
    let parts = kernel.plan.pieces.iter().map(|piece| Part {
        offset: offset + (piece.guest - start),
        bytes: &bytes[piece_range(piece)],
    });
    let cached = cache.store(
        &digest,
        source,
        &parts.collect::<Vec<_>>(),
        offset + note.len,
        note.encode(),
    )?;
    Ok(from_cache(&kernel.path, cached))
}

fn piece_range(piece: &Piece) -> std::ops::Range<usize> {
    let clamp = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    clamp(piece.offset)..clamp(piece.offset + piece.len)
}

/// The whole ELF file; the plan's pieces were checked against its length.
fn read_whole(image: &Image) -> io::Result<Arc<Vec<u8>>> {
    match image {
        Image::Elf(Source::Bytes(bytes)) => Ok(bytes.clone()),
        Image::Elf(source @ Source::File(file)) => {
            let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX)];
            source.read_exact_at(&mut bytes, 0)?;
            Ok(Arc::new(bytes))
        }
        Image::Wrapper(..) | Image::Flat => Err(io::ErrorKind::InvalidInput.into()),
    }
}
