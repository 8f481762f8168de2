//! ISO 9660 with Rock Ridge names (ECMA-119; IEEE P1282).
//!
//! Without Rock Ridge names are in lower case and without version, as Linux shows them.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::contract::{Fs, FsResult, Kind, Meta, OpenFile};
use crate::bytes::{le32, number, size};
use crate::io::Region;

const SECTOR: u64 = 2048;
/// Where the primary volume descriptor is.
const DESCRIPTOR: u64 = 16 * SECTOR;
const MAX_DIR: u64 = 2 << 20;
/// Continuation areas that one record may chain.
const MAX_CONTINUATIONS: u32 = 8;

const FLAG_DIR: u8 = 0x02;
const FLAG_MORE_EXTENTS: u8 = 0x80;

#[derive(Debug, Clone, Copy)]
struct Extent {
    start: u64,
    size: u64,
}

/// An open ISO 9660 file system.
pub(super) struct Iso {
    region: Region,
    block: u64,
    root: Extent,
}

struct Record {
    name: String,
    meta: Meta,
    extent: Extent,
    target: Option<String>,
    /// The file goes on in another record.
    split: bool,
}

/// What the system use areas of a record say.
#[derive(Default)]
struct RockRidge {
    name: Option<String>,
    target: Option<String>,
    mode: Option<u32>,
    /// Whether the last component of the link's target goes on.
    open: bool,
}

impl Iso {
    pub(super) fn open(region: Region) -> FsResult<Self> {
        let descriptor = region.peek::<2048>(DESCRIPTOR)?.ok_or("it is cut short")?;
        if descriptor.first() != Some(&1) {
            return Err("it has no primary volume descriptor".into());
        }
        let block = u64::from(crate::bytes::le16(&descriptor, 128).unwrap_or(0));
        if !matches!(block, 512 | 1024 | 2048) {
            return Err("its block size is not 512, 1024 or 2048".into());
        }
        let root = descriptor
            .get(156..190)
            .and_then(|record| extent(record, block));
        let root = root.ok_or("its root directory is damaged")?;
        Ok(Self {
            region,
            block,
            root,
        })
    }

    fn entries(&self, dir: Extent) -> FsResult<Vec<Record>> {
        if dir.size > MAX_DIR {
            return Err("a directory has more than 2 MiB".into());
        }
        let mut bytes = vec![0; size(dir.size)];
        self.region.read(dir.start, &mut bytes)?;
        let mut records = Vec::new();
        // Records don't cross sectors; a length of 0 fills the rest of one.
        for sector in bytes.chunks(size(SECTOR)) {
            let mut rest = sector;
            while let Some((&length, _)) = rest.split_first() {
                let Some((raw, next)) = rest.split_at_checked(usize::from(length)) else {
                    return Err("a directory record is damaged".into());
                };
                if length < 34 {
                    break;
                }
                records.extend(self.record(raw)?);
                rest = next;
            }
        }
        Ok(records)
    }

    /// One record; nothing for the directory itself and its parent.
    fn record(&self, raw: &[u8]) -> FsResult<Option<Record>> {
        let damaged = "a directory record is damaged";
        let extent = extent(raw, self.block).ok_or(damaged)?;
        let flags = *raw.get(25).ok_or(damaged)?;
        let length = usize::from(*raw.get(32).ok_or(damaged)?);
        let end = length.saturating_add(33);
        let plain = raw.get(33..end).ok_or(damaged)?;
        if matches!(plain, [0] | [1]) {
            return Ok(None);
        }
        // A name of even length is padded.
        let padding = usize::from(length.is_multiple_of(2));
        let area = raw.get(end.saturating_add(padding)..).unwrap_or_default();
        let mut extra = RockRidge::default();
        self.system_use(area, &mut extra)?;
        let name = extra.name.unwrap_or_else(|| plain_name(plain));
        let kind = match extra.mode.map(|mode| mode & 0o170_000) {
            _ if flags & FLAG_DIR != 0 => Kind::Dir,
            _ if extra.target.is_some() => Kind::Link,
            None | Some(0o100_000) => Kind::File,
            _ => Kind::Other,
        };
        let size = extent.size;
        Ok(Some(Record {
            name,
            meta: Meta { kind, size },
            extent,
            target: extra.target,
            split: flags & FLAG_MORE_EXTENTS != 0,
        }))
    }

