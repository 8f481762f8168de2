//! The descriptors that a task waits for: its doorbells, and what its handler names at the start and while it runs.
//!
//! A place in the table is what comes back with an event. Changes are made in the table at once and brought to the
//! event loop after the pass.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use event_manager::{EventOps, EventSet, Events};

use crate::device::{Cause, Interest, Source, Trigger};
use crate::sources::{Change, Registry};

/// Edge-triggered: each signal of an eventfd is an event of its own, so it never has to be read.
pub(super) const KICK_EVENTS: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);

/// What a task waits for.
#[derive(Default)]
pub(super) struct Watches {
    table: Vec<Option<Watch>>,
    /// What the event loop was not told yet.
    pending: Vec<Pending>,
}

struct Watch {
    fd: RawFd,
    events: EventSet,
    cause: Cause,
    /// The descriptor, if it is the worker's own.
    owned: Option<OwnedFd>,
}

enum Pending {
    Add(u16),
    Modify(u16),
    /// Closed afterwards, if it is the worker's own.
    Remove(RawFd, Option<OwnedFd>),
}

impl Watches {
    /// Waits for a doorbell, which stays open for as long as this.
    pub(super) fn add_kick(&mut self, fd: RawFd, queue: u16) {
        self.put(Watch {
            fd,
            events: KICK_EVENTS,
            cause: Cause::Kick(queue),
            owned: None,
        });
    }

    /// Waits for what a handler names at the start, and keeps open.
    pub(super) fn add_source(&mut self, source: &Source<'_>) {
        self.put(Watch {
            fd: source.fd.as_raw_fd(),
            events: event_set(source.interest, source.trigger),
            cause: Cause::Source(source.token),
            owned: None,
        });
    }

    /// Its place; none if there are too many.
    fn put(&mut self, watch: Watch) -> Option<u16> {
        let free = self.table.iter().position(Option::is_none);
        let index = u16::try_from(free.unwrap_or(self.table.len())).ok()?;
        match self.table.get_mut(usize::from(index)) {
            Some(place) => *place = Some(watch),
            None => self.table.push(Some(watch)),
        }
        Some(index)
    }

    /// Why the handler runs when an event comes with this place.
    pub(super) fn cause(&self, index: usize) -> Option<Cause> {
        Some(self.table.get(index)?.as_ref()?.cause)
    }

    /// All descriptors that the event loop may know.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let watched = self.table.iter().flatten().map(|watch| watch.fd);
        let removed = self.pending.iter().filter_map(|pending| match pending {
            Pending::Remove(fd, _) => Some(*fd),
            Pending::Add(_) | Pending::Modify(_) => None,
        });
        watched.chain(removed)
    }

    /// What to wait for, each with its place.
    pub(super) fn wanted(&self) -> impl Iterator<Item = (u16, RawFd, EventSet)> {
        let places = (0..=u16::MAX).zip(&self.table);
        places.filter_map(|(index, watch)| {
            let watch = watch.as_ref()?;
            Some((index, watch.fd, watch.events))
        })
    }

    /// Whether there is something to tell the event loop.
    pub(super) fn changed(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The event loop waits for nothing of it: what it waits for later, it takes from the table.
    pub(super) fn settled(&mut self) {
        self.pending.clear();
    }

    /// Makes a handler's changes in the table; those of timers are left in `timers`.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub(super) fn take(
        &mut self,
        registry: &mut Registry,
        timers: &mut Vec<(u32, Option<std::time::Instant>)>,
    ) -> Result<(), &'static str> {
        for change in registry.drain() {
            match change {
                Change::Timer { token, at } => timers.push((token, at)),
                Change::Remove { token } => self.remove(token),
                Change::Modify {
                    token,
                    interest,
                    trigger,
                } => self.modify(token, event_set(interest, trigger)),
                Change::Add {
                    fd,
                    token,
                    interest,
                    trigger,
                } => {
                    let watch = Watch {
                        fd: fd.as_raw_fd(),
                        events: event_set(interest, trigger),
                        cause: Cause::Source(token),
                        owned: Some(fd),
                    };
                    let index = self.put(watch);
                    let index = index.ok_or("it waits for too many descriptors")?;
                    self.pending.push(Pending::Add(index));
                }
            }
        }
        Ok(())
    }

    fn modify(&mut self, token: u32, events: EventSet) {
        for (index, place) in (0..=u16::MAX).zip(&mut self.table) {
            if let Some(watch) = place
                && watch.cause == Cause::Source(token)
            {
                watch.events = events;
                self.pending.push(Pending::Modify(index));
            }
        }
    }

    fn remove(&mut self, token: u32) {
        for (index, place) in (0..=u16::MAX).zip(&mut self.table) {
            let gone = place.take_if(|watch| watch.cause == Cause::Source(token));
            if let Some(watch) = gone {
                // Its place may be another's before the event loop hears of it.
                self.pending.retain(|pending| match pending {
                    Pending::Add(other) | Pending::Modify(other) => *other != index,
                    Pending::Remove(..) => true,
                });
                let removed = Pending::Remove(watch.fd, watch.owned);
                self.pending.push(removed);
            }
        }
    }

    /// Tells the event loop what has changed; `pack` makes the data of an event of a place.
    ///
    /// # Errors
    /// The kernel refuses to wait for a descriptor.
    pub(super) fn apply(
        &mut self,
        ops: &mut EventOps,
        pack: impl Fn(u16) -> u32,
    ) -> Result<(), event_manager::Error> {
        let mut result = Ok(());
        for pending in std::mem::take(&mut self.pending) {
            let done = match pending {
                // Fails only for a descriptor that is not watched, which is what is wanted.
                Pending::Remove(fd, _open) => {
                    let _ = ops.remove(Events::with_data_raw(fd, 0, EventSet::empty()));
                    Ok(())
                }
                Pending::Add(index) => match self.event(index, &pack) {
                    Some(event) => ops.add(event),
                    None => Ok(()),
                },
                Pending::Modify(index) => match self.event(index, &pack) {
                    Some(event) => ops.modify(event),
                    None => Ok(()),
                },
            };
            result = result.and(done);
        }
        result
    }

    fn event(&self, index: u16, pack: &impl Fn(u16) -> u32) -> Option<Events> {
        let watch = self.table.get(usize::from(index))?.as_ref()?;
        Some(Events::with_data_raw(watch.fd, pack(index), watch.events))
    }
}

fn event_set(interest: Interest, trigger: Trigger) -> EventSet {
    let events = match interest {
        Interest::Read => EventSet::IN,
        Interest::Write => EventSet::OUT,
        Interest::Both => EventSet::IN.union(EventSet::OUT),
    };
    match trigger {
        Trigger::Level => events,
        Trigger::Edge => events.union(EventSet::EDGE_TRIGGERED),
    }
}
