//! Descriptors and timers that a handler adds and removes while it runs.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::device::{Interest, Registry, Trigger};

/// Does what the test wants with what it waits for, each time it runs.
struct Script<F>(F);

impl<F: FnMut(&mut Registry, Cause) + Send> QueueHandler for Script<F> {
    fn run(&mut self, queues: &mut QueueSet<'_>, cause: Cause) -> Result<Outcome, Broken> {
        (self.0)(queues.registry(), cause);
        Ok(Outcome::Idle)
    }
    fn stop(&mut self, _: &mut QueueSet<'_>) {}
}

/// The causes that a test waits for, but for those that look at everything.
fn causes() -> (Sender<Cause>, Receiver<Cause>) {
    channel()
}

fn next(causes: &Receiver<Cause>) -> Cause {
    loop {
        match causes.recv_timeout(PATIENCE).unwrap() {
            Cause::Resume => {}
            cause => return cause,
        }
    }
}

fn pair() -> (OwnedFd, UnixStream) {
    let (ours, far) = UnixStream::pair().unwrap();
    (ours.into(), far)
}

#[test]
fn a_descriptor_is_waited_for_from_when_it_is_added_until_it_is_removed() {
    let bench = Bench::new();
    let (ours, mut far) = pair();
    let (sender, causes) = causes();
    let mut left = vec![ours];
    let mut seen = 0;
    bench.add(
        0,
        0,
        Script(move |registry: &mut Registry, cause| {
            let _ = sender.send(cause);
            if let Some(ours) = left.pop() {
                registry.add(ours, 5, Interest::Read, Trigger::Edge);
            }
            seen += usize::from(cause == Cause::Source(5));
            if seen == 2 {
                registry.remove(5);
            }
        }),
    );
    for _ in 0..2 {
        far.write_all(b"x").unwrap();
        assert_eq!(next(&causes), Cause::Source(5));
    }
    bench.settle();
    // There is no other handle on it: the worker's is closed.
    assert!(far.write_all(b"x").is_err());
    assert_eq!(causes.try_iter().count(), 0);
}

#[test]
fn a_place_in_the_table_is_used_again_and_means_the_new_descriptor() {
    let bench = Bench::new();
    let (sender, causes) = causes();
    let (streams, mut fars): (Vec<_>, Vec<_>) = (0..8).map(|_| pair()).unzip();
    let mut streams = (0..).zip(streams);
    let side = bench.add(
        0,
        0,
        Script(move |registry: &mut Registry, cause| {
            let _ = sender.send(cause);
            if let Some((token, ours)) = streams.next() {
                registry.remove(token.max(1) - 1);
                registry.add(ours, token, Interest::Read, Trigger::Edge);
            }
        }),
    );
    // The first was added when the task was taken in.
    for token in 0..8 {
        bench.settle();
        fars[token as usize].write_all(b"x").unwrap();
        assert_eq!(next(&causes), Cause::Source(token));
    }
    bench.settle();
    assert!(fars[..7].iter_mut().all(|far| far.write_all(b"x").is_err()));
    assert!(!side.sink.is_broken());
}

#[test]
fn what_to_wait_for_can_be_changed() {
    let bench = Bench::new();
    let (ours, _far) = pair();
    let (sender, causes) = causes();
    let mut left = vec![ours];
    let side = bench.add(
        0,
        0,
        Script(move |registry: &mut Registry, cause| {
            let _ = sender.send(cause);
            if let Some(ours) = left.pop() {
                registry.add(ours, 5, Interest::Read, Trigger::Edge);
            }
            if matches!(cause, Cause::Kick(_)) {
                registry.modify(5, Interest::Write, Trigger::Edge);
            }
        }),
    );
    bench.settle();
    assert!(causes.try_iter().all(|cause| cause == Cause::Resume));
    side.kick();
    assert_eq!(next(&causes), Cause::Kick(0));
    assert_eq!(next(&causes), Cause::Source(5), "there is room");
}

#[test]
fn what_a_task_waits_for_ends_with_it() {
    let bench = Bench::new();
    let (sender, causes) = causes();
    let (far_end, mut far) = pair();
    let copy = far_end.try_clone().unwrap();
    let mut left = vec![far_end];
    let side = bench.add(
        0,
        0,
        Script(move |registry: &mut Registry, _| {
            if let Some(ours) = left.pop() {
                registry.add(ours, 5, Interest::Read, Trigger::Edge);
                let soon = Instant::now() + Duration::from_millis(20);
                registry.set_timer(6, soon);
            }
        }),
    );
    bench.settle();
    assert!(bench.worker.stop(side.id).unwrap().is_some());
    // The next task gets the same slot, and may get the same number for its descriptor.
    let (second, mut second_far) = pair();
    let mut left = vec![second];
    bench.add(
        0,
        0,
        Script(move |registry: &mut Registry, cause| {
            let _ = sender.send(cause);
            if let Some(ours) = left.pop() {
                registry.add(ours, 7, Interest::Read, Trigger::Edge);
            }
        }),
    );
    bench.settle();
    // The first file is still open, but nobody waits for it.
    far.write_all(b"x").unwrap();
    std::thread::sleep(Duration::from_millis(60));
    second_far.write_all(b"x").unwrap();
    assert_eq!(next(&causes), Cause::Source(7));
    drop(copy);
    assert!(
        far.write_all(b"x").is_err(),
        "no other handle on it is left"
    );
    assert!(bench.failures.lock().unwrap().is_empty());
}

#[test]
fn a_pause_waits_for_nothing_and_what_came_meanwhile_follows_it() {
    let bench = Bench::new();
    let (ours, mut far) = pair();
    let (sender, causes) = causes();
    let mut left = vec![ours];
    bench.add(
        0,
        0,
        Script(move |registry: &mut Registry, cause| {
            let _ = sender.send(cause);
            if let Some(ours) = left.pop() {
                registry.add(ours, 5, Interest::Read, Trigger::Edge);
                registry.set_timer(6, Instant::now() + Duration::from_millis(30));
            }
        }),
    );
    bench.worker.pause(PATIENCE).unwrap();
    far.write_all(b"x").unwrap();
    std::thread::sleep(Duration::from_millis(60));
    bench.settle();
    assert!(causes.try_iter().all(|cause| cause == Cause::Resume));
    bench.worker.resume().unwrap();
    let both = [next(&causes), next(&causes)];
    assert!(both.contains(&Cause::Source(5)) && both.contains(&Cause::Timer(6)));
}

#[test]
fn a_timer_goes_off_once_when_it_was_last_set_to_and_not_if_it_was_stopped() {
    let bench = Bench::new();
    let (sender, causes) = causes();
    let start = Instant::now();
    let side = bench.add(
        0,
        0,
        Script(move |registry: &mut Registry, cause| {
            let _ = sender.send(cause);
            if matches!(cause, Cause::Kick(_)) {
                registry.set_timer(1, start);
                registry.set_timer(1, start + Duration::from_millis(80));
                registry.set_timer(2, start + Duration::from_millis(40));
                registry.set_timer(3, start + Duration::from_millis(10));
                registry.stop_timer(3);
            }
        }),
    );
    side.kick();
    assert_eq!(next(&causes), Cause::Kick(0));
    assert_eq!(next(&causes), Cause::Timer(2));
    assert_eq!(next(&causes), Cause::Timer(1));
    assert!(start.elapsed() >= Duration::from_millis(80));
    std::thread::sleep(Duration::from_millis(20));
    bench.settle();
    assert_eq!(causes.try_iter().count(), 0);
}

#[test]
fn a_descriptor_that_cannot_be_waited_for_breaks_the_device_and_nothing_else() {
    let bench = Bench::new();
    let mut other = bench.add(1, 0, probe(Manner::Answer).0);
    let mut left = vec![OwnedFd::from(tempfile::tempfile().unwrap())];
    let side = bench.add(
        0,
        0,
        Script(move |registry: &mut Registry, _| {
            if let Some(file) = left.pop() {
                registry.add(file, 5, Interest::Read, Trigger::Edge);
            }
        }),
    );
    wait_until("it is broken", || side.sink.is_broken());
    other.offer();
    other.kick();
    other.wait(1);
    assert!(bench.worker.stop(side.id).unwrap().is_some());
    assert!(bench.failures.lock().unwrap().is_empty());
}
