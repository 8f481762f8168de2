//! Readers of events, and their queues.

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

fn readable(events: &Events) -> bool {
    let mut fds = [PollFd::new(events, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).expect("poll") == 1
}

#[test]
fn every_reader_gets_every_event_and_its_descriptor_tells() {
    let hub = EventHub::default();
    let (first, second) = (hub.subscribe().expect("one"), hub.subscribe().expect("two"));
    assert!(!readable(&first));
    hub.send(&Event::Started);
    hub.send(&Event::Paused);
    drop(second);
    hub.send(&Event::Resumed);
    for event in [Event::Started, Event::Paused, Event::Resumed] {
        assert!(readable(&first));
        assert_eq!(first.try_next(), Some(event));
    }
    assert!(!readable(&first));
    assert_eq!(first.try_next(), None);
    assert_eq!(hub.readers().len(), 1, "a reader that is gone is forgotten");
}

#[test]
fn a_full_queue_reports_what_it_lost_where_it_lost_it() {
    let hub = EventHub::default();
    let events = hub.subscribe().expect("a reader");
    for _ in 0..CAPACITY + 3 {
        hub.send(&Event::Paused);
    }
    hub.send(&Event::Ended(ExitReason::Stopped));
    for _ in 0..CAPACITY {
        assert_eq!(events.try_next(), Some(Event::Paused));
    }
    assert_eq!(events.try_next(), Some(Event::Lost(3)));
    assert_eq!(events.try_next(), Some(Event::Ended(ExitReason::Stopped)));
    assert!(!readable(&events));
}

#[test]
fn a_loss_is_reported_even_if_nothing_follows() {
    let hub = EventHub::default();
    let events = hub.subscribe().expect("a reader");
    for _ in 0..=CAPACITY {
        hub.send(&Event::Paused);
    }
    for _ in 0..CAPACITY {
        assert!(readable(&events));
        assert_eq!(events.try_next(), Some(Event::Paused));
    }
    assert_eq!(events.try_next(), Some(Event::Lost(1)));
    assert_eq!(events.try_next(), None);
}
