//! Which resets return buffers.

use super::*;

#[test]
fn only_a_later_reset_of_the_same_device_gives_buffers_back() {
    let mut bed = Testbed::new(1 << 16);
    let earlier = bed.proof();
    let mut queue = two_in_flight(&mut bed);
    let other = Testbed::new(4096).proof();
    let nothing = |_| panic!("a buffer was given back");
    assert_eq!(queue.reclaim(&earlier, nothing), Err(NotProven));
    assert_eq!(queue.reclaim(&other, nothing), Err(NotProven));
    assert_eq!(queue.in_flight(), 2);

    let proof = bed.proof();
    let mut back = Vec::new();
    queue.reclaim(&proof, |token| back.push(token)).unwrap();
    assert_eq!(
        (back.len(), queue.in_flight(), queue.free_slots()),
        (2, 0, 4)
    );
    assert_eq!(
        queue.reclaim(&proof, nothing),
        Err(NotProven),
        "the queue is younger now"
    );

    // The queue is reinitialised; the device gets its addresses again.
    let mut device = bed.device_end(queue.areas(), 0);
    queue
        .add_inbuf(back.pop().unwrap(), 1, |list| list)
        .unwrap();
    assert_eq!(queue.publish(), Kick::Needed);
    let chain = device.pop().unwrap().unwrap();
    device.complete(chain, 0);
    let _ = device.publish();
    assert!(queue.pop().unwrap().is_some());
}

#[test]
fn a_queue_that_goes_away_leaks_what_the_device_may_still_use() {
    let mut bed = Testbed::new(1 << 16);
    let witness = Rc::new(());
    {
        let mut queue = bed.queue::<(List, Rc<()>)>(QueueOptions::new(4, 0));
        let token = (list(&mut bed, &[1]), Rc::clone(&witness));
        queue.add_inbuf(token, 1, |token| &token.0).unwrap();
    }
    assert_eq!(Rc::strong_count(&witness), 2, "leaked, published or not");

    let mut queue = bed.queue::<(List, Rc<()>)>(QueueOptions::new(4, 0));
    let token = (list(&mut bed, &[1]), Rc::clone(&witness));
    queue.add_inbuf(token, 1, |token| &token.0).unwrap();
    let Ok((memory, _)) = queue.dismantle(&bed.proof(), drop) else {
        panic!("the proof is good");
    };
    assert_eq!(Rc::strong_count(&witness), 2, "given back and dropped");
    assert_eq!(memory.len(), QueueOptions::new(4, 0).memory_len());
}

#[test]
fn tickets_tell_buffers_of_one_slot_apart() {
    let mut bed = Testbed::new(1 << 16);
    let mut queue = bed.queue::<List>(QueueOptions::new(1, 0));
    let token = list(&mut bed, &[1]);
    let first = queue.add_inbuf(token, 1, |list| list).unwrap();
    let _ = queue.publish();
    bed.forge_used(queue.areas(), 1, 0, 0);
    let token = queue.pop().unwrap().unwrap().token;
    let second = queue.add_inbuf(token, 1, |list| list).unwrap();
    assert_ne!(first, second);
    assert!(queue.holds(second) && !queue.holds(first));
}
