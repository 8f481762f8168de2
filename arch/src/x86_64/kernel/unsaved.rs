//! What is still to be saved in the cache, for the next start.
//!
//! Hashing, checksumming and writing an image take a fifth of the time that unpacking took, and
//! looking for an ELF file's zeros takes as long as loading it. This start needs neither. They can
//! wait until the guest is idle.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

use super::cache::{Cache, FileContent, FileState};
use super::flat::FlatImage;
use super::note::KernelNote;
use super::plan::Piece;
use super::spans;

/// Everything needed to save a kernel in the cache.
#[derive(Debug)]
pub struct Unsaved {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) stamp: FileState,
    pub(super) cache: Cache,
    pub(super) content: UnsavedContent,
}

/// What is to be saved.
#[derive(Debug)]
pub(super) enum UnsavedContent {
    /// An unpacked kernel and the file that it was unpacked from, together about 70 MB.
    Image {
        original: OriginalFile,
        flat: FlatImage,
    },
    /// Which parts of an ELF file are not zero; the spans of the note are still to be found.
    Spans {
        note: KernelNote,
        pieces: Vec<Piece>,
    },
}

/// The content of the original file.
#[derive(Debug)]
pub(super) enum OriginalFile {
    /// The bytes, whose digest has not been needed yet.
    Bytes(Arc<Vec<u8>>),
    Hashed(FileContent),
}

impl Unsaved {
    /// Saves the kernel in the cache. If that fails, the next start does the work again.
    pub fn save(self) {
        let path = self.path.clone();
        match self.try_save() {
            Ok(()) => {}
            // If several machines start at the same time, one of them saves what they have in
            // common.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                tracing::debug!(kernel = %path.display(), "the cache is busy");
            }
            Err(error) => {
                tracing::warn!(kernel = %path.display(), %error, "the kernel is not cached");
            }
        }
    }

    fn try_save(self) -> io::Result<()> {
        let source = (&self.file, &self.stamp);
        match self.content {
            UnsavedContent::Image { original, flat } => {
                let content = match original {
                    OriginalFile::Hashed(content) => content,
                    OriginalFile::Bytes(bytes) => FileContent::of(&bytes),
                };
                flat.save(&self.cache, &content, source)
            }
            UnsavedContent::Spans { mut note, pieces } => {
                note.spans = spans::of_pieces(&pieces)?;
                self.cache.store_note(source, &note.encode())
            }
        }
    }
}
