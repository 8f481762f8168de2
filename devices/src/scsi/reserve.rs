//! Reservations of one logical unit: persistent ones (SPC-4 §5.13) and SPC-2's RESERVE and RELEASE.
//!
//! A state machine over plain values: it says who may do what, who has to be told, and whose commands are to be
//! aborted; telling, aborting and keeping the state over a power loss are done by others. An I_T nexus is a
//! controller of a machine, known here by the name of its port.

pub(crate) mod data;
pub(crate) mod store;

use super::sense::{Code, Sense, Status, attention};
use super::table::Access;

/// An initiator port: an NAA name, stable over restarts, since registrations may outlive them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Port(pub(crate) u64);

/// Most registrations one unit keeps; the store's slots are sized by it.
pub(crate) const MAX_REGISTRATIONS: usize = 256;

/// Where the parameter list of REGISTER AND MOVE names the destination (SPC-4 §6.16.4).
const MOVE_HEADER: usize = 24;

/// Types of persistent reservation (SPC-4 table 65).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrants = 5,
    ExclusiveAccessRegistrants = 6,
    WriteExclusiveAll = 7,
    ExclusiveAccessAll = 8,
}

impl Kind {
    pub(crate) fn new(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrants,
            6 => Self::ExclusiveAccessRegistrants,
            7 => Self::WriteExclusiveAll,
            8 => Self::ExclusiveAccessAll,
            _ => return None,
        })
    }

    /// Every registrant holds it.
    pub(crate) fn all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAll | Self::ExclusiveAccessAll)
    }

    /// Registrants may do what the holder may.
    fn admits_registrants(self) -> bool {
        self.all_registrants()
            || matches!(
                self,
                Self::WriteExclusiveRegistrants | Self::ExclusiveAccessRegistrants
            )
    }

    /// Reading is exclusive too.
    fn excludes_reads(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess | Self::ExclusiveAccessRegistrants | Self::ExclusiveAccessAll
        )
    }
}

/// A registered I_T nexus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) port: Port,
    pub(crate) key: u64,
}

/// The persistent reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    /// Who made it; with the all-registrants types every registrant holds it.
    pub(crate) by: Port,
    pub(crate) kind: Kind,
}

/// All reservation state of one unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reservations {
    pub(crate) generation: u32,
    /// Kept over a power loss, as the last REGISTER asked.
    pub(crate) persist: bool,
    pub(crate) registrations: Vec<Registration>,
    pub(crate) held: Option<Held>,
    /// The SPC-2 reservation.
    pub(crate) legacy: Option<Port>,
}

/// What a successful PERSISTENT RESERVE OUT entails.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Unit attentions to establish.
    pub(crate) attentions: Vec<(Port, Code)>,
    /// Whose commands are aborted.
    pub(crate) abort: Vec<Port>,
}

/// Service actions of PERSISTENT RESERVE OUT (SPC-4 table 217).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Register,
    Reserve,
    Release,
    Clear,
    Preempt,
    PreemptAndAbort,
    RegisterAndIgnore,
    RegisterAndMove,
}

impl Action {
    pub(crate) fn new(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Register,
            1 => Self::Reserve,
            2 => Self::Release,
            3 => Self::Clear,
            4 => Self::Preempt,
            5 => Self::PreemptAndAbort,
            6 => Self::RegisterAndIgnore,
            7 => Self::RegisterAndMove,
            _ => return None,
        })
    }
}

/// One PERSISTENT RESERVE OUT, its parameter list taken apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) action: Action,
    pub(crate) scope: u8,
    pub(crate) kind: u8,
    /// RESERVATION KEY: the key the nexus believes it has.
    pub(crate) key: u64,
    /// SERVICE ACTION RESERVATION KEY: the new key, or whom to preempt.
    pub(crate) service_key: u64,
    pub(crate) persist: bool,
    /// Whom REGISTER AND MOVE hands the reservation to, and whether it drops the giver's registration.
    pub(crate) to: Option<Port>,
    pub(crate) unregister: bool,
}

type Outcome = Result<Effects, Status>;
const CONFLICT: Status = Status::ReservationConflict;

impl Reservations {
    /// Whether any command might conflict: the data path looks at no more than this.
    pub(crate) fn restricts(&self) -> bool {
        self.held.is_some() || self.legacy.is_some()
    }

    fn key_of(&self, port: Port) -> Option<u64> {
        self.registrations
            .iter()
            .find(|r| r.port == port)
            .map(|r| r.key)
    }

