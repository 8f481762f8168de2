//! The life of a queue: its depth, its thread, its end.

use super::*;
use crate::disk::spans::{Access, Guard};

#[test]
fn a_queue_takes_no_more_than_its_depth_and_completes_all_of_it() {
    everywhere(|_, _, stream| {
        let segments = [stream.segment(0, 512)];
        for tag in 0..u64::from(DEPTH) {
            assert!(stream.queue.ready());
            let read = DiskOp::Read {
                offset: tag * 512,
                data: Data::Guest(&segments),
            };
            assert_eq!(stream.queue.submit(tag, read), Ok(()));
        }
        assert!(!stream.queue.ready());
        assert_eq!(stream.queue.submit(99, DiskOp::Flush), Err(Full));
        stream.queue.commit();
        let mut tags: Vec<u64> = stream
            .wait(usize::from(DEPTH))
            .iter()
            .map(|done| done.tag)
            .collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..u64::from(DEPTH)).collect::<Vec<_>>());
    });
}

#[test]
fn a_drain_returns_everything() {
    everywhere(|_, disk, stream| {
        let segments = [stream.segment(0, 512)];
        for tag in 0..4 {
            let read = DiskOp::Read {
                offset: 0,
                data: Data::Guest(&segments),
            };
            stream.queue.submit(tag, read).expect("room");
        }
        stream.queue.submit(4, DiskOp::Flush).expect("room");
        let mut done = Vec::new();
        stream.queue.drain(&mut done);
        assert_eq!((done.len(), stream.queue.in_flight()), (5, 0));
        let fine = |done: &Completion| matches!(done.result, Ok(_) | Err(IoFault::Cancelled));
        assert!(done.iter().all(fine), "{done:?}");
        assert_eq!(disk.geometry().capacity, LEN);
    });
}

#[test]
fn a_batch_reaches_the_host_when_it_is_committed_and_not_before() {
    let mut scratch = Scratch::new(LEN);
    let Some(disk) = backed(&mut scratch, Aio::IoUring, true) else {
        return;
    };
    let mut stream = Stream::new(&disk);
    stream.poke(0, &pattern(4096, 1));
    let segments = [stream.segment(0, 4096)];
    for tag in 0..u64::from(DEPTH) {
        let write = DiskOp::Write {
            offset: tag * 4096,
            data: Data::Guest(&segments),
            fua: false,
        };
        stream.queue.submit(tag, write).expect("room");
    }
    let file = scratch.file();
    let mut bytes = vec![0; 4096 * usize::from(DEPTH)];
    std::thread::sleep(Duration::from_millis(50));
    file.read_exact_at(&mut bytes, 0).expect("image");
    assert!(
        bytes.iter().all(|byte| *byte == 0),
        "the host has one already"
    );
    stream.queue.commit();
    let done = stream.wait(usize::from(DEPTH));
    assert!(done.iter().all(|done| done.result == Ok(4096)), "{done:?}");
    file.read_exact_at(&mut bytes, 0).expect("image");
    assert!(bytes.chunks(4096).all(|block| block == pattern(4096, 1)));
}

/// A disk with this backend, unless the machine lacks what it takes.
fn backed(scratch: &mut Scratch, aio: Aio, direct: bool) -> Option<RawDisk> {
    (scratch.config.aio, scratch.config.direct) = (aio, direct);
    let disk = scratch.open();
    disk.inspect_err(|error| {
        needs::lack(error);
    })
    .ok()
}

#[test]
fn a_stream_is_taken_once_and_comes_back_when_its_queue_is_dropped() {
    let mut scratch = Scratch::new(LEN);
    let Some(disk) = backed(&mut scratch, Aio::IoUring, false) else {
        return;
    };
    let first = disk.open_queue(memory(), 0, DEPTH).expect("free");
    for index in [0, 1] {
        assert!(matches!(
            disk.open_queue(memory(), index, DEPTH),
            Err(DiskError::NoSuchQueue { .. })
        ));
    }
    drop(first);
    // The ring is this thread's by now, and goes on working in a queue of its own.
    for _ in 0..2 {
        let mut stream = Stream::new(&disk);
        assert_eq!(stream.run(DiskOp::Flush), Ok(0));
    }
}

