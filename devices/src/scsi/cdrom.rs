//! What only a CD-ROM answers (MMC-6 §6): a disc with one data track, complete and finalised.

use super::cdb::Command;
use super::sense::Sense;
use super::wire::{self, Bytes};

/// Bytes a block.
pub(crate) const BLOCK: u32 = 2048;

const LEAD_OUT: u8 = 0xaa;
/// ADR 1, a data track.
const DATA_TRACK: u8 = 0x14;
const PROFILE_CD_ROM: u16 = 0x0008;
const PROFILE_DVD_ROM: u16 = 0x0010;
/// More blocks than a CD holds (80 minutes): the disc counts as a DVD.
const CD_BLOCKS: u64 = 80 * 60 * 75;

/// Whether the medium is there and whether it may be taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tray {
    pub(crate) loaded: bool,
    /// Something about the medium changed since the last GET EVENT STATUS.
    pub(crate) event: Option<TrayEvent>,
}

/// Media events (MMC-6 table 296).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TrayEvent {
    NewMedia = 2,
    Removal = 3,
}

impl TrayEvent {
    /// The event with this code.
    pub(crate) fn new(code: u8) -> Option<Self> {
        [Self::NewMedia, Self::Removal]
            .into_iter()
            .find(|event| *event as u8 == code)
    }
}

/// Answers the commands of [`super::table`] that are a CD-ROM's own. `blocks` is 0 without a medium.
pub(crate) fn answer(command: &Command, blocks: u64, tray: Tray) -> Result<Vec<u8>, Sense> {
    match *command {
        Command::ReadToc {
            msf, format, track, ..
        } => toc(msf, format, track, blocks),
        Command::GetConfiguration {
            selection, start, ..
        } => configuration(selection, start, blocks, tray),
        Command::GetEventStatus {
            polled, classes, ..
        } => events(polled, classes, tray),
        Command::ReadDiscInformation { kind: 0, .. } => Ok(disc_information()),
        Command::ReadDiscInformation { .. } => Err(Sense::cdb_field(1, Some(2))),
        _ => Err(Sense::INVALID_OPCODE),
    }
}

/// An address as block number or as minute, second, frame.
fn position(msf: bool, lba: u64) -> u32 {
    let lba = u32::try_from(lba).unwrap_or(u32::MAX);
    if !msf {
        return lba;
    }
    let frames = lba.saturating_add(150);
    let (seconds, frame) = (frames / 75, frames % 75);
    let [minute, second, frame] = [(seconds / 60).min(255), seconds % 60, frame];
    (minute << 16) | (second << 8) | frame
}

fn toc(msf: bool, format: u8, track: u8, blocks: u64) -> Result<Vec<u8>, Sense> {
    let mut out = Bytes::new();
    match format {
        // The table of contents from `track` on.
        0 => {
            if track > 1 && track != LEAD_OUT {
                return Err(Sense::cdb_field(6, None));
            }
            out.u16(0).u8(1).u8(1);
            if track <= 1 {
                out.u8(0).u8(DATA_TRACK).u8(1).u8(0).u32(position(msf, 0));
            }
            out.u8(0)
                .u8(DATA_TRACK)
                .u8(LEAD_OUT)
                .u8(0)
                .u32(position(msf, blocks));
        }
        // The last session: the first and only one.
        1 => {
            out.u16(0)
                .u8(1)
                .u8(1)
                .u8(0)
                .u8(DATA_TRACK)
                .u8(1)
                .u8(0)
                .u32(position(msf, 0));
        }
        _ => return Err(Sense::cdb_field(2, Some(3))),
    }
    let length = wire::len16(out.len().saturating_sub(2));
    out.patch_u16(0, length);
    Ok(out.finish())
}

/// A feature descriptor's fixed part, with what follows.
struct Feature {
    code: u16,
    version: u8,
    persistent: bool,
    current: bool,
    data: Vec<u8>,
}

fn features(current: u16, loaded: bool) -> Vec<Feature> {
    let mut profiles = Bytes::new();
    for profile in [PROFILE_DVD_ROM, PROFILE_CD_ROM] {
        profiles.u16(profile).u8(u8::from(profile == current)).u8(0);
    }
    let feature = |code, version, persistent, current, data| Feature {
        code,
        version,
        persistent,
        current,
        data,
    };
    vec![
        feature(0x0000, 0, true, true, profiles.finish()),
        // Core: the physical interface is the SCSI family.
        feature(0x0001, 2, true, true, vec![0, 0, 0, 1, 1, 0, 0, 0]),
        // Removable medium: tray, ejects, locks.
        feature(0x0003, 1, true, true, vec![0x29, 0, 0, 0]),
        // Random readable, blocks of 2048 bytes.
        feature(0x0010, 0, false, loaded, vec![0, 0, 8, 0, 0, 1, 1, 0]),
        feature(
            0x001e,
            2,
            false,
            current == PROFILE_CD_ROM,
            vec![0, 0, 0, 0],
        ),
        feature(0x001f, 0, false, current == PROFILE_DVD_ROM, Vec::new()),
    ]
}