    pub(crate) fn holds(&self, port: Port) -> bool {
        self.held
            .is_some_and(|held| match held.kind.all_registrants() {
                true => self.key_of(port).is_some(),
                false => held.by == port,
            })
    }

    /// Whether a command of `port` conflicts (SPC-4 §5.13.1, SBC-3 §4.17).
    pub(crate) fn conflicts(&self, port: Port, access: Access) -> bool {
        if self.legacy.is_some_and(|owner| owner != port) {
            return !matches!(access, Access::Always | Access::Own);
        }
        let Some(held) = self.held else { return false };
        let admitted =
            self.holds(port) || (held.kind.admits_registrants() && self.key_of(port).is_some());
        match access {
            Access::Always | Access::Shared | Access::Own => false,
            Access::Read => held.kind.excludes_reads() && !admitted,
            Access::Write => !admitted,
        }
    }

    /// RESERVE: conflicts with registrations, since these reservations are not compatible (CRH is 0).
    pub(crate) fn reserve(&mut self, port: Port) -> Status {
        if !self.registrations.is_empty() || self.legacy.is_some_and(|owner| owner != port) {
            return CONFLICT;
        }
        self.legacy = Some(port);
        Status::Good
    }

    /// RELEASE: without effect on what is not one's own.
    pub(crate) fn release_legacy(&mut self, port: Port) -> Status {
        if !self.registrations.is_empty() {
            return CONFLICT;
        }
        if self.legacy == Some(port) {
            self.legacy = None;
        }
        Status::Good
    }

    /// Power on: what was not made to persist is gone (SPC-4 §5.13.5).
    pub(crate) fn power_on(&mut self) {
        self.reset();
        if !self.persist {
            *self = Self::default();
        }
    }

    /// A logical unit reset, or the loss of the owner's nexus, ends the SPC-2 reservation and nothing else.
    pub(crate) fn reset(&mut self) {
        self.legacy = None;
    }

    /// Performs PERSISTENT RESERVE OUT for `port`. On an error nothing has changed.
    pub(crate) fn perform(&mut self, port: Port, request: &Request) -> Outcome {
        if self.legacy.is_some() {
            return Err(CONFLICT);
        }
        let takes_type = matches!(
            request.action,
            Action::Reserve | Action::Release | Action::Preempt | Action::PreemptAndAbort
        );
        let kind = Kind::new(request.kind);
        if takes_type && request.scope != 0 {
            return Err(Sense::cdb_field(2, Some(7)).into());
        }
        let kind = match (takes_type, kind) {
            (true, None) => return Err(Sense::cdb_field(2, Some(3)).into()),
            (_, kind) => kind.unwrap_or(Kind::WriteExclusive),
        };
        match request.action {
            Action::Register => self.register(port, request, false),
            Action::RegisterAndIgnore => self.register(port, request, true),
            _ if self.key_of(port) != Some(request.key) => Err(CONFLICT),
            Action::Reserve => self.reserve_persistently(port, kind),
            Action::Release => self.release(port, kind),
            Action::Clear => self.clear(port),
            Action::Preempt => self.preempt(port, request.service_key, kind, false),
            Action::PreemptAndAbort => self.preempt(port, request.service_key, kind, true),
            Action::RegisterAndMove => self.hand_over(port, request),
        }
    }

    /// REGISTER AND MOVE (SPC-4 §5.13.8): the holder registers another nexus and makes it the holder.
    fn hand_over(&mut self, port: Port, request: &Request) -> Outcome {
        let Some(held) = self.held else {
            return Err(Sense::cdb_field(1, Some(4)).into());
        };
        if held.kind.all_registrants() || held.by != port {
            return Err(CONFLICT);
        }
        let key = request.service_key;
        if key == 0 {
            return Err(Sense::list_field(8).into());
        }
        let Some(to) = request.to.filter(|to| *to != port) else {
            return Err(Sense::list_field(MOVE_HEADER).into());
        };
        let known = self.key_of(to).is_some();
        if !known && !request.unregister && self.registrations.len() >= MAX_REGISTRATIONS {
            return Err(Sense::NO_REGISTRATION_RESOURCES.into());
        }
        self.registrations
            .retain(|r| r.port != to && !(request.unregister && r.port == port));
        self.registrations.push(Registration { port: to, key });
        self.held = Some(Held { by: to, ..held });
        self.persist = request.persist;
        self.generation = self.generation.wrapping_add(1);
        Ok(Effects::default())
    }

