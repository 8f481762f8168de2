//! Saving a queue and continuing from the saved state.

use super::{fault_of, pop};
use crate::device::queue::{
    ActivateError, ChainError, ChainFault, InFlight, Interrupt, QueueConfig, QueueState,
    RestoreError, RingFeatures,
};
use crate::device::tests::driver::{DATA, EVENT, IN_ORDER, PLAIN, TestDriver, WRITE};

#[test]
fn a_restored_queue_goes_on_where_the_saved_one_stopped() {
    for features in [PLAIN, EVENT, IN_ORDER] {
        let mut driver = TestDriver::new(4);
        let mut queue = driver.activate_at(65534, features);
        for head in 0..4 {
            driver.chain(head, &[(DATA, 16, WRITE)]);
            driver.offer(head);
        }
        let (first, second, third) = (pop(&mut queue), pop(&mut queue), pop(&mut queue));
        queue.complete(second, 2);
        let state = queue.save();
        first.abandon();
        third.abandon();
        assert_eq!(state.in_flight.len(), 2);
        drop(queue);

        let config = QueueConfig::restore(4, state.clone()).unwrap();
        assert_eq!(config.save(), state);
        let mut queue = config.activate(driver.ram.clone(), features).unwrap();
        assert_eq!(
            queue.save(),
            state,
            "saving again before a pop loses nothing"
        );
        let heads: Vec<_> = (0..3)
            .map(|_| {
                let chain = pop(&mut queue);
                let head = chain.head();
                queue.complete(chain, u32::from(head));
                head
            })
            .collect();
        assert_eq!(
            heads,
            [0, 2, 3],
            "what was in flight comes first, in its order"
        );
        assert!(queue.pop().unwrap().is_none());
        assert_eq!(queue.publish(), Interrupt::Needed);
        assert_eq!(driver.used_idx(), 2, "65534 and four more");
        let mut used: Vec<_> = (0..4).map(|n| driver.used_entry(n).0).collect();
        used.sort_unstable();
        assert_eq!(used, [0, 1, 2, 3]);
        assert_eq!((queue.in_flight(), queue.is_broken()), (0, false));
    }
}

#[test]
fn a_state_saved_between_completion_and_publication_publishes_after_restore() {
    let mut driver = TestDriver::new(4);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(DATA, 16, WRITE)]);
    driver.offer(0);
    let chain = pop(&mut queue);
    queue.complete(chain, 1);
    let state = queue.save();
    let config = QueueConfig::restore(4, state).unwrap();
    let mut queue = config.activate(driver.ram.clone(), PLAIN).unwrap();
    assert_eq!(queue.publish(), Interrupt::Needed);
    assert_eq!(driver.used_idx(), 1);
}

/// The interrupt for published entries is decided at the next publication, by the restored queue.
#[test]
fn an_interrupt_that_was_put_off_survives_a_restore() {
    for features in [PLAIN, EVENT] {
        let mut driver = TestDriver::new(4);
        let mut queue = driver.activate(features);
        driver.chain(0, &[(DATA, 16, WRITE)]);
        driver.offer(0);
        let chain = pop(&mut queue);
        queue.complete(chain, 1);
        queue.publish_used();
        for _ in 0..2 {
            // Saved twice: entries not yet published stay undecided.
            let config = QueueConfig::restore(4, queue.save()).unwrap();
            queue = config.activate(driver.ram.clone(), features).unwrap();
        }
        assert_eq!(queue.publish(), Interrupt::Needed);
        assert_eq!(driver.used_idx(), 1);
        assert!(!queue.save().undecided);
        assert_eq!(queue.publish(), Interrupt::NotNeeded);
    }
}

#[test]
fn saving_marks_the_used_ring_whose_entries_may_not_be_published_yet() {
    let mut driver = TestDriver::new(4);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(DATA, 16, WRITE)]);
    driver.offer(0);
    let chain = pop(&mut queue);
    driver.ram.track_dirty();
    queue.complete(chain, 1);
    assert!(!driver.ram.is_dirty(driver.used));
    let _ = queue.save();
    assert!(driver.ram.is_dirty(driver.used));
}

