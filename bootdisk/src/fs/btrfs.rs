//! btrfs with its subvolumes, by the crate lambutter.
//!
//! Which subvolume paths in a boot description start from depends on who wrote it: GRUB reads from
//! the top level, SUSE's from the default subvolume, and a system knows the one that is mounted as
//! its root. Each is a view.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use lambutter::{BlockRead, Btrfs, Error, Inode, Path};

use super::contract::{Fault, Fs, FsResult, Kind, Meta, OpenFile};
use crate::io::Region;

/// The id of the top level.
const TOP: u64 = 5;
/// Names that installers give to the subvolume of the root file system.
const ROOTS: [&str; 3] = ["@", "root", "@rootfs"];

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

type Shared = Rc<RefCell<Btrfs<Blocks>>>;

struct Tree(Shared);

/// Opens the file system: its top level, its default subvolume, and those with usual names.
pub(super) fn open(region: &Region) -> FsResult<Vec<(String, Box<dyn Fs>)>> {
    let size = region.size();
    let blocks = || Blocks(region.clone());
    let boxed = |tree| -> Box<dyn Fs> { Box::new(Tree(Rc::new(RefCell::new(tree)))) };
    let default = Btrfs::open(blocks(), size)?;
    let mut seen = vec![default.subvolume()];
    let mut views = Vec::new();
    if default.subvolume() != TOP {
        let top = Btrfs::open_subvol_id(blocks(), size, TOP)?;
        views.push((String::from("the default subvolume"), boxed(default)));
        views.push((String::new(), boxed(top)));
        seen.push(TOP);
    } else {
        views.push((String::new(), boxed(default)));
    }
    for name in ROOTS {
        let path = alloc::format!("/{name}");
        let path = Path::new(path.as_bytes()).ok_or("no path")?;
        match Btrfs::open_subvol_path(blocks(), size, path) {
            Ok(tree) if !seen.contains(&tree.subvolume()) => {
                seen.push(tree.subvolume());
                views.push((name.to_string(), boxed(tree)));
            }
            // One that is damaged or absent has nothing to boot from.
            _ => {}
        }
    }
    Ok(views)
}

fn path(text: &str) -> FsResult<Path<'_>> {
    Path::new(text.as_bytes()).ok_or_else(|| "a path is not absolute".into())
}

impl Fs for Tree {
    fn stat(&self, text: &str) -> FsResult<Option<Meta>> {
        let mut fs = self.0.borrow_mut();
        let inode = match fs.resolve(path(text)?) {
            Ok(inode) => inode,
            Err(Error::NotFound) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let metadata = fs.metadata(&inode)?;
        let kind = match () {
            () if metadata.is_file() => Kind::File,
            () if metadata.is_dir() => Kind::Dir,
            () if metadata.is_symlink() => Kind::Link,
            () => Kind::Other,
        };
        let size = metadata.size;
        Ok(Some(Meta { kind, size }))
    }

    fn link(&self, text: &str) -> FsResult<String> {
        let target = self.0.borrow_mut().read_link(path(text)?)?;
        String::from_utf8(target).map_err(|_| "the target of a link is not UTF-8".into())
    }

    fn list(&self, text: &str) -> FsResult<Vec<String>> {
        let entries = self.0.borrow_mut().read_dir(path(text)?)?;
        let names = entries.into_iter();
        Ok(names
            .filter_map(|entry| String::from_utf8(entry.name).ok())
            .collect())
    }

    fn open(&self, text: &str) -> FsResult<Box<dyn OpenFile>> {
        let inode = self.0.borrow_mut().resolve(path(text)?)?;
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
