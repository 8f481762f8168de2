//! XFS, by the crate lamxfs, which replays the log in memory.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;

use lamxfs::{BlockRead, Error, Inode, Path, Xfs};

use super::contract::{Fault, Fs, FsResult, Kind, Meta, OpenFile};
use crate::io::Region;

/// The volume's bytes.
struct Blocks(Region);

impl BlockRead for Blocks {
    type Error = crate::error::Error;

    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Self::Error> {
        self.0.read(offset_bytes, buf)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

type Shared = Rc<RefCell<Xfs<Blocks>>>;

struct XfsTree(Shared);

/// Opens the file system.
pub(super) fn open(region: Region) -> FsResult<Box<dyn Fs>> {
    let size = region.size();
    let fs = Xfs::open(Blocks(region), size)?;
    Ok(Box::new(XfsTree(Rc::new(RefCell::new(fs)))))
}

impl Fs for XfsTree {
    fn stat(&self, path: &str) -> FsResult<Option<Meta>> {
        let mut fs = self.0.borrow_mut();
        let inode = match fs.resolve(Path::new(path.as_bytes())) {
            Ok(inode) => inode,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let metadata = fs.metadata(&inode)?;
        let kind = match () {
            () if metadata.is_file() => Kind::File,
            () if metadata.is_dir() => Kind::Dir,
            () if metadata.is_symlink() => Kind::Link,
            () => Kind::Other,
        };
        let size = metadata.size();
        Ok(Some(Meta { kind, size }))
    }

    fn link(&self, path: &str) -> FsResult<String> {
        let target = self.0.borrow_mut().read_link(Path::new(path.as_bytes()))?;
        String::from_utf8(target).map_err(|_| "the target of a link is not UTF-8".into())
    }

    fn list(&self, path: &str) -> FsResult<Vec<String>> {
        let entries = self.0.borrow_mut().read_dir(Path::new(path.as_bytes()))?;
        let names = entries.into_iter();
        Ok(names
            .filter_map(|entry| String::from_utf8(entry.name).ok())
            .collect())
    }

    fn open(&self, path: &str) -> FsResult<Box<dyn OpenFile>> {
        let inode = self.0.borrow_mut().resolve(Path::new(path.as_bytes()))?;
        let fs = Rc::clone(&self.0);
        Ok(Box::new(Open { fs, inode }))
    }
}

struct Open {
    fs: Shared,
    inode: Inode,
}

impl OpenFile for Open {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        Ok(self
            .fs
            .borrow_mut()
            .read_file_at(&self.inode, offset, buf)?)
    }
}