    fn register(&mut self, port: Port, request: &Request, ignore_key: bool) -> Outcome {
        let current = self.key_of(port);
        if !ignore_key && current.unwrap_or(0) != request.key {
            return Err(CONFLICT);
        }
        let effects = match (current, request.service_key) {
            (None, 0) => Effects::default(),
            (None, key) => {
                if self.registrations.len() >= MAX_REGISTRATIONS {
                    return Err(Sense::NO_REGISTRATION_RESOURCES.into());
                }
                self.registrations.push(Registration { port, key });
                Effects::default()
            }
            (Some(_), 0) => self.unregister(port),
            (Some(_), key) => {
                for registration in self.registrations.iter_mut().filter(|r| r.port == port) {
                    registration.key = key;
                }
                Effects::default()
            }
        };
        self.persist = request.persist;
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }

    fn unregister(&mut self, port: Port) -> Effects {
        let held_by_port = self.holds(port);
        self.registrations.retain(|r| r.port != port);
        let mut effects = Effects::default();
        let Some(held) = self.held.filter(|_| held_by_port) else {
            return effects;
        };
        if held.kind.all_registrants() && !self.registrations.is_empty() {
            return effects;
        }
        self.held = None;
        if held.kind.admits_registrants() {
            effects.attentions = self.tell_others(port, attention::RESERVATIONS_RELEASED);
        }
        effects
    }

    fn tell_others(&self, port: Port, code: Code) -> Vec<(Port, Code)> {
        self.registrations
            .iter()
            .filter(|r| r.port != port)
            .map(|r| (r.port, code))
            .collect()
    }

    fn reserve_persistently(&mut self, port: Port, kind: Kind) -> Outcome {
        match self.held {
            Some(held) if held.kind == kind && self.holds(port) => {}
            Some(_) => return Err(CONFLICT),
            None => self.held = Some(Held { by: port, kind }),
        }
        Ok(Effects::default())
    }

    fn release(&mut self, port: Port, kind: Kind) -> Outcome {
        let Some(held) = self.held.filter(|_| self.holds(port)) else {
            return Ok(Effects::default());
        };
        if held.kind != kind {
            return Err(Sense::INVALID_RELEASE.into());
        }
        self.held = None;
        let mut effects = Effects::default();
        if kind.admits_registrants() {
            effects.attentions = self.tell_others(port, attention::RESERVATIONS_RELEASED);
        }
        Ok(effects)
    }

    fn clear(&mut self, port: Port) -> Outcome {
        let attentions = self.tell_others(port, attention::RESERVATIONS_PREEMPTED);
        self.registrations.clear();
        self.held = None;
        self.generation = self.generation.wrapping_add(1);
        Ok(Effects {
            attentions,
            abort: Vec::new(),
        })
    }

    /// PREEMPT (SPC-4 §5.13.11.2.4 and its figures).
    fn preempt(&mut self, port: Port, victim: u64, kind: Kind, abort: bool) -> Outcome {
        let all = self.held.is_some_and(|held| held.kind.all_registrants());
        let holder_key = self
            .held
            .filter(|_| !all)
            .and_then(|held| self.key_of(held.by));
        let takes_over = (all && victim == 0) || holder_key == Some(victim);
        if victim == 0 && !all {
            return Err(Sense::list_field(8).into());
        }
        let hit = |r: &Registration| r.key == victim || (all && victim == 0);
        if !self.registrations.iter().any(hit) {
            return Err(CONFLICT);
        }
        // Without taking the reservation over, one may remove even one's own registration.
        let spared = |r: &Registration| takes_over && r.port == port;
        let removed: Vec<Port> = self
            .registrations
            .iter()
            .filter(|r| hit(r) && !spared(r))
            .map(|r| r.port)
            .collect();
        let left_with_reservation = self
            .held
            .filter(|held| held.kind.all_registrants())
            .is_some();
        self.registrations.retain(|r| !removed.contains(&r.port));

        let mut effects = Effects::default();
        let others = |ports: &[Port]| {
            ports
                .iter()
                .copied()
                .filter(|p| *p != port)
                .collect::<Vec<_>>()
        };
        effects.attentions.extend(
            others(&removed)
                .into_iter()
                .map(|p| (p, attention::REGISTRATIONS_PREEMPTED)),
        );
        if takes_over {
            let changed = self.held.is_some_and(|held| held.kind != kind);
            self.held = Some(Held { by: port, kind });
            if changed {
                effects
                    .attentions
                    .extend(self.tell_others(port, attention::RESERVATIONS_RELEASED));
            }
        } else if left_with_reservation && self.registrations.is_empty() {
            self.held = None;
        }
        if abort {
            effects.abort = others(&removed);
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }
}

#[cfg(test)]
#[path = "reserve_tests.rs"]
mod tests;
