//! INQUIRY data and vital product data (SPC-4 §6.6, §7.8; SBC-3 §6.6).
//!
//! Pure: from what a unit is and how it is called to the bytes that say so.

use super::cdb::{Kind, Profile};
use super::reserve::store::checksum;
use super::sense::Sense;
use super::wire::{self, Bytes};

/// Most blocks a transfer may have; 32 MiB at 512 bytes.
pub(crate) const MAX_TRANSFER_BLOCKS: u32 = 0xffff;
/// Most blocks of one WRITE SAME. Bounds what one command may make the host write.
pub(crate) const MAX_WRITE_SAME_BLOCKS: u32 = 0xffff;
/// Most blocks of one COMPARE AND WRITE: what its one-byte field can say.
pub(crate) const MAX_COMPARE_BLOCKS: u8 = 0xff;
/// Most descriptors of one UNMAP.
pub(crate) const MAX_UNMAP_DESCRIPTORS: u32 = 256;

const VENDOR: &str = "SPLTRING";
const REVISION: &str = "0001";

/// Names of a logical unit; the same on every path to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Of any length; 255 bytes of it fit into its page.
    pub(crate) serial: String,
    /// NAA name: the operator's, or one derived from serial or image.
    pub(crate) wwn: u64,
}

impl Identity {
    /// `wwn` as given; else the serial, else `fallback` (what tells images apart) decides.
    pub(crate) fn new(serial: Option<&str>, wwn: Option<u64>, fallback: &str) -> Self {
        let name = serial.unwrap_or(fallback);
        Self {
            serial: name.to_owned(),
            wwn: wwn.unwrap_or_else(|| local_name(name)),
        }
    }
}

/// A locally assigned NAA name (NAA 3h, SPC-4 §7.8.6.6.4) derived from a text.
pub(crate) fn local_name(text: &str) -> u64 {
    (checksum(text.as_bytes()) >> 4) | (0x3 << 60)
}

/// Sizes and abilities of a unit, in its own blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) profile: Profile,
    pub(crate) removable: bool,
    /// Bytes a logical block.
    pub(crate) block: u32,
    /// Logical blocks a physical block: a power of two, as its exponent.
    pub(crate) physical_exponent: u8,
    /// First logical block on a physical boundary.
    pub(crate) lowest_aligned: u16,
    /// Smallest and best transfer, 0 if unknown.
    pub(crate) granularity: u16,
    pub(crate) optimal: u32,
    /// Blocks below which nothing is freed.
    pub(crate) unmap_granularity: u32,
    /// Blocks that were unmapped are certain to read as zeroes (LBPRZ).
    pub(crate) unmapped_reads_zero: bool,
    pub(crate) read_only: bool,
    /// The cache can be switched to write-back.
    pub(crate) write_cache: bool,
}

fn device_type(kind: Kind) -> u8 {
    match kind {
        Kind::Disk => 0x00,
        Kind::Cdrom => 0x05,
        Kind::ReportLuns => 0x1e,
    }
}

/// Standard INQUIRY data.
pub(crate) fn standard(kind: Kind, removable: bool) -> Vec<u8> {
    // SBC-3, MMC-6; no version claimed (SPC-4 table 147).
    let (product, standard) = match kind {
        Kind::Disk => ("Splitring disk", 0x04c0),
        Kind::Cdrom => ("Splitring CD-ROM", 0x04e0),
        Kind::ReportLuns => ("Report LUNs", 0),
    };
    inquiry(device_type(kind), removable, product, standard)
}

/// Standard INQUIRY data for a logical unit number with nothing behind it (qualifier 3, type 1Fh).
pub(crate) fn absent() -> Vec<u8> {
    inquiry(0x7f, false, "", 0)
}

fn inquiry(peripheral: u8, removable: bool, product: &str, standard: u16) -> Vec<u8> {
    const SPC_4: u8 = 6;
    const HIERARCHICAL: u8 = 0x10;
    const RESPONSE_FORMAT: u8 = 2;
    const COMMAND_QUEUING: u8 = 0x02;
    const SAM_5_VERSION: u16 = 0x00a0;
    const SPC_4_VERSION: u16 = 0x0460;
    let mut out = Bytes::new();
    out.u8(peripheral)
        .u8(if removable { 0x80 } else { 0 })
        .u8(SPC_4)
        .u8(HIERARCHICAL | RESPONSE_FORMAT)
        .u8(91);
    out.u8(0).u8(0).u8(COMMAND_QUEUING);
    out.text(VENDOR, 8).text(product, 16).text(REVISION, 4);
    out.zeros(22)
        .u16(SAM_5_VERSION)
        .u16(SPC_4_VERSION)
        .u16(standard)
        .zeros(32);
    out.finish()
}

