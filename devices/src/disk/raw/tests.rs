//! Raw images on this machine's file systems: what holds for one backend is asked of all that can be had here.

mod blocks;
mod file_size;
mod lost;
mod opening;
mod ranges;
mod streams;
mod transfers;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use splitring_needs as needs;
use splitring_virtio::mem::{Access, GuestRam, Segment};
use vm_memory::{Bytes, GuestAddress};

use super::super::aligned::Align;
use super::super::bounce;
use super::super::range::{self, Task};
use super::super::transfer::{MemoryAccess, Transfer};
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

    fn read_only(&self) -> File {
        File::open(&self.config.path).expect("image")
    }

    fn open(&self) -> Result<RawDisk, DiskError> {
        RawDisk::open(&self.config, 1, DEPTH)
    }
}

/// Runs a test over every backend, with the page cache and around it. What the machine lacks is said and left out.
fn everywhere(mut test: impl FnMut(&Scratch, &RawDisk, &mut Stream)) {
    for (aio, direct) in [
        (Aio::Threads, false),
        (Aio::Threads, true),
        (Aio::IoUring, false),
        (Aio::IoUring, true),
    ] {
        let mut scratch = Scratch::new(LEN);
        (scratch.config.aio, scratch.config.direct) = (aio, direct);
        match scratch.open() {
            Ok(disk) => {
                assert_eq!(disk.uses_ring(), aio == Aio::IoUring);
                let mut stream = Stream::new(&disk);
                test(&scratch, &disk, &mut stream);
            }
            Err(error) => {
                needs::lack(format!("{aio:?} direct={direct}: {error}"));
            }
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
        Self::numbered(disk, 0)
    }

    fn numbered(disk: &RawDisk, index: u16) -> Self {
        let ram = memory();
        let queue = disk.open_queue(ram.clone(), index, DEPTH).expect("queue");
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
