//! Memory for queues and buffers, and the DMA hook that bounces them.

use super::*;

#[test]
fn memory_that_is_no_queue_is_refused() {
    let mut bed = Testbed::new(1 << 20);
    let hook = bed.window();
    let device = DeviceId::new();
    let refused = |size, memory: DmaBytes| {
        let queue = Queue::<(), _>::new(QueueOptions::new(size, 0), memory, hook, &device);
        queue.err().expect("refused")
    };
    let need = QueueOptions::new(8, 0).memory_len();
    for size in [0, 3, 6, 32769, 65535] {
        let error = refused(size, bed.take(1 << 10));
        assert_eq!(error, QueueMemoryError::Size(size));
    }
    let error = refused(8, bed.take(need - 1));
    let have = need - 1;
    assert_eq!(error, QueueMemoryError::TooSmall { need, have });
    let mut odd = bed.take(need + 64);
    drop(odd.split_to(2));
    assert_eq!(refused(8, odd), QueueMemoryError::Misaligned);
    let heap = DmaBytes::zeroed(need, 64).unwrap();
    assert_eq!(refused(8, heap), QueueMemoryError::Unreachable);
}

/// Returns a queue whose buffers are bounced through `slots` slots of the device's own memory.
fn bouncing(bed: &mut Testbed, slots: usize, tables: u16) -> Queue<List, Bounce> {
    let memory = bed.take(slots * 512);
    let bus = bed.address(&memory);
    let hook = Bounce::new(memory, bus, bed.window()).unwrap();
    let options = QueueOptions::new(8, INDIRECT_DESC).tables(tables);
    let options = options.policy(IndirectPolicy::Rfc);
    bed.queue_with(options, hook).unwrap()
}

/// Returns a list outside the memory that the device can access.
fn private(contents: &[&[u8]]) -> List {
    List::from_buffers(contents.iter().map(|bytes| DmaBytes::from(bytes.to_vec())))
}

#[test]
fn bounced_buffers_carry_bytes_both_ways_and_only_those_the_device_wrote() {
    for tables in [0, 8] {
        let mut bed = Testbed::new(1 << 16);
        let mut queue = bouncing(&mut bed, 8, tables);
        let mut device = bed.device_end(queue.areas(), INDIRECT_DESC);
        for round in 0..20 {
            let token = private(&[b"out", b"......", b"......"]);
            queue.add_buf(token, 1, 2, |list| list).unwrap();
            let _ = queue.publish();
            let mut chain = device.pop().unwrap().unwrap();
            let mut read = [0; 3];
            chain.reader().read_exact(&mut read).unwrap();
            assert_eq!(&read, b"out", "round {round}");
            // One byte more than the writable part: it is not copied.
            chain.writer().write_all(b"abcdefghi").unwrap();
            device.complete(chain, 8);
            let _ = device.publish();
            let mut done = queue.pop().unwrap().unwrap();
            let mut got = Vec::new();
            done.token
                .for_each_mut(|piece| got.push(piece.bytes().to_vec()));
            assert_eq!(got, [&b"out"[..], b"abcdef", b"gh...."]);
        }
    }
}

#[test]
fn bounce_memory_comes_back_with_pops_aborts_and_resets() {
    for tables in [0, 8] {
        let mut bed = Testbed::new(1 << 16);
        let mut queue = bouncing(&mut bed, 3, tables);
        let big = [7u8; 1024];
        for _ in 0..3 {
            let mut buffer = queue.start_buf(private(&[&big, b"x"]), 2, 1).unwrap();
            buffer.add_sg(|list| list, 2).unwrap();
            drop(buffer);
        }
        queue.add_outbuf(private(&[&big]), 1, |list| list).unwrap();
        let full = queue.add_outbuf(private(&[b"a", b"b"]), 2, |list| list);
        let exhausted = Refusal::Add(AddError::Map(MapError::Exhausted));
        assert_eq!(why(full), exhausted);
        queue.add_outbuf(private(&[b"a"]), 1, |list| list).unwrap();
        let huge = [0u8; 2048];
        let never = queue.add_outbuf(private(&[&huge]), 1, |list| list);
        assert_eq!(
            why(never),
            Refusal::Add(AddError::Map(MapError::Unreachable))
        );

        let mut back = 0;
        queue.reclaim(&bed.proof(), |_| back += 1).unwrap();
        assert_eq!(back, 2);
        queue
            .add_inbuf(private(&[&big, b"x"]), 2, |list| list)
            .unwrap();
    }
}

#[test]
fn a_bounced_writable_segment_never_shows_an_earlier_buffer() {
    let mut bed = Testbed::new(1 << 16);
    let mut queue = bouncing(&mut bed, 1, 0);
    let mut device = bed.device_end(queue.areas(), INDIRECT_DESC);
    for (outs, ins, token) in [(1, 0, private(&[b"secret"])), (0, 1, private(&[b"......"]))] {
        queue.add_buf(token, outs, ins, |list| list).unwrap();
        let _ = queue.publish();
        let chain = device.pop().unwrap().unwrap();
        // The device claims six bytes but writes none.
        let claimed = if ins == 1 { 6 } else { 0 };
        device.complete(chain, claimed);
        let _ = device.publish();
        let mut done = queue.pop().unwrap().unwrap();
        if ins == 1 {
            done.token
                .for_each_mut(|piece| assert_eq!(piece.bytes(), [0; 6]));
        }
    }
}

#[test]
fn owners_of_static_memory_divide_it_and_owners_of_heap_memory_do_not() {
    let mut bytes = DmaBytes::zeroed(16, 16).unwrap();
    assert!(bytes.split_to(8).is_none());
    let mut bytes = bytes.leak();
    assert!(bytes.split_to(17).is_none());
    let mut front = bytes.split_to(10).unwrap();
    front.bytes_mut().fill(1);
    assert_eq!(
        (front.len(), bytes.len(), bytes.bytes()),
        (10, 6, &[0; 6][..])
    );
    assert_eq!(DmaBytes::zeroed(0, 1).unwrap().region().len(), 0);
}
