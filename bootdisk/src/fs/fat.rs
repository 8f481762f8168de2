//! FAT12, FAT16 and FAT32 with long names.
//!
//! "Microsoft FAT Specification", August 2005, and what Linux (`fs/fat`) accepts. Names are
//! compared without regard to case.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::contract::{Fault, Fs, FsKind, FsResult, Identity, Kind, Meta, OpenFile};
use crate::bytes::{field, le16, le32, number, size};
use crate::io::Region;

const DIR_ENTRY: usize = 32;
/// The specification's limit: a directory has at most 65,536 entries.
const MAX_DIR: u64 = 2 << 20;
const ATTRIBUTE_VOLUME: u8 = 0x08;
const ATTRIBUTE_DIR: u8 = 0x10;
const ATTRIBUTE_LONG: u8 = 0x0f;
/// Characters of a long name in one entry, by their offsets.
const LONG_UNITS: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// Width of a table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// Where things are, in bytes.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    width: Width,
    cluster: u64,
    clusters: u64,
    table: u64,
    table_size: u64,
    /// The fixed root directory of FAT12 and FAT16.
    root: u64,
    root_size: u64,
    /// The first cluster of FAT32's root directory.
    root_cluster: u32,
    /// Where cluster 2 is.
    data: u64,
}

impl Geometry {
    /// Judges a boot sector. Returns nothing if it isn't FAT's.
    fn parse(boot: &[u8]) -> Option<Self> {
        let byte = |at: usize| boot.get(at).copied();
        let sector = u64::from(le16(boot, 11)?);
        let per_cluster = byte(13)?;
        let reserved = u64::from(le16(boot, 14)?);
        let tables = u64::from(byte(16)?);
        let root_entries = u64::from(le16(boot, 17)?);
        let plausible = matches!(sector, 512 | 1024 | 2048 | 4096)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && (1..=2).contains(&tables)
            && byte(21)? >= 0xf0
            && le16(boot, 510)? == 0xaa55
            && matches!(byte(0)?, 0xeb | 0xe9);
        if !plausible {
            return None;
        }
        let sectors = match le16(boot, 19)? {
            0 => u64::from(le32(boot, 32)?),
            few => u64::from(few),
        };
        let short = u64::from(le16(boot, 22)?);
        let (wide, table_sectors) = match short {
            0 => (true, u64::from(le32(boot, 36)?)),
            short => (false, short),
        };
        let table = reserved.checked_mul(sector)?;
        let table_size = table_sectors.checked_mul(sector)?;
        let root = table.checked_add(tables.checked_mul(table_size)?)?;
        let root_size = root_entries
            .checked_mul(32)?
            .checked_next_multiple_of(sector)?;
        let data = root.checked_add(root_size)?;
        let cluster = u64::from(per_cluster).checked_mul(sector)?;
        let clusters = sectors
            .checked_mul(sector)?
            .checked_sub(data)?
            .checked_div(cluster)?;
        let width = match clusters {
            _ if wide => Width::Fat32,
            0..4085 => Width::Fat12,
            _ => Width::Fat16,
        };
        (clusters > 0 && table_size > 0).then_some(Self {
            width,
            cluster,
            clusters,
            table,
            table_size,
            root,
            root_size,
            root_cluster: if wide { le32(boot, 44)? } else { 0 },
            data,
        })
    }
}

/// Recognises a boot sector.
pub(super) fn identify(boot: &[u8]) -> Option<Identity> {
    let geometry = Geometry::parse(boot)?;
    let (serial, label) = if geometry.width == Width::Fat32 {
        (67, 71)
    } else {
        (39, 43)
    };
    let serial = le32(boot, serial)?;
    let label = boot.get(label..)?.get(..11).and_then(field);
    Some(Identity {
        kind: FsKind::Fat,
        uuid: Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
        label: label.filter(|label| label != "NO NAME"),
    })
}

/// An open FAT file system.
pub(super) struct Fat {
    region: Region,
    geometry: Geometry,
}

struct DirEntry {
    long: Option<String>,
    short: String,
    dir: bool,
    cluster: u32,
    size: u32,
}

impl DirEntry {
    fn name(&self) -> &str {
        self.long.as_deref().unwrap_or(&self.short)
    }

    fn is_called(&self, name: &str) -> bool {
        same(&self.short, name) || self.long.as_ref().is_some_and(|long| same(long, name))
    }
}

fn same(one: &str, other: &str) -> bool {
    let lower = |text: &str| {
        text.chars()
            .flat_map(char::to_lowercase)
            .collect::<Vec<_>>()
    };
    one.eq_ignore_ascii_case(other) || lower(one) == lower(other)
}

impl Fat {
    pub(super) fn open(region: Region) -> FsResult<Self> {
        let boot = region.peek::<512>(0)?.ok_or("it is too small")?;
        let geometry = Geometry::parse(&boot).ok_or("its boot sector is damaged")?;
        Ok(Self { region, geometry })
    }

