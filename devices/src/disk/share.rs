//! One io_uring for many disks: what a controller with hundreds of them gives each of its threads.
//!
//! The rings are made with the controller and stay, as a disk's own do; disks take a seat when a thread first uses
//! them and leave it when they are removed. A disk that is idle costs a slot in a table. Where the host refuses
//! io_uring, a blocking thread takes the place of each ring.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::handle::Member;
use super::ring::{Ring, RingQueue, Unbound};
use super::{Completion, DiskOp, DiskQueue, Full};
use crate::debug::opaque_debug;
use crate::pool::Pool;
use crate::ram::Ram;

/// A disk's place in a [`RingShare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat(u16);

/// The rings of one controller, made before the machine starts.
pub struct SharedRings {
    rings: Arc<Pool<Ring>>,
    depth: u16,
    seats: u16,
}

opaque_debug! { SharedRings |it| { depth: it.depth, seats: it.seats } }

impl SharedRings {
    /// Makes `count` rings for `depth` requests each, to at most `seats` disks.
    ///
    /// # Errors
    /// The host refuses io_uring, or has no memory for it.
    pub fn new(count: u16, depth: u16, seats: u16) -> io::Result<Self> {
        let rings = (0..count).map(|_| Ring::shared(seats, depth));
        Ok(Self {
            rings: Pool::new(rings.collect::<io::Result<Vec<_>>>()?),
            depth,
            seats,
        })
    }

    /// As [`new`](Self::new), where the host refuses io_uring: in place of each ring is one thread that serves all
    /// disks by blocking calls, one after the other. It is started when it is first needed.
    ///
    /// # Errors
    /// The process has reached its limit on descriptors.
    pub fn blocking(count: u16, depth: u16, seats: u16) -> io::Result<Self> {
        let rings = (0..count).map(|_| Ring::refused());
        Ok(Self {
            rings: Pool::new(rings.collect::<io::Result<Vec<_>>>()?),
            depth,
            seats,
        })
    }

    /// Ring number `index`, for requests into and out of `ram`. `None` while it is in use.
    #[must_use]
    pub fn take(&self, index: u16, ram: Ram) -> Option<RingShare> {
        let ring = Unbound::new(self.rings.take(index)?);
        let empty = vec![None; usize::from(self.seats)];
        let queue = RingQueue::new(ring, empty, ram, self.depth)?;
        Some(RingShare { queue, index })
    }
}

/// One ring in use, owned by one thread. Its methods are those of [`DiskQueue`], for many disks. Dropping it drains
/// it and gives the ring back.
pub struct RingShare {
    queue: RingQueue,
    index: u16,
}

opaque_debug! { RingShare |it| { index: it.index } }

impl RingShare {
    /// Gives a disk a seat. To be called on the thread that submits.
    ///
    /// # Errors
    /// All seats are taken, or the kernel refuses the file.
    pub fn join(&mut self, member: &Member) -> io::Result<Seat> {
        let handle = member.handle(self.index).ok_or(io::ErrorKind::NotFound)?;
        self.queue.sit(handle).map(Seat)
    }

    /// Takes the seat back from a disk that has nothing in flight.
    pub fn leave(&mut self, seat: Seat) {
        self.queue.stand(seat.0);
    }

    /// Takes a request to the disk in `seat`, as [`DiskQueue::submit`].
    ///
    /// # Errors
    /// As many requests are in flight as the ring was made for; nothing happened.
    pub fn submit(&mut self, seat: Seat, tag: u64, op: DiskOp<'_>) -> Result<(), Full> {
        self.queue.submit_to(seat.0, tag, op)
    }

    /// As [`DiskQueue::ready`].
    pub fn ready(&mut self) -> bool {
        self.queue.ready()
    }

    /// As [`DiskQueue::commit`].
    pub fn commit(&mut self) {
        self.queue.commit();
    }

    /// As [`DiskQueue::completed`].
    pub fn completed(&mut self, out: &mut Vec<Completion>) {
        self.queue.completed(out);
    }

    /// As [`DiskQueue::completions`].
    pub fn completions(&mut self, out: &mut Vec<Completion>) {
        self.queue.completions(out);
    }

    /// As [`DiskQueue::has_completions`].
    pub fn has_completions(&mut self) -> bool {
        self.queue.has_completions()
    }

