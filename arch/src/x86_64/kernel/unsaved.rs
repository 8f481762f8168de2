//! A kernel that is still to be saved in the cache, for the next start.
//!
//! Hashing, checksumming and writing take a fifth of the time that unpacking took, and this start
//! does not need them. They can wait until the guest is idle.

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use super::cache::{Cache, FileContent, FileState};
use super::flat::FlatImage;

/// Everything needed to save a kernel in the cache: the kernel itself and the file that it was made
/// from, together about 70 MB.
#[derive(Debug)]
pub struct Unsaved {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) stamp: FileState,
    pub(super) original: OriginalFile,
    pub(super) flat: FlatImage,
    pub(super) cache: Cache,
}

/// The content of the original file.
#[derive(Debug)]
pub(super) enum OriginalFile {
    /// The bytes, whose digest has not been needed yet.
    Bytes(Arc<Vec<u8>>),
    Hashed(FileContent),
}

impl Unsaved {
    /// Saves the kernel in the cache. If that fails, the next start unpacks the kernel again.
    pub fn save(self) {
        let content = match self.original {
            OriginalFile::Hashed(content) => content,
            OriginalFile::Bytes(bytes) => FileContent::of(&bytes),
        };
        let source = (&self.file, &self.stamp);
        match self.flat.save(&self.cache, &content, source) {
            Ok(()) => {}
            // If several machines start at the same time, one of them saves what they have in
            // common.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                tracing::debug!(kernel = %self.path.display(), "the cache is busy");
            }
            Err(error) => {
                tracing::warn!(kernel = %self.path.display(), %error, "the kernel is not cached");
            }
        }
    }
}
