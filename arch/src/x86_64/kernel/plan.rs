//! What has to be in guest memory for a kernel to run, to be copied there or mapped there.
//!
//! It knows bytes and guest addresses; it does not know what the bytes are.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// A file opened read-only, whose cursor is moved by one loader at a time.
#[derive(Debug)]
pub struct ImageFile {
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

    /// Runs `read` with the cursor at `offset` and nobody else moving it.
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

impl AsFd for ImageFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Bytes to load from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file.
    File(Arc<ImageFile>),
    /// A file's content, unpacked into our own memory.
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

/// A run of bytes that belongs at a guest address.
#[derive(Debug, Clone)]
pub struct Piece {
    /// First guest-physical address.
    pub guest: u64,
    /// Where the bytes come from.
    pub source: Source,
    /// Offset in the source.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether the piece may be mapped `MAP_PRIVATE` over guest memory instead of being copied: its source is a file of our own cache that
    /// nobody changes, offset and address are page-aligned (and congruent modulo 2 MiB), and the file goes on with zeros to the end of the
    /// last page.
    pub mappable: bool,
}

/// What has to be in guest memory for something to run.
#[derive(Debug, Clone, Default)]
pub struct LoadPlan {
    /// Bytes to place, sorted by address, disjoint.
    pub pieces: Vec<Piece>,
    /// Ranges that must read as zero; fresh guest memory does.
    pub zero: Vec<Range<u64>>,
}

impl LoadPlan {
    /// Copies all pieces into `memory`. It does not write the zero ranges: memory is expected to be fresh.
    pub fn copy_into<M: GuestMemoryBackend>(
        &self,
        memory: &M,
    ) -> Result<(), vm_memory::GuestMemoryError> {
        for piece in &self.pieces {
            let len = usize::try_from(piece.len)
                .map_err(|_| vm_memory::GuestMemoryError::GuestAddressOverflow)?;
            with_reader!(&piece.source, piece.offset, reader => memory.read_exact_volatile_from(GuestAddress(piece.guest), reader, len))
                .map_err(vm_memory::GuestMemoryError::IOError)??;
        }
        Ok(())
    }

    /// Whether every piece may be mapped.
    #[must_use]
    pub fn mappable(&self) -> bool {
        self.pieces.iter().all(|piece| piece.mappable)
    }
}
