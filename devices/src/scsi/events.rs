//! Events to the driver (VIRTIO 1.2 §5.6.6.3): units that come and go, parameters that change.
//!
//! Events wait here, in order, until the driver has buffers for them. If too many wait they are dropped, and the
//! driver is told that some were missed, upon which it looks at everything anew.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use splitring_virtio::spec::scsi::{Event, event};
use zerocopy::little_endian::U32;

use super::address::Place;
use super::sense::Code;
use super::sync::lock;
use super::workers::{Mail, Mailbox};

/// Most events that wait.
pub(super) const MAX_WAITING: usize = 64;

/// Something to tell the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    Added(Place),
    Removed(Place),
    /// A unit attention condition with this code was established.
    Changed(Place, Code),
}

impl Notice {
    fn encode(self, missed: bool) -> Event {
        let (code, place, reason) = match self {
            Self::Added(place) => (event::TRANSPORT_RESET, place, event::RESET_RESCAN),
            Self::Removed(place) => (event::TRANSPORT_RESET, place, event::RESET_REMOVED),
            Self::Changed(place, Code(asc, ascq)) => (
                event::PARAM_CHANGE,
                place,
                u32::from(asc) | (u32::from(ascq) << 8),
            ),
        };
        Event {
            lun: place.to_virtio(),
            reason: U32::new(reason),
            ..blank(code, missed)
        }
    }
}

fn blank(code: u32, missed: bool) -> Event {
    let flag = if missed { event::MISSED } else { 0 };
    Event {
        event: U32::new(code | flag),
        ..Event::default()
    }
}

/// The events of a controller.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Notice>,
    missed: bool,
    /// Which kinds the driver wants; nobody listens before it has started.
    listener: Option<(Arc<Mailbox>, Wanted)>,
}

/// What the driver negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) hotplug: bool,
    pub(crate) change: bool,
}

/// The driver listens. Dropping it ends that: what waited is of no interest to the next driver, which looks at
/// everything anyway.
pub(crate) struct Listening {
    events: Arc<Events>,
    mailbox: Arc<Mailbox>,
}

impl Listening {
    /// The driver starts: from now on there is somebody to tell.
    pub(crate) fn new(events: &Arc<Events>, wanted: Wanted) -> io::Result<Self> {
        let mailbox = Mailbox::new()?;
        events.listen(&mailbox, wanted);
        Ok(Self {
            events: Arc::clone(events),
            mailbox,
        })
    }

    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.events.deafen(&self.mailbox);
    }
}

impl Events {
    fn listen(&self, mailbox: &Arc<Mailbox>, wanted: Wanted) {
        let mut inner = lock(&self.0);
        *inner = Inner {
            listener: Some((Arc::clone(mailbox), wanted)),
            ..Inner::default()
        };
    }

    fn deafen(&self, mailbox: &Arc<Mailbox>) {
        let mut inner = lock(&self.0);
        let is_listener = |(other, _): &(Arc<Mailbox>, Wanted)| Arc::ptr_eq(other, mailbox);
        if inner.listener.as_ref().is_some_and(is_listener) {
            *inner = Inner::default();
        }
    }

    /// Something happened.
    pub(crate) fn push(&self, notice: Notice) {
        let mut inner = lock(&self.0);
        let Some((mailbox, wanted)) = inner.listener.clone() else {
            return;
        };
        let interested = match notice {
            Notice::Added(_) | Notice::Removed(_) => wanted.hotplug,
            Notice::Changed(..) => wanted.change,
        };
        if !interested {
            return;
        }
        if inner.waiting.len() >= MAX_WAITING {
            inner.waiting.clear();
            inner.missed = true;
        }
        inner.waiting.push_back(notice);
        drop(inner);
        mailbox.post(Mail::Look);
    }

    /// What waits, and whether events were dropped.
    pub(crate) fn waiting(&self) -> (Vec<Notice>, bool) {
        let inner = lock(&self.0);
        (inner.waiting.iter().copied().collect(), inner.missed)
    }

    /// Has these wait, for the driver that listens now: without one, nothing waits.
    pub(crate) fn set_waiting(&self, notices: Vec<Notice>, missed: bool) {
        let mut inner = lock(&self.0);
        if inner.listener.is_some() {
            inner.waiting = notices.into();
            inner.missed = missed;
        }
    }

    /// Whether there is anything to send.
    pub(crate) fn any(&self) -> bool {
        let inner = lock(&self.0);
        inner.missed || !inner.waiting.is_empty()
    }

    /// The next event for a buffer that is there to take it.
    pub(crate) fn next(&self) -> Option<Event> {
        let mut inner = lock(&self.0);
        let missed = std::mem::take(&mut inner.missed);
        match inner.waiting.pop_front() {
            Some(notice) => Some(notice.encode(missed)),
            None if missed => Some(blank(event::NONE, true)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        target: 3,
        lun: 300,
    };
    const ALL: Wanted = Wanted {
        hotplug: true,
        change: true,
    };

    fn listening(wanted: Wanted) -> Events {
        let events = Events::default();
        events.listen(&Mailbox::new().unwrap(), wanted);
        events
    }

    #[test]
    fn events_are_encoded_as_drivers_expect_them() {
        let events = listening(ALL);
        events.push(Notice::Added(PLACE));
        events.push(Notice::Removed(PLACE));
        events.push(Notice::Changed(PLACE, Code(0x2a, 0x09)));
        let sent: Vec<_> = std::iter::from_fn(|| events.next()).collect();
        let parts: Vec<_> = sent
            .iter()
            .map(|e| (e.event.get(), e.lun, e.reason.get()))
            .collect();
        let lun = [1, 3, 0x41, 0x2c, 0, 0, 0, 0];
        assert_eq!(parts, [(1, lun, 1), (1, lun, 2), (3, lun, 0x092a)]);
        assert!(!events.any());
    }

    #[test]
    fn too_many_are_dropped_and_the_next_one_says_so() {
        let events = listening(ALL);
        for _ in 0..=MAX_WAITING {
            events.push(Notice::Added(PLACE));
        }
        assert_eq!(
            events.next().map(|e| e.event.get()),
            Some(event::TRANSPORT_RESET | event::MISSED)
        );
        assert_eq!(events.next(), None);
    }

    #[test]
    fn only_what_was_negotiated_is_sent_and_nothing_to_nobody() {
        let deaf = Events::default();
        deaf.push(Notice::Added(PLACE));
        assert!(!deaf.any());
        let plain = listening(Wanted {
            hotplug: false,
            change: true,
        });
        plain.push(Notice::Added(PLACE));
        assert!(!plain.any());
        plain.push(Notice::Changed(PLACE, Code(0x2a, 9)));
        assert!(plain.any());
    }
}
