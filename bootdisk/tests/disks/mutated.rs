//! Damaged images: whatever they hold, the answer is a plan or an error, within the budget.
//!
//! Bytes are changed where there are any, and checksums are put right afterwards where the reader
//! would go no further. With `SPLITRING_SOAK` set two hundred times as many.

use std::rc::Rc;

use crate::support::{Disk, Fs, MIB, Part, Table, Tree, random, uki};
use splitring_bootdisk::{Budget, Choice, ReadAt, ReadFault, Survey};

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// An image with some bytes changed.
struct Mutated {
    base: Rc<dyn ReadAt>,
    changes: Vec<(u64, Vec<u8>)>,
    size: u64,
}

impl ReadAt for Mutated {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFault> {
        self.base.read_at(offset, buf)?;
        let end = offset + buf.len() as u64;
        for (at, bytes) in &self.changes {
            for (place, byte) in (*at..).zip(bytes) {
                if (offset..end).contains(&place) {
                    buf[(place - offset) as usize] = *byte;
                }
            }
        }
        Ok(())
    }
}

/// Sectors that are not all zero: where a change matters.
fn used(image: &dyn ReadAt) -> Vec<u64> {
    let mut used = Vec::new();
    let mut block = vec![0; MIB as usize];
    for start in (0..image.size()).step_by(block.len()) {
        let length = block.len().min((image.size() - start) as usize);
        image.read_at(start, &mut block[..length]).unwrap();
        for (index, sector) in block[..length].chunks(512).enumerate() {
            if sector.iter().any(|byte| *byte != 0) {
                used.push(start + index as u64 * 512);
            }
        }
    }
    used
}

/// Puts the checksum of a changed node of btrfs right, if it was right before.
fn seal_btrfs(base: &dyn ReadAt, node: u64, change: &mut (u64, Vec<u8>)) {
    const CRC32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    let start = change.0 - change.0 % node;
    let mut block = vec![0; node as usize];
    if base.read_at(start, &mut block).is_err() {
        return;
    }
    let stored = u32::from_le_bytes(block[..4].try_into().unwrap());
    if CRC32C.checksum(&block[32..]) != stored {
        return;
    }
    let at = (change.0 - start) as usize;
    let length = change.1.len().min(block.len() - at);
    block[at..at + length].copy_from_slice(&change.1[..length]);
    let sum = CRC32C.checksum(&block[32..]);
    block[..4].copy_from_slice(&sum.to_le_bytes());
    *change = (start, block);
}

fn rounds(quick: u32) -> u32 {
    if std::env::var_os("SPLITRING_SOAK").is_some() {
        quick * 200
    } else {
        quick
    }
}

fn budget() -> Budget {
    let mut budget = Budget::new();
    budget.bytes = 64 * MIB;
    budget.steps = 200_000;
    budget.memory = 16 * MIB;
    budget.kernel = 16 * MIB;
    budget.initrd = 16 * MIB;
    budget
}

/// Does everything that can be done with an image.
fn exercise(image: impl ReadAt + 'static) {
    let Ok(survey) = Survey::new(image, budget()) else {
        return;
    };
    let _ = survey.listing(&Choice::new());
    let _ = survey.plan(&Choice::new().entry("1"));
    if let Ok(plan) = survey.plan(&Choice::new()) {
        for file in std::iter::once(&plan.kernel).chain(&plan.initrds) {
            let _ = file.open().and_then(|open| open.read_all());
        }
    }
}

fn mutate(base: Rc<dyn ReadAt>, quick: u32, node: Option<u64>) {
    let used = used(&*base);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..rounds(quick) {
        let mut changes = Vec::new();
        for _ in 0..=random.below(4) {
            let sector = used[random.below(used.len() as u64) as usize];
            let at = sector + random.below(512);
            let special = [0, 1, 0x7f, 0x80, 0xff, random.below(256) as u8];
            let byte = special[random.below(6) as usize];
            let length = 1 << random.below(4);
            let mut change = (at, vec![byte; length]);
            if let Some(node) = node {
                seal_btrfs(&*base, node, &mut change);
            }
            changes.push(change);
        }
        let size = if round % 8 == 7 {
            random.below(base.size())
        } else {
            base.size()
        };
        let base = Rc::clone(&base);
        exercise(Mutated {
            base,
            changes,
            size,
        });
    }
}

