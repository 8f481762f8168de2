//! Partition tables: GPT, MBR with logical partitions, or none.
//!
//! UEFI specification 2.10, chapter 5; the MBR as Linux reads it (`block/partitions/msdos.c`).

mod gpt;
mod mbr;
#[cfg(test)]
mod tests;
mod types;

use alloc::rc::Rc;
use alloc::string::String;

pub(crate) use types::{Partition, Table};
pub use types::{Role, TableKind};

use types::SECTORS;

use crate::error::{Error, ErrorKind, REPAIR, Result};
use crate::io::{Image, Region};

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
