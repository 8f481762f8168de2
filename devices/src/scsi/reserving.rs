//! Changes of a unit's reservations, one after another, each stable before it is in force.
//!
//! Where a change is to outlive a power loss (APTPL), writing it takes as long as the host's storage does, so it is
//! done on a thread of its own: a worker serves other disks, and other commands of the unit go by the reservations
//! before the change, until it is stable. Then the change comes into force and the command is answered.

use std::sync::{Arc, Mutex};

use super::lock::Held;
use super::reserve::{Effects, Port, Request, Reservations};
use super::sense::{Sense, Status};
use super::sync::lock;
use super::unit::{Nexus, State};
use super::workers::{Mail, Mailbox};
use crate::log;
use crate::threads::inherited;

/// A command that changes reservations.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    /// PERSISTENT RESERVE OUT.
    Out(Request),
    /// RESERVE.
    Reserve,
    /// RELEASE.
    Release,
}

/// What a change came to: whose commands are to be aborted before it is answered, or why nothing has changed.
pub(crate) type Outcome = Result<Vec<Port>, Status>;

/// Where a change stands.
pub(crate) enum Progress {
    Done(Outcome),
    /// It is being made stable; a [`Mail::Look`] follows.
    Saving(Arc<Saving>),
}

/// A change that is being made stable.
#[derive(Debug, Default)]
pub(crate) struct Saving(Mutex<Option<Outcome>>);

impl Saving {
    /// What came of it, once.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        lock(&self.0).take()
    }
}

/// A change that is in force, or the reservations that are to be in force when they are stable.
enum Plan {
    InForce(Effects),
    Save(Box<Next>),
}

struct Next {
    before: Reservations,
    after: Reservations,
    effects: Effects,
}

/// Makes a change for the initiator of `nexus`. `turn` keeps other changes away until it is dropped; `waiter` is told
/// when a change that has to be made stable is done.
pub(crate) fn change(
    nexus: &Arc<Nexus>,
    turn: Held,
    change: Change,
    waiter: &Arc<Mailbox>,
) -> Progress {
    let keeps = nexus.unit.store.is_some();
    let plan = nexus
        .unit
        .with(|state| plan(state, nexus.port, change, keeps));
    match plan {
        Err(status) => Progress::Done(Err(status)),
        Ok(Plan::InForce(effects)) => Progress::Done(Ok(entail(nexus, effects))),
        Ok(Plan::Save(next)) => save(nexus, turn, next, waiter),
    }
}

fn plan(state: &mut State, port: Port, change: Change, keeps: bool) -> Result<Plan, Status> {
    let reservations = &mut state.reservations;
    let effects = match change {
        Change::Reserve => good(reservations.reserve(port))?,
        Change::Release => good(reservations.release_legacy(port))?,
        Change::Out(request) => {
            let mut after = reservations.clone();
            let effects = after.perform(port, &request)?;
            if keeps && (reservations.persist || after.persist) {
                let before = reservations.clone();
                return Ok(Plan::Save(Box::new(Next {
                    before,
                    after,
                    effects,
                })));
            }
            *reservations = after;
            effects
        }
    };
    Ok(Plan::InForce(effects))
}

fn good(status: Status) -> Result<Effects, Status> {
    match status {
        Status::Good => Ok(Effects::default()),
        other => Err(other),
    }
}

/// Establishes the unit attentions of a change that is in force. Returns whose commands are to be aborted.
fn entail(nexus: &Nexus, effects: Effects) -> Vec<Port> {
    let paths = nexus.unit.paths();
    for (port, code) in effects.attentions {
        paths
            .iter()
            .filter(|path| path.port == port)
            .for_each(|path| path.attend(code));
    }
    effects.abort
}

/// Starts the thread that makes a change stable.
fn save(nexus: &Arc<Nexus>, turn: Held, next: Box<Next>, waiter: &Arc<Mailbox>) -> Progress {
    let saving = Arc::new(Saving::default());
    let report = Report {
        saving: Arc::clone(&saving),
        waiter: Arc::clone(waiter),
        outcome: Err(Sense::INTERNAL_FAILURE.into()),
    };
    let path = Arc::clone(nexus);
    let span = tracing::Span::current();
    let work = move || {
        let _in_span = span.entered();
        let outcome = keep(&path, *next);
        // Whoever is told that the command has ended finds nothing of it left.
        drop((path, turn));
        report.end(outcome);
    };
    let thread = std::thread::Builder::new().name("scsi-reserve".to_owned());
    // If there is none, the report is dropped with the work and says that it failed.
    if let Err(error) = thread.spawn(inherited(work)) {
        log::error!(
            nexus.throttle,
            "{}: cannot start a thread that keeps reservations: {error}",
            nexus.id
        );
    }
    Progress::Saving(saving)
}

/// Makes a change stable, then puts it into force.
fn keep(nexus: &Nexus, next: Next) -> Outcome {
    if let Some(store) = &nexus.unit.store
        && let Err(error) = store.save(&next.after)
    {
        // What can't be kept must not be promised.
        log::error!(
            nexus.throttle,
            "{}: cannot keep reservations over a power loss: {error}",
            nexus.id
        );
        return Err(Sense::INTERNAL_FAILURE.into());
    }
    nexus.unit.with(|state| {
        let now = &mut state.reservations;
        let legacy = now.legacy;
        // A power-on meanwhile has ended what does not persist.
        if next.after.persist || now.registrations == next.before.registrations {
            *now = Reservations {
                legacy,
                ..next.after
            };
        }
    });
    Ok(entail(nexus, next.effects))
}

/// Reports the outcome of a change when it is dropped: as failed, unless another is set before.
struct Report {
    saving: Arc<Saving>,
    waiter: Arc<Mailbox>,
    outcome: Outcome,
}

impl Report {
    fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Ok(Vec::new()));
        *lock(&self.saving.0) = Some(outcome);
        self.waiter.post(Mail::Look);
    }
}
