//! Discards and zeroes, and what the host makes of them.

use std::sync::atomic::Ordering;

use super::*;
use crate::disk::testing::{Loop, Mounted};

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
            assert!(disk.geometry().discard_zeroes && disk.geometry().zeroes_unmap);
            assert!(read(0, 1 << 20).iter().all(|byte| *byte == 0));
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
            .refused
            .zero_range
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
fn empty_ranges_do_nothing_and_do_not_make_the_host_look_unable() {
    everywhere(|_, disk, stream| {
        let (offset, len, fua) = (512, 0, false);
        let zero = |may_unmap| DiskOp::WriteZeroes {
            offset,
            len,
            may_unmap,
            fua,
        };
        let discard = DiskOp::Discard { offset, len, fua };
        for op in [zero(false), zero(true), discard] {
            assert_eq!(stream.run(op), Ok(0));
        }
        let refused = &disk.image.refused;
        let flags = [&refused.zero_range, &refused.zero_unmap, &refused.discard];
        assert!(flags.iter().all(|flag| !flag.load(Ordering::Relaxed)));
    });
}

/// A disk on a loop device over a file, with the backends that can be had.
fn on_loop(dir: &Path, mut test: impl FnMut(&File, &RawDisk, &mut Stream)) {
    for aio in [Aio::Threads, Aio::IoUring] {
        let path = dir.join("image");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&path).expect("image");
        file.write_all_at(&pattern(1 << 20, 7), 0).expect("filled");
        let Some(device) = Loop::new(&path, 512) else {
            return;
        };
        let config = DiskConfig {
            aio,
            direct: true,
            ..DiskConfig::new(device.path())
        };
        let disk = RawDisk::open(&config, 1, DEPTH).expect("a block device");
        let mut stream = Stream::new(&disk);
        test(&file, &disk, &mut stream);
    }
}

#[test]
fn a_block_device_that_zeroes_by_itself_frees_but_promises_no_zeroes_after_a_discard() {
    let dir = tempfile::tempdir().expect("directory");
    on_loop(dir.path(), |file, disk, stream| {
        let geometry = disk.geometry();
        if geometry.discard.is_none() {
            needs::lack("no holes in temporary files");
            return;
        }
        assert!(geometry.zeroes_unmap && !geometry.discard_zeroes);
        let blocks = || file.metadata().expect("the file").blocks();
        let full = blocks();
        let (len, fua) = (1 << 19, true);
        let discard = DiskOp::Discard {
            offset: 0,
            len,
            fua,
        };
        assert_eq!(stream.run(discard), Ok(0));
        assert!(blocks() < full, "discarded");
        let half = blocks();
        let zero = DiskOp::WriteZeroes {
            offset: 1 << 19,
            len,
            may_unmap: true,
            fua,
        };
        assert_eq!(stream.run(zero), Ok(0));
        assert!(blocks() < half, "zeroed and freed");
    });
}

#[test]
fn a_block_device_that_can_free_nothing_says_so_and_is_not_asked_twice() {
    let Some(mounted) = Mounted::new("ramfs", "mode=0700") else {
        return;
    };
    on_loop(mounted.path(), |file, disk, stream| {
        let geometry = disk.geometry();
        assert_eq!((geometry.discard, geometry.zeroes_unmap), (None, false));
        let zero = |offset, may_unmap| DiskOp::WriteZeroes {
            offset,
            len: 4096,
            may_unmap,
            fua: true,
        };
        let refused = &disk.image.refused;
        assert_eq!(stream.run(zero(0, true)), Ok(0));
        assert!(!refused.zero_unmap.load(Ordering::Relaxed), "it was asked");
        // A discard is a hint: no error, and no zeroes are written in its place.
        for _ in 0..2 {
            let discard = DiskOp::Discard {
                offset: 8192,
                len: 4096,
                fua: true,
            };
            assert_eq!(stream.run(discard), Ok(0));
            assert!(refused.discard.load(Ordering::Relaxed), "remembered");
        }
        let mut bytes = vec![0; 12288];
        file.read_exact_at(&mut bytes, 0).expect("the file");
        let old = pattern(1 << 20, 7);
        assert!(bytes[..4096].iter().all(|byte| *byte == 0), "zeroed");
        assert!(bytes[4096..] == old[4096..12288], "left alone");
    });
}

#[test]
fn a_host_that_refuses_to_free_while_zeroing_is_asked_once() {
    let Some(mounted) = Mounted::new("ramfs", "mode=0700") else {
        return;
    };
    let dir = mounted.path();
    let path = dir.join("image");
    File::create(&path)
        .expect("image")
        .write_all_at(&pattern(1 << 20, 7), 0)
        .expect("filled");
    let Some(device) = Loop::new(&path, 512) else {
        return;
    };
    let config = DiskConfig {
        aio: Aio::Threads,
        ..DiskConfig::new(device.path())
    };
    let image = Handle::first(Arc::new(Image::open(&config).expect("a block device")));
    let access = MemoryAccess::new(memory());
    // As for a device whose limits promise more than it does.
    let task = Task::Zero { may_unmap: true };
    assert_eq!(range::run(&image, &access, task, 0, 4096), Ok(()));
    assert!(image.refused.zero_unmap.load(Ordering::Relaxed));
    // A range that is no whole blocks is refused, too, and says nothing about others.
    let task = Task::Zero { may_unmap: false };
    assert_eq!(range::run(&image, &access, task, 100, 1000), Ok(()));
    assert!(!image.refused.zero_range.load(Ordering::Relaxed));
}
