//! Tables that tools wrote, and damaged ones.
#![allow(
    clippy::cast_possible_truncation,
    reason = "images are small, and tests run on 64 bits"
)]

use std::process::{Command, Stdio};

use splitring_needs as needs;

use super::*;
use crate::error::ErrorKind;
use crate::io::Budget;

const MIB: u64 = 1 << 20;

fn read(bytes: &[u8]) -> Result<Table> {
    let image = Image::new(Box::new(bytes.to_vec()), Budget::new());
    Table::read(&image, |_| Ok(true))
}

/// A script for sfdisk, and the bytes it makes of an empty file.
fn sfdisk(size: u64, arguments: &[&str], script: &str) -> Vec<u8> {
    use std::io::Write;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    let mut child = Command::new("/sbin/sfdisk")
        .args(arguments)
        .arg(file.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
    std::fs::read(file.path()).unwrap()
}

const GPT: &str = "label: gpt\n1: start=2048, size=2048, type=U, name=\"EFI\", uuid=11111111-2222-3333-4444-555555555555\n\
                   3: start=4096, size=4096, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n\
                   14: start=8192, size=1024, type=BC13C2FF-59E6-4262-A352-B275FD6F7172\n";

fn gpt() -> Option<Vec<u8>> {
    needs::program("/sbin/sfdisk", "fdisk").then(|| sfdisk(8 * MIB, &[], GPT))
}

fn roles(table: &Table) -> Vec<(u32, Role)> {
    table
        .partitions
        .iter()
        .map(|partition| (partition.number, partition.role))
        .collect()
}

const ROLES: [(u32, Role); 3] = [(1, Role::Esp), (3, Role::LinuxRoot), (14, Role::Xbootldr)];

#[test]
fn a_gpt_has_numbers_roles_names_and_uuids() {
    let Some(image) = gpt() else { return };
    let table = read(&image).unwrap();
    assert_eq!((table.kind, table.sector), (TableKind::Gpt, 512));
    assert_eq!(roles(&table), ROLES);
    let esp = &table.partitions[0];
    assert_eq!((esp.start, esp.size), (MIB, MIB));
    assert_eq!(esp.name.as_deref(), Some("EFI"));
    assert_eq!(
        esp.uuid.as_deref(),
        Some("11111111-2222-3333-4444-555555555555")
    );
    assert_eq!(esp.kind, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
}

#[test]
fn the_backup_table_is_used_when_the_primary_is_damaged() {
    let Some(good) = gpt() else { return };
    // The header's checksum, its position, the entries, and all of it.
    let damages: [&[usize]; 4] = [&[512 + 17], &[512 + 24], &[1024 + 40], &[512]];
    for damage in damages {
        let mut image = good.clone();
        for at in damage {
            image[*at] ^= 0x55;
        }
        let table = read(&image).unwrap();
        assert_eq!(table.kind, TableKind::GptBackup, "{damage:?}");
        assert_eq!(roles(&table), ROLES);
        let last = image.len() - 512;
        image[last + 20] ^= 1;
        image[last + 16] ^= 1;
        let error = read(&image).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Table, "{damage:?}");
    }
}

#[test]
fn a_backup_is_found_where_the_primary_says() {
    let Some(mut image) = gpt() else { return };
    // The disk has grown, and the primary's entries are damaged.
    image.resize(image.len() + 4096, 0);
    image[1024] ^= 1;
    let table = read(&image).unwrap();
    assert_eq!(
        (table.kind, roles(&table)),
        (TableKind::GptBackup, ROLES.to_vec())
    );
}

#[test]
fn sectors_of_4096_bytes_are_recognised() {
    // The tools take the sector size from a device, so the table is spread by hand.
    let Some(small) = gpt() else { return };
    let mut image = vec![0; 8 * 8 * MIB as usize];
    let sectors = small.len() / 512;
    image[..512].copy_from_slice(&small[..512]);
    let mut copy_header = |lba: usize, entries_at: u64| {
        let mut header = small[lba * 512..][..512].to_vec();
        header[72..80].copy_from_slice(&entries_at.to_le_bytes());
        header[16..20].fill(0);
        let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&header[..92]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        image[lba * 4096..][..512].copy_from_slice(&header);
    };
    copy_header(1, 2);
    copy_header(sectors - 1, sectors as u64 - 5);
    let entries = small[1024..][..128 * 128].to_vec();
    image[2 * 4096..][..entries.len()].copy_from_slice(&entries);
    image[(sectors - 5) * 4096..][..entries.len()].copy_from_slice(&entries);
    let table = read(&image).unwrap();
    assert_eq!((table.kind, table.sector), (TableKind::Gpt, 4096));
    assert_eq!(roles(&table), ROLES);
    assert_eq!(table.partitions[0].start, 8 * MIB);
    image[4096 + 16] ^= 1;
    assert_eq!(read(&image).unwrap().kind, TableKind::GptBackup);
}

const MBR: &str = "label: dos\nlabel-id: 0x12345678\n1: start=2048, size=2048, type=ef\n\
                   2: start=4096, size=8192, type=5\n3: start=12288, size=1024, type=83, bootable\n5: start=6144, size=1024, type=83\n\
                   6: start=10240, size=1024, type=8e\n";

fn mbr() -> Option<Vec<u8>> {
    needs::program("/sbin/sfdisk", "fdisk").then(|| sfdisk(8 * MIB, &[], MBR))
}

#[test]
fn an_mbr_has_logical_partitions_from_five_on() {
    let Some(image) = mbr() else { return };
    let table = read(&image).unwrap();
    assert_eq!(table.kind, TableKind::Mbr);
    let expected = [
        (1, Role::Esp),
        (3, Role::Linux),
        (5, Role::Linux),
        (6, Role::Lvm),
    ];
    assert_eq!(roles(&table), expected);
    let logical = &table.partitions[2];
    assert_eq!((logical.start, logical.size), (3 * MIB, MIB / 2));
    assert_eq!(logical.uuid.as_deref(), Some("12345678-05"));
}

#[test]
fn an_extended_partition_in_a_circle_ends() {
    let Some(mut image) = mbr() else { return };
    // The second link leads to itself, then back to the first.
    for next in [4096u32, 0, 2048] {
        let ebr = 4096 * 512;
        image[ebr + 446 + 16 + 4] = 5;
        image[ebr + 446 + 16 + 8..][..4].copy_from_slice(&next.to_le_bytes());
        let table = read(&image).unwrap();
        assert!(
            table.partitions.len() <= 3 + 128,
            "{}",
            table.partitions.len()
        );
    }
}

#[test]
fn a_file_system_without_a_table_is_the_whole_disk() {
    let mut image = vec![0; MIB as usize];
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image[446..500].fill(0x90);
    for image in [&image[..], &vec![0; MIB as usize]] {
        let table = read(image).unwrap();
        assert_eq!(table.kind, TableKind::None);
        assert_eq!(roles(&table), [(0, Role::WholeDisk)]);
        assert_eq!(table.partitions[0].size, MIB);
    }
}

#[test]
fn an_image_of_less_than_a_sector_is_empty() {
    for size in [0, 1, 511] {
        let error = read(&vec![0; size]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Empty);
    }
}

#[test]
fn a_leftover_backup_of_a_disk_without_protective_mbr_does_not_count() {
    let Some(mut image) = gpt() else { return };
    image[..1024].fill(0);
    assert_eq!(read(&image).unwrap().kind, TableKind::None);
}

#[test]
fn a_table_of_millions_of_entries_is_refused() {
    let Some(mut image) = gpt() else { return };
    for header in [512, image.len() - 512] {
        image[header + 80..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        image[header + 16..][..4].fill(0);
        let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&image[header..][..92]);
        image[header + 16..][..4].copy_from_slice(&crc.to_le_bytes());
    }
    assert_eq!(read(&image).unwrap_err().kind(), ErrorKind::Table);
}