    /// Reads the entries of a system use area and of those that it continues in.
    fn system_use(&self, area: &[u8], extra: &mut RockRidge) -> FsResult<()> {
        let mut next = read_area(area, extra);
        for _ in 0..MAX_CONTINUATIONS {
            let Some((block, offset, length)) = next else {
                return Ok(());
            };
            let mut bytes = vec![0; size(u64::from(length).min(SECTOR))];
            let at = u64::from(block).saturating_mul(self.block);
            self.region
                .read(at.saturating_add(u64::from(offset)), &mut bytes)?;
            next = read_area(&bytes, extra);
        }
        Err("a record continues without end".into())
    }

    fn lookup(&self, path: &str) -> FsResult<Option<Record>> {
        let mut found = Record {
            name: String::new(),
            meta: Meta {
                kind: Kind::Dir,
                size: 0,
            },
            extent: self.root,
            target: None,
            split: false,
        };
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if found.meta.kind != Kind::Dir {
                return Ok(None);
            }
            let entries = self.entries(found.extent)?;
            match entries.into_iter().find(|entry| entry.name == name) {
                Some(entry) => found = entry,
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }
}

fn extent(record: &[u8], block: u64) -> Option<Extent> {
    let skipped = u64::from(*record.get(1)?);
    let first = u64::from(le32(record, 2)?).checked_add(skipped)?;
    Some(Extent {
        start: first.checked_mul(block)?,
        size: u64::from(le32(record, 10)?),
    })
}

fn plain_name(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let text = text.split(';').next().unwrap_or_default();
    text.trim_end_matches('.').to_lowercase()
}

/// Reads the entries of one area. Returns block, offset and length of its continuation.
fn read_area(area: &[u8], extra: &mut RockRidge) -> Option<(u32, u32, u32)> {
    let mut rest = area;
    let mut next = None;
    while let Some(&length) = rest.get(2) {
        let length = usize::from(length);
        let (entry, after) = rest.split_at_checked(length).filter(|_| length >= 4)?;
        let data = entry.get(5..).unwrap_or_default();
        match entry.get(..2) {
            Some(b"NM") => {
                let part = String::from_utf8_lossy(data);
                extra.name.get_or_insert_default().push_str(&part);
            }
            Some(b"PX") => extra.mode = le32(entry, 4),
            Some(b"SL") => link(data, extra),
            Some(b"CE") => {
                next = Some((le32(entry, 4)?, le32(entry, 12)?, le32(entry, 20)?));
            }
            Some(b"ST") => break,
            _ => {}
        }
        rest = after;
    }
    next
}

/// Adds the components of a symbolic link.
fn link(data: &[u8], extra: &mut RockRidge) {
    const CONTINUE: u8 = 1;
    const CURRENT: u8 = 2;
    const PARENT: u8 = 4;
    const ROOT: u8 = 8;
    let target = extra.target.get_or_insert_default();
    let mut rest = data;
    while let Some((&[flags, length], after)) = rest.split_first_chunk::<2>() {
        let Some((content, after)) = after.split_at_checked(usize::from(length)) else {
            return;
        };
        if !extra.open && !target.is_empty() && !target.ends_with('/') {
            target.push('/');
        }
        match flags & (CURRENT | PARENT | ROOT) {
            CURRENT => target.push('.'),
            PARENT => target.push_str(".."),
            ROOT => target.push('/'),
            _ => target.push_str(&String::from_utf8_lossy(content)),
        }
        extra.open = flags & CONTINUE != 0;
        rest = after;
    }
}

impl Fs for Iso {
    fn stat(&self, path: &str) -> FsResult<Option<Meta>> {
        Ok(self.lookup(path)?.map(|record| record.meta))
    }

    fn link(&self, path: &str) -> FsResult<String> {
        let record = self.lookup(path)?;
        let target = record.and_then(|record| record.target);
        target.ok_or_else(|| "no symbolic link".into())
    }

    fn list(&self, path: &str) -> FsResult<Vec<String>> {
        let dir = self.lookup(path)?.ok_or("no such directory")?;
        let entries = self.entries(dir.extent)?;
        Ok(entries.iter().map(|entry| entry.name.to_string()).collect())
    }

    fn open(&self, path: &str) -> FsResult<Box<dyn OpenFile>> {
        let record = self.lookup(path)?.ok_or("no such file")?;
        if record.split {
            return Err("a file of more than 4 GiB is in several pieces".into());
        }
        Ok(Box::new(IsoFile {
            region: self.region.clone(),
            extent: record.extent,
        }))
    }
}

struct IsoFile {
    region: Region,
    extent: Extent,
}

impl OpenFile for IsoFile {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        let left = self.extent.size.saturating_sub(offset);
        let count = size(number(buf.len()).min(left));
        if let Some(piece) = buf.get_mut(..count) {
            self.region
                .read(self.extent.start.saturating_add(offset), piece)?;
        }
        Ok(count)
    }
}
