//! Memory and transfers as O_DIRECT wants them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What the host asks of transfers; 1 where it asks nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Align {
    /// Of addresses and lengths in memory.
    pub(super) memory: u32,
    /// Of offsets and lengths in the file.
    pub(super) offset: u32,
}

/// A zeroed buffer whose first byte is aligned.
pub(super) struct Aligned {
    bytes: Vec<u8>,
    first: usize,
}

impl Aligned {
    /// Room for `len` bytes and a block more, for what they are unaligned by.
    pub(super) fn new(align: Align, len: u64) -> Self {
        let len = len.saturating_add(u64::from(align.offset));
        let align = usize::try_from(align.memory.max(align.offset)).unwrap_or(usize::MAX);
        let len = usize::try_from(len).unwrap_or(0);
        let bytes = vec![0; len.saturating_add(align)];
        let first = bytes.as_ptr().align_offset(align);
        Self { bytes, first }
    }

    /// The first `len` bytes.
    pub(super) fn get(&mut self, len: u64) -> &mut [u8] {
        self.part(0, len)
    }

    /// `len` bytes behind the first `skip`; none if there is no room for them.
    pub(super) fn part(&mut self, skip: u64, len: u64) -> &mut [u8] {
        let place = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let from = self.first.saturating_add(place(skip));
        self.bytes
            .get_mut(from..from.saturating_add(place(len)))
            .unwrap_or_default()
    }
}

/// Reads whole blocks from the start of a file, `len` bytes of them or what the file has.
pub(super) fn read_head(file: &File, align: Align, len: usize) -> io::Result<Vec<u8>> {
    let len = u64::try_from(len).unwrap_or(u64::MAX);
    let blocks = len.checked_next_multiple_of(u64::from(align.offset));
    let blocks = blocks.ok_or(io::ErrorKind::InvalidInput)?;
    let mut buffer = Aligned::new(align, blocks);
    let count = file.read_at(buffer.get(blocks), 0)?;
    let mut head = buffer.get(blocks).to_vec();
    head.truncate(count);
    Ok(head)
}
