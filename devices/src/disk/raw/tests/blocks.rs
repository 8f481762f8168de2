//! Blocks of the guest's that are not the host's: whose they are, and that neither loses what the
//! other writes.

use super::*;
use crate::disk::spans;
use crate::disk::testing::{Loop, Mounted};

/// An image with a GPT header behind a first block of `block` bytes, and a pattern everywhere else.
fn partitioned(path: &Path, block: u64) -> Vec<u8> {
    let mut bytes = pattern(usize::try_from(LEN).expect("small"), 3);
    let at = usize::try_from(block).expect("small");
    bytes[at..at + 8].copy_from_slice(b"EFI PART");
    bytes[at + 24..at + 32].copy_from_slice(&1_u64.to_le_bytes());
    fs::write(path, &bytes).expect("image");
    bytes
}

/// Opens `path` with every backend, with the page cache and around it.
fn each_way(path: &Path, mut test: impl FnMut(&RawDisk, &mut Stream)) {
    for aio in [Aio::Threads, Aio::IoUring] {
        for direct in [false, true] {
            let config = DiskConfig {
                aio,
                direct,
                ..DiskConfig::new(path)
            };
            let disk = RawDisk::open(&config, 1, DEPTH).expect("image");
            test(&disk, &mut Stream::new(&disk));
        }
    }
}

/// Writes and reads single sectors at odd places, beside what is there.
fn sectors_are_written(disk: &RawDisk, stream: &mut Stream, old: &[u8]) {
    for (seed, sector) in (20..).zip([1_u64, 8, 15, 4001]) {
        let offset = sector * 512;
        let data = Data::Host(pattern(512, seed));
        let write = DiskOp::Write {
            offset,
            data,
            fua: true,
        };
        assert_eq!(stream.run(write), Ok(512));
        let data = Data::Host(vec![0; 3 * 512]);
        let read = DiskOp::Read {
            offset: offset - 512,
            data,
        };
        let seen = stream.complete(read).buffer.expect("a buffer");
        let start = usize::try_from(offset).expect("small");
        assert!(seen[..512] == old[start - 512..start], "in front");
        assert!(seen[512..1024] == pattern(512, seed), "sector {sector}");
        assert!(seen[1024..] == old[start + 512..start + 1024], "behind");
        // As it was.
        let data = Data::Host(old[start..start + 512].to_vec());
        let write = DiskOp::Write {
            offset,
            data,
            fua: false,
        };
        assert_eq!(stream.run(write), Ok(512));
    }
    assert_eq!(stream.run(DiskOp::Flush), Ok(0));
    assert_eq!(disk.geometry().capacity, LEN);
}

#[test]
fn the_partition_table_says_how_large_blocks_are_and_without_one_a_file_has_512() {
    let scratch = Scratch::new(LEN);
    let path = &scratch.config.path;
    each_way(path, |disk, _| {
        assert_eq!(disk.geometry().logical_block, 512)
    });
    for block in [512, 4096] {
        partitioned(path, block);
        each_way(path, |disk, _| {
            assert_eq!(u64::from(disk.geometry().logical_block), block);
        });
        let config = DiskConfig {
            block_size: Some(512),
            ..scratch.config.clone()
        };
        let disk = RawDisk::open(&config, 1, 1).expect("image");
        assert_eq!(disk.geometry().logical_block, 512, "the operator decides");
    }
}

#[test]
fn an_image_of_small_blocks_reads_the_same_on_a_device_with_large_ones() {
    let scratch = Scratch::new(LEN);
    let old = partitioned(&scratch.config.path, 512);
    let Some(device) = Loop::new(&scratch.config.path, 4096) else {
        return;
    };
    each_way(device.path(), |disk, stream| {
        let geometry = disk.geometry();
        assert_eq!(
            (geometry.logical_block, geometry.physical_block),
            (512, 4096)
        );
        sectors_are_written(disk, stream, &old);
    });
    drop(device);
    assert!(fs::read(&scratch.config.path).expect("image") == old);
}

#[test]
fn an_image_of_small_blocks_reads_the_same_on_a_file_system_with_large_ones() {
    let scratch = Scratch::new(16 * LEN);
    let Some(device) = Loop::new(&scratch.config.path, 4096) else {
        return;
    };
    let Some(mounted) = Mounted::ext4(&device) else {
        return;
    };
    let path = mounted.path().join("image");
    let old = partitioned(&path, 512);
    each_way(&path, |disk, stream| {
        assert_eq!(disk.geometry().logical_block, 512);
        sectors_are_written(disk, stream, &old);
    });
    fs::write(&path, pattern(usize::try_from(LEN).expect("small"), 3)).expect("image");
    each_way(&path, |disk, _| {
        assert_eq!(disk.geometry().logical_block, 512, "a file's")
    });
}

