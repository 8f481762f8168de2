//! Reads and writes, of any alignment, wherever the data is.

use super::*;

#[test]
fn what_is_written_is_read_again_whatever_its_alignment() {
    everywhere(|scratch, _, stream| {
        let file = scratch.file();
        // Guest address, length of the first segment, offset on the disk.
        let cases = [
            (0x1000, 4096, 0),
            (0x1000, 512, 512),
            (0x1001, 1000, 4096),
            (0x1fff, 3, 1536),
            (0x2000, 9, 8704),
        ];
        for (seed, (at, first, offset)) in (1..).zip(cases) {
            let data = pattern(8192, seed);
            stream.poke(at, &data);
            let split = stream.segment(at, 8192).split_at(first).expect("longer");
            let segments = [split.0, split.1];
            let fua = seed % 2 == 0;
            let write = DiskOp::Write {
                offset,
                data: Data::Guest(&segments),
                fua,
            };
            assert_eq!(stream.run(write), Ok(8192));
            let mut bytes = vec![0; 8192];
            file.read_exact_at(&mut bytes, offset).expect("image");
            assert!(bytes == data, "in the file, case {seed}");
            stream.poke(at, &[0; 8192]);
            assert_eq!(
                stream.run(DiskOp::Read {
                    offset,
                    data: Data::Guest(&segments)
                }),
                Ok(8192)
            );
            assert!(stream.peek(at, 8192) == data, "in memory, case {seed}");
        }
    });
}

#[test]
fn a_request_of_more_segments_than_one_call_takes_is_done_in_several() {
    everywhere(|_, _, stream| {
        let data = pattern(3000 * 512, 5);
        stream.poke(0x1000, &data);
        let segments: Vec<Segment> = (0..3000)
            .map(|part| stream.segment(0x1000 + part * 512, 512))
            .collect();
        let all = Data::Guest(&segments);
        assert_eq!(
            stream.run(DiskOp::Write {
                offset: 0,
                data: all,
                fua: false
            }),
            Ok(3000 * 512)
        );
        stream.poke(0x1000, &vec![0; data.len()]);
        assert_eq!(
            stream.run(DiskOp::Read {
                offset: 0,
                data: Data::Guest(&segments)
            }),
            Ok(3000 * 512)
        );
        assert!(stream.peek(0x1000, data.len()) == data);
    });
}

#[test]
fn a_front_ends_buffer_comes_back_with_its_data() {
    everywhere(|_, _, stream| {
        let data = pattern(4096, 9);
        let write = stream.complete(DiskOp::Write {
            offset: 512,
            data: Data::Host(data.clone()),
            fua: true,
        });
        assert_eq!((write.result, write.buffer), (Ok(4096), Some(data.clone())));
        let read = stream.complete(DiskOp::Read {
            offset: 512,
            data: Data::Host(vec![0; 4096]),
        });
        assert_eq!((read.result, read.buffer), (Ok(4096), Some(data)));
        let late = stream.complete(DiskOp::Read {
            offset: LEN,
            data: Data::Host(vec![0; 512]),
        });
        assert_eq!(
            (late.result, late.buffer.map(|buffer| buffer.len())),
            (Err(IoFault::OutOfRange), Some(512))
        );
    });
}

#[test]
fn ranges_past_the_end_have_no_effect() {
    everywhere(|scratch, _, stream| {
        let segments = [stream.segment(0, 1024)];
        for offset in [LEN - 512, LEN, u64::MAX - 100] {
            let write = DiskOp::Write {
                offset,
                data: Data::Guest(&segments),
                fua: false,
            };
            assert_eq!(stream.run(write), Err(IoFault::OutOfRange));
            assert_eq!(
                stream.run(DiskOp::Discard {
                    offset,
                    len: 1024,
                    fua: false
                }),
                Err(IoFault::OutOfRange)
            );
        }
        assert_eq!(scratch.file().metadata().expect("image").len(), LEN);
    });
}

