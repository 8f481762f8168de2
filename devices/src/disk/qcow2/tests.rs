//! qcow2 images made by imago itself, and judged by `qemu-img` where it is installed.

use std::fs::File;
use std::process::Command;

use imago::FormatCreateBuilder;
use imago::qcow2::Qcow2CreateBuilder;
use rustix::event::{PollFd, PollFlags, poll};

use super::*;
use crate::disk::Completion;
use crate::disk::Data;
use crate::disk::config::Format;
use crate::disk::testing::Medium;
use crate::testing::memory;

const LEN: u64 = 8 << 20;

/// Makes an image, on a backing file if one is named with its format.
fn create(path: &Path, backing: Option<(&str, &str)>) {
    create_of(path, LEN, backing);
}

fn create_of(path: &Path, len: u64, backing: Option<(&str, &str)>) {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .expect("file");
    let options = StorageOpenOptions::new().filename(path).write(true);
    let storage = Storage::from_open_file(file, options).expect("storage");
    let mut builder: Qcow2CreateBuilder<Storage> = Qcow2::create_builder(storage).size(len);
    if let Some((name, format)) = backing {
        builder = builder.backing(name.into(), format.into());
    }
    builder.create().expect("image");
}

fn config(path: &Path) -> DiskConfig {
    DiskConfig {
        format: Format::Qcow2,
        ..DiskConfig::new(path)
    }
}

fn run(disk: &Qcow2Disk, op: DiskOp<'_>) -> Completion {
    let mut queue = disk.open_queue(memory(), 0, 4).expect("queue");
    queue.submit(1, op).expect("room");
    let mut done = Vec::new();
    while done.is_empty() {
        let events = queue.events();
        let mut waiting = [PollFd::from_borrowed_fd(events[0], PollFlags::IN)];
        poll(&mut waiting, None).expect("poll");
        queue.completions(&mut done);
    }
    done.remove(0)
}

fn write(disk: &Qcow2Disk, offset: u64, data: &[u8]) {
    let op = DiskOp::Write {
        offset,
        data: Data::Host(data.to_vec()),
        fua: false,
    };
    assert_eq!(run(disk, op).result, Ok(data.len() as u64));
}

fn read(disk: &Qcow2Disk, offset: u64, len: usize) -> Vec<u8> {
    let op = DiskOp::Read {
        offset,
        data: Data::Host(vec![0xaa; len]),
    };
    run(disk, op).buffer.expect("buffer")
}

#[test]
fn what_one_queue_is_told_was_lost_fails_every_later_flush_of_all() {
    let Some(medium) = Medium::new(LEN) else {
        return;
    };
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("image.qcow2");
    create(&path, None);
    std::fs::copy(&path, medium.path()).expect("on the medium");
    let disk = Qcow2Disk::open(&config(medium.path())).expect("image");
    assert_eq!(run(&disk, DiskOp::Flush).result, Ok(0));
    write(&disk, 0, &[1; 4096]);
    medium.full(true);
    assert!(!medium.write_back(), "there was room for it");
    medium.full(false);
    let stable = |offset| DiskOp::Write {
        offset,
        data: Data::Host(vec![2; 512]),
        fua: true,
    };
    assert!(run(&disk, stable(1 << 20)).result.is_err());
    let mut other = disk.open_queue(memory(), 1, 4).expect("queue");
    for tag in 1..=2 {
        other.submit(tag, DiskOp::Flush).expect("room");
    }
    let mut done = Vec::new();
    other.drain(&mut done);
    let lost =
        |done: &Completion| matches!(done.result, Err(IoFault::FlushLost | IoFault::Cancelled));
    assert!(done.len() == 2 && done.iter().all(lost), "{done:?}");
    assert_eq!(run(&disk, stable(0)).result, Err(IoFault::FlushLost));
}

