//! GUID partition tables (UEFI specification 2.10, section 5.3).

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crc::{CRC_32_ISO_HDLC, Crc};

use super::types::{Partition, Role, SECTORS, Table, TableKind};
use crate::bytes::{array, guid, le16, le32, le64, number, size};
use crate::error::Result;
use crate::io::Image;

const CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
const SIGNATURE: &[u8] = b"EFI PART";
/// What a header has at least.
const HEADER: usize = 92;
const ENTRY: usize = 128;
/// Tools write 128; more than this is no table.
const MAX_ENTRIES: u32 = 4096;
const MAX_ENTRY: u32 = 4096;

/// Reads the primary table, or the backup if that is damaged.
pub(super) fn read(image: &Rc<Image>) -> Result<Option<Table>> {
    for sector in SECTORS {
        let last = image
            .size()
            .checked_div(sector)
            .unwrap_or(0)
            .saturating_sub(1);
        let mut places = vec![(1, TableKind::Gpt), (last, TableKind::GptBackup)];
        // A disk that has grown has its backup where the primary says.
        if let Some(header) = Header::read(image, sector, 1)? {
            places.push((header.other, TableKind::GptBackup));
        }
        for (lba, kind) in places {
            let Some(header) = Header::read(image, sector, lba)? else {
                continue;
            };
            if !header.valid {
                continue;
            }
            if let Some(partitions) = header.partitions(image, sector)? {
                return Ok(Some(Table {
                    kind,
                    sector,
                    partitions,
                }));
            }
        }
    }
    Ok(None)
}

struct Header {
    /// Checksum and position are right.
    valid: bool,
    /// Where the other header is.
    other: u64,
    entries_at: u64,
    entries: u32,
    entry_size: u32,
    entries_crc: u32,
}

impl Header {
    /// Reads the header in sector `lba`, if one is there.
    fn read(image: &Rc<Image>, sector: u64, lba: u64) -> Result<Option<Self>> {
        let at = lba.saturating_mul(sector);
        if lba == 0 || at.saturating_add(sector) > image.size() {
            return Ok(None);
        }
        let mut bytes = vec![0; size(sector)];
        image.read(at, &mut bytes)?;
        Ok(Self::parse(&bytes, lba))
    }

    fn parse(bytes: &[u8], lba: u64) -> Option<Self> {
        if !bytes.starts_with(SIGNATURE) {
            return None;
        }
        let length = size(u64::from(le32(bytes, 12)?));
        let crc = le32(bytes, 16)?;
        let sum = bytes
            .get(..length)
            .filter(|_| length >= HEADER)
            .map(|header| {
                let mut header = header.to_vec();
                if let Some(field) = header.get_mut(16..20) {
                    field.fill(0);
                }
                CRC32.checksum(&header)
            });
        let entries = le32(bytes, 80)?;
        let entry_size = le32(bytes, 84)?;
        let sane = entries <= MAX_ENTRIES
            && (ENTRY..=size(u64::from(MAX_ENTRY))).contains(&size(u64::from(entry_size)));
        Some(Self {
            valid: sum == Some(crc) && le64(bytes, 24)? == lba && sane,
            other: le64(bytes, 32)?,
            entries_at: le64(bytes, 72)?,
            entries,
            entry_size,
            entries_crc: le32(bytes, 88)?,
        })
    }

    /// The partitions, or nothing if their checksum is wrong or the table lies outside.
    fn partitions(&self, image: &Rc<Image>, sector: u64) -> Result<Option<Vec<Partition>>> {
        let length = u64::from(self.entries).saturating_mul(u64::from(self.entry_size));
        let at = self.entries_at.saturating_mul(sector);
        if at.saturating_add(length) > image.size() {
            return Ok(None);
        }
        image.memory(length)?;
        let mut bytes = vec![0; size(length)];
        image.read(at, &mut bytes)?;
        if CRC32.checksum(&bytes) != self.entries_crc {
            return Ok(None);
        }
        let chunk = size(u64::from(self.entry_size)).max(ENTRY);
        let entries = bytes.chunks_exact(chunk).zip(1u32..);
        Ok(Some(
            entries
                .filter_map(|(entry, number)| partition(entry, number, sector))
                .collect(),
        ))
    }
}

fn partition(entry: &[u8], number: u32, sector: u64) -> Option<Partition> {
    let kind: [u8; 16] = array(entry, 0)?;
    if kind == [0; 16] {
        return None;
    }
    let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    let kind = guid(kind);
    Some(Partition {
        number,
        start: first.checked_mul(sector)?,
        size: sectors.checked_mul(sector)?,
        role: role(&kind),
        kind,
        name: name(entry.get(56..ENTRY)?),
        uuid: Some(guid(array(entry, 16)?)),
    })
}

fn name(field: &[u8]) -> Option<String> {
    let units = (0..field.len()).step_by(2);
    let units = units
        .filter_map(|at| le16(field, at))
        .take_while(|unit| *unit != 0);
    let text: String = char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    debug_assert!(number(text.len()) <= 216);
    (!text.is_empty()).then_some(text)
}

fn role(guid: &str) -> Role {
    match guid {
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => Role::Esp,
        "bc13c2ff-59e6-4262-a352-b275fd6f7172" => Role::Xbootldr,
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" => Role::LinuxRoot,
        "0fc63daf-8483-4772-8e79-3d69d8477de4" => Role::Linux,
        "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f" => Role::Swap,
        "21686148-6449-6e6f-744e-656564454649" => Role::BiosBoot,
        "e6d6d379-f507-44c2-a23c-238f2a3df928" => Role::Lvm,
        "a19d880f-05fc-4d3b-a006-743f0f84911e" => Role::Raid,
        _ => Role::Other,
    }
}
