//! A medium that can't take what the host's page cache has. The kernel reports that once per open
//! file description and takes the lost pages for clean, so whoever was told has to remember it.

use super::*;
use crate::disk::testing::Medium;

const BYTES: u64 = 4 << 20;

/// Runs a test on such a medium with every backend that caches, once with one queue and once with
/// four.
fn everywhere_cached(mut test: impl FnMut(&Medium, &RawDisk)) {
    for aio in [Aio::Threads, Aio::IoUring] {
        for queues in [1, 4] {
            let Some(medium) = Medium::new(BYTES) else {
                return;
            };
            let config = DiskConfig {
                aio,
                ..DiskConfig::new(medium.path())
            };
            test(
                &medium,
                &RawDisk::open(&config, queues, DEPTH).expect("a block device"),
            );
        }
    }
}

fn write(offset: u64, fua: bool) -> DiskOp<'static> {
    DiskOp::Write {
        offset,
        data: Data::Host(vec![7; 64 << 10]),
        fua,
    }
}

/// Writes something that the medium then loses.
fn lose(medium: &Medium, stream: &mut Stream) {
    assert_eq!(stream.run(write(0, false)), Ok(64 << 10));
    medium.full(true);
    assert!(!medium.write_back(), "there was room for it");
    medium.full(false);
}

#[test]
fn a_write_with_fua_that_is_told_of_a_loss_fails_and_so_does_every_flush_after_it() {
    everywhere_cached(|medium, disk| {
        let mut stream = Stream::new(disk);
        assert_eq!(stream.run(DiskOp::Flush), Ok(0));
        lose(medium, &mut stream);
        // The journal's commit block, say, which is fine by itself.
        assert!(matches!(
            stream.run(write(1 << 20, true)),
            Err(IoFault::Host(_) | IoFault::NoSpace)
        ));
        assert_eq!(stream.run(write(1 << 20, true)), Ok(64 << 10), "again");
        for _ in 0..2 {
            assert_eq!(stream.run(DiskOp::Flush), Err(IoFault::FlushLost));
        }
    });
}

#[test]
fn each_queue_is_told_of_a_loss_by_the_host_itself() {
    everywhere_cached(|medium, disk| {
        let mut stream = Stream::new(disk);
        lose(medium, &mut stream);
        for handle in &disk.handles {
            assert!(handle.file().sync_data().is_err(), "nobody told this queue");
        }
        assert!(
            disk.handles
                .iter()
                .all(|handle| handle.file().sync_data().is_ok())
        );
    });
}

#[test]
fn of_requests_that_make_data_stable_at_the_same_time_none_succeeds_when_one_is_told_of_a_loss() {
    everywhere_cached(|medium, disk| {
        let mut stream = Stream::new(disk);
        lose(medium, &mut stream);
        for tag in 0..u64::from(DEPTH) {
            let op = match tag % 2 {
                0 => DiskOp::Flush,
                _ => write(tag << 16, true),
            };
            stream.queue.submit(tag, op).expect("room");
        }
        stream.queue.commit();
        for done in stream.wait(usize::from(DEPTH)) {
            // Those that run one after the other are told apart: a write of its own is stable after
            // the first.
            let later = disk.image.in_memory || !disk.uses_ring();
            let fine = done.result == Ok(64 << 10) && later;
            assert!(fine || done.result.is_err(), "{done:?}");
        }
    });
}

#[test]
fn a_loss_that_one_queue_is_told_of_fails_the_flushes_of_the_others() {
    let Some(medium) = Medium::new(BYTES) else {
        return;
    };
    let disk = RawDisk::open(&DiskConfig::new(medium.path()), 2, DEPTH).expect("a block device");
    let mut first = Stream::new(&disk);
    let mut second = Stream::numbered(&disk, 1);
    assert_eq!(second.run(DiskOp::Flush), Ok(0));
    lose(&medium, &mut first);
    assert!(first.run(DiskOp::Flush).is_err());
    assert_eq!(second.run(DiskOp::Flush), Err(IoFault::FlushLost));
}

#[test]
fn around_the_page_cache_a_failed_write_is_lost_to_nobody_and_flushes_go_on() {
    let Some(medium) = Medium::new(BYTES) else {
        return;
    };
    let config = DiskConfig {
        direct: true,
        ..DiskConfig::new(medium.path())
    };
    let disk = RawDisk::open(&config, 1, DEPTH).expect("a block device");
    let mut stream = Stream::new(&disk);
    medium.full(true);
    assert!(stream.run(write(0, true)).is_err());
    medium.full(false);
    assert_eq!(stream.run(write(0, true)), Ok(64 << 10));
    assert_eq!(stream.run(DiskOp::Flush), Ok(0));
}

#[test]
fn each_queue_holds_the_lock_and_has_the_image_open_as_it_was() {
    for readonly in [false, true] {
        let mut scratch = Scratch::new(LEN);
        scratch.config.readonly = readonly;
        let disk = RawDisk::open(&scratch.config, 3, DEPTH).expect("image");
        let files: Vec<_> = disk.handles.iter().map(|handle| handle.file()).collect();
        let flags = |file: &File| rustix::fs::fcntl_getfl(file).expect("open");
        assert!(files.iter().all(|file| flags(file) == flags(files[0])));
        // As if all but the last were closed.
        for file in &files[..2] {
            crate::disk::lock::release(file);
        }
        let writer = DiskConfig::new(&scratch.config.path);
        assert!(matches!(
            RawDisk::open(&writer, 1, 1),
            Err(DiskError::Locked { .. })
        ));
        drop(disk);
        RawDisk::open(&writer, 1, 1).expect("nobody holds it");
    }
}

#[test]
fn a_descriptor_that_can_not_be_opened_again_serves_all_queues() {
    use rustix::fs::{IFlags, ioctl_setflags};
    let scratch = Scratch::new(LEN);
    let file = scratch.file();
    if let Err(error) = ioctl_setflags(&file, IFlags::IMMUTABLE) {
        needs::lack(format!("the file can't be made immutable: {error}"));
        return;
    }
    let config = DiskConfig {
        discard: false,
        ..scratch.config.clone()
    };
    let disk = RawDisk::from_file(file, &config, 2, DEPTH);
    ioctl_setflags(scratch.read_only(), IFlags::empty()).expect("as before");
    let disk = disk.expect("image");
    for index in 0..2 {
        let read = DiskOp::Read {
            offset: 0,
            data: Data::Host(vec![1; 512]),
        };
        assert_eq!(Stream::numbered(&disk, index).run(read), Ok(512));
    }
    let handed = RawDisk::from_file(scratch.file(), &config, 1, DEPTH);
    assert!(handed.is_err(), "the first still has its lock");
}

#[test]
fn a_descriptor_handed_over_is_opened_anew_even_for_one_queue() {
    let Some(medium) = Medium::new(BYTES) else {
        return;
    };
    let mut options = File::options();
    let file = options.read(true).write(true).open(medium.path());
    let file = file.expect("the device");
    let kept = file.try_clone().expect("a descriptor");
    let config = DiskConfig::new(medium.path());
    let disk = RawDisk::from_file(file, &config, 1, DEPTH).expect("a block device");
    let mut stream = Stream::new(&disk);
    lose(&medium, &mut stream);
    assert!(kept.sync_data().is_err(), "the embedder asks for himself");
    assert!(stream.run(DiskOp::Flush).is_err());
}