#[test]
fn a_device_without_a_table_has_its_own_blocks_and_the_operator_may_want_smaller_ones() {
    let scratch = Scratch::new(LEN);
    let Some(device) = Loop::new(&scratch.config.path, 4096) else {
        return;
    };
    each_way(device.path(), |disk, _| {
        assert_eq!(disk.geometry().logical_block, 4096)
    });
    let old = pattern(usize::try_from(LEN).expect("small"), 9);
    fs::write(device.path(), &old).expect("filled");
    for aio in [Aio::Threads, Aio::IoUring] {
        for direct in [false, true] {
            let config = DiskConfig {
                aio,
                direct,
                block_size: Some(512),
                ..DiskConfig::new(device.path())
            };
            let disk = RawDisk::open(&config, 1, DEPTH).expect("a block device");
            let mut stream = Stream::new(&disk);
            sectors_are_written(&disk, &mut stream, &old);
            for may_unmap in [false, true] {
                // From the middle of a block to the middle of another.
                let (offset, len) = (512_u64, 3 * 4096_u64);
                let zero = DiskOp::WriteZeroes {
                    offset,
                    len,
                    may_unmap,
                    fua: true,
                };
                assert_eq!(stream.run(zero), Ok(0));
                let discard = DiskOp::Discard {
                    offset: LEN - 512,
                    len: 512,
                    fua: false,
                };
                assert_eq!(stream.run(discard), Ok(0), "no whole block is nothing");
                let data = Data::Host(vec![0; 4 * 4096]);
                let read = DiskOp::Read { offset: 0, data };
                let seen = stream.complete(read).buffer.expect("a buffer");
                assert!(seen[..512] == old[..512] && seen[12800..] == old[12800..16384]);
                assert!(seen[512..12800].iter().all(|byte| *byte == 0));
                let data = Data::Host(old[..16384].to_vec());
                let write = DiskOp::Write {
                    offset: 0,
                    data,
                    fua: false,
                };
                assert_eq!(stream.run(write), Ok(16384));
            }
        }
    }
}

#[test]
fn a_block_that_is_being_patched_is_written_by_nobody_else() {
    let scratch = Scratch::new(LEN);
    let Some(device) = Loop::new(&scratch.config.path, 4096) else {
        return;
    };
    for aio in [Aio::Threads, Aio::IoUring] {
        let config = DiskConfig {
            aio,
            direct: true,
            block_size: Some(512),
            ..DiskConfig::new(device.path())
        };
        let disk = RawDisk::open(&config, 2, DEPTH).expect("a block device");
        let whole = |offset| DiskOp::Write {
            offset,
            data: Data::Host(vec![1; 4096]),
            fua: false,
        };
        let zero = DiskOp::WriteZeroes {
            offset: 0,
            len: 8192,
            may_unmap: false,
            fua: false,
        };
        // As a patch of the first block does.
        let patch = disk.image.spans.lock(0..4096, spans::Access::Exclusive);
        let (mut waits, mut goes) = (Stream::new(&disk), Stream::numbered(&disk, 1));
        for (tag, op) in [(1, whole(0)), (2, zero)] {
            waits.queue.submit(tag, op).expect("room");
        }
        waits.queue.commit();
        assert_eq!(goes.run(whole(4096)), Ok(4096), "another block");
        std::thread::sleep(Duration::from_millis(20));
        let mut done = Vec::new();
        waits.queue.completions(&mut done);
        assert!(done.is_empty(), "it did not wait");
        drop(patch);
        assert!(waits.wait(2).iter().all(|done| done.result.is_ok()));
        // And the other way round.
        let write = disk.image.spans.lock(0..4096, spans::Access::Shared);
        let patch = DiskOp::Write {
            offset: 512,
            data: Data::Host(vec![2; 512]),
            fua: false,
        };
        waits.queue.submit(3, patch).expect("room");
        waits.queue.commit();
        std::thread::sleep(Duration::from_millis(20));
        waits.queue.completions(&mut done);
        assert!(done.is_empty(), "it did not wait");
        drop(write);
        assert_eq!(waits.wait(1)[0].result, Ok(512));
    }
}

#[test]
fn sectors_patched_while_their_block_is_written_are_all_there_in_the_end() {
    let scratch = Scratch::new(LEN);
    let Some(device) = Loop::new(&scratch.config.path, 4096) else {
        return;
    };
    let config = DiskConfig {
        direct: true,
        block_size: Some(512),
        ..DiskConfig::new(device.path())
    };
    let disk = RawDisk::open(&config, 2, DEPTH).expect("a block device");
    let (mut blocks, mut sectors) = (Stream::new(&disk), Stream::numbered(&disk, 1));
    for round in 1..=100_u8 {
        let block = DiskOp::Write {
            offset: 0,
            data: Data::Host(vec![round; 4096]),
            fua: false,
        };
        let sector = DiskOp::Write {
            offset: 0,
            data: Data::Host(vec![round; 512]),
            fua: false,
        };
        sectors.queue.submit(1, sector).expect("room");
        blocks.queue.submit(1, block).expect("room");
        sectors.queue.commit();
        blocks.queue.commit();
        blocks.wait(1);
        sectors.wait(1);
        let data = Data::Host(vec![0; 4096]);
        let read = DiskOp::Read { offset: 0, data };
        let seen = blocks.complete(read).buffer.expect("a buffer");
        assert!(seen.iter().all(|byte| *byte == round), "round {round}");
    }
}
