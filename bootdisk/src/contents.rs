//! The contents of a file that is booted.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;

use crate::bytes::{number, size};
use crate::config::uki::Range;
use crate::entry::Found;
use crate::error::Result;
use crate::fs::{OpenFile, Volume};
use crate::io::{ReadAt, ReadFault};

/// Read at a time: a compressed extent is unpacked whole, however little of it is wanted.
const CHUNK: u64 = 1 << 20;

/// An open file of the image, or part of one. Reading from its start to its end is what is fast.
pub struct Contents {
    volume: Rc<Volume>,
    path: alloc::string::String,
    range: Range,
    open: RefCell<Open>,
}

struct Open {
    file: Box<dyn OpenFile>,
    /// Where `chunk` is in the range.
    at: u64,
    chunk: Vec<u8>,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Contents {
    pub(crate) fn open(found: &Found) -> Result<Self> {
        found.volume.allow(found.range.size);
        Ok(Self {
            volume: Rc::clone(&found.volume),
            path: found.file.path.clone(),
            range: found.range,
            open: RefCell::new(Open {
                file: found.volume.open_file(&found.file)?,
                at: 0,
                chunk: Vec::new(),
            }),
        })
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.range.size
    }

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    ///
    /// The range lies behind the end, the file system is damaged, or the image cannot be read.
    pub fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        let mut open = self.open.borrow_mut();
        let Open { file, at, chunk } = &mut *open;
        while !buf.is_empty() {
            let start = offset.saturating_sub(offset % CHUNK);
            if chunk.is_empty() || *at != start {
                let length = self.range.size.saturating_sub(start).min(CHUNK);
                let place = self.range.offset.saturating_add(start);
                *chunk = vec![0; size(length)];
                *at = start;
                let read = self
                    .volume
                    .read_exact(&mut **file, &self.path, place, chunk);
                if read.is_err() {
                    chunk.clear();
                }
                read?;
            }
            let within = size(offset.saturating_sub(start));
            let piece = chunk.get(within..).unwrap_or_default();
            let count = piece.len().min(buf.len());
            if count == 0 {
                return Err(self.volume.behind_the_end(&self.path, offset));
            }
            let (out, rest) = buf.split_at_mut(count);
            out.copy_from_slice(piece.get(..count).unwrap_or_default());
            offset = offset.saturating_add(number(count));
            buf = rest;
        }
        Ok(())
    }

    /// Reads everything into memory; the plan has judged the size.
    ///
    /// # Errors
    ///
    /// As [`Contents::read_at`].
    pub fn read_all(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; size(self.range.size)];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }
}

impl ReadAt for Contents {
    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> core::result::Result<(), ReadFault> {
        Self::read_at(self, offset, buf).map_err(|error| ReadFault(alloc::format!("{error}")))
    }
}
