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
use super::plan::{ImageFile, LoadPlan, Piece, Source};
use crate::layout::{HIGH_MEMORY, MIB, PAGE};

/// Gaps of at most the size of the segments plus this are kept as holes. A sparser kernel is not
/// cached.
const MAX_GAPS: u64 = 64 * MIB;
/// Zero runs of at least this length split a piece in two, up to a maximum number of pieces.
const MIN_ZERO_RUN: u64 = 16 * PAGE;
const MAX_SPANS: usize = 64;

/// The loader's note in a cache record: everything about a kernel except its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KernelNote {
    entry: EntryPoint,
    /// First address that the kernel uses, and the one after the last.
    range: Range<u64>,
    /// Guest addresses of the stored bytes: whole pages, sorted, disjoint, at least one. The file
    /// starts with the first.
    spans: Vec<Range<u64>>,
}

impl KernelNote {
    fn encode(&self) -> String {
        let (kind, address) = match self.entry {
            EntryPoint::Pvh(address) => ("pvh", u64::from(address)),
            EntryPoint::Linux64(address) => ("linux64", address),
        };
        let spans = self
            .spans
            .iter()
            .map(|span| format!(" {:x} {:x}", span.start, span.end))
            .collect::<String>();
        format!(
            "kernel {kind} {address:x} {:x} {:x}{spans}",
            self.range.start, self.range.end
        )
    }

    fn decode(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix("kernel ")?.split(' ');
        let kind = words.next()?;
        let numbers = words
            .map(|word| u64::from_str_radix(word, 16))
            .collect::<Result<Vec<_>, _>>()
            .ok()?;
        let (&[address, start, end], spans) = numbers.split_first_chunk()?;
        let entry = match kind {
            "pvh" => EntryPoint::Pvh(u32::try_from(address).ok()?),
            "linux64" => EntryPoint::Linux64(address),
            _ => return None,
        };
        let note = Self {
            entry,
            range: start..end,
            spans: spans.chunks_exact(2).map(|span| span[0]..span[1]).collect(),
        };
        note.is_sound().then_some(note)
    }

    fn is_sound(&self) -> bool {
        let edges: Vec<_> = self
            .spans
            .iter()
            .flat_map(|span| [span.start, span.end])
            .collect();
        edges.first().is_some_and(|first| *first >= HIGH_MEMORY)
            && edges.is_sorted_by(|left, right| left < right)
            && edges.iter().all(|address| address.is_multiple_of(PAGE))
    }

    /// Guest address of the image's first byte.
    fn base(&self) -> u64 {
        self.spans.first().map_or(0, |span| span.start)
    }

    /// Length of the image file in bytes.
    fn len(&self) -> u64 {
        self.spans.last().map_or(0, |span| span.end - self.base())
    }
}

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
            spans: spans(&content),
        };
        let source = Source::Bytes(Arc::clone(&bytes));
        let pieces = note
            .spans
            .iter()
            .flat_map(|span| pieces.iter().filter_map(|piece| cut(piece, span, &source)))
            .collect();
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

/// Returns whole pages around all bytes of `content` except long runs of zeros.
fn spans(content: &[(u64, &[u8])]) -> Vec<Range<u64>> {
    let mut gap = MIN_ZERO_RUN;
    loop {
        let mut spans: Vec<Range<u64>> = Vec::new();
        for page in content
            .iter()
            .flat_map(|(guest, bytes)| nonzero_pages(*guest, bytes))
        {
            match spans.last_mut() {
                Some(span) if page < span.end.saturating_add(gap) => {
                    span.end = span.end.max(page + PAGE)
                }
                _ => spans.push(page..page + PAGE),
            }
        }
        if spans.len() <= MAX_SPANS {
            return spans;
        }
        gap *= 2;
    }
}

/// Returns the guest addresses of the pages in which `bytes` at `guest` has a nonzero byte.
fn nonzero_pages(guest: u64, bytes: &[u8]) -> impl Iterator<Item = u64> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let into_page = guest % PAGE;
    let head = usize::try_from(PAGE - into_page)
        .unwrap_or(0)
        .min(bytes.len());
    let (head, rest) = bytes.split_at(head);
    let chunks = std::iter::once(head).chain(rest.chunks(ZEROS.len()));
    (guest - into_page..)
        .step_by(ZEROS.len())
        .zip(chunks)
        .filter(|(_, chunk)| **chunk != ZEROS[..chunk.len()])
        .map(|(page, _)| page)
}

/// Returns the part of `piece` that lies in `span`, with `source` as its source.
fn cut(piece: &Piece, span: &Range<u64>, source: &Source) -> Option<Piece> {
    let from = piece.guest.max(span.start);
    let to = span.end.min(piece.guest + piece.len);
    (from < to).then(|| Piece {
        guest: from,
        source: source.clone(),
        offset: piece.offset + (from - piece.guest),
        len: to - from,
    })
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

#[cfg(test)]
mod tests;
