//! Mode parameters (SPC-4 §6.11 to §6.14, §7.5; SBC-3 §6.5; MMC-6 §7).
//!
//! Three things can be changed: write-back caching, software write protection and the sense format. They are plain
//! values here; a parameter list is judged whole before any of them changes.

use super::cdb::{Kind, ModeForm};
use super::identity::Facts;
use super::sense::Sense;
use super::wire::{self, Bytes};

/// What MODE SELECT can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Modes {
    /// WCE: writes may complete before they are stable.
    pub(crate) write_cache: bool,
    /// SWP: writes are refused.
    pub(crate) write_protect: bool,
    /// D_SENSE: sense data in descriptor format.
    pub(crate) descriptor_sense: bool,
}

const ERROR_RECOVERY: u8 = 0x01;
const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const CAPABILITIES: u8 = 0x2a;
const ALL_PAGES: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;

const WCE: u8 = 0x04;
const D_SENSE: u8 = 0x04;
const SWP: u8 = 0x08;

/// One page: current, default or changeable values are all built by the same function.
struct Page {
    code: u8,
    body: Vec<u8>,
    changeable: Vec<u8>,
}

fn page(code: u8, len: usize, set: &[(usize, u8)], changeable: &[(usize, u8)]) -> Page {
    let fill = |bytes: &[(usize, u8)]| {
        let mut out = Bytes::new();
        out.u8(code)
            .u8(wire::len8(len.saturating_sub(2)))
            .zeros(len.saturating_sub(2));
        for (at, value) in bytes {
            out.patch_u8(*at, *value);
        }
        out.finish()
    };
    Page {
        code,
        body: fill(set),
        changeable: fill(changeable),
    }
}

fn flag(on: bool, bit: u8) -> u8 {
    if on { bit } else { 0 }
}

/// The pages of a unit, ascending.
fn pages(facts: &Facts, modes: &Modes) -> Vec<Page> {
    // AWRE and ARRE: the host's storage reallocates by itself.
    let recovery = page(ERROR_RECOVERY, 12, &[(2, 0xc0)], &[]);
    // GLTSD: logs are not saved. Unrestricted reordering; no busy timeout.
    let control = [
        (2, 0x02 | flag(modes.descriptor_sense, D_SENSE)),
        (3, 0x10),
        (4, flag(modes.write_protect, SWP)),
        (8, 0xff),
        (9, 0xff),
    ];
    match facts.profile.kind {
        Kind::Disk => vec![
            recovery,
            page(
                CACHING,
                20,
                &[(2, flag(modes.write_cache, WCE))],
                &[(2, flag(facts.write_cache, WCE))],
            ),
            page(CONTROL, 12, &control, &[(2, D_SENSE), (4, SWP)]),
        ],
        // Reads CD-R, CD-RW, DVD-ROM and DVD-R; the tray locks and ejects; 16-fold speed, a buffer of 2 MiB.
        Kind::Cdrom => vec![
            recovery,
            page(CONTROL, 12, &control, &[(2, D_SENSE)]),
            page(
                CAPABILITIES,
                22,
                &[
                    (2, 0x1b),
                    (6, 0x29),
                    (8, 0x0b),
                    (9, 0x00),
                    (12, 0x08),
                    (14, 0x0b),
                    (15, 0x00),
                ],
                &[],
            ),
        ],
        Kind::ReportLuns => Vec::new(),
    }
}

/// What MODE SENSE is asked, without its lengths.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query {
    pub(crate) form: ModeForm,
    pub(crate) long_lba: bool,
    pub(crate) no_blocks: bool,
    pub(crate) control: u8,
    pub(crate) page: u8,
    pub(crate) subpage: u8,
}

/// MODE SENSE. `blocks` is the capacity; none without a medium.
pub(crate) fn sense(
    query: &Query,
    facts: &Facts,
    blocks: Option<u64>,
    modes: &Modes,
    defaults: &Modes,
) -> Result<Vec<u8>, Sense> {
    const CHANGEABLE: u8 = 1;
    const DEFAULT: u8 = 2;
    const SAVED: u8 = 3;
    let shown = if query.control == DEFAULT {
        defaults
    } else {
        modes
    };
    let known = pages(facts, shown);
    let wanted = |page: &&Page| query.page == ALL_PAGES || query.page == page.code;
    let subpage_known = query.subpage == 0 || query.subpage == ALL_SUBPAGES;
    if !subpage_known || !known.iter().any(|page| wanted(&page)) {
        return Err(Sense::cdb_field(if subpage_known { 2 } else { 3 }, None));
    }
    if query.control == SAVED {
        return Err(Sense::SAVING_NOT_SUPPORTED);
    }
    let descriptor = if query.no_blocks {
        Vec::new()
    } else {
        block_descriptor(query, facts, blocks)
    };
    let mut out = Bytes::new();
    header(&mut out, query, facts, modes, descriptor.len());
    out.slice(&descriptor);
    for page in known.iter().filter(wanted) {
        out.slice(if query.control == CHANGEABLE {
            &page.changeable
        } else {
            &page.body
        });
    }
    match query.form {
        ModeForm::Six => {
            let length = wire::len8(out.len().saturating_sub(1));
            out.patch_u8(0, length);
        }
        ModeForm::Ten => {
            let length = wire::len16(out.len().saturating_sub(2));
            out.patch_u16(0, length);
        }
    }
    Ok(out.finish())
}

