//! The life of a queue: its depth, its thread, its end.

use super::*;

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
fn a_stream_is_taken_once_and_comes_back_when_its_queue_is_dropped() {
    let mut scratch = Scratch::new(LEN);
    scratch.config.aio = Aio::Ring;
    let Ok(disk) = scratch.open() else {
        eprintln!("left out: no io_uring here");
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
fn a_ring_used_from_another_thread_fails_its_requests_and_does_not_hang() {
    let mut scratch = Scratch::new(LEN);
    scratch.config.aio = Aio::Ring;
    let Ok(disk) = scratch.open() else {
        eprintln!("left out: no io_uring here");
        return;
    };
    let mut stream = Stream::new(&disk);
    assert_eq!(stream.run(DiskOp::Flush), Ok(0));
    let elsewhere = std::thread::spawn(move || stream.run(DiskOp::Flush));
    // Kernels without single-issuer rings carry it out.
    let result = elsewhere.join().expect("no panic");
    assert!(
        matches!(result, Ok(0) | Err(IoFault::Host(libc::EEXIST))),
        "{result:?}"
    );
}

#[test]
fn images_in_memory_are_served_without_a_ring() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return eprintln!("left out: no /dev/shm");
    };
    let mut scratch = Scratch::at(dir, LEN);
    assert!(!scratch.open().expect("image").uses_ring());
    // With a ring the kernel hands each request to a thread of its own, so every completion comes by the event.
    scratch.config.aio = Aio::Ring;
    let Ok(disk) = scratch.open() else {
        return eprintln!("left out: no io_uring here");
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
