//! The bzImage wrapper: its setup header, its payload, and its own 64-bit entry.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst`. No header field is trusted until it has been
//! compared with the file's length.

use std::ops::Range;

use linux_loader::bootparam::setup_header;
use vm_memory::ByteValued;

use crate::layout::HIGH_MEMORY;

/// Offset of the setup header in the file and in the zero page.
pub(super) const HEADER_OFFSET: usize = 0x1f1;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const BOOT_FLAG: u16 = 0xaa55;
const SECTOR: u64 = 512;
/// Offset of the 64-bit entry in the protected-mode part.
const ENTRY64_OFFSET: u64 = 0x200;
/// `LOADED_HIGH`: the protected-mode part is loaded at 1 MiB or above. Without this flag the file
/// is a zImage.
const LOADED_HIGH: u8 = 1;
/// `XLF_KERNEL_64`.
const XLF_KERNEL_64: u16 = 1;
/// The version that introduced the payload fields. `init_size` came with 2.10, `xloadflags` with
/// 2.12.
const VERSION_PAYLOAD: u16 = 0x208;
const VERSION_XLOADFLAGS: u16 = 0x20c;

/// A bzImage's header, checked against the file's length.
#[derive(Debug, Clone)]
pub(super) struct BzImage {
    pub(super) header: setup_header,
    /// The compressed kernel within the file; empty if the header has none.
    pub(super) payload: Range<u64>,
    /// The protected-mode part: everything after the real-mode part.
    pub(super) protected: Range<u64>,
}

/// A defect of a bzImage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BzImageError {
    Truncated { what: &'static str, needed: u64 },
    Malformed(&'static str),
}

/// Returns whether a file that starts with `head` has the setup header's magic.
pub(super) fn recognise(head: &[u8]) -> bool {
    head.get(0x202..0x206) == Some(&HEADER_MAGIC.to_le_bytes())
}

impl BzImage {
    /// Parses the header in the first kilobyte `head` of a file of `len` bytes.
    pub(super) fn parse(head: &[u8], len: u64) -> Result<Self, BzImageError> {
        let mut header = setup_header::default();
        let size = header.as_slice().len();
        let bytes = head.get(HEADER_OFFSET..HEADER_OFFSET + size);
        let bytes = bytes.ok_or(BzImageError::Truncated {
            what: "the setup header",
            needed: (HEADER_OFFSET + size) as u64,
        })?;
        header.as_mut_slice().copy_from_slice(bytes);
        if header.boot_flag != BOOT_FLAG || header.loadflags & LOADED_HIGH == 0 {
            return Err(BzImageError::Malformed(
                "no boot flag, or not loaded high (a zImage?)",
            ));
        }
        // 0 means 4, for kernels that predate the field.
        let sectors = if header.setup_sects == 0 {
            4
        } else {
            u64::from(header.setup_sects)
        };
        let start = (sectors + 1) * SECTOR;
        let needed = start + u64::from(header.syssize) * 16;
        if needed > len {
            return Err(BzImageError::Truncated {
                what: "the kernel",
                needed,
            });
        }
        let payload = if header.version >= VERSION_PAYLOAD && header.payload_length > 0 {
            let from = start + u64::from(header.payload_offset);
            from..from + u64::from(header.payload_length)
        } else {
            start..start
        };
        if payload.end > needed.max(start) {
            return Err(BzImageError::Malformed(
                "its payload lies outside the kernel",
            ));
        }
        Ok(Self {
            header,
            payload,
            protected: start..len,
        })
    }

    /// Returns the guest addresses that its own 64-bit entry needs, including those for
    /// decompression; `None` if it has no such entry.
    pub(super) fn range(&self) -> Option<Range<u64>> {
        let header = &self.header;
        if header.version < VERSION_XLOADFLAGS
            || header.xloadflags & XLF_KERNEL_64 == 0
            || header.pref_address < HIGH_MEMORY
        {
            return None;
        }
        let size = u64::from(header.init_size).max(self.protected.end - self.protected.start);
        Some(header.pref_address..header.pref_address.checked_add(size)?)
    }

    /// Returns the 64-bit entry of an image loaded at `start`.
    pub(super) fn entry(start: u64) -> u64 {
        start + ENTRY64_OFFSET
    }
}
