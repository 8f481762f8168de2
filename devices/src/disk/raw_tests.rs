//! Raw images on this machine's file systems: what holds for one backend is asked of all that can be had here.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use splitring_virtio::mem::{Access, GuestRam, Segment};
use vm_memory::{Bytes, GuestAddress};

use super::super::bounce;
use super::super::image::Align;
use super::super::transfer::{Reach, Transfer};
use super::*;
use crate::disk::config::Cache;
use crate::disk::{Completion, Data, DiskOp, Full, IoFault};
use crate::testing::memory;

const LEN: u64 = 4 << 20;
const DEPTH: u16 = 8;

/// An image that goes with the test.
struct Scratch {
    _dir: tempfile::TempDir,
    config: DiskConfig,
}

impl Scratch {
    fn new(len: u64) -> Self {
        Self::at(tempfile::tempdir().expect("directory"), len)
    }

    fn at(dir: tempfile::TempDir, len: u64) -> Self {
        let path = dir.path().join("image");
        let file = File::create(&path).expect("image");
        file.set_len(len).expect("size");
        Self {
            _dir: dir,
            config: DiskConfig::new(path),
        }
    }

    fn file(&self) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(&self.config.path)
            .expect("image")
    }

    fn open(&self) -> Result<RawDisk, DiskError> {
        RawDisk::open(&self.config, 1, DEPTH)
    }
}

/// Runs a test over every backend, with the page cache and around it. What the machine lacks is said and left out.
fn everywhere(mut test: impl FnMut(&Scratch, &RawDisk, &mut Stream)) {
    for (aio, direct) in [
        (Aio::Plain, false),
        (Aio::Plain, true),
        (Aio::Ring, false),
        (Aio::Ring, true),
    ] {
        let mut scratch = Scratch::new(LEN);
        (scratch.config.aio, scratch.config.direct) = (aio, direct);
        match scratch.open() {
            Ok(disk) => {
                assert_eq!(disk.uses_ring(), aio == Aio::Ring);
                let mut stream = Stream::new(&disk);
                test(&scratch, &disk, &mut stream);
            }
            Err(error) => eprintln!("left out, {aio:?} direct={direct}: {error}"),
        }
    }
}

/// A queue with guest memory, used a request at a time.
struct Stream {
    ram: Ram,
    queue: Box<dyn DiskQueue>,
}

impl Stream {
    fn new(disk: &RawDisk) -> Self {
        let ram = memory();
        let queue = disk.open_queue(ram.clone(), 0, DEPTH).expect("queue");
        Self { ram, queue }
    }

    fn segment(&self, at: u64, len: usize) -> Segment {
        self.ram
            .region(at, Access::Write)
            .and_then(|region| region.segment(at, len))
            .expect("in memory")
    }

    fn poke(&self, at: u64, bytes: &[u8]) {
        self.ram
            .mapping()
            .write_slice(bytes, GuestAddress(at))
            .expect("in memory");
    }

    fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram
            .mapping()
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("in memory");
        bytes
    }

    fn run(&mut self, op: DiskOp<'_>) -> Result<u64, IoFault> {
        self.complete(op).result
    }

    fn complete(&mut self, op: DiskOp<'_>) -> Completion {
        self.queue.submit(7, op).expect("room");
        self.queue.commit();
        let mut done = self.wait(1);
        assert_eq!(done[0].tag, 7);
        done.remove(0)
    }

    /// Waits for `count` completions the way a worker does: look, then wait for the event.
    fn wait(&mut self, count: usize) -> Vec<Completion> {
        let end = Instant::now() + Duration::from_secs(20);
        let mut done = Vec::new();
        self.queue.completions(&mut done);
        while done.len() < count {
            assert!(Instant::now() < end, "no completion");
            let events = self.queue.events();
            let mut fds: Vec<PollFd<'_>> = events
                .iter()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
                .collect();
            let limit = Duration::from_secs(10).try_into().expect("short");
            assert_ne!(poll(&mut fds, Some(&limit)).expect("poll"), 0, "no event");
            self.queue.completions(&mut done);
        }
        assert_eq!((done.len(), self.queue.in_flight()), (count, 0));
        done
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from(at % 251).expect("small") ^ seed)
        .collect()
}

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
fn discards_free_blocks_and_zeroes_read_as_zeroes() {
    everywhere(|scratch, disk, stream| {
        let blocks = || fs::metadata(&scratch.config.path).expect("image").blocks();
        let data = pattern(1 << 20, 3);
        stream.poke(0, &data);
        let segments = [stream.segment(0, 1 << 20)];
        let fill = |stream: &mut Stream| {
            let write = DiskOp::Write {
                offset: 0,
                data: Data::Guest(&segments),
                fua: true,
            };
            assert_eq!(stream.run(write), Ok(1 << 20));
        };
        let read = |offset: u64, len: usize| {
            let mut bytes = vec![0; len];
            scratch
                .file()
                .read_exact_at(&mut bytes, offset)
                .expect("image");
            bytes
        };
        fill(stream);
        let full = blocks();
        if disk.geometry().discard.is_some() {
            assert_eq!(
                stream.run(DiskOp::Discard {
                    offset: 0,
                    len: 1 << 20,
                    fua: true
                }),
                Ok(0)
            );
            assert!(
                blocks() < full / 4,
                "{} of {full} blocks are left",
                blocks()
            );
        }
        for may_unmap in [true, false] {
            fill(stream);
            let zero = DiskOp::WriteZeroes {
                offset: 1536,
                len: (1 << 19) + 512,
                may_unmap,
                fua: true,
            };
            assert_eq!(stream.run(zero), Ok(0));
            assert!(read(1536, (1 << 19) + 512).iter().all(|byte| *byte == 0));
            assert!(read(0, 1536) == data[..1536], "in front of it");
            let end = 1536 + (1 << 19) + 512;
            assert!(
                read(u64::try_from(end).expect("small"), 4096) == data[end..end + 4096],
                "behind it"
            );
            assert_eq!(
                may_unmap && disk.geometry().discard.is_some(),
                blocks() < full,
                "unmapped"
            );
        }
        assert_eq!(scratch.file().metadata().expect("image").len(), LEN);
    });
}

#[test]
fn zeroes_are_written_where_the_host_can_not_zero_a_range() {
    everywhere(|scratch, disk, stream| {
        disk.image
            .no_zero_range
            .store(true, std::sync::atomic::Ordering::Relaxed);
        scratch
            .file()
            .write_all_at(&pattern(3 << 20, 1), 0)
            .expect("image");
        let zero = DiskOp::WriteZeroes {
            offset: 512,
            len: 2 << 20,
            may_unmap: false,
            fua: false,
        };
        assert_eq!(stream.run(zero), Ok(0));
        let mut bytes = vec![0; 3 << 20];
        scratch.file().read_exact_at(&mut bytes, 0).expect("image");
        assert!(bytes[512..512 + (2 << 20)].iter().all(|byte| *byte == 0));
        assert!(
            bytes[..512] == pattern(512, 1)
                && bytes[512 + (2 << 20)..] == pattern(3 << 20, 1)[512 + (2 << 20)..]
        );
    });
}

#[test]
fn blocks_written_in_part_keep_their_other_part_around_the_cache() {
    let mut scratch = Scratch::new(1 << 20);
    scratch.config.direct = true;
    let mut image = match Image::open(&scratch.config) {
        Ok(image) => image,
        Err(error) => return eprintln!("left out: {error}"),
    };
    // As a device with blocks of 4 KiB asks for.
    image.align = Align {
        memory: 4096,
        offset: 4096,
    };
    let file = scratch.file();
    let old = pattern(1 << 20, 0x55);
    file.write_all_at(&old, 0).expect("image");
    let reach = Reach::new(memory());
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
            .load(Data::Host(new.clone()), &reach)
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
            .load(Data::Host(vec![0; len]), &reach)
            .expect("memory");
        bounce::read(&image, &mut transfer, offset).expect("read");
        assert!(transfer.clear().expect("buffer") == new, "{offset}+{len}");
        file.write_all_at(&old, 0).expect("image");
    }
}

