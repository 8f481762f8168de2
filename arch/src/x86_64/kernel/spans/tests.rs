use std::sync::Arc;

use super::*;
use crate::x86_64::kernel::plan::Source;

/// The spans of bytes at a guest address.
fn spans(guest: u64, bytes: &[u8]) -> Vec<Range<u64>> {
    of(nonzero_pages(guest, bytes))
}

#[test]
fn long_zero_runs_are_left_out_and_short_ones_are_not() {
    let page = usize::try_from(PAGE).unwrap();
    let mut bytes = vec![0; 64 * page];
    bytes[0] = 1;
    bytes[10 * page] = 1;
    bytes[40 * page + 5] = 1;
    let start = 0x20_0000;
    let at = |pages: u64| start + pages * PAGE;
    assert_eq!(spans(start, &bytes), [at(0)..at(11), at(40)..at(41)]);
    // The start is not aligned: the page that holds the first byte counts.
    assert_eq!(
        spans(start + 8, &bytes[..1]),
        std::slice::from_ref(&(at(0)..at(1)))
    );
    assert!(spans(start, &bytes[page..9 * page]).is_empty());
}

#[test]
fn many_zero_runs_do_not_make_many_pieces() {
    let page = usize::try_from(PAGE).unwrap();
    let bytes: Vec<u8> = (0..200 * 20 * page)
        .map(|at| u8::from(at % (20 * page) == 0))
        .collect();
    assert!(spans(0x20_0000, &bytes).len() <= MAX_SPANS);
}

#[test]
fn pieces_read_in_chunks_have_the_spans_of_their_bytes() {
    let mut bytes = vec![0; 5 << 20];
    // The pieces start within a page; zeros and other bytes meet at the ends of chunks.
    for at in [0, (1 << 20) - 1, (1 << 20), 3 << 20, (5 << 20) - 1] {
        bytes[at] = 1;
    }
    let piece = |guest: u64, offset: usize, len: usize| Piece {
        guest,
        source: Source::Bytes(Arc::new(bytes.clone())),
        offset: offset as u64,
        len: len as u64,
    };
    for (start, split) in [(0x20_0000, 1 << 20), (0x20_0123, 12_345)] {
        let pieces = [
            piece(start, 0, split),
            piece(start + split as u64, split, bytes.len() - split),
        ];
        assert_eq!(of_pieces(&pieces).unwrap(), spans(start, &bytes));
    }
}
