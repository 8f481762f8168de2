//! The loader's note about a kernel, which the cache keeps as a line of text.

use std::ops::Range;

use super::entry::EntryPoint;
use super::plan::{Piece, Source};
use crate::layout::{HIGH_MEMORY, PAGE};

/// The loader's note in a cache record: everything about a kernel except its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KernelNote {
    pub(super) entry: EntryPoint,
    /// First address that the kernel uses, and the one after the last.
    pub(super) range: Range<u64>,
    /// Guest addresses of the stored bytes: whole pages, sorted, disjoint, at least one. The file
    /// starts with the first.
    pub(super) spans: Vec<Range<u64>>,
}

impl KernelNote {
    pub(super) fn encode(&self) -> String {
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

    pub(super) fn decode(text: &str) -> Option<Self> {
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

    pub(super) fn is_sound(&self) -> bool {
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
    pub(super) fn base(&self) -> u64 {
        self.spans.first().map_or(0, |span| span.start)
    }

    /// Length of the image file in bytes.
    pub(super) fn len(&self) -> u64 {
        self.spans.last().map_or(0, |span| span.end - self.base())
    }

    /// Returns the parts of `pieces`, which are sorted, that lie in the spans, with `source` as
    /// their source.
    pub(super) fn cut(&self, pieces: &[Piece], source: &Source) -> Vec<Piece> {
        self.spans
            .iter()
            .flat_map(|span| pieces.iter().filter_map(|piece| cut(piece, span, source)))
            .collect()
    }
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

#[cfg(test)]
mod tests;
