//! What a snapshot keeps of a controller and its units.
//!
//! Reservations that persist are in their file, which may be newer; where a unit is shared with
//! other machines, its state is theirs as well and stays as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::address::Place;
use super::cdrom::TrayEvent;
use super::events::{MAX_WAITING, Notice};
use super::hub::Hub;
use super::mode::Modes;
use super::request::Sizes;
use super::reserve::{Held, Kind, MAX_REGISTRATIONS, Port, Registration, Reservations};
use super::sense::{Code, attention};
use super::unit::{Nexus, State};
use crate::saved::{Layer, StateError};

/// Most initiators that prevent the removal of one medium.
const MAX_PREVENTERS: usize = 256;

/// The state of a controller.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScsiState {
    /// As the driver wrote them.
    cdb_size: u32,
    sense_size: u32,
    units: Vec<UnitState>,
    events: Vec<EventState>,
    events_missed: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnitState {
    target: u8,
    lun: u16,
    /// Bytes of a logical block, and how many there are.
    block: u32,
    blocks: u64,
    write_cache: bool,
    write_protect: bool,
    descriptor_sense: bool,
    loaded: bool,
    /// Ports that prevent the removal of the medium.
    preventers: Vec<u64>,
    tray_event: Option<u8>,
    reservations: ReservationState,
    /// Additional sense codes and qualifiers.
    attentions: Vec<(u8, u8)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReservationState {
    generation: u32,
    persist: bool,
    /// Ports and keys.
    registrations: Vec<(u64, u64)>,
    /// Port and type.
    held: Option<(u64, u8)>,
    legacy: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum EventState {
    Added {
        target: u8,
        lun: u16,
    },
    Removed {
        target: u8,
        lun: u16,
    },
    Changed {
        target: u8,
        lun: u16,
        code: (u8, u8),
    },
}

impl Layer for ScsiState {
    const NAME: &'static str = "SCSI controller";
    const VERSION: u32 = 1;
}

fn refused(problem: impl ToString) -> StateError {
    StateError::refused::<ScsiState>(problem)
}

impl ScsiState {
    pub(super) fn of(hub: &Hub, sizes: Sizes) -> Self {
        let (events, events_missed) = hub.events.waiting();
        Self {
            cdb_size: sizes.cdb,
            sense_size: sizes.sense,
            units: hub.map().iter().map(UnitState::of).collect(),
            events: events.into_iter().map(EventState::of).collect(),
            events_missed,
        }
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            cdb: self.cdb_size,
            sense: self.sense_size,
        }
    }

    /// Gives it to the units of a controller, which must be those that it is of. Nothing has
    /// changed after an error.
    pub(super) fn apply(&self, hub: &Hub) -> Result<(), StateError> {
        let map = hub.map();
        let mut units = BTreeMap::new();
        for unit in &self.units {
            let place = Place {
                target: unit.target,
                lun: unit.lun,
            };
            let (target, lun) = (unit.target, unit.lun);
            let nexus = map.get(place).ok_or_else(|| {
                refused(format!("there is no disk at target {target}, unit {lun}"))
            })?;
            if units.insert(place, (nexus, unit.read(nexus)?)).is_some() {
                return Err(refused(format!("target {target} has unit {lun} twice")));
            }
        }
        if let Some(other) = map.iter().find(|nexus| !units.contains_key(&nexus.place)) {
            return Err(refused(format!("the disk {} is not in it", other.id)));
        }
        if self.events.len() > MAX_WAITING {
            return Err(refused(format!("{} events wait", self.events.len())));
        }
        let events = self.events.iter().map(EventState::notice).collect();
        hub.events.set_waiting(events, self.events_missed);
        for (nexus, read) in units.into_values() {
            read.apply(nexus);
        }
        Ok(())
    }
}

/// A unit's state that was found to be one.
struct Read<'a> {
    state: State,
    attentions: Vec<Code>,
    saved: &'a UnitState,
}

impl Read<'_> {
    fn apply(self, nexus: &Nexus) {
        let keeps = self.state.reservations.persist && nexus.unit.store.is_some();
        // Another machine may go by it already.
        let is_ours = nexus.unit.is_private() || nexus.unit.paths().len() == 1;
        if is_ours {
            nexus.unit.with(|state| {
                let legacy = self.state.reservations.legacy;
                let reservations = match keeps {
                    true => Reservations {
                        legacy,
                        ..std::mem::take(&mut state.reservations)
                    },
                    false => self.state.reservations,
                };
                *state = State {
                    reservations,
                    ..self.state
                };
            });
        }
        nexus.set_attentions(&self.attentions);
        if nexus.blocks() != self.saved.blocks {
            nexus.attend(attention::CAPACITY_CHANGED);
            let notice = Notice::Changed(nexus.place, attention::CAPACITY_CHANGED);
            nexus.events.push(notice);
        }
    }
}