#[test]
fn memory_that_is_not_the_queues_is_refused() {
    everywhere(|_, _, stream| {
        let other = memory();
        let foreign = other
            .region(0, Access::Write)
            .and_then(|region| region.segment(0, 512))
            .expect("in memory");
        let segments = [stream.segment(0, 512), foreign];
        assert_eq!(
            stream.run(DiskOp::Read {
                offset: 0,
                data: Data::Guest(&segments)
            }),
            Err(IoFault::BadMemory)
        );
    });
}

#[test]
fn an_image_that_was_cut_short_behind_our_back_reads_short_and_still_flushes() {
    everywhere(|scratch, _, stream| {
        scratch.file().set_len(8192).expect("cut");
        let segments = [stream.segment(0, 8192)];
        assert_eq!(
            stream.run(DiskOp::Read {
                offset: 4096,
                data: Data::Guest(&segments)
            }),
            Err(IoFault::Short)
        );
        assert_eq!(stream.run(DiskOp::Flush), Ok(0));
    });
}

#[test]
fn a_flush_that_ends_well_beside_one_that_failed_is_not_believed() {
    let mut scratch = Scratch::new(LEN);
    scratch.config.aio = Aio::IoUring;
    let disk = match scratch.open() {
        Ok(disk) => disk,
        Err(error) => {
            needs::lack(error);
            return;
        }
    };
    let mut stream = Stream::new(&disk);
    assert_eq!(stream.run(DiskOp::Flush), Ok(0));
    stream.queue.submit(1, DiskOp::Flush).expect("room");
    stream.queue.commit();
    // Another stream heard of what was lost; the host tells nobody a second time.
    disk.image.sync_failed(IoFault::Host(libc::EIO));
    assert_eq!(stream.wait(1)[0].result, Err(IoFault::FlushLost));
    assert_eq!(stream.run(DiskOp::Flush), Err(IoFault::FlushLost));
}

#[test]
fn blocks_written_in_part_keep_their_other_part_around_the_cache() {
    let mut scratch = Scratch::new(1 << 20);
    scratch.config.direct = true;
    let mut image = match Image::open(&scratch.config) {
        Ok(image) => image,
        Err(error) => {
            needs::lack(error);
            return;
        }
    };
    // As a device with blocks of 4 KiB asks for.
    image.align = Align {
        memory: 4096,
        offset: 4096,
    };
    let image = Handle::first(Arc::new(image));
    let file = scratch.file();
    let old = pattern(1 << 20, 0x55);
    file.write_all_at(&old, 0).expect("image");
    let access = MemoryAccess::new(memory());
    let mut transfer = Transfer::default();
    for (offset, len) in [
        (512, 512),
        (4096, 4096),
        (3584, 1024),
        (0, 512),
        (1024, 600 << 10),
    ] {
        let new = pattern(len, 0xaa);
        transfer
            .load(Data::Host(new.clone()), &access)
            .expect("memory");
        assert!(!bounce::fits(&image, &transfer, offset) || offset == 4096);
        bounce::write(&image, &mut transfer, offset, true).expect("written");
        let start = usize::try_from(offset).expect("small");
        let mut expected = old.clone();
        expected[start..start + len].copy_from_slice(&new);
        let mut bytes = vec![0; 1 << 20];
        file.read_exact_at(&mut bytes, 0).expect("image");
        assert!(bytes == expected, "{offset}+{len}");
        transfer
            .load(Data::Host(vec![0; len]), &access)
            .expect("memory");
        bounce::read(&image, &mut transfer, offset).expect("read");
        assert!(transfer.clear().expect("buffer") == new, "{offset}+{len}");
        file.write_all_at(&old, 0).expect("image");
    }
}

#[test]
fn what_is_not_cached_is_read_too() {
    everywhere(|scratch, _, stream| {
        let data = pattern(1 << 20, 4);
        let file = scratch.file();
        file.write_all_at(&data, 0).expect("image");
        file.sync_all().expect("synced");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .expect("dropped from the cache");
        let segments = [stream.segment(0, 1 << 20)];
        assert_eq!(
            stream.run(DiskOp::Read {
                offset: 0,
                data: Data::Guest(&segments)
            }),
            Ok(1 << 20)
        );
        assert!(stream.peek(0, 1 << 20) == data);
    });
}