fn header(out: &mut Bytes, query: &Query, facts: &Facts, modes: &Modes, descriptor: usize) {
    const WRITE_PROTECTED: u8 = 0x80;
    const DPO_FUA: u8 = 0x10;
    let specific = match facts.profile.kind {
        Kind::Disk => DPO_FUA | flag(facts.read_only || modes.write_protect, WRITE_PROTECTED),
        _ => 0,
    };
    match query.form {
        ModeForm::Six => out.u8(0).u8(0).u8(specific).u8(wire::len8(descriptor)),
        ModeForm::Ten => {
            let long = flag(query.long_lba && descriptor != 0, 0x01);
            out.u16(0)
                .u8(0)
                .u8(specific)
                .u8(long)
                .u8(0)
                .u16(wire::len16(descriptor))
        }
    };
}

fn block_descriptor(query: &Query, facts: &Facts, blocks: Option<u64>) -> Vec<u8> {
    let count = blocks.unwrap_or(0);
    let short = u32::try_from(count).unwrap_or(u32::MAX);
    let mut out = Bytes::new();
    match (facts.profile.kind, query.form, query.long_lba) {
        (Kind::Disk, ModeForm::Ten, true) => out.u64(count).u32(0).u32(facts.block),
        (Kind::Disk, ..) => out.u32(short).u32(facts.block),
        // CD-ROM: density code, then 24 bits of count and of length.
        _ => out.u32(short.min(0x00ff_ffff)).u32(facts.block),
    };
    out.finish()
}

/// MODE SELECT: the modes after `list`, or what is wrong with it. Nothing is applied here.
pub(crate) fn select(
    form: ModeForm,
    list: &[u8],
    facts: &Facts,
    blocks: u64,
    modes: &Modes,
) -> Result<Modes, Sense> {
    if list.is_empty() {
        return Ok(*modes);
    }
    let (start, long, descriptor) = match form {
        ModeForm::Six => (4usize, false, usize::from(wire::u8_at(list, 3))),
        ModeForm::Ten => (
            8usize,
            wire::u8_at(list, 4) & 1 != 0,
            usize::from(wire::u16_at(list, 6)),
        ),
    };
    let mut at = start.saturating_add(descriptor);
    if list.len() < at {
        return Err(Sense::LIST_LENGTH);
    }
    check_descriptor(
        list.get(start..at).unwrap_or_default(),
        start,
        long,
        facts,
        blocks,
    )?;
    let known = pages(facts, modes);
    let mut next = *modes;
    while at < list.len() {
        at = select_page(list, at, &known, facts, &mut next)?;
    }
    Ok(next)
}

/// Neither the number nor the size of blocks can be changed.
fn check_descriptor(
    bytes: &[u8],
    start: usize,
    long: bool,
    facts: &Facts,
    blocks: u64,
) -> Result<(), Sense> {
    let (count, unchanged, block, width) = match (bytes.len(), long) {
        (0, _) => return Ok(()),
        (8, false) => {
            let count = u64::from(wire::u32_at(bytes, 0));
            (
                count,
                blocks.min(u32::MAX.into()),
                wire::u32_at(bytes, 4) & 0x00ff_ffff,
                4usize,
            )
        }
        (16, true) => (
            wire::u64_at(bytes, 0),
            blocks,
            wire::u32_at(bytes, 12),
            12usize,
        ),
        _ => return Err(Sense::list_field(start.saturating_sub(1))),
    };
    if count != 0 && count != unchanged && count != u64::MAX && count != u64::from(u32::MAX) {
        return Err(Sense::list_field(start));
    }
    if block != facts.block {
        return Err(Sense::list_field(start.saturating_add(width)));
    }
    Ok(())
}

/// Judges the page at `at` and returns where the next one starts.
fn select_page(
    list: &[u8],
    at: usize,
    known: &[Page],
    facts: &Facts,
    next: &mut Modes,
) -> Result<usize, Sense> {
    const SUBPAGE: u8 = 0x40;
    let code = wire::u8_at(list, at);
    let page = known
        .iter()
        .find(|page| page.code == code & 0x3f && code & SUBPAGE == 0);
    let Some(page) = page else {
        return Err(Sense::list_field(at));
    };
    let end = at.saturating_add(page.body.len());
    let given = list.get(at..end).ok_or(Sense::LIST_LENGTH)?;
    for (offset, ((given, current), mask)) in given
        .iter()
        .zip(&page.body)
        .zip(&page.changeable)
        .enumerate()
    {
        // The first byte holds code and PS, which is reserved here and ignored.
        let fixed = if offset < 2 {
            if offset == 0 { 0x3f } else { 0xff }
        } else {
            !mask
        };
        if (given ^ current) & fixed != 0 {
            return Err(Sense::list_field(at.saturating_add(offset)));
        }
    }
    match page.code {
        CACHING if facts.write_cache => next.write_cache = wire::u8_at(given, 2) & WCE != 0,
        CONTROL => {
            next.descriptor_sense = wire::u8_at(given, 2) & D_SENSE != 0;
            next.write_protect = wire::u8_at(given, 4) & SWP != 0;
        }
        _ => {}
    }
    Ok(end)
}

#[cfg(test)]
#[path = "mode_tests.rs"]
mod tests;