#[test]
fn a_ring_used_from_another_thread_has_its_requests_carried_out_and_does_not_hang() {
    let mut scratch = Scratch::new(LEN);
    let Some(disk) = backed(&mut scratch, Aio::IoUring, false) else {
        return;
    };
    let mut stream = Stream::new(&disk);
    assert_eq!(stream.run(DiskOp::Flush), Ok(0));
    let elsewhere = std::thread::spawn(move || stream.run(DiskOp::Flush));
    // The kernel refuses it, or carries it out where rings have no single issuer.
    assert_eq!(elsewhere.join().expect("no panic"), Ok(0));
}

#[test]
fn images_in_memory_are_served_without_a_ring() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        needs::lack("no /dev/shm");
        return;
    };
    let mut scratch = Scratch::at(dir, LEN);
    assert!(!scratch.open().expect("image").uses_ring());
    // With a ring the kernel hands each request to a thread of its own, so every completion comes by the event.
    let Some(disk) = backed(&mut scratch, Aio::IoUring, false) else {
        return;
    };
    let mut stream = Stream::new(&disk);
    let segments = [stream.segment(0, 4096)];
    for round in 0..50 {
        let data = pattern(4096, round);
        stream.poke(0, &data);
        let offset = u64::from(round) * 4096;
        assert_eq!(
            stream.run(DiskOp::Write {
                offset,
                data: Data::Guest(&segments),
                fua: false
            }),
            Ok(4096)
        );
        assert_eq!(
            stream.run(DiskOp::Read {
                offset,
                data: Data::Guest(&segments)
            }),
            Ok(4096)
        );
        assert!(stream.peek(0, 4096) == data);
    }
}

/// Keeps requests that patch blocks waiting where they are, on their blocking threads.
fn alone(disk: &RawDisk) -> Guard {
    disk.image.spans.lock(0..LEN, Access::Exclusive)
}

#[test]
fn what_o_direct_refuses_holds_up_no_other_request() {
    let mut scratch = Scratch::new(LEN);
    let Some(disk) = backed(&mut scratch, Aio::IoUring, true) else {
        return;
    };
    let mut stream = Stream::new(&disk);
    let write = |len| DiskOp::Write {
        offset: 0,
        data: Data::Host(vec![7; len]),
        fua: false,
    };
    // Part of a block: it is read, patched and written under this lock, so it stays where it is while that is held.
    let held = alone(&disk);
    stream.queue.submit(1, write(100)).expect("room");
    stream.queue.commit();
    let flush = stream.queue.submit(2, DiskOp::Flush);
    flush.expect("room");
    stream.queue.commit();
    let mut done = Vec::new();
    let end = Instant::now() + Duration::from_secs(20);
    while done.is_empty() {
        assert!(Instant::now() < end, "the flush waits for the write");
        stream.queue.completions(&mut done);
    }
    assert_eq!((done[0].tag, stream.queue.in_flight()), (2, 1));
    drop(held);
    let write = stream.wait(1).remove(0);
    assert_eq!((write.tag, write.result), (1, Ok(100)));
    let read = DiskOp::Read {
        offset: 0,
        data: Data::Host(vec![0; 101]),
    };
    let bytes = stream.complete(read).buffer.expect("a buffer");
    assert_eq!((&bytes[..100], bytes[100]), (&[7; 100][..], 0));
}

#[test]
fn a_plain_request_that_waits_holds_up_only_its_own_queue() {
    let mut scratch = Scratch::new(LEN);
    let Some(disk) = backed(&mut scratch, Aio::Threads, true) else {
        return;
    };
    if disk.image.in_memory {
        needs::lack("temporary files are kept in memory");
        return;
    }
    let mut stream = Stream::new(&disk);
    // What a slow medium does: this write waits for the lock on its own thread, while this one goes on.
    let held = alone(&disk);
    let write = DiskOp::Write {
        offset: 0,
        data: Data::Host(vec![7; 100]),
        fua: false,
    };
    stream.queue.submit(1, write).expect("room");
    stream.queue.submit(2, DiskOp::Flush).expect("room");
    stream.queue.commit();
    let mut done = Vec::new();
    std::thread::sleep(Duration::from_millis(50));
    stream.queue.completions(&mut done);
    assert!(done.is_empty() && stream.queue.in_flight() == 2);
    drop(held);
    let done = stream.wait(2);
    let fate = |done: &Completion| (done.tag, done.result);
    assert_eq!([fate(&done[0]), fate(&done[1])], [(1, Ok(100)), (2, Ok(0))]);
}

