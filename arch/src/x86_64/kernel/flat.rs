//! Kernels as flat images of guest memory, in this process's memory or in the cache: a few
//! page-aligned pieces to copy.
//!
//! A third of a stock kernel's bytes are zero pages (static data, space for the BSS). Long runs of
//! them are holes in the file and not pieces.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::cache::{Cache, CachedImage, FileContent, FileState, ImagePart};
use super::entry::EntryPoint;
use super::note::KernelNote;
use super::plan::{ImageFile, LoadPlan, Piece, Source};
use super::spans;
use crate::layout::MIB;

/// Gaps of at most the size of the segments plus this are kept as holes. A sparser kernel is not
/// cached.
const MAX_GAPS: u64 = 64 * MIB;

/// The pieces of a kernel, and its entry point.
pub(super) struct Placement {
    pub(super) plan: LoadPlan,
    pub(super) entry: EntryPoint,
    /// First address that the kernel uses, and the one after the last.
    pub(super) range: Range<u64>,
}

/// Returns the kernel in a cached image; `None` if the record is about something else.
pub(super) fn from_cache(cached: CachedImage) -> Option<Placement> {
    let note = KernelNote::decode(&cached.note)?;
    if cached.file.metadata().ok()?.len() != note.len() {
        return None;
    }
    let source = Source::File(ImageFile::new(cached.file));
    let piece = |span: &Range<u64>| Piece {
        guest: span.start,
        source: source.clone(),
        offset: span.start - note.base(),
        len: span.end - span.start,
    };
    let plan = LoadPlan {
        pieces: note.spans.iter().map(piece).collect(),
    };
    Some(Placement {
        plan,
        entry: note.entry,
        range: note.range,
    })
}

/// A kernel as a flat image in this process's memory.
#[derive(Debug)]
pub(super) struct FlatImage {
    note: KernelNote,
    /// The ELF file.
    bytes: Arc<Vec<u8>>,
    /// The parts of it in the spans, sorted.
    pieces: Vec<Piece>,
}

impl FlatImage {
    /// Returns the flat image of an ELF kernel that `plan` loads; `None` if it is too sparse.
    pub(super) fn of(
        elf: &Source,
        plan: &LoadPlan,
        entry: EntryPoint,
        range: &Range<u64>,
    ) -> io::Result<Option<Self>> {
        let pieces = &plan.pieces;
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            return Ok(None);
        };
        let stored: u64 = pieces.iter().map(|piece| piece.len).sum();
        if last.guest + last.len - first.guest > 2 * stored + MAX_GAPS {
            return Ok(None);
        }
        let bytes = read_whole(elf)?;
        let content: Vec<_> = pieces
            .iter()
            .map(|piece| (piece.guest, &bytes[piece_range(piece)]))
            .collect();
        let note = KernelNote {
            entry,
            range: range.clone(),
            spans: spans::of(
                content
                    .iter()
                    .flat_map(|(guest, bytes)| spans::nonzero_pages(*guest, bytes)),
            ),
        };
        let source = Source::Bytes(Arc::clone(&bytes));
        let pieces = note.cut(pieces, &source);
        Ok(note.is_sound().then_some(Self {
            note,
            bytes,
            pieces,
        }))
    }

    /// Returns the kernel of which this is an image.
    pub(super) fn placement(&self) -> Placement {
        Placement {
            plan: LoadPlan {
                pieces: self.pieces.clone(),
            },
            entry: self.note.entry,
            range: self.note.range.clone(),
        }
    }

    /// Adds the image to the cache, made from `source` with this content.
    pub(super) fn save(
        &self,
        cache: &Cache,
        content: &FileContent,
        source: (&File, &FileState),
    ) -> io::Result<()> {
        let parts: Vec<_> = self
            .pieces
            .iter()
            .map(|piece| ImagePart {
                offset: piece.guest - self.note.base(),
                bytes: &self.bytes[piece_range(piece)],
            })
            .collect();
        cache.store(content, source, &parts, self.note.len(), self.note.encode())
    }
}

fn piece_range(piece: &Piece) -> Range<usize> {
    let clamp = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    clamp(piece.offset)..clamp(piece.offset + piece.len)
}

/// Reads the whole ELF file. The plan's pieces were checked against its length.
fn read_whole(elf: &Source) -> io::Result<Arc<Vec<u8>>> {
    match elf {
        Source::Bytes(bytes) => Ok(bytes.clone()),
        Source::File(file) => {
            let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX)];
            elf.read_exact_at(&mut bytes, 0)?;
            Ok(Arc::new(bytes))
        }
    }
}
