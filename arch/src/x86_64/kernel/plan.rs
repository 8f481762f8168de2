//! What has to be in guest memory for a kernel to run, and how it gets there.
//!
//! It knows bytes and guest addresses; it does not know what the bytes are.
//!
//! Pieces are copied. Mapping them over guest memory saves the copy and lets machines share the pages, but the guest then faults them in
//! one 4 KiB page at a time: measured on a stock 6.12 kernel, 16,800 nested page faults instead of 640 cost 170 ms of the boot where the
//! copy, on large pages, costs 20. Reading is the copy: going through a mapping of the cached file instead took no less.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Whatever a loader or a file says.
pub(super) type AnyError = Box<dyn std::error::Error + Send + Sync>;

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

/// A file is copied in chunks of this size.
const CHUNK: usize = 128 << 10;
/// So many bytes of a chunk are looked at before it is read.
const PROBE: usize = 4096;

/// Bytes to load from.
#[derive(Debug, Clone)]
pub(super) enum Source {
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
pub(super) struct Piece {
    /// First guest-physical address.
    pub(super) guest: u64,
    /// Where the bytes come from.
    pub(super) source: Source,
    /// Offset in the source.
    pub(super) offset: u64,
    /// Length in bytes.
    pub(super) len: u64,
}

/// What has to be in guest memory for something to run; the rest of its range reads as zero, which fresh memory does.
#[derive(Debug, Clone, Default)]
pub(super) struct LoadPlan {
    /// Bytes to place, sorted by address, disjoint.
    pub(super) pieces: Vec<Piece>,
}

impl LoadPlan {
    /// Copies all pieces into fresh `memory`.
    pub(super) fn copy_into<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), AnyError> {
        for piece in &self.pieces {
            match &piece.source {
                Source::File(file) => copy_file(file, piece, memory)?,
                Source::Bytes(bytes) => {
                    let start = usize::try_from(piece.offset)?;
                    let content = bytes.get(start..).unwrap_or_default();
                    let content = content.get(..usize::try_from(piece.len)?);
                    let content =
                        content.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
                    memory.write_slice(content, GuestAddress(piece.guest))?;
                }
            }
        }
        Ok(())
    }
}

/// Copies a piece of a file, except for the chunks that are zero. A stock vmlinux has 12 MiB of
/// them; leaving them out saves the copy and the guest's memory.
fn copy_file<M: GuestMemoryBackend>(
    file: &ImageFile,
    piece: &Piece,
    memory: &M,
) -> Result<(), AnyError> {
    const ZEROS: [u8; CHUNK] = [0; CHUNK];
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while done < piece.len {
        let len = usize::try_from(piece.len - done)?.min(CHUNK);
        let (offset, to) = (piece.offset + done, GuestAddress(piece.guest + done));
        // Most chunks show in their first bytes that they are not zero. These go straight to
        // their place.
        let (probe, rest) = buffer[..len].split_at_mut(len.min(PROBE));
        file.file.read_exact_at(probe, offset)?;
        if *probe != ZEROS[..probe.len()] {
            file.with_cursor(offset, |reader| {
                memory.read_exact_volatile_from(to, reader, len)
            })??;
        } else {
            file.file.read_exact_at(rest, offset + PROBE as u64)?;
            if buffer[..len] != ZEROS[..len] {
                memory.write_slice(&buffer[..len], to)?;
            }
        }
        done += len as u64;
    }
    Ok(())
}
