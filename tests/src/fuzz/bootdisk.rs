//! A disk image with any bytes in it, through everything that looks at one.
//!
//! Input: a byte that says what the rest is: a boot description on a FAT file system, or changes to
//! an image with a partition table and every kind of description. Held: the answer is a plan or an
//! error, and no more is read than the budget allows.
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers of a small image that is built here"
)]

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::rc::Rc;

use splitring_bootdisk::{Budget, Choice, ReadAt, ReadFault, Survey};

use super::Bytes;

const SECTOR: usize = 512;
/// Sectors of the file system, one cluster each.
const SECTORS: usize = 4000;
const FAT_SECTORS: usize = 12;
const ROOT_ENTRIES: usize = 64;
const DATA: usize = 1 + FAT_SECTORS + ROOT_ENTRIES * 32 / SECTOR;
/// Where the partition starts, in sectors.
const START: usize = 64;

/// What may be read in all: the survey's budget, and what the files' contents are allowed.
const MAX_READ: u64 = 1 << 30;

/// Runs one input.
///
/// # Panics
/// An invariant is broken.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let kind = bytes.u8();
    let text = bytes.take(data.len());
    match kind % 6 {
        0 => exercise(image(&[("GRUB    CFG", text), ("VMLINUZ    ", b"k")])),
        1 => exercise(image(&[("A       EFI", text)])),
        2 => exercise(image(&[("A       CON", text), ("VMLINUZ    ", b"k")])),
        3 => exercise(image(&[("SYSLINUXCFG", text), ("VMLINUZ    ", b"k")])),
        4 => exercise(image(&[
            (
                "GRUB    CFG",
                b"load_env\nblscfg\nmenuentry a { linux /grub/vmlinuz $x }\n",
            ),
            ("GRUBENV    ", text),
            ("VMLINUZ    ", b"k"),
        ])),
        _ => changed(text),
    }
}

/// Changes to an image of several descriptions: three bytes of place and one of content each.
fn changed(text: &[u8]) {
    let script = b"set default=0\nmenuentry a { search --file --set=root /grub/vmlinuz\nlinux /grub/vmlinuz ro\n}\n";
    let mut image = image(&[
        ("GRUB    CFG", script),
        ("GRUBENV    ", b"# GRUB Environment Block\nx=1\n####"),
        ("SYSLINUXCFG", b"label a\nkernel vmlinuz\n"),
        ("VMLINUZ    ", &[7; 3000]),
    ]);
    // Most of the image is free space: places are counted among what is used.
    let used: Vec<usize> = (0..image.len() / SECTOR)
        .filter(|sector| {
            image[sector * SECTOR..][..SECTOR]
                .iter()
                .any(|byte| *byte != 0)
        })
        .collect();
    for change in text.chunks_exact(4) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]]));
        let sector = used[place % used.len()];
        let within = (usize::from(change[2]) * 2 + place / used.len() % 2) % SECTOR;
        image[sector * SECTOR + within] = change[3];
    }
    exercise(image);
}

/// Counts what is read.
struct Counted {
    image: Vec<u8>,
    read: Rc<Cell<u64>>,
}

