//! The driver of `splitring-virtio`, bio path and request path, against a model of the disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use splitring_devices::blk::Blk as Device;
use splitring_devices::disk::doubles::{Fate, FaultyDisk, MemoryDisk};
use splitring_devices::disk::{Disk, IoFault};
use splitring_tests::machine::TestMachine;
use splitring_virtio::driver::blk::{
    self, Bio, Blk, CompletedRequest, Info, Merged, RequestError, Transfer, Work,
};
use splitring_virtio::driver::{DeviceId, DmaBytes, Identity, IndirectPolicy, Queue, QueueOptions};
use splitring_virtio::scatterlist::ScatterList;
use splitring_virtio::spec::blk::Range;
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1};

use crate::numbers::Numbers;

/// The disk is divided into lanes with at most one request in flight each, so that the result is
/// known.
const LANES: u64 = 64;
const LANE: u64 = 16 << 10;
const RANGES: usize = 4;

/// A driver on a machine with a disk that fails as planned.
pub(crate) struct Guest {
    pub(crate) driver: Blk,
    pub(crate) machine: TestMachine,
    pub(crate) disk: Arc<FaultyDisk>,
    pub(crate) memory: Arc<MemoryDisk>,
}

impl Guest {
    /// Returns a guest whose ring has `size` entries. The device offers at most `largest`, and no
    /// features outside of `mask`.
    pub(crate) fn new(size: u16, largest: u16, mask: u64, policy: IndirectPolicy) -> Self {
        let memory = MemoryDisk::new(LANES * LANE);
        let disk = Arc::new(FaultyDisk::new(Arc::new(Arc::clone(&memory))));
        let shared: Arc<dyn Disk> = Arc::<FaultyDisk>::clone(&disk);
        let mut machine = TestMachine::new(Device::new("disk0", shared, 1, largest, "ours"));
        let features = (machine.device.features() | EVENT_IDX | INDIRECT_DESC) & mask | VERSION_1;
        let options = QueueOptions::new(size, features)
            .tables(size)
            .policy(policy);
        let ring = machine.bytes(options.memory_len(), 64);
        let queue = Queue::new(options, ring, Identity, &DeviceId::new()).expect("a queue");
        let info = Info::new(&machine.config(), features & blk::FEATURES);
        let frame_len = Blk::<DmaBytes>::frame_len(RANGES);
        let frames = machine.bytes(frame_len * usize::from(size), 64);
        let driver = Blk::new(queue, frames, RANGES, info);
        machine.start(features, &[driver.areas()]);
        Self {
            driver,
            machine,
            disk,
            memory,
        }
    }

    /// Returns a bio with `parts` of these lengths, filled by `fill`.
    pub(crate) fn bio(
        &mut self,
        transfer: Transfer,
        sector: u64,
        parts: &[usize],
        fill: u8,
    ) -> Bio {
        let buffers: Vec<DmaBytes> = parts
            .iter()
            .map(|len| {
                let mut bytes = self.machine.bytes(*len, 1);
                bytes.bytes_mut().fill(fill);
                bytes
            })
            .collect();
        Bio {
            transfer,
            sector,
            data: ScatterList::from_buffers(buffers),
        }
    }

    /// Runs the device with what was submitted, and takes completed requests back.
    pub(crate) fn turn(&mut self) -> Vec<CompletedRequest> {
        let _ = self.driver.publish();
        self.machine.run_queue(0);
        let mut done = Vec::new();
        while let Some(one) = self.driver.poll().expect("a whole queue") {
            done.push(one);
        }
        done
    }

    /// Runs the device until all requests are complete.
    pub(crate) fn finish(&mut self) -> Vec<CompletedRequest> {
        let mut done = Vec::new();
        for _ in 0..100 {
            done.extend(self.turn());
            if self.driver.in_flight() == 0 {
                return done;
            }
        }
        panic!("{} requests do not complete", self.driver.in_flight());
    }
}

/// The effect of a request in flight if it succeeds.
enum Effect {
    Nothing,
    Store { at: usize, data: Vec<u8> },
}

struct Mix {
    guest: Guest,
    numbers: Numbers,
    model: Vec<u8>,
    in_flight: BTreeMap<u64, Effect>,
    segments: u64,
}

impl Mix {
    fn new(guest: Guest, seed: u64, segments: u64) -> Self {
        let model = vec![0; usize::try_from(LANES * LANE).expect("small")];
        Self {
            guest,
            numbers: Numbers::new(seed),
            model,
            in_flight: BTreeMap::new(),
            segments,
        }
    }

    /// Splits whole sectors at random into at most as many parts as a request may have.
    fn parts(&mut self, sectors: u64) -> Vec<usize> {
        let mut left = usize::try_from(sectors * 512).expect("small");
        let mut parts = Vec::new();
        for _ in 1..self.segments.min(1 + self.numbers.below(5)) {
            let cut = usize::try_from(self.numbers.below(1500)).expect("small") + 1;
            if cut < left {
                parts.push(cut);
                left -= cut;
            }
        }
        parts.push(left);
        parts
    }

