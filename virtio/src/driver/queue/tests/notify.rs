//! Notification and interrupt decisions, over many wraps of the indices.

use super::*;

#[test]
fn spurious_interrupts_find_nothing() {
    let mut bed = Testbed::new(1 << 16);
    let mut queue = two_in_flight(&mut bed);
    for _ in 0..3 {
        assert!(queue.pop().unwrap().is_none());
    }
    bed.forge_used(queue.areas(), 1, 0, 0);
    assert!(queue.pop().unwrap().is_some());
    assert!(queue.pop().unwrap().is_none());
}

/// Runs `rounds` batches through both ends and checks every notification and interrupt decision.
fn lap(size: u16, batch: u16, features: u64, rounds: u32) {
    let mut bed = Testbed::new(1 << 20);
    let mut queue = bed.queue::<(u32, DmaBytes)>(QueueOptions::new(size, features));
    let mut device = bed.device_end(queue.areas(), features);
    let mut spare: Vec<_> = (0..size).map(|_| bed.take(8)).collect();
    let mut sent = 0u32;
    let mut received = 0u32;
    assert!(!queue.enable_interrupts());
    for _ in 0..rounds {
        assert!(
            !device.enable_notification(),
            "nothing was published meanwhile"
        );
        for _ in 0..batch {
            let mut buffer = queue.start_buf((sent, spare.pop().unwrap()), 1, 1).unwrap();
            buffer.add_bytes(|token| &token.1, 0..8).unwrap();
            buffer.end_buf().unwrap();
            sent += 1;
        }
        assert_eq!(queue.publish(), Kick::Needed);
        while let Some(chain) = device.pop().unwrap() {
            device.complete(chain, 0);
        }
        let interrupt = device.publish();
        assert_eq!(interrupt, crate::device::queue::Interrupt::Needed);
        while let Some(done) = queue.pop().unwrap() {
            assert_eq!(done.token.0, received);
            received += 1;
            spare.push(done.token.1);
        }
        assert!(!queue.enable_interrupts());
    }
    assert_eq!((received, queue.free_slots()), (sent, size));
}

#[test]
fn indices_wrap_with_batched_adds_and_no_notification_is_lost() {
    for features in [0, EVENT_IDX] {
        lap(8, 7, features, 20_000);
        lap(1, 1, features, 70_000);
        lap(256, 256, features, 600);
    }
}

#[test]
fn a_device_that_does_not_ask_is_not_kicked() {
    let mut bed = Testbed::new(1 << 16);
    for features in [0, EVENT_IDX] {
        let mut queue = bed.queue::<List>(QueueOptions::new(4, features));
        let mut device = bed.device_end(queue.areas(), features);
        let mut kick = |queue: &mut Queue<List, Window>| {
            let token = list(&mut bed, &[1]);
            queue.add_outbuf(token, 1, |list| list).unwrap();
            queue.publish()
        };
        assert_eq!(kick(&mut queue), Kick::Needed);
        device.disable_notification();
        assert_eq!(kick(&mut queue), Kick::NotNeeded);
        assert_eq!(queue.publish(), Kick::NotNeeded, "nothing new");
        assert!(device.enable_notification(), "there is something already");
    }
}

#[test]
fn more_than_two_to_the_sixteen_exposed_buffers_are_not_mistaken_for_few() {
    for over in [0u32, 1, 5] {
        let mut bed = Testbed::new(1 << 16);
        let mut queue = bed.queue::<DmaBytes>(QueueOptions::new(4, EVENT_IDX));
        let mut device = bed.device_end(queue.areas(), EVENT_IDX);
        let mut token = Some(bed.take(8));
        // The device requests a notification for the first buffer only, and then polls.
        assert!(!device.enable_notification());
        for _ in 0..65_535 + over {
            let mut buffer = queue.start_buf(token.take().unwrap(), 1, 1).unwrap();
            buffer.add_bytes(|token| token, 0..8).unwrap();
            buffer.end_buf().unwrap();
            queue.expose();
            let chain = device.pop().unwrap().unwrap();
            device.complete(chain, 0);
            let _ = device.publish();
            token = Some(queue.pop().unwrap().unwrap().token);
        }
        assert_eq!(queue.publish(), Kick::Needed, "{over} over");
    }
}

#[test]
fn enabling_interrupts_tells_of_what_came_before() {
    let mut bed = Testbed::new(1 << 16);
    for features in [0, EVENT_IDX] {
        let mut queue = bed.queue::<List>(QueueOptions::new(4, features));
        let mut device = bed.device_end(queue.areas(), features);
        queue.disable_interrupts();
        let token = list(&mut bed, &[1]);
        queue.add_outbuf(token, 1, |list| list).unwrap();
        let _ = queue.publish();
        let chain = device.pop().unwrap().unwrap();
        device.complete(chain, 0);
        let _ = device.publish();
        assert!(queue.enable_interrupts());
        queue.pop().unwrap().unwrap();
        assert!(!queue.enable_interrupts());
    }
}