#[test]
fn a_plain_queue_dropped_in_the_middle_leaves_nothing_behind() {
    let mut scratch = Scratch::new(LEN);
    let Some(disk) = backed(&mut scratch, Aio::Threads, false) else {
        return;
    };
    let mut queue = disk.open_queue(memory(), 0, DEPTH).expect("queue");
    let len = LEN / u64::from(DEPTH);
    for tag in 0..u64::from(DEPTH) {
        let write = DiskOp::Write {
            offset: tag * len,
            data: Data::Host(vec![7; usize::try_from(len).expect("small")]),
            fua: true,
        };
        queue.submit(tag, write).expect("room");
    }
    drop(queue);
    let file = scratch.file();
    let mut bytes = vec![0; usize::try_from(LEN).expect("small")];
    file.write_all_at(&bytes, 0).expect("image");
    std::thread::sleep(Duration::from_millis(100));
    file.read_exact_at(&mut bytes, 0).expect("image");
    assert!(bytes.iter().all(|byte| *byte == 0), "somebody still writes");
}

#[test]
fn a_drain_gives_up_what_has_not_begun_and_waits_for_the_rest() {
    let mut scratch = Scratch::new(LEN);
    let Some(disk) = backed(&mut scratch, Aio::IoUring, true) else {
        return;
    };
    let image = Arc::clone(&disk.image);
    let mut stream = Stream::new(&disk);
    let held = image.spans.lock(0..LEN, Access::Exclusive);
    for tag in 1..=3 {
        let write = DiskOp::Write {
            offset: tag * 512,
            data: Data::Host(vec![7; 100]),
            fua: false,
        };
        stream.queue.submit(tag, write).expect("room");
    }
    let mut done = Vec::new();
    std::thread::scope(|scope| {
        let queue = &mut stream.queue;
        let out = &mut done;
        let drain = scope.spawn(move || queue.drain(out));
        std::thread::sleep(Duration::from_millis(50));
        drop(held);
        drain.join().expect("no panic");
    });
    assert_eq!((done.len(), stream.queue.in_flight()), (3, 0));
    done.sort_by_key(|completion| completion.tag);
    let file = scratch.file();
    for completion in done {
        let mut byte = [0];
        file.read_exact_at(&mut byte, completion.tag * 512)
            .expect("image");
        match completion.result {
            Ok(100) => assert_eq!(byte, [7], "request {}", completion.tag),
            Err(IoFault::Cancelled) => assert_eq!(byte, [0], "request {}", completion.tag),
            other => panic!("request {}: {other:?}", completion.tag),
        }
    }
}

#[test]
fn a_disk_without_streams_of_its_own_holds_up_no_event_loop_either() {
    let mut scratch = Scratch::new(LEN);
    (scratch.config.aio, scratch.config.direct) = (Aio::Threads, true);
    let disk = match RawDisk::open(&scratch.config, 0, DEPTH) {
        Ok(disk) if !disk.image.in_memory => disk.shared_by(2),
        _ => {
            needs::lack("no O_DIRECT for temporary files");
            return;
        }
    };
    let mut stream = Stream::numbered(&disk, 1);
    let held = alone(&disk);
    let write = DiskOp::Write {
        offset: 0,
        data: Data::Host(vec![7; 100]),
        fua: false,
    };
    stream.queue.submit(1, write).expect("room");
    stream.queue.commit();
    assert_eq!(stream.queue.in_flight(), 1);
    drop(held);
    assert_eq!(stream.wait(1)[0].result, Ok(100));
}
