//! Start, reset, NEEDS_RESET, and the sequences of drivers in the wild.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use splitring_virtio::spec::pci::common as reg;
use splitring_virtio::spec::{feature, status};

use super::{guest, guest_of, started};
use crate::events::DeviceEvent;
use crate::testing::GuestRing;
use crate::testing::pci::{Guest, NOTIFY, PATIENCE, wait_until};
use crate::testing::probe::{Manner, Probe};
use crate::worker::Failure;

const BUFFER: u64 = 0x1000;

#[test]
fn a_notification_before_driver_ok_is_ignored_and_its_buffer_found_at_the_start() {
    let (mut guest, probe) = guest(Manner::Answer);
    guest.negotiate();
    guest.rings = (0..3).map(|index| guest.enable_queue(index)).collect();
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(0);
    guest.bar_write(NOTIFY + 4 * 17, &[0, 0]);
    assert!(guest.wiring.doorbells().is_empty());
    assert_eq!(probe.record.runs.load(Ordering::SeqCst), 0);
    assert_eq!(guest.rings[0].used(), []);
    guest.add_status(status::DRIVER_OK);
    assert_eq!(guest.wait_used(0, 1), [(0, 7)]);
}

#[test]
fn doorbells_that_cannot_be_bound_still_work() {
    let (mut guest, _) = guest(Manner::Answer);
    guest.wiring.refuses.store(true, Ordering::SeqCst);
    guest.restart();
    assert!(guest.wiring.doorbells().is_empty());
    guest.offer(2, &[(BUFFER, 7, true)]);
    guest.kick(2);
    assert_eq!(guest.wait_used(2, 1), [(0, 7)]);
    guest.wiring.refuses.store(false, Ordering::SeqCst);
}

#[test]
fn only_enabled_queues_start() {
    let (mut guest, probe) = guest(Manner::Answer);
    guest.negotiate();
    guest.rings = vec![guest.enable_queue(1)];
    guest.add_status(status::DRIVER_OK);
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(1);
    assert_eq!(guest.wait_used(0, 1), [(0, 7)]);
    let base = guest.bar();
    assert_eq!(guest.wiring.doorbells(), [base + NOTIFY + 4]);
    guest.kick(0);
    assert_eq!(probe.record.starts.load(Ordering::SeqCst), 1);
}

#[test]
fn reset_is_complete_when_the_write_returns() {
    let (guest, probe) = started(Manner::Answer);
    guest.set16(reg::QUEUE_SELECT, 1);
    guest.set16(reg::QUEUE_MSIX_VECTOR, 1);
    guest.set16(reg::CONFIG_MSIX_VECTOR, 0);
    guest.set_status(0);
    assert_eq!(guest.status(), 0);
    assert_eq!(probe.record.stops.load(Ordering::SeqCst), 3);
    // Once before the start, as drivers do, and once now.
    assert_eq!(probe.record.resets.load(Ordering::SeqCst), 2);
    assert!(guest.wiring.doorbells().is_empty());
    assert_eq!(guest.common16(reg::QUEUE_SELECT), 0);
    assert_eq!(guest.common16(reg::CONFIG_MSIX_VECTOR), 0xffff);
    assert_eq!(guest.common(reg::DRIVER_FEATURE_SELECT), [0; 8]);
    for (queue, size) in [(0, 256), (1, 64), (2, 8)] {
        guest.set16(reg::QUEUE_SELECT, queue);
        assert_eq!(guest.common16(reg::QUEUE_SIZE), size);
        assert_eq!(guest.common16(reg::QUEUE_ENABLE), 0);
        assert_eq!(guest.common16(reg::QUEUE_MSIX_VECTOR), 0xffff);
        assert_eq!(guest.common(reg::QUEUE_DESC), [0; 8]);
        assert_eq!(guest.common(reg::QUEUE_DRIVER), [0; 8]);
        assert_eq!(guest.common(reg::QUEUE_DEVICE), [0; 8]);
    }
}

