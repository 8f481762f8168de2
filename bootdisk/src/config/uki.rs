//! Unified kernel images (UAPI.5): PE files with the kernel, its ramdisk and its command line as
//! sections.

use alloc::string::String;
use alloc::vec::Vec;

use crate::bytes::{le16, le32};

/// How much of the file has to be read to see the section table.
pub(crate) const HEAD: u64 = 16 * 1024;
const SECTION: usize = 40;
/// Linux's own stub has a handful, a unified image with profiles some dozens.
const MAX_SECTIONS: usize = 96;

/// Part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// The sections that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Uki {
    pub(crate) linux: Range,
    pub(crate) initrd: Option<Range>,
    pub(crate) ucode: Option<Range>,
    pub(crate) cmdline: Option<Range>,
    pub(crate) osrel: Option<Range>,
    pub(crate) uname: Option<Range>,
}

/// Why a PE file is not a unified kernel image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotUki {
    /// It is no PE file, or its section table is damaged.
    Malformed,
    /// It has no kernel section: another EFI program.
    NoKernel,
    /// A section lies behind the end of the file.
    Cut,
}

impl Uki {
    /// Reads the section table from a file's first [`HEAD`] bytes; the file has `size`.
    pub(crate) fn parse(head: &[u8], size: u64) -> Result<Self, NotUki> {
        let sections = sections(head).ok_or(NotUki::Malformed)?;
        let mut profiles = 0u32;
        // A section of the first profile takes precedence over the base's.
        let mut used: Vec<([u8; 8], Range)> = Vec::new();
        for (name, range) in sections {
            if &name == b".profile" {
                profiles = profiles.saturating_add(1);
                continue;
            }
            if profiles > 1 {
                break;
            }
            if range
                .offset
                .checked_add(range.size)
                .is_none_or(|end| end > size)
            {
                return Err(NotUki::Cut);
            }
            used.push((name, range));
        }
        let find = |name: &[u8; 8]| {
            let found = used.iter().rev().find(|(has, _)| has == name);
            found
                .map(|(_, range)| *range)
                .filter(|range| range.size > 0)
        };
        Ok(Self {
            linux: find(b".linux\0\0").ok_or(NotUki::NoKernel)?,
            initrd: find(b".initrd\0"),
            ucode: find(b".ucode\0\0"),
            cmdline: find(b".cmdline"),
            osrel: find(b".osrel\0\0"),
            uname: find(b".uname\0\0"),
        })
    }
}

fn sections(head: &[u8]) -> Option<Vec<([u8; 8], Range)>> {
    if !head.starts_with(b"MZ") {
        return None;
    }
    let pe = usize::try_from(le32(head, 0x3c)?).ok()?;
    let pe = head.get(pe..)?;
    if !pe.starts_with(b"PE\0\0") {
        return None;
    }
    let count = usize::from(le16(pe, 6)?);
    let optional = usize::from(le16(pe, 20)?);
    if count > MAX_SECTIONS {
        return None;
    }
    let table = pe.get(optional.checked_add(24)?..)?;
    let table = table.get(..count.checked_mul(SECTION)?)?;
    table.chunks_exact(SECTION).map(section).collect()
}

fn section(header: &[u8]) -> Option<([u8; 8], Range)> {
    let name = header.get(..8)?.try_into().ok()?;
    let (memory, file) = (le32(header, 8)?, le32(header, 16)?);
    // The file's part is padded to its alignment.
    let size = u64::from(if memory == 0 { file } else { memory.min(file) });
    let offset = u64::from(le32(header, 20)?);
    Some((name, Range { offset, size }))
}

/// The text of a section: what comes before a NUL, without white space at the ends.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let bytes = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes);
    // The kernel takes a command line of one line.
    text.trim().replace(['\n', '\r'], " ")
}

/// The value of `key` in an os-release text.
pub(crate) fn os_release(text: &str, key: &str) -> Option<String> {
    let mut values = text.lines().filter_map(|line| line.split_once('='));
    let (_, value) = values.find(|(name, _)| *name == key)?;
    let value = value.trim();
    let inner = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    let value = inner('"').or_else(|| inner('\'')).unwrap_or(value);
    (!value.is_empty()).then(|| String::from(value))
}
