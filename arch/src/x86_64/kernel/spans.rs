//! The parts of a kernel that are not zero.
//!
//! A third of a stock kernel's bytes are zero pages: static data, and space for the BSS. What is
//! not copied costs neither the copy nor memory.

use std::io;
use std::ops::Range;

use super::plan::Piece;
use crate::layout::{MIB, PAGE};

/// Zero runs of at least this length end a span, up to a maximum number of spans.
const MIN_ZERO_RUN: u64 = 16 * PAGE;
const MAX_SPANS: usize = 64;
/// A file is read in chunks of this size.
const CHUNK: u64 = MIB;

/// Returns a limited number of spans around all of `ranges`, which are sorted: guest addresses of
/// whole pages.
pub(super) fn of(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut gap = MIN_ZERO_RUN;
    let mut spans = join(ranges, gap);
    while spans.len() > MAX_SPANS {
        gap *= 2;
        spans = join(spans.into_iter(), gap);
    }
    spans
}

/// Joins ranges that are less than `gap` apart.
fn join(ranges: impl Iterator<Item = Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start < last.end.saturating_add(gap) => {
                last.end = last.end.max(range.end);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Returns the spans of what `pieces` load. Reads all of it, one chunk at a time.
pub(super) fn of_pieces(pieces: &[Piece]) -> io::Result<Vec<Range<u64>>> {
    let mut buffer = Vec::new();
    let mut runs = Vec::new();
    for piece in pieces {
        let mut done = 0;
        while done < piece.len {
            // Chunks end at page boundaries of the guest, so that no page is looked at twice.
            let guest = piece.guest + done;
            let len = (CHUNK - guest % PAGE).min(piece.len - done);
            buffer.resize(usize::try_from(len).unwrap_or(0), 0);
            let source = &piece.source;
            source.read_exact_at(&mut buffer, piece.offset + done)?;
            runs.extend(join(nonzero_pages(guest, &buffer), MIN_ZERO_RUN));
            done += len;
        }
    }
    Ok(of(runs.into_iter()))
}

/// Returns the pages, by guest address, in which `bytes` at `guest` has a nonzero byte.
pub(super) fn nonzero_pages(guest: u64, bytes: &[u8]) -> impl Iterator<Item = Range<u64>> {
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
        .map(|(page, _)| page..page + PAGE)
}

#[cfg(test)]
mod tests;