#[test]
fn reset_takes_back_what_is_in_flight_and_the_device_starts_again() {
    let (mut guest, probe) = started(Manner::Hold);
    for _ in 0..5 {
        guest.offer(0, &[(BUFFER, 7, true)]);
    }
    guest.kick(0);
    let held = || probe.record.held.load(Ordering::SeqCst);
    wait_until("the requests are in flight", || held() == 5);
    let start = Instant::now();
    guest.set_status(0);
    assert!(start.elapsed().as_secs() < 5);
    assert_eq!(guest.status(), 0);
    guest.restart();
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(0);
    wait_until("the new queue is served", || held() == 6);
}

#[test]
fn reset_is_allowed_at_any_time() {
    let (mut guest, probe) = guest(Manner::Answer);
    guest.set_status(0);
    guest.set_status(1);
    guest.set_status(0);
    guest.negotiate();
    guest.set_status(0);
    guest.restart();
    guest.set_status(0);
    guest.set_status(0);
    assert_eq!(guest.status(), 0);
    assert_eq!(probe.record.starts.load(Ordering::SeqCst), 1);
    assert_eq!(probe.record.stops.load(Ordering::SeqCst), 3);
}

/// A register write of a driver.
type DriverStep = Box<dyn Fn(&mut Guest)>;

#[test]
fn a_reset_after_any_step_of_a_start_leaves_a_device_that_starts() {
    let (mut guest, probe) = guest(Manner::Hold);
    guest.enable_msix();
    // Each register write of a driver that starts the device and uses it, in order.
    let held = || probe.record.held.load(Ordering::SeqCst);
    let mut steps: Vec<DriverStep> = vec![
        Box::new(|guest| guest.set_status(status::ACKNOWLEDGE)),
        Box::new(|guest| guest.add_status(status::DRIVER)),
        Box::new(|guest| guest.set32(reg::DRIVER_FEATURE_SELECT, 1)),
        Box::new(|guest| guest.accept(guest.offered() & feature::VERSION_1)),
        Box::new(|guest| guest.add_status(status::FEATURES_OK)),
        Box::new(|guest| guest.set16(reg::CONFIG_MSIX_VECTOR, 0)),
        Box::new(|guest| guest.rings.clear()),
    ];
    for index in 0..3 {
        steps.push(Box::new(move |guest| guest.set16(reg::QUEUE_SELECT, index)));
        steps.push(Box::new(|guest| guest.set16(reg::QUEUE_SIZE, 8)));
        steps.push(Box::new(|guest| guest.set16(reg::QUEUE_MSIX_VECTOR, 1)));
        steps.push(Box::new(move |guest| {
            let ring = guest.enable_queue(index);
            guest.rings.push(ring);
        }));
    }
    steps.push(Box::new(|guest| guest.add_status(status::DRIVER_OK)));
    steps.push(Box::new(|guest| {
        guest.offer(0, &[(BUFFER, 7, true)]);
    }));
    steps.push(Box::new(|guest| guest.kick(0)));
    for count in 0..=steps.len() {
        guest.set_status(0);
        steps.iter().take(count).for_each(|step| step(&mut guest));
        guest.set_status(0);
        assert_eq!(guest.status(), 0, "after {count} steps");
        guest.set16(reg::QUEUE_SELECT, 1);
        let queue = [reg::QUEUE_SIZE, reg::QUEUE_ENABLE, reg::QUEUE_MSIX_VECTOR];
        let registers = queue.map(|register| guest.common16(register));
        assert_eq!(registers, [64, 0, 0xffff], "after {count} steps");
        assert!(guest.wiring.doorbells().is_empty(), "after {count} steps");

        guest.restart();
        let before = held();
        guest.offer(0, &[(BUFFER, 7, true)]);
        guest.kick(0);
        wait_until("the queue is served", || held() == before + 1);
    }
    let starts = probe.record.starts.load(Ordering::SeqCst);
    // Each time once, and three times by the steps.
    assert_eq!(starts, steps.len() + 4);
}

