//! Parameter data of PERSISTENT RESERVE IN and the parameter list of PERSISTENT RESERVE OUT (SPC-4 §6.15, §6.16).

use super::{Action, MOVE_HEADER, Port, Registration, Request, Reservations};
use crate::scsi::sense::{Sense, Status};
use crate::scsi::wire::{self, Bytes};

/// Length of the basic parameter list, the only one there is without SPEC_I_PT but for REGISTER AND MOVE.
pub(crate) const LIST_LENGTH: u32 = 24;
/// The shortest TransportID, by which REGISTER AND MOVE names its destination.
const SHORTEST_ID: usize = 24;

/// Relative target port identifier: a controller has one port.
const TARGET_PORT: u16 = 1;

/// Takes the parameter list apart. `keeps` says whether there is a place to persist to.
pub(crate) fn parse(
    action: Action,
    scope: u8,
    kind: u8,
    list: &[u8],
    keeps: bool,
) -> Result<Request, Status> {
    if action == Action::RegisterAndMove {
        return parse_move(scope, kind, list, keeps);
    }
    if wire::len32(list.len()) != LIST_LENGTH {
        return Err(Sense::LIST_LENGTH.into());
    }
    let flags = wire::u8_at(list, 20);
    let registers = matches!(action, Action::Register | Action::RegisterAndIgnore);
    // No SPEC_I_PT, no ALL_TG_PT: REPORT CAPABILITIES says so.
    let refused = flags & 0x0c != 0 || (flags & 0x01 != 0 && !keeps);
    if registers && refused {
        return Err(Sense::list_field(20).into());
    }
    Ok(Request {
        action,
        scope,
        kind,
        key: wire::u64_at(list, 0),
        service_key: wire::u64_at(list, 8),
        persist: flags & 0x01 != 0,
        to: None,
        unregister: false,
    })
}

/// The list of REGISTER AND MOVE (SPC-4 §6.16.4).
fn parse_move(scope: u8, kind: u8, list: &[u8], keeps: bool) -> Result<Request, Status> {
    const FLAGS: usize = 17;
    const PORT: usize = 18;
    const ID_LENGTH: usize = 20;
    let id = list.get(MOVE_HEADER..).ok_or(Sense::LIST_LENGTH)?;
    if usize::try_from(wire::u32_at(list, ID_LENGTH)) != Ok(id.len()) {
        return Err(Sense::LIST_LENGTH.into());
    }
    let flags = wire::u8_at(list, FLAGS);
    let (persist, unregister) = (flags & 0x01 != 0, flags & 0x02 != 0);
    if flags & 0xfc != 0 || (persist && !keeps) {
        return Err(Sense::list_field(FLAGS).into());
    }
    if wire::u16_at(list, PORT) != TARGET_PORT {
        return Err(Sense::list_field(PORT).into());
    }
    Ok(Request {
        action: Action::RegisterAndMove,
        scope,
        kind,
        key: wire::u64_at(list, 0),
        service_key: wire::u64_at(list, 8),
        persist,
        to: Some(named(id).ok_or(Sense::list_field(MOVE_HEADER))?),
        unregister,
    })
}

/// The port a TransportID names, if it is of the one kind that is given out here.
fn named(id: &[u8]) -> Option<Port> {
    let port = Port(wire::u64_at(id, 4));
    (id.len() == SHORTEST_ID && id == transport_id(port)).then_some(port)
}

/// READ KEYS.
pub(crate) fn keys(state: &Reservations) -> Vec<u8> {
    let mut out = Bytes::new();
    out.u32(state.generation)
        .u32(wire::len32(state.registrations.len().saturating_mul(8)));
    for registration in &state.registrations {
        out.u64(registration.key);
    }
    out.finish()
}

/// READ RESERVATION. All-registrants reservations have key 0.
pub(crate) fn reservation(state: &Reservations) -> Vec<u8> {
    let mut out = Bytes::new();
    out.u32(state.generation);
    match state.held {
        None => out.u32(0),
        Some(held) => {
            let key = match held.kind.all_registrants() {
                true => 0,
                false => state.key_of(held.by).unwrap_or(0),
            };
            out.u32(16).u64(key).u32(0).u8(0).u8(held.kind as u8).u16(0)
        }
    };
    out.finish()
}

/// REPORT CAPABILITIES: no compatible reservations, no SPEC_I_PT, no ALL_TG_PT; all six types.
pub(crate) fn capabilities(state: &Reservations, keeps: bool) -> Vec<u8> {
    const PERSISTS: u8 = 0x01;
    const TYPE_MASK_VALID: u8 = 0x80;
    // WRITE EXCLUSIVE and EXCLUSIVE ACCESS treat TEST UNIT READY and the MODE commands as in the table here.
    const ALLOW_COMMANDS: u8 = 1 << 4;
    let mut out = Bytes::new();
    out.u16(8).u8(if keeps { PERSISTS } else { 0 });
    out.u8(TYPE_MASK_VALID | ALLOW_COMMANDS | u8::from(state.persist));
    out.u8(0xea).u8(0x01).u16(0);
    out.finish()
}

/// READ FULL STATUS.
pub(crate) fn full_status(state: &Reservations) -> Vec<u8> {
    let mut out = Bytes::new();
    out.u32(state.generation).u32(0);
    for Registration { port, key } in &state.registrations {
        let held = state.held.filter(|_| state.holds(*port));
        out.u64(*key)
            .u32(0)
            .u8(u8::from(held.is_some()))
            .u8(held.map_or(0, |held| held.kind as u8))
            .u32(0);
        let id = transport_id(*port);
        out.u16(TARGET_PORT).u32(wire::len32(id.len())).slice(&id);
    }
    let additional = wire::len32(out.len().saturating_sub(8));
    out.patch_u32(4, additional);
    out.finish()
}

/// TransportID in the SAS format (SPC-4 §7.6.4.5): the only fixed-length one that is nothing but an NAA name.
fn transport_id(port: Port) -> Vec<u8> {
    const SAS: u8 = 0x06;
    let mut out = Bytes::new();
    out.u8(SAS).zeros(3).u64(port.0).zeros(12);
    out.finish()
}
