//! DOS partition tables with logical partitions.

use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;

use super::types::{Partition, Role, Table, TableKind};
use crate::bytes::{le16, le32};
use crate::error::Result;
use crate::io::{Image, Region};

const SIGNATURE: u16 = 0xaa55;
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The first logical partition's number.
const FIRST_LOGICAL: u32 = 5;
/// Linux stops at 256 partitions; nobody has half of that.
const MAX_LOGICAL: u32 = 128;

#[derive(Debug, Clone, Copy)]
struct Slot {
    kind: u8,
    start: u32,
    sectors: u32,
}

/// The first sector of a disk, if it holds a partition table.
#[derive(Debug)]
pub(super) struct Sector {
    slots: [Slot; 4],
    disk: u32,
}

/// The four slots of a sector with a table, unless they cannot be one: the boot sector of a file
/// system has the same signature, and code in their place.
fn slots(sector: &[u8; 512]) -> Option<[Slot; 4]> {
    if le16(sector, 510)? != SIGNATURE {
        return None;
    }
    let slot = |at: usize| {
        let status = *sector.get(at)?;
        if status != 0 && status != 0x80 {
            return None;
        }
        Some(Slot {
            kind: *sector.get(at.checked_add(4)?)?,
            start: le32(sector, at.checked_add(8)?)?,
            sectors: le32(sector, at.checked_add(12)?)?,
        })
    };
    Some([slot(446)?, slot(462)?, slot(478)?, slot(494)?])
}

impl Slot {
    fn used(self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    fn extended(self) -> bool {
        self.used() && EXTENDED.contains(&self.kind)
    }

    fn partition(self, number: u32, base: u64, sector: u64, disk: u32) -> Partition {
        let first = base.saturating_add(u64::from(self.start));
        Partition {
            number,
            start: first.saturating_mul(sector),
            size: u64::from(self.sectors).saturating_mul(sector),
            role: match self.kind {
                0xef => Role::Esp,
                0xea => Role::Xbootldr,
                0x83 => Role::Linux,
                0x82 => Role::Swap,
                0x8e => Role::Lvm,
                0xfd => Role::Raid,
                _ => Role::Other,
            },
            kind: format!("0x{:02x}", self.kind),
            name: None,
            uuid: (disk != 0).then(|| format!("{disk:08x}-{number:02x}")),
        }
    }
}

impl Sector {
    pub(super) fn parse(sector: &[u8; 512]) -> Option<Self> {
        let slots = slots(sector)?;
        let disk = le32(sector, 440)?;
        let first = slots.iter().find(|slot| slot.used())?;
        // Hybrid CD images have a partition that starts at 0: the whole disk says it better.
        (first.start != 0).then_some(Self { slots, disk })
    }

    /// Whether the table only keeps other tools away from a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.slots.iter().any(|slot| slot.kind == PROTECTIVE)
    }

    /// The table, if its partitions start inside the image with sectors of this size.
    pub(super) fn table(&self, image: &Rc<Image>, sector: u64) -> Result<Option<Table>> {
        let mut partitions = Vec::new();
        for (slot, number) in self.slots.iter().zip(1u32..) {
            if slot.extended() {
                self.logical(image, sector, *slot, &mut partitions)?;
            } else if slot.used() {
                partitions.push(slot.partition(number, 0, sector, self.disk));
            }
        }
        partitions.sort_by_key(|partition| partition.number);
        let inside = partitions
            .iter()
            .any(|partition| partition.start < image.size());
        Ok(inside.then_some(Table {
            kind: TableKind::Mbr,
            sector,
            partitions,
        }))
    }

    /// Follows the chain of extended boot records. Each link's position is relative to the
    /// extended partition, each partition's to its link.
    fn logical(
        &self,
        image: &Rc<Image>,
        sector: u64,
        outer: Slot,
        found: &mut Vec<Partition>,
    ) -> Result<()> {
        let base = u64::from(outer.start);
        let mut link = base;
        let mut number = FIRST_LOGICAL;
        // A chain that runs in circles ends at the limit.
        for _ in 0..MAX_LOGICAL {
            let at = link.saturating_mul(sector);
            let Some(record) = Region::new(image, 0, image.size()).peek::<512>(at)? else {
                break;
            };
            let Some(slots) = slots(&record) else { break };
            for slot in slots {
                if slot.used() && !slot.extended() {
                    found.push(slot.partition(number, link, sector, self.disk));
                    number = number.saturating_add(1);
                }
            }
            let Some(next) = slots.into_iter().find(|slot| slot.extended()) else {
                break;
            };
            let next = base.saturating_add(u64::from(next.start));
            if next == link {
                break;
            }
            link = next;
        }
        Ok(())
    }
}
