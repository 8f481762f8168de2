//! ext2, ext3 and ext4, by the crate ext4-view, which replays the journal in memory.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::error::Error as StdError;

use ext4_view::{Ext4, Ext4Error, Ext4Read, File, FileType};

use super::contract::{Fault, Fs, FsResult, Kind, MAX_LISTED, Meta, OpenFile};
use crate::io::Region;

impl Ext4Read for Region {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn StdError + Send + Sync>> {
        Self::read(self, start_byte, dst).map_err(Into::into)
    }
}

impl From<Ext4Error> for Fault {
    fn from(error: Ext4Error) -> Self {
        Self(format!("{error}"))
    }
}

struct Ext(Ext4);

/// Opens the file system.
pub(super) fn open(region: Region) -> FsResult<Box<dyn Fs>> {
    Ok(Box::new(Ext(Ext4::load(Box::new(region))?)))
}

impl Fs for Ext {
    fn stat(&self, path: &str) -> FsResult<Option<Meta>> {
        let metadata = match self.0.symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory | Ext4Error::MalformedPath) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let kind = match metadata.file_type() {
            FileType::Regular => Kind::File,
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        };
        let size = metadata.len();
        Ok(Some(Meta { kind, size }))
    }

    fn link(&self, path: &str) -> FsResult<String> {
        let target = self.0.read_link(path)?;
        let target = target
            .to_str()
            .map_err(|_| "the target of a link is not UTF-8")?;
        Ok(target.to_string())
    }

    fn list(&self, path: &str) -> FsResult<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.0.read_dir(path)? {
            let entry = entry?;
            // Names that are not UTF-8 cannot be in a boot description.
            let Ok(name) = entry.file_name().as_str().map(ToString::to_string) else {
                continue;
            };
            if name != "." && name != ".." {
                names.push(name);
            }
            if names.len() >= MAX_LISTED {
                break;
            }
        }
        Ok(names)
    }

    fn open(&self, path: &str) -> FsResult<Box<dyn OpenFile>> {
        Ok(Box::new(Open(self.0.open(path)?)))
    }
}

struct Open(File);

impl OpenFile for Open {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        // A seek walks the file's blocks from its start; reading on needs none.
        if self.0.position() != offset {
            self.0.seek_to(offset)?;
        }
        Ok(self.0.read_bytes(buf)?)
    }
}