    /// As [`DiskQueue::events`].
    #[must_use]
    pub fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.queue.events()
    }

    /// As [`DiskQueue::in_flight`].
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    /// As [`DiskQueue::cancel`].
    pub fn cancel(&mut self, tag: u64) {
        self.queue.cancel(tag);
    }

    /// As [`DiskQueue::drain`]; then every disk leaves. To be called on the thread that submits.
    pub fn drain(&mut self, out: &mut Vec<Completion>) {
        self.queue.drain(out);
        self.queue.stand_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::config::{Aio, DiskConfig};
    use crate::disk::handle::Handle;
    use crate::disk::image::Image;
    use crate::disk::testing::{FSYNC, FuseFile};
    use crate::disk::{Data, Disk, RawDisk};
    use crate::ram::Mapping;
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, Instant};
    use tempfile::NamedTempFile;
    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{GuestAddress, GuestRegionMmap};

    const LEN: usize = 4096;

    fn ram() -> Ram {
        let region = MmapRegionBuilder::new_with_bitmap(LEN, crate::dirty::DirtyPages::new(LEN))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            .build()
            .unwrap();
        let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
        Ram::new(Arc::new(Mapping::from_regions(vec![region]).unwrap()))
    }

    fn disk(fill: u8) -> (NamedTempFile, RawDisk) {
        let file = NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&[fill; LEN], 0).unwrap();
        let config = DiskConfig {
            aio: Aio::IoUring,
            ..DiskConfig::new(file.path())
        };
        let disk = RawDisk::open(&config, 0, 1).unwrap();
        (file, disk)
    }

    fn run(ring: &mut RingShare, count: usize) -> Vec<Completion> {
        let end = Instant::now() + Duration::from_secs(20);
        let mut done = Vec::new();
        while done.len() < count {
            assert!(Instant::now() < end, "no completion");
            ring.commit();
            ring.completions(&mut done);
        }
        done.sort_by_key(|completion| completion.tag);
        done
    }

    fn read(offset: u64) -> DiskOp<'static> {
        DiskOp::Read {
            offset,
            data: Data::Host(vec![0; 512]),
        }
    }

    #[test]
    fn disks_share_a_ring_and_each_gets_its_own_data() {
        let disks: Vec<_> = (1..=3).map(disk).collect();
        let rings = SharedRings::new(1, 8, 3).unwrap();
        let mut ring = rings.take(0, ram()).unwrap();
        assert!(rings.take(0, ram()).is_none());
        let seats: Vec<_> = disks
            .iter()
            .map(|(_, disk)| ring.join(&disk.member().unwrap()).unwrap())
            .collect();
        for (tag, seat) in (0..).zip(&seats) {
            ring.submit(*seat, tag, read(0)).unwrap();
        }
        for (fill, done) in (1..).zip(run(&mut ring, 3)) {
            assert_eq!((done.result, done.buffer), (Ok(512), Some(vec![fill; 512])));
        }
        assert!(
            ring.join(&disks[0].1.member().unwrap()).is_err(),
            "all seats are taken"
        );
    }

    #[test]
    fn a_seat_left_is_free_for_another_disk_and_lets_the_image_go() {
        let ((_keep, first), (_keep_too, second)) = (disk(1), disk(2));
        let rings = SharedRings::new(1, 8, 1).unwrap();
        let mut ring = rings.take(0, ram()).unwrap();
        let seat = ring.join(&first.member().unwrap()).unwrap();
        ring.submit(seat, 0, read(0)).unwrap();
        run(&mut ring, 1);
        ring.leave(seat);
        ring.submit(seat, 1, read(0)).unwrap();
        assert_eq!(
            run(&mut ring, 1)[0].result,
            Err(crate::disk::IoFault::Host(libc::EBADF))
        );
        let image = Arc::downgrade(&first.member().unwrap().0[0]);
        drop(first);
        assert!(image.upgrade().is_none());
        let seat = ring.join(&second.member().unwrap()).unwrap();
        ring.submit(seat, 2, read(0)).unwrap();
        assert_eq!(run(&mut ring, 1)[0].buffer, Some(vec![2; 512]));
    }

    /// A disk whose host never answers: what it reads is a pipe that nobody writes to.
    fn silent() -> (NamedTempFile, std::io::PipeWriter, Member) {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let mut image = Image::open(&DiskConfig::new(file.path())).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        image.file = std::os::fd::OwnedFd::from(reader).into();
        let handle = Handle::first(Arc::new(image));
        (file, writer, Member([handle].into()))
    }

    #[test]
    fn one_request_that_hangs_in_the_host_is_cancelled_and_others_are_not() {
        let ((_keep, _writer, silent), (_keep_too, other)) = (silent(), disk(9));
        let rings = SharedRings::new(1, 4, 2).unwrap();
        let mut ring = rings.take(0, ram()).unwrap();
        let hanging = ring.join(&silent).unwrap();
        let seat = ring.join(&other.member().unwrap()).unwrap();
        for tag in [1, 2] {
            ring.submit(hanging, tag, read(0)).unwrap();
        }
        ring.commit();
        let mut done = Vec::new();
        ring.completions(&mut done);
        assert!(done.is_empty());
        // One that is with the kernel, one that is not there, one that the kernel has not got yet.
        ring.submit(hanging, 3, read(0)).unwrap();
        for tag in [2, 77, 3] {
            ring.cancel(tag);
        }
        let done = run(&mut ring, 2);
        let fate = |done: &Completion| (done.tag, done.result);
        let cancelled = Err(crate::disk::IoFault::Cancelled);
        assert_eq!(
            done.iter().map(fate).collect::<Vec<_>>(),
            [(2, cancelled), (3, cancelled)]
        );
        ring.submit(seat, 4, read(0)).unwrap();
        assert_eq!(fate(&run(&mut ring, 1)[0]), (4, Ok(512)));
        assert_eq!(ring.in_flight(), 1, "the first goes on");
        ring.cancel(1);
        assert_eq!(fate(&run(&mut ring, 1)[0]), (1, cancelled));
    }

    /// This process's threads for blocking requests.
    fn blocking_threads() -> usize {
        let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = threads.map(|thread| std::fs::read_to_string(thread.path().join("comm")));
        names
            .filter(|name| {
                name.as_ref()
                    .is_ok_and(|name| name.trim() == "disk-blocking")
            })
            .count()
    }

    #[test]
    fn without_io_uring_one_thread_serves_all_disks_of_a_queue_and_nobody_waits_for_it() {
        let Some(mut slow) = FuseFile::new() else {
            return;
        };
        let member = RawDisk::open(&DiskConfig::new(slow.path()), 0, 1).unwrap();
        let member = member.member().unwrap();
        let (_keep, other) = disk(9);
        let rings = SharedRings::blocking(1, 8, 2).unwrap();
        let mut ring = rings.take(0, ram()).unwrap();
        let seats = [&member, &other.member().unwrap()].map(|disk| ring.join(disk).unwrap());
        slow.hang(FSYNC);
        ring.submit(seats[0], 1, DiskOp::Flush).unwrap();
        ring.submit(seats[1], 2, DiskOp::Flush).unwrap();
        ring.commit();
        while slow.hung() == 0 {
            std::thread::yield_now();
        }
        let mut done = Vec::new();
        ring.completions(&mut done);
        assert_eq!((done.len(), ring.in_flight()), (0, 2));
        assert_eq!(blocking_threads(), 1);
        slow.recover();
        let done = run(&mut ring, 2);
        assert!(done.iter().all(|done| done.result == Ok(0)), "{done:?}");
    }

    #[test]
    fn a_plain_disk_shares_the_thread_of_a_ring_and_never_uses_the_ring() {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let config = DiskConfig::new(file.path()).aio(Aio::Threads);
        let disk = RawDisk::open(&config, 0, 1).unwrap();
        let Some(member) = disk.member() else {
            splitring_needs::lack("temporary files are kept in memory");
            return;
        };
        let rings = SharedRings::new(1, 8, 1).unwrap();
        let mut ring = rings.take(0, ram()).unwrap();
        let seat = ring.join(&member).unwrap();
        let data = Data::Host(vec![1; 512]);
        let (offset, fua) = (0, true);
        ring.submit(seat, 1, DiskOp::Write { offset, data, fua })
            .unwrap();
        assert_eq!(run(&mut ring, 1)[0].result, Ok(512));
        assert_eq!(blocking_threads(), 1);
    }

    #[test]
    fn a_drained_ring_can_be_taken_again() {
        let (_keep, disk) = disk(7);
        for rings in [SharedRings::new(1, 8, 1), SharedRings::blocking(1, 8, 1)] {
            let rings = rings.unwrap();
            take_again(&rings, &disk);
        }
    }

    fn take_again(rings: &SharedRings, disk: &RawDisk) {
        for _ in 0..3 {
            let mut ring = rings.take(0, ram()).unwrap();
            let seat = ring.join(&disk.member().unwrap()).unwrap();
            ring.submit(seat, 0, read(512)).unwrap();
            ring.commit();
            let mut done = Vec::new();
            ring.drain(&mut done);
            assert_eq!((done.len(), ring.in_flight()), (1, 0));
        }
    }
}
