//! From a typed command to an answer or a [`Job`] (SPC-4 §5, SBC-3 §4, §5).
//!
//! A command that was admitted is answered from what is known, or becomes the job that does it. Nothing here sees
//! virtio.

use super::cdb::{self, Command, Extent};
use super::cdrom::{self, Tray, TrayEvent};
use super::identity::{self, MAX_UNMAP_DESCRIPTORS};
use super::job::{Job, Same, Walk};
use super::mode;
use super::opcodes;
use super::reserve::{self, Action};
use super::reserving::Change;
use super::sense::{Sense, Status, attention};
use super::unit::Nexus;
use super::wire::{self, Bytes};

/// What a command comes to.
#[derive(Debug)]
pub(crate) enum Next {
    /// Status and parameter data.
    Answer(Result<Vec<u8>, Status>),
    Job(Job),
    /// A change of the reservations, to be made in its turn.
    Reserve(Change),
}

/// Most LBA status descriptors in one answer.
const MAX_EXTENTS: usize = 64;

/// Runs an admitted command. `list` is its parameter list, if it has one.
pub(crate) fn run(nexus: &Nexus, command: &Command, list: &[u8]) -> Next {
    match job(nexus, command, list) {
        Ok(Some(job)) => return Next::Job(job),
        Ok(None) => {}
        Err(sense) => return Next::Answer(Err(sense.into())),
    }
    match *command {
        Command::ReserveOut {
            action,
            scope,
            kind,
            ..
        } => reserve_out(nexus, action, scope, kind, list),
        Command::Reserve => Next::Reserve(Change::Reserve),
        Command::Release => Next::Reserve(Change::Release),
        _ => Next::Answer(answer(nexus, command, list).map(|data| cut(command, data))),
    }
}

/// The commands that need the disk.
fn job(nexus: &Nexus, command: &Command, list: &[u8]) -> Result<Option<Job>, Sense> {
    let block = nexus.facts.block;
    let bytes = |blocks: u64| blocks.saturating_mul(block.into());
    let walk = |extent: Extent| Walk::new(bytes(extent.lba), bytes(extent.blocks.into()), block);
    let stable = |fua| fua || nexus.unit.stable_writes();
    Ok(Some(match *command {
        // FUA asks for what is on the medium, which the host's coherent cache is as good as.
        Command::Read { extent, .. } => Job::Read {
            offset: bytes(extent.lba),
            len: bytes(extent.blocks.into()),
        },
        Command::Write { extent, fua } => {
            let (offset, len) = (bytes(extent.lba), bytes(extent.blocks.into()));
            Job::Write {
                offset,
                len,
                fua: stable(fua),
            }
        }
        Command::WriteAndVerify { extent, check } => Job::WriteAndVerify(walk(extent), check),
        Command::Verify { extent, check } => Job::Verify(walk(extent), check),
        Command::CompareAndWrite { extent, fua } => Job::CompareAndWrite {
            walk: walk(extent),
            fua: stable(fua),
            matched: false,
        },
        Command::OrWrite { extent, fua } => Job::OrWrite {
            walk: walk(extent),
            fua: stable(fua),
            writing: false,
        },
        Command::Synchronize { .. } => Job::Flush,
        Command::StartStop {
            no_flush: false,
            start: false,
            power: 0,
            load_eject: false,
            ..
        } => Job::Flush,
        Command::WriteSame {
            extent,
            unmap,
            no_data,
        } => {
            let mut same = Same::new(bytes(extent.lba), bytes(extent.blocks.into()), block);
            (same.fua, same.unmap, same.data) = (stable(false), unmap, !no_data);
            Job::Same(same)
        }
        Command::Unmap { .. } => Job::Unmap {
            ranges: unmap_ranges(nexus, list)?,
            fua: stable(false),
        },
        _ => return Ok(None),
    }))
}

