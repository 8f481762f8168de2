//! Load plans: the bytes that a kernel needs in guest memory, and how they get there.
//!
//! This module knows bytes and guest addresses. It does not know what the bytes are.
//!
//! Pieces are copied. Mapping them over guest memory would save the copy and let machines share the
//! pages, but the guest would fault them in by pages of 4 KiB. Measured with a stock 6.12 kernel,
//! 16,800 nested page faults instead of 640 cost 170 ms of the boot; the copy, on large pages,
//! costs 20 ms. Copying from a mapping of the cached file instead of reading it took no less.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// An error of a loader or of the file.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A file opened read-only, whose cursor is moved by one loader at a time.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: File,
    cursor: Mutex<()>,
}

impl ImageFile {
    pub(super) fn new(file: File) -> Arc<Self> {
        Arc::new(Self {
            file,
            cursor: Mutex::new(()),
        })
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Runs `read` with the cursor at `offset` while no other loader moves it.
    pub(super) fn with_cursor<T>(
        &self,
        offset: u64,
        read: impl FnOnce(&mut &File) -> T,
    ) -> io::Result<T> {
        let _guard = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        Ok(read(&mut file))
    }
}

/// Bytes to load.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A file.
    File(Arc<ImageFile>),
    /// The unpacked content of a file, in this process's memory.
    Bytes(Arc<Vec<u8>>),
}

/// Runs `$body` with `$reader` bound to a `Read + ReadVolatile + Seek` of `$source` at `$offset`.
macro_rules! with_reader {
    ($source:expr, $offset:expr, $reader:ident => $body:expr) => {
        match $source {
            Source::File(file) => file.with_cursor($offset, |$reader| $body),
            Source::Bytes(bytes) => {
                let mut cursor = std::io::Cursor::new(bytes.as_slice());
                cursor.set_position($offset);
                let $reader = &mut cursor;
                Ok($body)
            }
        }
    };
}
pub(super) use with_reader;

impl Source {
    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.file.read_exact_at(buffer, offset),
            Self::Bytes(bytes) => {
                let from = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get(start..)?.get(..buffer.len()));
                buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// A contiguous run of bytes for a guest address.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// First guest-physical address.
    pub(super) guest: u64,
    /// The source of the bytes.
    pub(super) source: Source,
    /// Offset in the source.
    pub(super) offset: u64,
    /// Length in bytes.
    pub(super) len: u64,
}

/// The pieces that something needs in guest memory. The rest of its range has to read as zero, as
/// fresh memory does.
#[derive(Debug, Clone, Default)]
pub(super) struct LoadPlan {
    /// Bytes to place, sorted by address, disjoint.
    pub(super) pieces: Vec<Piece>,
}

impl LoadPlan {
    /// Copies all pieces into fresh `memory`.
    pub(super) fn copy_into<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), BoxError> {
        for piece in &self.pieces {
            let len = usize::try_from(piece.len)?;
            let to = GuestAddress(piece.guest);
            with_reader!(&piece.source, piece.offset, reader => memory.read_exact_volatile_from(to, reader, len))
                .map_err(|error: io::Error| error)??;
        }
        Ok(())
    }
}
