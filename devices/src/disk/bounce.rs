//! Transfers that O_DIRECT would refuse: through an aligned buffer of ours, by blocking calls.
//!
//! The page cache would be less code, but mixing it with O_DIRECT loses data: a cached write of one
//! sector writes its whole block back over sectors that went around the cache meanwhile. So a block
//! that a guest writes in part is read, patched and written here, with a lock on it that keeps all
//! other writers away (`spans`).

use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::aligned::Aligned;
use super::handle::Handle;
use super::image::Image;
use super::spans::Access;
use super::transfer::Transfer;
use super::{IoFault, SECTOR};

/// Bytes bounced at a time.
const CHUNK: u64 = 256 << 10;

/// Whether the host takes this transfer as it is.
#[inline]
pub(super) fn fits(image: &Image, transfer: &Transfer, offset: u64) -> bool {
    !image.direct
        || (in_blocks(image, offset, transfer.len()) && transfer.is_aligned(image.align.memory))
}

/// Whether a range consists of whole blocks of the host's.
fn in_blocks(image: &Image, offset: u64, len: u64) -> bool {
    let align = u64::from(image.align.offset);
    offset.is_multiple_of(align) && len.is_multiple_of(align)
}

/// The blocks of the host's that a span touches.
fn blocks_around(image: &Image, span: Range<u64>) -> Range<u64> {
    let align = u64::from(image.align.offset).max(SECTOR);
    let start = span
        .start
        .saturating_sub(span.start.checked_rem(align).unwrap_or(0));
    start..span.end.checked_next_multiple_of(align).unwrap_or(u64::MAX)
}

/// Reads what `fits` refused.
pub(super) fn read(image: &Handle, transfer: &mut Transfer, offset: u64) -> Result<(), IoFault> {
    let mut buffer = Aligned::new(image.align, CHUNK);
    let mut at = transfer.position(offset);
    while transfer.left() > 0 {
        let window = Window::at(image, at, transfer.left());
        image
            .file()
            .read_exact_at(buffer.get(window.bytes()), window.start)?;
        transfer.fill_from(buffer.part(window.skip, window.count));
        at = at.saturating_add(window.count);
    }
    Ok(())
}

/// Writes what `fits` refused; stable at the return if `fua`.
pub(super) fn write(
    image: &Handle,
    transfer: &mut Transfer,
    offset: u64,
    fua: bool,
) -> Result<(), IoFault> {
    let span = transfer.span(offset);
    let _lock = if in_blocks(image, span.start, transfer.left()) {
        image.share(span)
    } else {
        Some(
            image
                .spans
                .lock(blocks_around(image, span), Access::Exclusive),
        )
    };
    let mut buffer = Aligned::new(image.align, CHUNK);
    let mut at = transfer.position(offset);
    while transfer.left() > 0 {
        let window = Window::at(image, at, transfer.left());
        if window.bytes() != window.count {
            image
                .file()
                .read_exact_at(buffer.get(window.bytes()), window.start)?;
        }
        transfer.copy_into(buffer.part(window.skip, window.count));
        image
            .file()
            .write_all_at(buffer.get(window.bytes()), window.start)?;
        at = at.saturating_add(window.count);
    }
    if fua {
        image.file().sync_data()?;
    }
    Ok(())
}

/// The whole blocks around the next piece of a transfer.
struct Window {
    /// First byte of the first block.
    start: u64,
    /// Bytes of the first block in front of the piece.
    skip: u64,
    /// Bytes of the piece.
    count: u64,
    /// First byte behind the last block.
    end: u64,
}

impl Window {
    fn at(image: &Image, at: u64, left: u64) -> Self {
        let align = u64::from(image.align.offset).max(SECTOR);
        let skip = at.checked_rem(align).unwrap_or(0);
        let start = at.saturating_sub(skip);
        let count = left.min(CHUNK.saturating_sub(skip));
        // Below the capacity, so no overflow.
        let end = at
            .saturating_add(count)
            .checked_next_multiple_of(align)
            .unwrap_or(u64::MAX);
        Self {
            start,
            skip,
            count,
            end,
        }
    }

    fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}