    /// Submits a request to a free lane. Returns false if the queue is full.
    fn submit(&mut self) -> bool {
        let lane = self.numbers.below(LANES);
        if self.in_flight.contains_key(&lane) {
            return true;
        }
        let sector = lane * LANE / 512 + self.numbers.below(16);
        let sectors = 1 + self.numbers.below(16);
        let at = usize::try_from(sector * 512).expect("small");
        let fill = u8::try_from(self.numbers.below(256)).expect("a byte");
        let store = |count: u64, fill| {
            let len = usize::try_from(count * 512).expect("small");
            Effect::Store {
                at,
                data: vec![fill; len],
            }
        };
        let range = Range {
            sector: sector.into(),
            num_sectors: u32::try_from(sectors).expect("small").into(),
            flags: 0.into(),
        };
        let (effect, submitted) = match self.numbers.below(10) {
            0..=3 => {
                let parts = self.parts(sectors);
                let bio = self.guest.bio(Transfer::Write, sector, &parts, fill);
                (store(sectors, fill), self.guest.driver.bio(lane, bio))
            }
            4..=6 => {
                let parts = self.parts(sectors);
                let bio = self.guest.bio(Transfer::Read, sector, &parts, !fill);
                (Effect::Nothing, self.guest.driver.bio(lane, bio))
            }
            7 if self.segments > 1 => {
                let mut merged = Merged::with_capacity(2);
                let half = sectors.div_ceil(2) * 512;
                let half = usize::try_from(half).expect("small");
                // Merged in front, as the request path does if a later bio is for earlier sectors.
                let second =
                    self.guest
                        .bio(Transfer::Write, sector + sectors.div_ceil(2), &[half], fill);
                let first = self.guest.bio(Transfer::Write, sector, &[half], fill);
                merged.merge(second).expect("the first");
                merged.merge(first).expect("adjacent");
                (
                    store(2 * sectors.div_ceil(2), fill),
                    self.guest.driver.merged(lane, merged),
                )
            }
            8 => (store(sectors, 0), self.guest.driver.discard(lane, &[range])),
            9 => (
                store(sectors, 0),
                self.guest.driver.write_zeroes(lane, &[range]),
            ),
            _ => (Effect::Nothing, self.guest.driver.flush(lane)),
        };
        if submitted.is_ok() {
            self.in_flight.insert(lane, effect);
        }
        submitted.is_ok()
    }

    /// Checks a completed request.
    fn done(&mut self, done: CompletedRequest, faulty: bool) {
        let effect = self.in_flight.remove(&done.tag).expect("in flight");
        match done.result {
            Ok(()) => {}
            Err(RequestError::Io) if faulty => return,
            Err(other) => panic!("{other}"),
        }
        if let Effect::Store { at, data } = effect {
            self.model[at..at + data.len()].copy_from_slice(&data);
        }
        if let Work::Bio(mut bio) = done.work
            && bio.transfer == Transfer::Read
        {
            let mut at = usize::try_from(bio.sector * 512).expect("small");
            bio.data.for_each_mut(|part| {
                let len = part.len();
                assert!(part.bytes() == &self.model[at..at + len], "read at {at}");
                at += len;
            });
        }
    }

    fn run(&mut self, requests: u32, faulty: bool) {
        let mut left = requests;
        while left > 0 {
            let burst = 1 + self.numbers.below(40);
            for _ in 0..burst {
                let fate = match self.numbers.below(10) {
                    0 if faulty => Fate::Fail(IoFault::Host(libc::EIO)),
                    1 if faulty => Fate::Fail(IoFault::NoSpace),
                    2 if faulty => Fate::Fail(IoFault::Short),
                    3..=5 => Fate::Delay(u32::try_from(self.numbers.below(6)).expect("small")),
                    _ => Fate::Pass,
                };
                self.guest.disk.plan([fate]);
                if !self.submit() {
                    break;
                }
                left = left.saturating_sub(1);
            }
            for done in self.guest.turn() {
                self.done(done, faulty);
            }
        }
        for done in self.guest.finish() {
            self.done(done, faulty);
        }
        assert!(self.in_flight.is_empty());
        assert!(
            self.guest.memory.contents() == self.model,
            "the disk differs from the model"
        );
    }
}

#[test]
fn random_requests_leave_the_disk_equal_to_the_model() {
    let masks = [
        u64::MAX,
        !EVENT_IDX,
        !INDIRECT_DESC,
        !(EVENT_IDX | INDIRECT_DESC),
    ];
    let policies = [
        IndirectPolicy::Never,
        IndirectPolicy::Always,
        IndirectPolicy::Rfc,
        IndirectPolicy::Auto,
    ];
    for (seed, size) in (1..).zip([4, 8, 16, 64, 256, 1024]) {
        for (mask, policy) in masks.into_iter().zip(policies) {
            for faulty in [false, true] {
                let guest = Guest::new(size, size, mask, policy);
                let segments = u64::from(size) - 2;
                Mix::new(guest, seed, segments).run(400, faulty);
            }
        }
    }
}

#[test]
fn a_ring_smaller_than_offered_works_too() {
    for size in [4, 32] {
        let guest = Guest::new(size, 256, u64::MAX, IndirectPolicy::Auto);
        Mix::new(guest, 77, u64::from(size) - 2).run(400, false);
    }
}

#[test]
fn a_reset_returns_every_request() {
    let mut guest = Guest::new(16, 16, u64::MAX, IndirectPolicy::Auto);
    guest.disk.plan([Fate::Delay(1000); 5]);
    for tag in 0..5 {
        let bio = guest.bio(Transfer::Read, tag * 8, &[4096], 1);
        guest.driver.bio(tag, bio).expect("room");
    }
    assert!(guest.turn().is_empty());
    assert_eq!(guest.machine.reset(), 0, "nothing is in flight after it");
    let mut tags: Vec<u64> = Vec::new();
    while let Some(done) = guest.driver.poll().expect("a whole queue") {
        tags.push(done.tag);
    }
    tags.sort_unstable();
    assert_eq!(tags, [0, 1, 2, 3, 4]);
}