impl ReadAt for Counted {
    fn size(&self) -> u64 {
        self.image.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFault> {
        self.read.set(self.read.get() + buf.len() as u64);
        self.image.read_at(offset, buf)
    }
}

fn exercise(image: Vec<u8>) {
    let read = Rc::new(Cell::new(0));
    let counted = Counted {
        image,
        read: Rc::clone(&read),
    };
    let Ok(survey) = Survey::new(counted, Budget::new()) else {
        return;
    };
    let _ = survey.listing(&Choice::new());
    let _ = survey.plan(&Choice::new().entry("0"));
    assert!(
        read.get() <= Budget::new().bytes,
        "the survey has read {} bytes",
        read.get()
    );
    if let Ok(plan) = survey.plan(&Choice::new().append("x")) {
        for file in std::iter::once(&plan.kernel).chain(&plan.initrds) {
            // A file's size is what its directory says, so a hole of half a gibibyte is possible.
            if file.size() < 1 << 24 {
                let _ = file.open().and_then(|open| open.read_all());
            }
        }
    }
    assert!(
        read.get() <= MAX_READ,
        "{} bytes have been read",
        read.get()
    );
}

/// A disk with an MBR and a FAT12 file system whose folders `GRUB`, `EFI/LINUX`, `LOADER/ENTRIES`
/// and `SYSLINUX` all hold these files.
fn image(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut fat = Fat {
        sectors: vec![0; SECTORS * SECTOR],
        next: 2,
    };
    fat.boot_sector();
    let mut folder = Vec::new();
    for (name, contents) in files {
        let cluster = fat.store(contents);
        folder.extend_from_slice(&entry(name, 0, cluster, contents.len()));
        // A suffix of four letters takes a long name.
        if *name == "A       CON" {
            folder.truncate(folder.len() - 32);
            folder.extend_from_slice(&long("a.conf", name));
            folder.extend_from_slice(&entry(name, 0, cluster, contents.len()));
        }
    }
    let files = fat.store(&folder);
    let inner = |fat: &mut Fat, name: &str| fat.store(&entry(name, 0x10, files, 0));
    let efi = inner(&mut fat, "LINUX      ");
    let loader = inner(&mut fat, "ENTRIES    ");
    let root = [
        entry("GRUB       ", 0x10, files, 0),
        entry("EFI        ", 0x10, efi, 0),
        entry("LOADER     ", 0x10, loader, 0),
        entry("SYSLINUX   ", 0x10, files, 0),
    ];
    let at = (1 + FAT_SECTORS) * SECTOR;
    fat.sectors[at..at + 128].copy_from_slice(&root.concat());
    let mut disk = vec![0; START * SECTOR];
    disk[446 + 4] = 0xef;
    disk[446 + 8..][..4].copy_from_slice(&(START as u32).to_le_bytes());
    disk[446 + 12..][..4].copy_from_slice(&(SECTORS as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk.extend_from_slice(&fat.sectors);
    disk
}

struct Fat {
    sectors: Vec<u8>,
    next: usize,
}

impl Fat {
    fn boot_sector(&mut self) {
        let boot = &mut self.sectors[..SECTOR];
        boot[0] = 0xeb;
        boot[11..13].copy_from_slice(&(SECTOR as u16).to_le_bytes());
        boot[13] = 1;
        boot[14] = 1;
        boot[16] = 1;
        boot[17] = ROOT_ENTRIES as u8;
        boot[19..21].copy_from_slice(&(SECTORS as u16).to_le_bytes());
        boot[21] = 0xf8;
        boot[22] = FAT_SECTORS as u8;
        boot[510..512].copy_from_slice(&[0x55, 0xaa]);
    }

    /// Stores a file in clusters one after the other. Returns the first.
    fn store(&mut self, contents: &[u8]) -> usize {
        let first = self.next;
        let room = (SECTORS - DATA - (first - 2)) * SECTOR;
        let contents = &contents[..contents.len().min(room)];
        let count = contents.len().div_ceil(SECTOR).max(1);
        for index in 0..count {
            let link = if index + 1 == count {
                0xfff
            } else {
                first + index + 1
            };
            let cluster = first + index;
            let at = SECTOR + cluster + cluster / 2;
            let shift = if cluster % 2 == 1 { 4 } else { 0 };
            let old = u16::from_le_bytes([self.sectors[at], self.sectors[at + 1]]);
            let new = old | (link as u16) << shift;
            self.sectors[at..at + 2].copy_from_slice(&new.to_le_bytes());
        }
        let at = (DATA + first - 2) * SECTOR;
        self.sectors[at..at + contents.len()].copy_from_slice(contents);
        self.next += count;
        first
    }
}

fn entry(name: &str, attributes: u8, cluster: usize, size: usize) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(name.as_bytes());
    entry[11] = attributes;
    entry[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
    entry[28..32].copy_from_slice(&(size as u32).to_le_bytes());
    entry
}

/// The long name of at most 13 characters that stands before a short one.
fn long(name: &str, short: &str) -> [u8; 32] {
    const PLACES: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
    let mut entry = [0xff; 32];
    entry[0] = 0x41;
    entry[11..13].copy_from_slice(&[0x0f, 0]);
    entry[13] = short
        .bytes()
        .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(byte));
    entry[26..28].fill(0);
    for (place, unit) in PLACES.into_iter().zip(name.encode_utf16().chain([0])) {
        entry[place..place + 2].copy_from_slice(&unit.to_le_bytes());
    }
    entry
}