/// Every kind of description, little of everything.
fn tree(links: bool) -> Tree {
    let image = uki(&[
        (".osrel", b"ID=a\nVERSION_ID=1\n"),
        (".cmdline", b"ro"),
        (".linux", &random(1, 5000)),
        (".initrd", &random(2, 5000)),
    ]);
    let config = "if [ -s $prefix/grubenv ]; then load_env; fi\nset default=\"${saved_entry}\"\n\
                  function f { set x=\"$1\"; }\nfor i in a b; do f $i; done\n\
                  submenu S { menuentry A --id a { search --file --set=root /vmlinuz\nlinux /vmlinuz root=$x\n\
                  initrd /initrd } }\nblscfg\n";
    let tree = Tree::new()
        .file("/EFI/Linux/a+3.efi", image)
        .file("/loader/loader.conf", "default b*\n")
        .file(
            "/loader/entries/b.conf",
            "title B\nlinux /vmlinuz\ninitrd /initrd\noptions $kernelopts\n",
        )
        .file("/boot/grub/grub.cfg", config)
        .file(
            "/boot/grub/grubenv",
            "# GRUB Environment Block\nsaved_entry=S>a\nkernelopts=ro\n####",
        )
        .file(
            "/extlinux.conf",
            "default l\nlabel l\nkernel vmlinuz\nappend initrd=initrd ro\n",
        )
        .file("/vmlinuz", random(3, 20_000))
        .file("/initrd", random(4, 70_000));
    if links {
        tree.link("/boot/vmlinuz", "../vmlinuz")
    } else {
        tree
    }
}

fn made(fs: Fs, table: Table) -> Option<Rc<dyn ReadAt>> {
    let links = !matches!(fs, Fs::Fat12 | Fs::Fat16 | Fs::Fat32);
    let disk = Disk::new(table, &[Part::new(fs, tree(links)).kind("uefi").label("T")])?;
    Some(Rc::new(disk))
}

#[test]
fn damaged_fat_images_end_in_a_plan_or_an_error() {
    for (fs, table) in [
        (Fs::Fat12, Table::Gpt),
        (Fs::Fat16, Table::Mbr),
        (Fs::Fat32, Table::None),
    ] {
        let Some(image) = made(fs, table) else { return };
        mutate(image, 40, None);
    }
}

#[test]
fn damaged_ext_images_end_in_a_plan_or_an_error() {
    for fs in [Fs::Ext2, Fs::Ext4Unchecked] {
        let Some(image) = made(fs, Table::None) else {
            return;
        };
        mutate(image, 60, None);
    }
}

#[test]
fn damaged_xfs_images_end_in_a_plan_or_an_error() {
    for fs in [Fs::Xfs, Fs::XfsUnchecked] {
        let Some(image) = made(fs, Table::None) else {
            return;
        };
        mutate(image, 30, None);
    }
}

#[test]
fn damaged_btrfs_images_end_in_a_plan_or_an_error() {
    let Some(image) = made(Fs::Btrfs, Table::None) else {
        return;
    };
    mutate(Rc::clone(&image), 10, None);
    mutate(image, 40, Some(4096));
}

#[test]
fn damaged_compressed_btrfs_images_end_in_a_plan_or_an_error() {
    let image = zstd::decode_all(&include_bytes!("../fixtures/suse.img.zst")[..]).unwrap();
    mutate(Rc::new(image), 20, Some(4096));
}

#[test]
fn damaged_iso_images_end_in_a_plan_or_an_error() {
    let Some(image) = made(Fs::Iso, Table::None) else {
        return;
    };
    mutate(image, 60, None);
}

#[test]
fn random_bytes_behind_each_signature_end_in_an_error() {
    let marks: [(usize, &[u8]); 5] = [
        (0, b"XFSB"),
        (1080, b"\x53\xef"),
        (0x1_0040, b"_BHRfS_M"),
        (0x8001, b"CD001"),
        (512, b"EFI PART"),
    ];
    for (seed, (at, mark)) in (1..).zip(marks) {
        for round in 0..rounds(3) {
            let mut image = random(seed * 1000 + u64::from(round), 4 << 20);
            image[at..at + mark.len()].copy_from_slice(mark);
            exercise(image);
        }
    }
}
