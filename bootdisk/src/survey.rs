//! What is on an image: its partitions and the file systems in them.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};
use crate::fs::{Found, Refusal, Volume, probe};
use crate::io::{Budget, Image, ReadAt, Region};
use crate::table::{Partition, Role, Table, TableKind};

/// A disk image whose partitions and file systems have been looked at.
///
/// It knows what the image boots: [`Survey::plan`] and [`Survey::listing`].
#[derive(Debug)]
pub struct Survey {
    pub(crate) image: Rc<Image>,
    pub(crate) table: Table,
    /// One for each partition, in the table's order.
    pub(crate) slots: Vec<Slot>,
}

/// A partition and what is in it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) partition: Partition,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    Volume(Rc<Volume>),
    Refused(Refusal),
    /// A file system that cannot be opened.
    Broken(Error),
    Unknown,
}

impl Slot {
    pub(crate) fn volume(&self) -> Option<&Rc<Volume>> {
        match &self.content {
            Content::Volume(volume) => Some(volume),
            _ => None,
        }
    }
}

impl Survey {
    /// Reads the partition table and identifies the file systems of the image behind `reader`.
    /// Reads no boot description.
    ///
    /// # Errors
    ///
    /// The reader fails, the budget is used up, or the partition table is damaged. A file system
    /// that cannot be read is no error: it is in the listing, and it is the reason if nothing else
    /// boots.
    pub fn new(reader: impl ReadAt + 'static, budget: Budget) -> Result<Self> {
        let image = Image::new(Box::new(reader), budget);
        let used = |region: &Region| Ok(matches!(probe(region)?, Found::Fs(_) | Found::Refused(_)));
        let table = Table::read(&image, used)?;
        let mut slots = Vec::new();
        for partition in &table.partitions {
            let content = match look(&image, partition) {
                Ok(content) => content,
                Err(error) if error.is_final() => return Err(error),
                Err(error) => Content::Broken(error),
            };
            let partition = partition.clone();
            slots.push(Slot { partition, content });
        }
        Ok(Self {
            image,
            table,
            slots,
        })
    }

    /// Slots with a file system, those first that boot loaders look at first.
    pub(crate) fn volumes(&self) -> Vec<(usize, &Rc<Volume>)> {
        let mut volumes: Vec<_> = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| Some((index, slot.volume()?)))
            .collect();
        volumes.sort_by_key(|(index, volume)| (self.rank(*index, volume), *index));
        volumes
    }

    fn rank(&self, slot: usize, volume: &Volume) -> u32 {
        let label = volume.identity.label.as_deref().unwrap_or_default();
        match self.slots.get(slot).map(|slot| slot.partition.role) {
            Some(Role::Esp) => 0,
            Some(Role::Xbootldr) => 1,
            _ if label.to_ascii_lowercase().contains("boot") => 2,
            Some(Role::LinuxRoot) => 3,
            _ => 4,
        }
    }

    /// What GRUB calls a slot: "hd0,gpt1".
    pub(crate) fn device(&self, slot: usize) -> String {
        let number = self.slots.get(slot).map_or(0, |slot| slot.partition.number);
        match (number, self.table.kind) {
            (0, _) | (_, TableKind::None) => String::from("hd0"),
            (number, TableKind::Mbr) => format!("hd0,msdos{number}"),
            (number, _) => format!("hd0,gpt{number}"),
        }
    }

    /// The slot that a device name of GRUB means. There is one disk, so its number is not looked
    /// at.
    pub(crate) fn slot_of(&self, device: &str) -> Option<usize> {
        let (disk, partition) = device.split_once(',').unwrap_or((device, ""));
        let digits = disk.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        if digits.len() == disk.len() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let partition = partition.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        let number = if partition.is_empty() {
            0
        } else {
            partition.parse().ok()?
        };
        self.slots
            .iter()
            .position(|slot| slot.partition.number == number)
    }

    /// Why nothing is found, if something on the disk explains it.
    pub(crate) fn explanation(&self) -> Option<Error> {
        let refused = self.slots.iter().find_map(|slot| match &slot.content {
            Content::Refused(refusal) if refusal.bootable => Some(Error::new(
                ErrorKind::Unsupported,
                "boot from",
                format!("{} ({})", place(&slot.partition), refusal.name),
                refusal.cause,
                "put /boot on a partition of its own with FAT, ext4, XFS or btrfs, give the kernel with --kernel, \
                 or boot through firmware with --firmware",
            )),
            _ => None,
        });
        let broken = self.slots.iter().find_map(|slot| match &slot.content {
            Content::Broken(error) => Some(error.clone()),
            _ => None,
        });
        let volumes = self.slots.iter().filter_map(Slot::volume);
        let trouble = volumes.filter_map(|volume| volume.trouble()).next();
        trouble.or(broken).or(refused)
    }
}

/// "partition 2", or "the whole disk".
pub(crate) fn place(partition: &Partition) -> String {
    match partition.number {
        0 => String::from("the whole disk"),
        number => format!("partition {number}"),
    }
}

fn look(image: &Rc<Image>, partition: &Partition) -> Result<Content> {
    if partition.start >= image.size() && partition.size > 0 {
        return Err(Error::new(
            ErrorKind::Cut,
            "open",
            place(partition),
            format!(
                "it starts at byte {}, behind the image's end at {}",
                partition.start,
                image.size()
            ),
            "the image is cut short: copy or download it again",
        ));
    }
    let region = Region::new(image, partition.start, partition.size);
    Ok(match probe(&region)? {
        Found::Fs(identity) => {
            let place = format!("{} ({})", place(partition), identity.kind);
            Content::Volume(Rc::new(Volume::open(region, identity, place)?))
        }
        Found::Refused(refusal) => Content::Refused(refusal),
        Found::Unknown => Content::Unknown,
    })
}
