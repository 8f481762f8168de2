//! Partition tables: GPT, MBR with logical partitions, or none.
//!
//! UEFI specification 2.10, chapter 5; the MBR as Linux reads it (`block/partitions/msdos.c`).

mod gpt;
mod mbr;
#[cfg(test)]
mod tests;

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, REPAIR, Result};
use crate::io::{Image, Region};

/// The kind of a partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum TableKind {
    /// A GUID partition table.
    Gpt,
    /// A GUID partition table of which the backup was used: the primary one is damaged.
    GptBackup,
    /// A DOS partition table.
    Mbr,
    /// None: a file system fills the disk.
    None,
}

/// What a partition is for, by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Role {
    /// The EFI system partition.
    Esp,
    /// The extended boot loader partition of the Boot Loader Specification.
    Xbootldr,
    /// The root file system for x86-64 (Discoverable Partitions Specification).
    LinuxRoot,
    /// Any Linux file system.
    Linux,
    /// Swap space.
    Swap,
    /// The part of a boot loader for BIOS machines.
    BiosBoot,
    /// A physical volume of LVM.
    Lvm,
    /// A member of a software RAID.
    Raid,
    /// The whole disk, which has no table.
    WholeDisk,
    /// Anything else.
    Other,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// As Linux and GRUB count: from 1; logical ones from 5; 0 is the whole disk.
    pub(crate) number: u32,
    /// In bytes.
    pub(crate) start: u64,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) role: Role,
    /// The type as GUID or number.
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
    /// What `root=PARTUUID=` names.
    pub(crate) uuid: Option<String>,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) kind: TableKind,
    /// Bytes per sector.
    pub(crate) sector: u64,
    pub(crate) partitions: Vec<Partition>,
}

/// The sector sizes that disks have.
const SECTORS: [u64; 2] = [512, 4096];

impl Table {
    /// The "table" of a disk without one.
    pub(crate) fn whole_disk(image: &Image) -> Self {
        let whole = Partition {
            number: 0,
            start: 0,
            size: image.size(),
            role: Role::WholeDisk,
            kind: String::new(),
            name: None,
            uuid: None,
        };
        Self {
            kind: TableKind::None,
            sector: 512,
            partitions: alloc::vec![whole],
        }
    }

    /// Reads the table. `looks_used` says whether a region holds something that is known: it
    /// decides between sector sizes where the table itself doesn't.
    pub(crate) fn read(
        image: &Rc<Image>,
        looks_used: impl Fn(&Region) -> Result<bool>,
    ) -> Result<Self> {
        let Some(sector0) = Region::new(image, 0, image.size()).peek::<512>(0)? else {
            return Err(Error::new(
                ErrorKind::Empty,
                "find a partition table on",
                "the disk image",
                alloc::format!("it has only {} bytes", image.size()),
                REPAIR,
            ));
        };
        let mbr = mbr::Sector::parse(&sector0);
        if mbr.as_ref().is_none_or(mbr::Sector::is_protective) {
            // As Linux does, a leftover backup table counts only where the MBR says that there is
            // a GPT.
            let protective = mbr.is_some();
            if let Some(table) = gpt::read(image)?
                && (protective || table.kind == TableKind::Gpt)
            {
                return Ok(table);
            }
            if protective {
                return Err(Error::new(
                    ErrorKind::Table,
                    "read",
                    "the GUID partition table of the disk image",
                    "neither the primary nor the backup table is valid",
                    "repair it (gdisk can), or use an intact copy of the image",
                ));
            }
        }
        let Some(mbr) = mbr else {
            return Ok(Self::whole_disk(image));
        };
        let mut first = None;
        for sector in SECTORS {
            let Some(table) = mbr.table(image, sector)? else {
                continue;
            };
            for partition in &table.partitions {
                let region = Region::new(image, partition.start, partition.size);
                if looks_used(&region)? {
                    return Ok(table);
                }
            }
            first.get_or_insert(table);
        }
        Ok(first.unwrap_or_else(|| Self::whole_disk(image)))
    }
}