#[test]
fn a_state_that_contradicts_itself_is_refused() {
    let driver = TestDriver::new(4);
    let good = QueueState {
        next_avail: 7,
        next_used: 5,
        published: 5,
        in_flight: vec![
            InFlight {
                position: 5,
                head: 1,
            },
            InFlight {
                position: 6,
                head: 3,
            },
        ],
        ..driver.config().save()
    };
    assert!(QueueConfig::restore(4, good.clone()).is_ok());
    let bad = |change: &dyn Fn(&mut QueueState)| {
        let mut state = good.clone();
        change(&mut state);
        QueueConfig::restore(4, state).unwrap_err()
    };
    assert!(matches!(
        bad(&|s| s.size = 3),
        RestoreError::Size { size: 3, max: 4 }
    ));
    assert!(matches!(bad(&|s| s.size = 8), RestoreError::Size { .. }));
    assert!(matches!(
        bad(&|s| s.next_avail = 10),
        RestoreError::Indices { .. }
    ));
    assert!(matches!(
        bad(&|s| s.next_avail = 4),
        RestoreError::Indices { .. }
    ));
    assert!(matches!(
        bad(&|s| s.published = 6),
        RestoreError::Indices { .. }
    ));
    for head in [4, 3, 0xffff] {
        let error = bad(&|s| s.in_flight[0].head = head);
        assert!(matches!(error, RestoreError::InFlight { .. }), "{head}");
    }
    for position in [4, 7, 0xffff] {
        let mut state = good.clone();
        state.in_flight.truncate(1);
        state.in_flight[0].position = position;
        let config = QueueConfig::restore(4, state).unwrap();
        assert_eq!(
            config.activate(driver.ram.clone(), IN_ORDER).err(),
            Some(ActivateError::Position { head: 1, position })
        );
    }
    let mut state = good;
    state.in_flight[1].position = 5;
    let config = QueueConfig::restore(4, state).unwrap();
    assert_eq!(
        config.activate(driver.ram, IN_ORDER).err(),
        Some(ActivateError::Position {
            head: 3,
            position: 5
        })
    );
}

#[test]
fn a_state_that_lost_a_request_is_activated_only_in_order() {
    let driver = TestDriver::new(4);
    let state = QueueState {
        next_avail: 7,
        next_used: 5,
        published: 5,
        in_flight: vec![InFlight {
            position: 6,
            head: 3,
        }],
        ..driver.config().save()
    };
    let config = QueueConfig::restore(4, state).unwrap();
    assert_eq!(
        config.activate(driver.ram.clone(), PLAIN).err(),
        Some(ActivateError::InFlight {
            listed: 1,
            counted: 2
        })
    );
    let queue = config.activate(driver.ram.clone(), IN_ORDER).unwrap();
    assert_eq!(
        queue.in_flight(),
        1,
        "position 5 was done and waits for nobody"
    );
}

#[test]
fn feature_bits_map_to_ring_features() {
    use crate::spec::feature;
    assert_eq!(RingFeatures::from_bits(0), RingFeatures::default());
    assert_eq!(
        RingFeatures::from_bits(feature::VERSION_1),
        RingFeatures::default()
    );
    assert_eq!(
        RingFeatures::from_bits(RingFeatures::SUPPORTED),
        RingFeatures {
            event_idx: true,
            indirect: true,
            in_order: true
        }
    );
}

#[test]
fn a_broken_queue_is_restored_broken() {
    let mut driver = TestDriver::new(2);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(DATA, 16, WRITE)]);
    driver.offer(0);
    let chain = pop(&mut queue);
    // The last pop was not a request, so that a list of requests in flight would be inconsistent.
    driver.offer(0);
    assert_eq!(fault_of(&mut queue, 0), ChainFault::Duplicate);
    chain.abandon();
    let state = queue.save();
    assert!(state.broken && state.in_flight.is_empty());
    let config = QueueConfig::restore(2, state).unwrap();
    let mut queue = config.activate(driver.ram.clone(), PLAIN).unwrap();
    assert!(queue.is_broken());
    assert_eq!(queue.pop().unwrap_err(), ChainError::Broken);
}