#[test]
fn what_is_flushed_is_there_when_the_image_is_opened_again() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("image.qcow2");
    create(&path, None);
    {
        let disk = Qcow2Disk::open(&config(&path)).expect("image");
        assert_eq!(disk.geometry().capacity, LEN);
        write(&disk, 512, &[7; 3 << 20]);
        assert_eq!(
            run(
                &disk,
                DiskOp::WriteZeroes {
                    offset: 1 << 20,
                    len: 1 << 20,
                    may_unmap: true,
                    fua: false
                }
            )
            .result,
            Ok(0)
        );
        assert_eq!(
            run(
                &disk,
                DiskOp::Discard {
                    offset: 2 << 20,
                    len: 1 << 19,
                    fua: false
                }
            )
            .result,
            Ok(0)
        );
        assert_eq!(run(&disk, DiskOp::Flush).result, Ok(0));
        assert!(Qcow2Disk::open(&config(&path)).is_err(), "locked");
    }
    let disk = Qcow2Disk::open(&config(&path)).expect("image");
    assert!(
        read(&disk, 512, (1 << 20) - 512)
            .iter()
            .all(|byte| *byte == 7)
    );
    assert!(read(&disk, 1 << 20, 1 << 20).iter().all(|byte| *byte == 0));
    assert!(read(&disk, 4 << 20, 4096).iter().all(|byte| *byte == 0));
    let late = run(
        &disk,
        DiskOp::Read {
            offset: LEN,
            data: Data::Host(vec![0; 512]),
        },
    );
    assert_eq!(late.result, Err(IoFault::OutOfRange));
    drop(disk);
    if !splitring_needs::program("qemu-img", "qemu-utils") {
        return;
    }
    let output = Command::new("qemu-img").arg("check").arg(&path).output();
    let output = output.expect("run qemu-img");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn a_backing_file_is_opened_only_when_asked_for_and_never_guessed() {
    let dir = tempfile::tempdir().expect("directory");
    let base = dir.path().join("base.raw");
    std::fs::write(&base, vec![9; usize::try_from(LEN).expect("small")]).expect("base");
    let path = dir.path().join("image.qcow2");
    create(&path, Some(("base.raw", "raw")));
    let refused = |config: &DiskConfig| Qcow2Disk::open(config).expect_err("refused").to_string();
    assert!(refused(&config(&path)).contains("use backing=on"));
    let trusting = DiskConfig {
        backing: true,
        ..config(&path)
    };
    let disk = Qcow2Disk::open(&trusting).expect("image");
    write(&disk, 65536, &[1; 512]);
    assert_eq!(
        read(&disk, 65536 - 512, 1536),
        [[9; 512], [1; 512], [9; 512]].concat()
    );
    drop(disk);
    assert!(
        std::fs::read(&base)
            .expect("base")
            .iter()
            .all(|byte| *byte == 9)
    );
    create(&path, Some(("base.raw", "vmdk")));
    assert!(refused(&trusting).contains("of the format vmdk"));
    create(&path, Some(("gone.raw", "raw")));
    let gone = dir.path().join("gone.raw").display().to_string();
    let error = refused(&trusting);
    assert!(
        error.contains(&format!("cannot open {gone}: No such file"))
            && error.contains("check the path"),
        "{error}"
    );
    create(&path, Some(("image.qcow2", "qcow2")));
    assert!(
        !refused(&trusting).is_empty(),
        "a chain that rests on itself ends"
    );
}

#[test]
fn a_size_of_no_whole_blocks_is_refused_with_a_remedy() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("image.qcow2");
    create_of(&path, LEN + 512, None);
    assert_eq!(
        Qcow2Disk::open(&config(&path))
            .expect("image")
            .geometry()
            .capacity,
        LEN + 512
    );
    let blocks = DiskConfig {
        block_size: Some(4096),
        ..config(&path)
    };
    let error = Qcow2Disk::open(&blocks).expect_err("refused").to_string();
    assert!(
        error.contains("not a multiple of 4096; resize it"),
        "{error}"
    );
}

#[test]
fn what_is_no_qcow2_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("image");
    std::fs::write(&path, [0; 4096]).expect("file");
    let error = Qcow2Disk::open(&config(&path))
        .expect_err("refused")
        .to_string();
    assert!(
        error.contains("open as qcow2") && error.contains("image"),
        "{error}"
    );
    let pipe = dir.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    let readonly = DiskConfig {
        readonly: true,
        ..config(&pipe)
    };
    for (config, what) in [
        (readonly, "it is a pipe"),
        (config(dir.path()), "it is a directory"),
    ] {
        let error = Qcow2Disk::open(&config).expect_err("refused").to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn the_partition_table_says_how_large_blocks_are() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("image.qcow2");
    create(&path, None);
    let block = || {
        let disk = Qcow2Disk::open(&config(&path)).expect("image");
        disk.geometry().logical_block
    };
    assert_eq!(block(), 512);
    let mut header = vec![0; 512];
    header[..8].copy_from_slice(b"EFI PART");
    header[24] = 1;
    let disk = Qcow2Disk::open(&config(&path)).expect("image");
    write(&disk, 4096, &header);
    assert_eq!(run(&disk, DiskOp::Flush).result, Ok(0));
    drop(disk);
    assert_eq!(block(), 4096);
}