const SUPPORTED_PAGES: u8 = 0x00;
const UNIT_SERIAL: u8 = 0x80;
const DEVICE_IDENTIFICATION: u8 = 0x83;
const BLOCK_LIMITS: u8 = 0xb0;
const BLOCK_CHARACTERISTICS: u8 = 0xb1;
const PROVISIONING: u8 = 0xb2;

/// Pages of a kind of unit, ascending.
fn pages(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Disk => &[
            SUPPORTED_PAGES,
            UNIT_SERIAL,
            DEVICE_IDENTIFICATION,
            BLOCK_LIMITS,
            BLOCK_CHARACTERISTICS,
            PROVISIONING,
        ],
        Kind::Cdrom => &[SUPPORTED_PAGES, UNIT_SERIAL, DEVICE_IDENTIFICATION],
        Kind::ReportLuns => &[SUPPORTED_PAGES],
    }
}

/// The vital product data page `code`.
pub(crate) fn page(code: u8, facts: &Facts, identity: &Identity) -> Result<Vec<u8>, Sense> {
    let kind = facts.profile.kind;
    if !pages(kind).contains(&code) {
        return Err(Sense::cdb_field(2, None));
    }
    let mut out = Bytes::new();
    out.u8(device_type(kind)).u8(code).u16(0);
    match code {
        SUPPORTED_PAGES => {
            out.slice(pages(kind));
        }
        UNIT_SERIAL => {
            let serial: Vec<u8> = identity
                .serial
                .bytes()
                .map(wire::printable)
                .take(255)
                .collect();
            out.slice(&serial);
        }
        DEVICE_IDENTIFICATION => identification(&mut out, identity),
        BLOCK_LIMITS => block_limits(&mut out, facts),
        // One: not rotating. The rest is not reported.
        BLOCK_CHARACTERISTICS => {
            out.u16(1).zeros(58);
        }
        _ => provisioning(&mut out, facts),
    }
    let length = wire::len16(out.len().saturating_sub(4));
    out.patch_u16(2, length);
    Ok(out.finish())
}

/// Designators: T10 vendor ID with the serial, the NAA name, and the relative target port.
fn identification(out: &mut Bytes, identity: &Identity) {
    const ASCII: u8 = 0x02;
    const BINARY: u8 = 0x01;
    const T10_VENDOR: u8 = 0x01;
    const NAA: u8 = 0x03;
    const PORT_NUMBER: u8 = 0x14;
    let serial: Vec<u8> = identity
        .serial
        .bytes()
        .map(wire::printable)
        .take(200)
        .collect();
    let length = serial.len().saturating_add(8);
    out.u8(ASCII)
        .u8(T10_VENDOR)
        .u8(0)
        .u8(wire::len8(length))
        .text(VENDOR, 8)
        .slice(&serial);
    out.u8(BINARY).u8(NAA).u8(0).u8(8).u64(identity.wwn);
    out.u8(BINARY).u8(PORT_NUMBER).u8(0).u8(4).u32(1);
}

fn block_limits(out: &mut Bytes, facts: &Facts) {
    // WSNZ: a WRITE SAME of zero blocks does not run to the end of the unit.
    const WRITE_SAME_NON_ZERO: u8 = 0x01;
    let thin = facts.profile.thin;
    out.u8(WRITE_SAME_NON_ZERO)
        .u8(MAX_COMPARE_BLOCKS)
        .u16(facts.granularity)
        .u32(MAX_TRANSFER_BLOCKS)
        .u32(facts.optimal)
        .u32(0);
    out.u32(if thin { u32::MAX } else { 0 })
        .u32(if thin { MAX_UNMAP_DESCRIPTORS } else { 0 });
    out.u32(if thin { facts.unmap_granularity } else { 0 })
        .u32(if thin { 1 << 31 } else { 0 });
    out.u64(MAX_WRITE_SAME_BLOCKS.into()).zeros(20);
}

