//! Recognises what is in a partition, by signature.

use alloc::string::String;

use super::contract::{FsKind, Identity};
use super::fat;
use crate::bytes::{array, field, le16, le32, le64, uuid};
use crate::error::Result;
use crate::io::Region;

/// What a region holds.
pub(crate) enum Found {
    /// A file system that is read.
    Fs(Identity),
    /// Something that is known and not read.
    Refused(Refusal),
    /// Nothing that is known.
    Unknown,
}

/// Something that is known and not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Its name.
    pub(crate) name: &'static str,
    /// Why a kernel cannot be read from it.
    pub(crate) cause: &'static str,
    /// Whether a Linux system may boot from it, so that it explains why nothing was found.
    pub(crate) bootable: bool,
}

const fn refused(name: &'static str, cause: &'static str) -> Found {
    Found::Refused(Refusal {
        name,
        cause,
        bootable: true,
    })
}

const fn foreign(name: &'static str) -> Found {
    Found::Refused(Refusal {
        name,
        cause: "no Linux system boots from it",
        bootable: false,
    })
}

const ENCRYPTED: &str = "it is encrypted, and there is no passphrase at this point";
const VOLUMES: &str = "logical volumes are put together by the guest's kernel only";
const RAID: &str = "arrays are put together by the guest's kernel only";
const NO_READER: &str = "there is no reader for this file system";

/// Looks at the signatures of `region`.
pub(crate) fn probe(region: &Region) -> Result<Found> {
    if let Some(found) = layers(region)? {
        return Ok(found);
    }
    if let Some(found) = file_systems(region)? {
        return Ok(found);
    }
    // A mirror with its metadata at the end is read as what it holds, so it is looked for last.
    if let Some(found) = raid_at_the_end(region)? {
        return Ok(found);
    }
    Ok(Found::Unknown)
}

/// What hides a file system.
fn layers(region: &Region) -> Result<Option<Found>> {
    let Some(head) = region.peek::<4096>(0)? else {
        return Ok(None);
    };
    if head.starts_with(b"LUKS\xba\xbe") {
        return Ok(Some(refused("LUKS", ENCRYPTED)));
    }
    if head.get(3..11) == Some(b"-FVE-FS-") {
        return Ok(Some(foreign("BitLocker")));
    }
    let label =
        |sector: &[u8]| sector.starts_with(b"LABELONE") && sector.get(24..32) == Some(b"LVM2 001");
    if head.chunks_exact(512).take(4).any(label) {
        return Ok(Some(refused("LVM", VOLUMES)));
    }
    const MD_MAGIC: u32 = 0xa92b_4efc;
    let second = region.peek::<512>(4096)?;
    let second: &[u8] = second.as_ref().map_or(&[], |bytes| bytes);
    if le32(&head, 0) == Some(MD_MAGIC) || le32(second, 0) == Some(MD_MAGIC) {
        return Ok(Some(refused("Linux software RAID", RAID)));
    }
    const BCACHEFS: [u8; 16] = *b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
    const BCACHE: [u8; 16] = *b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";
    match array::<16>(second, 24) {
        Some(BCACHEFS) => return Ok(Some(refused("bcachefs", NO_READER))),
        Some(BCACHE) => return Ok(Some(refused("bcache", VOLUMES))),
        _ => {}
    }
    let swap = head.get(4086..4096);
    if swap == Some(b"SWAPSPACE2") || swap == Some(b"SWAP-SPACE") {
        return Ok(Some(foreign("swap")));
    }
    Ok(None)
}

fn file_systems(region: &Region) -> Result<Option<Found>> {
    let head = region.peek::<4096>(0)?;
    let Some(head) = head else { return Ok(None) };
    if head.starts_with(b"XFSB") {
        return Ok(Some(Found::Fs(Identity {
            kind: FsKind::Xfs,
            uuid: array(&head, 32).map(uuid),
            label: head.get(108..120).and_then(field),
        })));
    }
    if le16(&head, 1080) == Some(0xef53) {
        return Ok(Some(Found::Fs(Identity {
            kind: FsKind::Ext4,
            uuid: array(&head, 1128).map(uuid),
            label: head.get(1144..1160).and_then(field),
        })));
    }
    match le32(&head, 1024) {
        Some(0xf2f5_2010) => return Ok(Some(refused("F2FS", NO_READER))),
        Some(0xe0f5_e1e2) => return Ok(Some(refused("EROFS", NO_READER))),
        _ => {}
    }
    if head.starts_with(b"hsqs") {
        return Ok(Some(refused("squashfs", NO_READER)));
    }
    match head.get(3..11) {
        Some(b"NTFS    ") => return Ok(Some(foreign("NTFS"))),
        Some(b"EXFAT   ") => return Ok(Some(foreign("exFAT"))),
        _ => {}
    }
    if let Some(sb) = region.peek::<1024>(0x1_0000)?
        && sb.get(64..72) == Some(b"_BHRfS_M")
    {
        return Ok(Some(Found::Fs(Identity {
            kind: FsKind::Btrfs,
            uuid: array(&sb, 32).map(uuid),
            label: sb.get(299..555).and_then(field),
        })));
    }
    if let Some(descriptor) = region.peek::<2048>(0x8000)?
        && descriptor.get(1..6) == Some(b"CD001")
    {
        return Ok(Some(Found::Fs(Identity {
            kind: FsKind::Iso9660,
            uuid: descriptor.get(813..829).and_then(iso_uuid),
            label: descriptor.get(40..72).and_then(field),
        })));
    }
    if let Some(identity) = fat::identify(&head) {
        return Ok(Some(Found::Fs(identity)));
    }
    Ok(zfs(region)?.then_some(refused("ZFS", NO_READER)))
}

/// A label of ZFS has its uberblocks from 128 KiB on, each 1 KiB or more apart.
fn zfs(region: &Region) -> Result<bool> {
    const MAGIC: u64 = 0x00ba_b10c;
    for index in 0..128u64 {
        let at = index.saturating_mul(1024).saturating_add(128 << 10);
        let Some(bytes) = region.peek::<8>(at)? else {
            break;
        };
        if le64(&bytes, 0) == Some(MAGIC) || u64::from_be_bytes(bytes) == MAGIC {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Versions 1.0 and 0.90 of the superblock.
fn raid_at_the_end(region: &Region) -> Result<Option<Found>> {
    const MD_MAGIC: u32 = 0xa92b_4efc;
    let size = region.size();
    let places = [
        size.checked_sub(8 << 10).map(|at| at & !0xfff),
        (size & !0xffff).checked_sub(0x1_0000),
    ];
    for at in places.into_iter().flatten() {
        let found = region.peek::<4>(at)?;
        if found.map(u32::from_le_bytes) == Some(MD_MAGIC) {
            return Ok(Some(refused("Linux software RAID", RAID)));
        }
    }
    Ok(None)
}

/// `YYYYMMDDHHMMSScc` as `YYYY-MM-DD-HH-MM-SS-cc`.
fn iso_uuid(digits: &[u8]) -> Option<String> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut text = String::new();
    for (at, digit) in digits.iter().enumerate() {
        if at >= 4 && at % 2 == 0 {
            text.push('-');
        }
        text.push(char::from(*digit));
    }
    Some(text)
}