    /// The cluster after `cluster`, or nothing at the end of the chain.
    fn next(&self, cluster: u32) -> FsResult<Option<u32>> {
        let index = u64::from(cluster);
        let (at, bits) = match self.geometry.width {
            Width::Fat12 => (index.saturating_add(index / 2), 12),
            Width::Fat16 => (index.saturating_mul(2), 16),
            Width::Fat32 => (index.saturating_mul(4), 28),
        };
        let mut bytes = [0; 4];
        let length = if bits == 28 { 4 } else { 2 };
        if at.saturating_add(length) > self.geometry.table_size {
            return Err("a cluster chain leaves the allocation table".into());
        }
        let (used, _) = bytes.split_at_mut(size(length));
        self.region
            .read(self.geometry.table.saturating_add(at), used)?;
        let mut value = u32::from_le_bytes(bytes);
        if bits == 12 && index % 2 == 1 {
            value >>= 4;
        }
        value &= (1u32 << bits).saturating_sub(1);
        // From ...F8 on it is the end, ...F7 is a bad cluster.
        let end = (1u32 << bits).saturating_sub(8);
        match value {
            value if value >= end => Ok(None),
            0 | 1 => Err("a cluster chain has a free cluster".into()),
            value if u64::from(value) >= self.geometry.clusters.saturating_add(2) => {
                Err("a cluster chain leaves the file system".into())
            }
            value => Ok(Some(value)),
        }
    }

    /// Where a cluster is in the partition.
    fn place(&self, cluster: u32) -> FsResult<u64> {
        let index = u64::from(cluster).checked_sub(2);
        let index = index.filter(|index| *index < self.geometry.clusters);
        let index = index.ok_or("a file starts outside of the file system")?;
        Ok(self
            .geometry
            .data
            .saturating_add(index.saturating_mul(self.geometry.cluster)))
    }

    /// The bytes of a directory; cluster 0 is the root.
    fn directory(&self, cluster: u32) -> FsResult<Vec<u8>> {
        let geometry = &self.geometry;
        let first = match (cluster, geometry.width) {
            (0, Width::Fat32) => geometry.root_cluster,
            (0, _) => {
                let mut bytes = vec![0; size(geometry.root_size.min(MAX_DIR))];
                self.region.read(geometry.root, &mut bytes)?;
                return Ok(bytes);
            }
            (cluster, _) => cluster,
        };
        let mut bytes = Vec::new();
        let mut next = Some(first);
        while let Some(cluster) = next {
            if number(bytes.len()) >= MAX_DIR {
                return Err("a directory has more than 65536 entries, or runs in circles".into());
            }
            let mut block = vec![0; size(geometry.cluster)];
            self.region.read(self.place(cluster)?, &mut block)?;
            let ends = block
                .chunks_exact(DIR_ENTRY)
                .any(|entry| entry.first() == Some(&0));
            bytes.extend_from_slice(&block);
            next = if ends { None } else { self.next(cluster)? };
        }
        Ok(bytes)
    }

    fn entries(&self, cluster: u32) -> FsResult<Vec<DirEntry>> {
        let bytes = self.directory(cluster)?;
        let mut entries = Vec::new();
        let mut long = LongName::default();
        for raw in bytes.chunks_exact(DIR_ENTRY) {
            let (Some(first), Some(attributes)) = (raw.first(), raw.get(11)) else {
                break;
            };
            match (*first, *attributes) {
                (0, _) => break,
                (0xe5, _) => long = LongName::default(),
                (_, ATTRIBUTE_LONG) => long.add(raw),
                (_, attributes) => {
                    let name = core::mem::take(&mut long).finish(raw);
                    if attributes & ATTRIBUTE_VOLUME == 0 {
                        entries.extend(entry(raw, name, attributes));
                    }
                }
            }
        }
        Ok(entries)
    }

    fn lookup(&self, path: &str) -> FsResult<Option<DirEntry>> {
        let mut found = DirEntry {
            long: None,
            short: String::new(),
            dir: true,
            cluster: 0,
            size: 0,
        };
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if !found.dir {
                return Ok(None);
            }
            let entries = self.entries(found.cluster)?;
            match entries.into_iter().find(|entry| entry.is_called(name)) {
                Some(entry) => found = entry,
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }
}

/// A long name in the making. Its pieces come last one first, each with its number.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    /// The number of the piece that came last.
    piece: u8,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, raw: &[u8]) {
        const LAST: u8 = 0x40;
        let (Some(&order), Some(&checksum)) = (raw.first(), raw.get(13)) else {
            return;
        };
        let piece = order & !LAST;
        if order & LAST != 0 && (1..=20).contains(&piece) {
            *self = Self {
                units: Vec::new(),
                piece,
                checksum,
            };
        } else if self.piece != 0
            && piece != 0
            && Some(piece) == self.piece.checked_sub(1)
            && checksum == self.checksum
        {
            self.piece = piece;
        } else {
            *self = Self::default();
            return;
        }
        let units = LONG_UNITS.into_iter().filter_map(|at| le16(raw, at));
        let mut units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
        units.append(&mut self.units);
        self.units = units;
    }

    /// The whole name, if it belongs to the short entry `raw`.
    fn finish(self, raw: &[u8]) -> Option<String> {
        let sum = raw
            .get(..11)?
            .iter()
            .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if self.piece != 1 || sum != self.checksum {
            return None;
        }
        String::from_utf16(&self.units).ok()
    }
}