#[test]
fn a_malformed_chain_needs_a_reset_and_stops_all_queues() {
    let (mut guest, _) = started(Manner::Answer);
    guest.enable_msix();
    guest.set16(reg::CONFIG_MSIX_VECTOR, 3);
    guest.rings[1].offer_head(64);
    guest.kick(1);
    guest.wait_for_status(status::NEEDS_RESET);
    // The bit is there a moment before the interrupt.
    let mut sent = Vec::new();
    while sent.is_empty() {
        sent = guest.wiring.messages();
    }
    assert_eq!(sent.iter().map(|m| m.data).collect::<Vec<_>>(), [3]);
    // The other queues are silent too.
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(0);
    guest.worker.pause(PATIENCE).unwrap();
    guest.worker.resume().unwrap();
    assert_eq!(guest.rings[0].used(), []);
    guest.restart();
    assert_eq!(guest.status(), 15);
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(0);
    assert_eq!(guest.wait_used(0, 1), [(0, 7)]);
}

#[test]
fn a_device_that_needs_a_reset_is_reported_with_the_reason_once_a_second() {
    let (mut guest, _) = started(Manner::Answer);
    for _ in 0..3 {
        guest.rings[1].offer_head(64);
        guest.kick(1);
        guest.wait_for_status(status::NEEDS_RESET);
        guest.restart();
    }
    let events = guest.events.lock().unwrap().clone();
    let [DeviceEvent::NeedsReset { device, reason }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(device, "probe0");
    assert!(
        reason.starts_with("queue 1: the chain at head 64"),
        "{reason}"
    );
}

#[test]
fn a_ring_outside_memory_needs_a_reset_at_driver_ok() {
    let (mut guest, probe) = guest(Manner::Answer);
    guest.negotiate();
    guest.enable_queue(0);
    guest.set16(reg::QUEUE_SELECT, 1);
    guest.set64(reg::QUEUE_DESC, !0xfff);
    guest.set16(reg::QUEUE_ENABLE, 1);
    guest.add_status(status::DRIVER_OK);
    assert_eq!(guest.status(), 15 | status::NEEDS_RESET);
    assert_eq!(probe.record.starts.load(Ordering::SeqCst), 0);
    guest.restart();
    assert_eq!(guest.status(), 15);
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let (guest, _) = started(Manner::Refuse);
    assert_eq!(guest.status(), 15 | status::NEEDS_RESET);
    guest.set_status(0);
    assert_eq!(guest.status(), 0);
}

#[test]
fn a_panic_in_a_device_is_reported_and_the_registers_still_answer() {
    let (mut guest, _) = started(Manner::Panic);
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(0);
    wait_until("the failure is reported", || {
        !guest.failures.lock().unwrap().is_empty()
    });
    let failures = guest.failures.lock().unwrap().clone();
    let message = "the probe was told to panic".to_owned();
    let worker = "test0".to_owned();
    assert_eq!(failures, [Failure::Panic { worker, message }]);
    guest.set_status(0);
    assert_eq!(guest.status(), 0);
}

#[test]
fn the_configuration_generation_moves_with_the_configuration() {
    let (guest, probe) = started(Manner::Answer);
    guest.enable_msix();
    guest.set16(reg::CONFIG_MSIX_VECTOR, 2);
    let before: [u8; 1] = guest.common(reg::CONFIG_GENERATION);
    assert_eq!(guest.common(reg::CONFIG_GENERATION), before);
    probe.change_config(5);
    assert_ne!(guest.common(reg::CONFIG_GENERATION), before);
    assert_eq!(guest.wiring.messages()[0].data, 2);
}

#[test]
fn freebsd_resets_and_negotiates_again_without_probing_anew() {
    let (mut guest, _) = started(Manner::Answer);
    // vtpci_reinit: reset, then ACK, DRIVER, the features it remembers, FEATURES_OK.
    let remembered = guest.offered();
    guest.set_status(0);
    guest.set_status(1);
    guest.set_status(3);
    guest.accept(remembered);
    guest.set_status(11);
    assert_eq!(guest.status(), 11);
    guest.rings = (0..3).map(|index| guest.enable_queue(index)).collect();
    guest.set_status(15);
    guest.offer(0, &[(BUFFER, 1, true)]);
    guest.kick(0);
    assert_eq!(guest.wait_used(0, 1), [(0, 1)]);
}

#[test]
fn seabios_sets_acknowledge_and_driver_at_once_asks_for_256_and_polls() {
    let (mut guest, _) = guest_of(Probe::new(&[128], Manner::Answer));
    guest.decode_memory();
    guest.set_status(0);
    guest.set_status(3);
    guest.accept(feature::VERSION_1);
    guest.set_status(3 | 8);
    assert_eq!(guest.status(), 11);
    guest.set16(reg::QUEUE_SELECT, 0);
    assert_eq!(guest.common16(reg::QUEUE_ENABLE), 0);
    guest.set16(reg::QUEUE_SIZE, 256);
    let size = guest.common16(reg::QUEUE_SIZE);
    assert_eq!(size, 128);
    let ring = GuestRing::new(&guest.ram, 0, size);
    guest.set64(reg::QUEUE_DESC, ring.descriptors());
    guest.set64(reg::QUEUE_DRIVER, ring.available_ring());
    guest.set64(reg::QUEUE_DEVICE, ring.used_ring());
    guest.set16(reg::QUEUE_ENABLE, 1);
    guest.set_status(15);
    guest.rings = vec![ring];
    for round in 0..3 {
        guest.offer(0, &[(BUFFER, 1, true)]);
        guest.kick(0);
        assert_eq!(guest.wait_used(0, 1), [(round, 1)]);
    }
    guest.set_status(0);
    assert_eq!(guest.status(), 0);
}

#[test]
fn queues_are_spread_over_the_workers_and_stay_where_they_are() {
    let probe = Arc::new(Probe::new(&[8, 8, 8], Manner::Answer));
    let mut guest = Guest::with_workers(probe.clone(), u64::MAX, 2);
    guest.decode_memory();
    guest.restart();
    let threads = || probe.record.threads.lock().unwrap().clone();
    let answered = |guest: &mut Guest, ring: usize, queue: u16| {
        guest.offer(ring, &[(BUFFER, 1, true)]);
        guest.kick(queue);
        guest.wait_used(ring, 1);
    };
    for queue in 0..3 {
        answered(&mut guest, usize::from(queue), queue);
    }
    let all = threads();
    assert_eq!(all[&0], all[&2]);
    assert_ne!(all[&0], all[&1]);
    // A driver that uses the second queue alone.
    probe.record.threads.lock().unwrap().clear();
    guest.negotiate();
    guest.rings = vec![guest.enable_queue(1)];
    guest.add_status(status::DRIVER_OK);
    answered(&mut guest, 0, 1);
    assert_eq!(threads()[&1], all[&1]);
}

#[test]
fn queues_that_share_a_task_stay_where_they_are_when_some_are_not_enabled() {
    let probe = Arc::new(Probe {
        together: 2,
        ..Probe::new(&[8; 4], Manner::Answer)
    });
    let mut guest = Guest::with_workers(probe.clone(), u64::MAX, 2);
    guest.decode_memory();
    let mut threads_of = |queues: &[u16]| {
        probe.record.threads.lock().unwrap().clear();
        guest.negotiate();
        guest.rings = queues
            .iter()
            .map(|index| guest.enable_queue(*index))
            .collect();
        guest.add_status(status::DRIVER_OK);
        for (ring, queue) in queues.iter().enumerate() {
            guest.offer(ring, &[(BUFFER, 1, true)]);
            guest.kick(*queue);
            guest.wait_used(ring, 1);
        }
        probe.record.threads.lock().unwrap().clone()
    };
    let all = threads_of(&[0, 1, 2, 3]);
    assert_eq!((all[&0], all[&2]), (all[&1], all[&3]));
    assert_ne!(all[&0], all[&2]);
    for some in [&[1][..], &[0, 3], &[2], &[1, 2]] {
        for (queue, thread) in threads_of(some) {
            assert_eq!(thread, all[&queue], "queue {queue} of {some:?}");
        }
    }
}

#[test]
fn a_function_that_goes_away_leaves_nothing_on_its_worker() {
    let (guest, probe) = started(Manner::Hold);
    assert!(guest.wiring.line().is_some());
    let worker = Arc::clone(&guest.worker);
    let wiring = Arc::downgrade(&guest.wiring);
    drop(guest);
    assert_eq!(probe.record.stops.load(Ordering::SeqCst), 3);
    assert_eq!(Arc::strong_count(&probe), 1);
    // It may tell of changes as long as it lives.
    drop(probe);
    assert!(wiring.upgrade().is_none(), "nobody holds the hypervisor");
    worker.pause(PATIENCE).unwrap();
}