#[test]
fn a_larger_image_is_a_larger_disk_after_a_rescan() {
    everywhere(|scratch, disk, stream| {
        let segments = [stream.segment(0, 512)];
        scratch.file().set_len(2 * LEN + 100).expect("grow");
        assert_eq!(disk.geometry().capacity, LEN);
        assert_eq!(
            disk.rescan().expect("a file").capacity,
            2 * LEN,
            "cut to whole blocks"
        );
        let write = DiskOp::Write {
            offset: 2 * LEN - 512,
            data: Data::Guest(&segments),
            fua: false,
        };
        assert_eq!(stream.run(write), Ok(512));
        scratch.file().set_len(LEN).expect("shrink");
        assert_eq!(disk.rescan().expect("a file").capacity, LEN);
        let write = DiskOp::Write {
            offset: LEN,
            data: Data::Guest(&segments),
            fua: false,
        };
        assert_eq!(stream.run(write), Err(IoFault::OutOfRange));
        scratch.file().set_len(0).expect("empty");
        assert!(disk.rescan().is_err());
        assert_eq!(
            disk.geometry().capacity,
            LEN,
            "a failed rescan changes nothing"
        );
    });
}

#[test]
fn a_read_only_disk_writes_nothing() {
    for aio in [Aio::Plain, Aio::Auto] {
        let mut scratch = Scratch::new(LEN);
        (scratch.config.readonly, scratch.config.aio) = (true, aio);
        let disk = scratch.open().expect("image");
        let geometry = disk.geometry();
        assert!(geometry.read_only && geometry.discard.is_none());
        let mut stream = Stream::new(&disk);
        let segments = [stream.segment(0, 512)];
        let write = DiskOp::Write {
            offset: 0,
            data: Data::Guest(&segments),
            fua: false,
        };
        assert_eq!(stream.run(write), Err(IoFault::ReadOnly));
        let zero = DiskOp::WriteZeroes {
            offset: 0,
            len: 512,
            may_unmap: true,
            fua: false,
        };
        assert_eq!(stream.run(zero), Err(IoFault::ReadOnly));
        assert_eq!(stream.run(DiskOp::Flush), Ok(0));
    }
}

#[test]
fn writethrough_and_discard_keys_show_in_the_geometry() {
    let mut scratch = Scratch::new(LEN);
    (scratch.config.cache, scratch.config.discard) = (Cache::Writethrough, false);
    scratch.config.block_size = Some(4096);
    let geometry = scratch.open().expect("image").geometry();
    assert!(!geometry.write_cache && geometry.discard.is_none());
    assert_eq!(
        (geometry.logical_block, geometry.physical_block),
        (4096, 4096)
    );
}

#[test]
fn the_same_image_is_not_opened_twice_for_writing() {
    let mut scratch = Scratch::new(LEN);
    let first = scratch.open().expect("image");
    let error = scratch.open().err().expect("locked").to_string();
    assert!(
        error.contains("in use") && error.contains("share=on"),
        "{error}"
    );
    scratch.config.share = true;
    assert!(scratch.open().is_err(), "the first does not share");
    drop(first);
    let first = scratch.open().expect("shared");
    scratch.open().expect("both share");
    scratch.config.share = false;
    assert!(scratch.open().is_err(), "the second does not share");
    drop(first);
    scratch.config.readonly = true;
    let _first = scratch.open().expect("a reader");
    scratch.open().expect("another reader");
}

#[test]
fn what_can_not_be_a_disk_is_refused_with_its_name_and_a_remedy() {
    let dir = tempfile::tempdir().expect("directory");
    let empty = dir.path().join("empty");
    File::create(&empty).expect("file");
    let cases: [(PathBuf, &str); 4] = [
        (dir.path().join("missing"), "No such file"),
        (
            dir.path().to_owned(),
            "it is a directory; give a regular file",
        ),
        ("/dev/null".into(), "it is a character device"),
        (empty, "no whole block"),
    ];
    for (path, wanted) in cases {
        let error = RawDisk::open(&DiskConfig::new(&path), 1, 1)
            .err()
            .expect("refused")
            .to_string();
        assert!(
            error.contains(wanted) && error.contains(&path.display().to_string()),
            "{error}"
        );
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