fn entry(raw: &[u8], long: Option<String>, attributes: u8) -> Option<DirEntry> {
    let short = short_name(raw)?;
    if short == "." || short == ".." {
        return None;
    }
    let high = u32::from(le16(raw, 20)?);
    Some(DirEntry {
        long,
        short,
        dir: attributes & ATTRIBUTE_DIR != 0,
        cluster: high << 16 | u32::from(le16(raw, 26)?),
        size: le32(raw, 28)?,
    })
}

/// The 8.3 name, with the case that Windows NT and Linux keep in byte 12.
fn short_name(raw: &[u8]) -> Option<String> {
    const LOWER_BASE: u8 = 0x08;
    const LOWER_EXTENSION: u8 = 0x10;
    let case = raw.get(12)?;
    let part = |from, to, lower: bool| -> Option<String> {
        let text: String = raw
            .get(from..to)?
            .iter()
            .map(|byte| char::from(*byte))
            .collect();
        let text = text.trim_end();
        Some(if lower {
            text.to_lowercase()
        } else {
            String::from(text)
        })
    };
    let base = part(0, 8, case & LOWER_BASE != 0)?;
    let extension = part(8, 11, case & LOWER_EXTENSION != 0)?;
    Some(if extension.is_empty() {
        base
    } else {
        format!("{base}.{extension}")
    })
}

impl Fs for Fat {
    fn stat(&self, path: &str) -> FsResult<Option<Meta>> {
        let found = self.lookup(path)?;
        Ok(found.map(|entry| Meta {
            kind: if entry.dir { Kind::Dir } else { Kind::File },
            size: u64::from(entry.size),
        }))
    }

    fn link(&self, _: &str) -> FsResult<String> {
        Err("FAT has no symbolic links".into())
    }

    fn list(&self, path: &str) -> FsResult<Vec<String>> {
        let dir = self.lookup(path)?.ok_or("no such directory")?;
        let entries = self.entries(dir.cluster)?;
        Ok(entries
            .iter()
            .map(|entry| String::from(entry.name()))
            .collect())
    }

    fn open(&self, path: &str) -> FsResult<Box<dyn OpenFile>> {
        let entry = self.lookup(path)?.ok_or("no such file")?;
        Ok(Box::new(FatFile {
            fat: Self {
                region: self.region.clone(),
                geometry: self.geometry,
            },
            size: u64::from(entry.size),
            first: entry.cluster,
            at: (0, entry.cluster),
        }))
    }
}

struct FatFile {
    fat: Fat,
    size: u64,
    first: u32,
    /// A cluster's number within the file, and which it is.
    at: (u64, u32),
}

impl FatFile {
    /// The file's `wanted`th cluster, from where the last read was.
    fn cluster(&mut self, wanted: u64) -> FsResult<u32> {
        if self.at.0 > wanted {
            self.at = (0, self.first);
        }
        while self.at.0 < wanted {
            let next = self.fat.next(self.at.1)?;
            let next = next.ok_or("a file's cluster chain ends before its size")?;
            self.at = (self.at.0.saturating_add(1), next);
        }
        Ok(self.at.1)
    }

    /// How many bytes from cluster `at` on are in one piece, at most `wanted`.
    fn run(&mut self, cluster: u32, wanted: u64) -> FsResult<u64> {
        let mut length = self.fat.geometry.cluster;
        while length < wanted {
            let here = self.at.1;
            match self.fat.next(here)? {
                Some(next) if Some(next) == here.checked_add(1) => {
                    self.at = (self.at.0.saturating_add(1), next);
                    length = length.saturating_add(self.fat.geometry.cluster);
                }
                _ => break,
            }
        }
        debug_assert!(self.at.1 >= cluster);
        Ok(length)
    }
}

impl OpenFile for FatFile {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        let left = self.size.saturating_sub(offset);
        let wanted = number(buf.len()).min(left);
        if wanted == 0 {
            return Ok(0);
        }
        let cluster_size = self.fat.geometry.cluster;
        let within = offset.checked_rem(cluster_size).unwrap_or(0);
        let index = offset.checked_div(cluster_size).unwrap_or(0);
        let cluster = self.cluster(index)?;
        let place = self.fat.place(cluster)?;
        let run = self.run(cluster, within.saturating_add(wanted))?;
        let count = size(wanted.min(run.saturating_sub(within)));
        let piece = buf
            .get_mut(..count)
            .ok_or_else(|| Fault::from("too much"))?;
        self.fat.region.read(place.saturating_add(within), piece)?;
        Ok(count)
    }
}