fn configuration(selection: u8, start: u16, blocks: u64, tray: Tray) -> Result<Vec<u8>, Sense> {
    let current = match (tray.loaded, blocks > CD_BLOCKS) {
        (false, _) => 0,
        (true, false) => PROFILE_CD_ROM,
        (true, true) => PROFILE_DVD_ROM,
    };
    let wanted = |feature: &Feature| match selection {
        0 => feature.code >= start,
        1 => feature.code >= start && feature.current,
        _ => feature.code == start,
    };
    if selection > 2 {
        return Err(Sense::cdb_field(1, Some(1)));
    }
    let mut out = Bytes::new();
    out.u32(0).u16(0).u16(current);
    for feature in features(current, tray.loaded).into_iter().filter(wanted) {
        let flags = (feature.version << 2)
            | (u8::from(feature.persistent) << 1)
            | u8::from(feature.current);
        out.u16(feature.code)
            .u8(flags)
            .u8(wire::len8(feature.data.len()))
            .slice(&feature.data);
    }
    let length = wire::len32(out.len().saturating_sub(4));
    out.patch_u32(0, length);
    Ok(out.finish())
}

fn events(polled: bool, classes: u8, tray: Tray) -> Result<Vec<u8>, Sense> {
    const MEDIA: u8 = 4;
    if !polled {
        // Asynchronous operation is not offered.
        return Err(Sense::cdb_field(1, Some(0)));
    }
    let mut out = Bytes::new();
    if classes & (1 << MEDIA) == 0 {
        // No event of the classes asked for: a header only, with NEA set.
        out.u16(2).u8(0x80).u8(1 << MEDIA);
        return Ok(out.finish());
    }
    let code = tray.event.map_or(0, |event| event as u8);
    let status = if tray.loaded { 0x02 } else { 0x00 };
    out.u16(6)
        .u8(MEDIA)
        .u8(1 << MEDIA)
        .u8(code)
        .u8(status)
        .u16(0);
    Ok(out.finish())
}

fn disc_information() -> Vec<u8> {
    // Complete last session, finalised disc; one session, tracks 1 to 1; no bar code; no reason to ask for more.
    let mut out = Bytes::new();
    out.u16(32)
        .u8(0x0e)
        .u8(1)
        .u8(1)
        .u8(1)
        .u8(1)
        .u8(0x20)
        .zeros(26);
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOADED: Tray = Tray {
        loaded: true,
        event: None,
    };

    fn toc_of(format: u8, track: u8, msf: bool) -> Result<Vec<u8>, Sense> {
        answer(
            &Command::ReadToc {
                msf,
                format,
                track,
                alloc: 100,
            },
            1000,
            LOADED,
        )
    }

    #[test]
    fn the_table_of_contents_has_one_track_and_the_lead_out() {
        let toc = toc_of(0, 0, false).unwrap();
        assert_eq!(&toc[..4], [0, 18, 1, 1]);
        assert_eq!(
            (
                toc[6],
                wire::u32_at(&toc, 8),
                toc[14],
                wire::u32_at(&toc, 16)
            ),
            (1, 0, LEAD_OUT, 1000)
        );
        let lead_out = toc_of(0, LEAD_OUT, true).unwrap();
        // 1150 frames: 15 seconds, 25 frames.
        assert_eq!(
            (lead_out.len(), &lead_out[8..12]),
            (12, &[0, 0, 15, 25][..])
        );
        assert_eq!(toc_of(1, 0, false).unwrap().len(), 12);
        assert_eq!(toc_of(0, 2, false), Err(Sense::cdb_field(6, None)));
        assert_eq!(toc_of(5, 0, false), Err(Sense::cdb_field(2, Some(3))));
    }

    #[test]
    fn the_profile_follows_the_medium() {
        let ask = |blocks, tray| {
            answer(
                &Command::GetConfiguration {
                    selection: 0,
                    start: 0,
                    alloc: 0,
                },
                blocks,
                tray,
            )
        };
        assert_eq!(wire::u16_at(&ask(1000, LOADED).unwrap(), 6), PROFILE_CD_ROM);
        assert_eq!(
            wire::u16_at(&ask(CD_BLOCKS + 1, LOADED).unwrap(), 6),
            PROFILE_DVD_ROM
        );
        let empty = ask(
            0,
            Tray {
                loaded: false,
                event: None,
            },
        )
        .unwrap();
        assert_eq!(
            (wire::u16_at(&empty, 6), wire::u32_at(&empty, 0) as usize),
            (0, empty.len() - 4)
        );
        let one = answer(
            &Command::GetConfiguration {
                selection: 2,
                start: 3,
                alloc: 0,
            },
            9,
            LOADED,
        )
        .unwrap();
        assert_eq!((wire::u16_at(&one, 8), one.len()), (3, 16));
        assert!(
            answer(
                &Command::GetConfiguration {
                    selection: 3,
                    start: 0,
                    alloc: 0
                },
                9,
                LOADED
            )
            .is_err()
        );
    }

    #[test]
    fn media_events_are_polled() {
        let tray = Tray {
            loaded: false,
            event: Some(TrayEvent::Removal),
        };
        let ask = |polled, classes| {
            answer(
                &Command::GetEventStatus {
                    polled,
                    classes,
                    alloc: 8,
                },
                0,
                tray,
            )
        };
        assert_eq!(ask(true, 0x10).unwrap(), [0, 6, 4, 0x10, 3, 0, 0, 0]);
        assert_eq!(ask(true, 0x02).unwrap(), [0, 2, 0x80, 0x10]);
        assert_eq!(ask(false, 0x10), Err(Sense::cdb_field(1, Some(0))));
    }
}