/// UNMAP's parameter list (SBC-3 §5.28), judged whole; ranges in bytes, those without blocks left out.
fn unmap_ranges(nexus: &Nexus, list: &[u8]) -> Result<Vec<(u64, u64)>, Sense> {
    const HEADER: usize = 8;
    const DESCRIPTOR: usize = 16;
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let (data, length) = (
        usize::from(wire::u16_at(list, 0)),
        usize::from(wire::u16_at(list, 2)),
    );
    let descriptors = list
        .get(HEADER..HEADER.saturating_add(length))
        .ok_or(Sense::LIST_LENGTH)?;
    if data.saturating_add(2) > list.len() {
        return Err(Sense::LIST_LENGTH);
    }
    if !length.is_multiple_of(DESCRIPTOR) {
        return Err(Sense::list_field(2));
    }
    if descriptors.chunks(DESCRIPTOR).count() > usize::try_from(MAX_UNMAP_DESCRIPTORS).unwrap_or(0)
    {
        return Err(Sense::list_field(2));
    }
    let block = u64::from(nexus.facts.block);
    let mut ranges = Vec::new();
    for descriptor in descriptors.chunks(DESCRIPTOR) {
        let (lba, count) = (
            wire::u64_at(descriptor, 0),
            u64::from(wire::u32_at(descriptor, 8)),
        );
        let end = lba.checked_add(count).filter(|end| *end <= nexus.blocks());
        if end.is_none() {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        if count > 0 {
            ranges.push((lba.saturating_mul(block), count.saturating_mul(block)));
        }
    }
    ranges.reverse();
    Ok(ranges)
}

/// The commands that are answered from what is known.
fn answer(nexus: &Nexus, command: &Command, list: &[u8]) -> Result<Vec<u8>, Status> {
    let facts = &nexus.facts;
    match *command {
        Command::RequestSense { descriptor, .. } => Ok(request_sense(nexus, descriptor)),
        Command::Inquiry { page: None, .. } => {
            Ok(identity::standard(facts.profile.kind, facts.removable))
        }
        Command::Inquiry {
            page: Some(page), ..
        } => Ok(identity::page(page, facts, &nexus.unit.identity)?),
        Command::ReadCapacity10 => Ok(read_capacity_10(nexus)),
        Command::ReadCapacity16 { .. } => Ok(read_capacity_16(nexus)),
        Command::GetLbaStatus { lba, alloc } => lba_status(nexus, lba, alloc),
        Command::ModeSense { .. } => mode_sense(nexus, command),
        Command::ModeSelect { form, .. } => mode_select(nexus, form, list),
        Command::LogSense { page, subpage, .. } => Ok(log_sense(page, subpage)?),
        Command::ReadDefectData { twelve, lists, .. } => Ok(defects(twelve, lists)),
        Command::ReportOpcodes { timeouts, what, .. } => {
            Ok(opcodes::report(facts.profile, what, timeouts)?)
        }
        Command::ReportTaskFunctions { extended, .. } => Ok(opcodes::task_functions(extended)),
        Command::ReserveIn { action, .. } => reserve_in(nexus, action),
        Command::StartStop {
            power,
            load_eject,
            start,
            ..
        } => start_stop(nexus, power, load_eject, start),
        Command::PreventAllow { prevent } => Ok(prevent_allow(nexus, prevent)),
        Command::SendDiagnostic {
            self_test: false,
            length: 1..,
        } => Err(Sense::LIST_LENGTH.into()),
        Command::ReadToc { .. }
        | Command::GetConfiguration { .. }
        | Command::GetEventStatus { .. }
        | Command::ReadDiscInformation { .. } => cdrom(nexus, command),
        // TEST UNIT READY, PRE-FETCH and the self-test have nothing more to do than to be admitted.
        _ => Ok(Vec::new()),
    }
}

fn request_sense(nexus: &Nexus, descriptor: bool) -> Vec<u8> {
    let waiting = nexus.attention();
    let medium = (!nexus.unit.loaded()).then_some(Sense::NO_MEDIUM);
    waiting.or(medium).unwrap_or(Sense::NONE).encode(descriptor)
}

fn read_capacity_10(nexus: &Nexus) -> Vec<u8> {
    let last = nexus.blocks().saturating_sub(1);
    let mut out = Bytes::new();
    out.u32(u32::try_from(last).unwrap_or(u32::MAX))
        .u32(nexus.facts.block);
    out.finish()
}

fn read_capacity_16(nexus: &Nexus) -> Vec<u8> {
    const PROVISIONED: u16 = 0x8000;
    const READS_ZERO: u16 = 0x4000;
    let facts = &nexus.facts;
    let flag = |on, flag| if on { flag } else { 0 };
    let thin = flag(facts.profile.thin, PROVISIONED) | flag(facts.unmapped_reads_zero, READS_ZERO);
    let mut out = Bytes::new();
    out.u64(nexus.blocks().saturating_sub(1))
        .u32(facts.block)
        .u8(0)
        .u8(facts.physical_exponent & 0x0f);
    out.u16(thin | (facts.lowest_aligned & 0x3fff)).zeros(16);
    out.finish()
}

/// GET LBA STATUS (SBC-3 §5.6): as many descriptors as fit, from `lba` on.
fn lba_status(nexus: &Nexus, lba: u64, alloc: u32) -> Result<Vec<u8>, Status> {
    const HEADER: u32 = 8;
    const DESCRIPTOR: u32 = 16;
    const DEALLOCATED: u8 = 1;
    let block = u64::from(nexus.facts.block);
    let room = alloc
        .saturating_sub(HEADER)
        .checked_div(DESCRIPTOR)
        .unwrap_or(0);
    let most = usize::try_from(room)
        .unwrap_or(MAX_EXTENTS)
        .clamp(1, MAX_EXTENTS);
    let mut out = Bytes::new();
    out.zeros(8);
    let mut at = lba;
    for _ in 0..most {
        if at >= nexus.blocks() {
            break;
        }
        let extent = nexus
            .disk
            .extent(at.saturating_mul(block))
            .map_err(|_| Sense::READ_ERROR)?;
        // A block that is stored in part is mapped: holes are cut to whole blocks, data is widened to them.
        let end = match extent.mapped {
            true => extent.end.div_ceil(block),
            false => extent.end.checked_div(block).unwrap_or(0),
        };
        let (mapped, end) = if end > at {
            (extent.mapped, end)
        } else {
            (true, at.saturating_add(1))
        };
        let count = u32::try_from(end.min(nexus.blocks()).saturating_sub(at)).unwrap_or(u32::MAX);
        let thick = !nexus.facts.profile.thin;
        out.u64(at)
            .u32(count)
            .u8(if mapped || thick { 0 } else { DEALLOCATED })
            .zeros(3);
        at = at.saturating_add(count.into());
    }
    let length = wire::len32(out.len().saturating_sub(4));
    out.patch_u32(0, length);
    Ok(out.finish())
}

fn mode_sense(nexus: &Nexus, command: &Command) -> Result<Vec<u8>, Status> {
    let Command::ModeSense {
        form,
        long_lba,
        no_blocks,
        control,
        page,
        subpage,
        ..
    } = *command
    else {
        return Err(Sense::INVALID_OPCODE.into());
    };
    let query = mode::Query {
        form,
        long_lba,
        no_blocks,
        control,
        page,
        subpage,
    };
    let unit = &nexus.unit;
    let blocks = unit.loaded().then(|| nexus.blocks());
    let modes = unit.with(|state| state.modes);
    let sensed = mode::sense(&query, &nexus.facts, blocks, &modes, &unit.defaults);
    Ok(sensed?)
}

fn mode_select(nexus: &Nexus, form: cdb::ModeForm, list: &[u8]) -> Result<Vec<u8>, Status> {
    let unit = &nexus.unit;
    let changed = unit.with(|state| {
        let next = mode::select(form, list, &nexus.facts, nexus.blocks(), &state.modes)?;
        let changed = next != state.modes;
        state.modes = next;
        Ok::<_, Sense>(changed)
    })?;
    if changed {
        unit.tell(attention::MODE_CHANGED, Some(nexus.port));
    }
    Ok(Vec::new())
}

/// LOG SENSE: the list of pages, and the informational exceptions page with nothing to report.
fn log_sense(page: u8, subpage: u8) -> Result<Vec<u8>, Sense> {
    const EXCEPTIONS: u8 = 0x2f;
    let body: &[u8] = match (page, subpage) {
        (0, 0) => &[0, EXCEPTIONS],
        (0, 0xff) => &[0, 0, 0, 0xff, EXCEPTIONS, 0],
        // Parameter 0: no code, no qualifier, no temperature.
        (EXCEPTIONS, 0) => &[0, 0, 0x03, 4, 0, 0, 0, 0],
        (_, 0) => return Err(Sense::cdb_field(2, Some(5))),
        _ => return Err(Sense::cdb_field(3, None)),
    };
    let mut out = Bytes::new();
    let subpage_format = if subpage == 0 { 0 } else { 0x40 };
    out.u8(page | subpage_format)
        .u8(subpage)
        .u16(wire::len16(body.len()))
        .slice(body);
    Ok(out.finish())
}

/// READ DEFECT DATA: the lists asked for, which are empty.
fn defects(twelve: bool, lists: u8) -> Vec<u8> {
    let mut out = Bytes::new();
    out.u8(0).u8(lists & 0x1f).u16(0);
    if twelve {
        out.u32(0);
    }
    out.finish()
}

fn reserve_in(nexus: &Nexus, action: u8) -> Result<Vec<u8>, Status> {
    use reserve::data;
    nexus.unit.with(|state| {
        let keeps = nexus.unit.store.is_some();
        let reservations = &state.reservations;
        Ok(match action {
            0 => data::keys(reservations),
            1 => data::reservation(reservations),
            2 => data::capabilities(reservations, keeps),
            3 => data::full_status(reservations),
            _ => return Err(Sense::cdb_field(1, Some(4)).into()),
        })
    })
}

fn reserve_out(nexus: &Nexus, action: u8, scope: u8, kind: u8, list: &[u8]) -> Next {
    let keeps = nexus.unit.store.is_some();
    let request = Action::new(action)
        .ok_or_else(|| Sense::cdb_field(1, Some(4)).into())
        .and_then(|action| reserve::data::parse(action, scope, kind, list, keeps));
    match request {
        Ok(request) => Next::Reserve(Change::Out(request)),
        Err(status) => Next::Answer(Err(status)),
    }
}

/// START STOP UNIT: loads and ejects a removable medium. Nothing spins, so starting and stopping is no more than a
/// flush, and power conditions are taken note of by nobody.
fn start_stop(nexus: &Nexus, power: u8, load_eject: bool, start: bool) -> Result<Vec<u8>, Status> {
    if power != 0 || !load_eject {
        return Ok(Vec::new());
    }
    if !nexus.facts.removable {
        return Err(Sense::cdb_field(4, Some(1)).into());
    }
    nexus.unit.with(|state| {
        if !state.preventers.is_empty() && state.loaded != start {
            return Err(Sense::REMOVAL_PREVENTED.into());
        }
        if state.loaded != start {
            state.tray_event = Some(if start {
                TrayEvent::NewMedia
            } else {
                TrayEvent::Removal
            });
        }
        state.loaded = start;
        Ok(Vec::new())
    })
}

fn prevent_allow(nexus: &Nexus, prevent: bool) -> Vec<u8> {
    nexus.unit.with(|state| {
        state.preventers.retain(|port| *port != nexus.port);
        if prevent {
            state.preventers.push(nexus.port);
        }
    });
    Vec::new()
}

fn cdrom(nexus: &Nexus, command: &Command) -> Result<Vec<u8>, Status> {
    let polls = matches!(command, Command::GetEventStatus { .. });
    let tray = nexus.unit.with(|state| Tray {
        loaded: state.loaded,
        event: if polls { state.tray_event.take() } else { None },
    });
    let blocks = if tray.loaded { nexus.blocks() } else { 0 };
    Ok(cdrom::answer(command, blocks, tray)?)
}

/// Parameter data cut to the allocation length.
pub(crate) fn cut(command: &Command, mut data: Vec<u8>) -> Vec<u8> {
    let alloc = match *command {
        Command::RequestSense { alloc, .. }
        | Command::Inquiry { alloc, .. }
        | Command::ReportLuns { alloc, .. }
        | Command::ReadCapacity16 { alloc }
        | Command::GetLbaStatus { alloc, .. }
        | Command::ModeSense { alloc, .. }
        | Command::LogSense { alloc, .. }
        | Command::ReadDefectData { alloc, .. }
        | Command::ReportOpcodes { alloc, .. }
        | Command::ReportTaskFunctions { alloc, .. }
        | Command::ReserveIn { alloc, .. }
        | Command::ReadToc { alloc, .. }
        | Command::GetConfiguration { alloc, .. }
        | Command::GetEventStatus { alloc, .. }
        | Command::ReadDiscInformation { alloc, .. } => alloc,
        _ => u32::MAX,
    };
    data.truncate(usize::try_from(alloc).unwrap_or(usize::MAX));
    data
}