fn provisioning(out: &mut Bytes, facts: &Facts) {
    const UNMAP: u8 = 0x80;
    const WRITE_SAME_16: u8 = 0x40;
    const WRITE_SAME_10: u8 = 0x20;
    const READS_ZERO: u8 = 0x04;
    const THIN: u8 = 2;
    let zero = if facts.unmapped_reads_zero {
        READS_ZERO
    } else {
        0
    };
    let (flags, kind) = match facts.profile.thin {
        true => (UNMAP | WRITE_SAME_16 | WRITE_SAME_10 | zero, THIN),
        false => (0, 0),
    };
    out.u8(0).u8(flags).u8(kind).u8(0);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const FACTS: Facts = Facts {
        profile: Profile {
            kind: Kind::Disk,
            thin: true,
        },
        removable: false,
        block: 512,
        physical_exponent: 3,
        lowest_aligned: 0,
        granularity: 8,
        optimal: 128,
        unmap_granularity: 8,
        unmapped_reads_zero: true,
        read_only: false,
        write_cache: true,
    };

    fn identity() -> Identity {
        Identity::new(Some("S1"), None, "unused")
    }

    #[test]
    fn standard_data_claims_spc4_and_the_kinds_own_standard() {
        let disk = standard(Kind::Disk, false);
        assert_eq!(
            (disk.len(), disk[0], disk[2], usize::from(disk[4])),
            (96, 0, 6, disk.len() - 5)
        );
        assert_eq!(&disk[8..36], b"SPLTRINGSplitring disk  0001");
        assert_eq!(&disk[58..64], [0, 0xa0, 0x04, 0x60, 0x04, 0xc0]);
        assert_eq!(standard(Kind::Cdrom, true)[..2], [0x05, 0x80]);
        assert_eq!(absent()[0], 0x7f);
    }

    #[test]
    fn the_list_of_pages_is_sorted_and_every_page_on_it_exists() {
        for kind in [Kind::Disk, Kind::Cdrom, Kind::ReportLuns] {
            let facts = Facts {
                profile: Profile { kind, thin: false },
                ..FACTS
            };
            let list = page(0, &facts, &identity()).unwrap();
            assert!(list[4..].is_sorted());
            for code in &list[4..] {
                let data = page(*code, &facts, &identity()).unwrap();
                assert_eq!(
                    (data[1], usize::from(wire::u16_at(&data, 2))),
                    (*code, data.len() - 4)
                );
            }
            assert_eq!(
                page(0xb3, &facts, &identity()),
                Err(Sense::cdb_field(2, None))
            );
        }
    }

    #[test]
    fn a_serial_may_be_longer_than_its_page() {
        let long = Identity::new(Some(&"x".repeat(1000)), None, "");
        assert_eq!(page(0x80, &FACTS, &long).unwrap().len(), 4 + 255);
        assert!(page(0x83, &FACTS, &long).unwrap().len() < 4 + 255);
        assert_eq!(&page(0x80, &FACTS, &identity()).unwrap()[4..], b"S1");
    }

    #[test]
    fn names_are_stable_distinct_and_locally_assigned() {
        let (a, b) = (
            Identity::new(None, None, "a"),
            Identity::new(None, None, "b"),
        );
        assert_ne!(a.wwn, b.wwn);
        assert_eq!(a.wwn >> 60, 3);
        assert_eq!(Identity::new(Some("s"), Some(5), "a").wwn, 5);
    }

    #[test]
    fn limits_tell_thin_from_thick() {
        let thin = page(BLOCK_LIMITS, &FACTS, &identity()).unwrap();
        assert_eq!(
            (
                thin.len(),
                thin[5],
                wire::u32_at(&thin, 20),
                wire::u32_at(&thin, 24)
            ),
            (64, 255, u32::MAX, 256)
        );
        assert_eq!(
            (wire::u64_at(&thin, 36), wire::u32_at(&thin, 28)),
            (0xffff, 8)
        );
        let thick_facts = Facts {
            profile: Profile {
                kind: Kind::Disk,
                thin: false,
            },
            ..FACTS
        };
        let thick = page(BLOCK_LIMITS, &thick_facts, &identity()).unwrap();
        assert_eq!((wire::u32_at(&thick, 20), wire::u32_at(&thick, 24)), (0, 0));
        assert_eq!(
            page(PROVISIONING, &FACTS, &identity()).unwrap()[4..],
            [0, 0xe4, 2, 0]
        );
        assert_eq!(
            page(PROVISIONING, &thick_facts, &identity()).unwrap()[4..],
            [0, 0, 0, 0]
        );
    }
}