impl UnitState {
    fn of(nexus: &Arc<Nexus>) -> Self {
        let attentions = nexus.attentions();
        nexus.unit.with(|state| Self {
            target: nexus.place.target,
            lun: nexus.place.lun,
            block: nexus.facts.block,
            blocks: nexus.blocks(),
            write_cache: state.modes.write_cache,
            write_protect: state.modes.write_protect,
            descriptor_sense: state.modes.descriptor_sense,
            loaded: state.loaded,
            preventers: state.preventers.iter().map(|port| port.0).collect(),
            tray_event: state.tray_event.map(|event| event as u8),
            reservations: ReservationState::of(&state.reservations),
            attentions: attentions.iter().map(|code| (code.0, code.1)).collect(),
        })
    }

    fn read(&self, nexus: &Nexus) -> Result<Read<'_>, StateError> {
        let id = &nexus.id;
        if self.block != nexus.facts.block {
            let (was, is) = (self.block, nexus.facts.block);
            return Err(refused(format!(
                "{id} had blocks of {was} bytes and has blocks of {is}"
            )));
        }
        if self.preventers.len() > MAX_PREVENTERS {
            return Err(refused(format!("too many prevent the removal of {id}")));
        }
        let tray_event = match self.tray_event {
            None => None,
            Some(code) => Some(
                TrayEvent::new(code)
                    .ok_or_else(|| refused(format!("{code} is no event of the tray of {id}")))?,
            ),
        };
        Ok(Read {
            state: State {
                reservations: self.reservations.read(id)?,
                modes: Modes {
                    write_cache: self.write_cache,
                    write_protect: self.write_protect,
                    descriptor_sense: self.descriptor_sense,
                },
                loaded: self.loaded,
                preventers: self.preventers.iter().copied().map(Port).collect(),
                tray_event,
            },
            attentions: self.attentions.iter().map(|it| Code(it.0, it.1)).collect(),
            saved: self,
        })
    }
}

impl ReservationState {
    fn of(state: &Reservations) -> Self {
        let registrations = state.registrations.iter();
        Self {
            generation: state.generation,
            persist: state.persist,
            registrations: registrations.map(|one| (one.port.0, one.key)).collect(),
            held: state.held.map(|held| (held.by.0, held.kind as u8)),
            legacy: state.legacy.map(|port| port.0),
        }
    }

    fn read(&self, id: &str) -> Result<Reservations, StateError> {
        let mut ports: Vec<u64> = self.registrations.iter().map(|(port, _)| *port).collect();
        ports.sort_unstable();
        let twice = ports
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a == b));
        if twice || ports.len() > MAX_REGISTRATIONS {
            return Err(refused(format!(
                "the registrations of {id} contradict one another"
            )));
        }
        let held = match self.held {
            None => None,
            Some((by, code)) => {
                let kind = Kind::new(code);
                let kind = kind.ok_or_else(|| refused(format!("{id} has a reservation {code}")))?;
                if ports.binary_search(&by).is_err() && !kind.all_registrants() {
                    return Err(refused(format!("who holds {id} is not registered")));
                }
                Some(Held { by: Port(by), kind })
            }
        };
        let registration = |&(port, key): &(u64, u64)| Registration {
            port: Port(port),
            key,
        };
        Ok(Reservations {
            generation: self.generation,
            persist: self.persist,
            registrations: self.registrations.iter().map(registration).collect(),
            held,
            legacy: self.legacy.map(Port),
        })
    }
}

impl EventState {
    fn of(notice: Notice) -> Self {
        match notice {
            Notice::Added(Place { target, lun }) => Self::Added { target, lun },
            Notice::Removed(Place { target, lun }) => Self::Removed { target, lun },
            Notice::Changed(Place { target, lun }, Code(asc, ascq)) => Self::Changed {
                target,
                lun,
                code: (asc, ascq),
            },
        }
    }

    fn notice(&self) -> Notice {
        match *self {
            Self::Added { target, lun } => Notice::Added(Place { target, lun }),
            Self::Removed { target, lun } => Notice::Removed(Place { target, lun }),
            Self::Changed {
                target,
                lun,
                code: (asc, ascq),
            } => Notice::Changed(Place { target, lun }, Code(asc, ascq)),
        }
    }
}
