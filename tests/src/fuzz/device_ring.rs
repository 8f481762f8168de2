//! The device end of a ring against a guest that writes any bytes at any time.
//!
//! Input: the queue's configuration, then steps. In a step the guest writes somewhere, or the
//! device does one thing. Invariants after every step: segments lie inside guest memory and add up
//! to the chain's lengths; no head is popped twice; no more chains are popped than the queue has
//! entries; an error is final; read-only memory does not change. A sanitizer also checks that
//! nothing outside the regions is accessed; each of them is a separate allocation.

use splitring_virtio::device::chain::DescriptorChain;
use splitring_virtio::device::queue::{
    ActiveQueue, ChainError, Interrupt, QueueConfig, RingFeatures,
};
use splitring_virtio::mem::testing::TestRam;
use splitring_virtio::mem::{Access, GuestRam, Segment};

use super::Bytes;

/// Two adjacent regions, a read-only one, and one at the end of the address space.
const REGIONS: [(u64, usize, bool); 4] = [
    (0x1000, 0x1000, true),
    (0x2000, 0x800, true),
    (0x8000, 0x400, false),
    (u64::MAX - 0x3ff, 0x400, true),
];
const ROM: u64 = 0x8000;
const ROM_LEN: usize = 0x400;
/// Addresses that a well-behaved guest uses.
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x1400;
const USED: u64 = 0x1800;

/// Runs one input.
///
/// # Panics
///
/// An invariant is violated.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let Some(mut fuzzer) = DeviceFuzzer::new(&mut bytes) else {
        return;
    };
    while !bytes.is_empty() {
        fuzzer.step(&mut bytes);
    }
    fuzzer.held.drain(..).for_each(DescriptorChain::abandon);
    let mut rom = [0; ROM_LEN];
    fuzzer.ram.read(ROM, &mut rom);
    assert!(rom == [0x5a; ROM_LEN], "read-only memory has been written");
}

struct DeviceFuzzer {
    ram: TestRam,
    config: QueueConfig,
    features: RingFeatures,
    queue: ActiveQueue<TestRam>,
    held: Vec<DescriptorChain<TestRam>>,
}

impl DeviceFuzzer {
    fn new(bytes: &mut Bytes<'_>) -> Option<Self> {
        let ram = TestRam::with_regions(&REGIONS);
        ram.write(ROM, &[0x5a; ROM_LEN]);
        let flags = bytes.u8();
        let features = RingFeatures {
            event_idx: flags & 1 != 0,
            indirect: flags & 2 != 0,
            in_order: flags & 4 != 0,
        };
        if flags & 8 != 0 {
            ram.track_dirty();
        }
        let mut config = QueueConfig::new(1 << (flags >> 4 & 7));
        config.set_size(1 << (bytes.u8() & 7));
        let mut place = |usual| match bytes.u8() {
            0xff => bytes.u64(),
            byte => usual + 2 * u64::from(byte),
        };
        config.set_desc(place(DESC));
        config.set_avail(place(AVAIL));
        config.set_used(place(USED));
        config.set_ready(true);
        let queue = config.activate(ram.clone(), features).ok()?;
        Some(Self {
            ram,
            config,
            features,
            queue,
            held: Vec::new(),
        })
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.u8() % 12 {
            0 => self.guest_writes(bytes),
            1 => self.guest_describes(bytes),
            2 => self.guest_offers(bytes),
            3 | 4 => self.pop(),
            5 => self.pop_all(),
            6 => self.complete(bytes),
            7 => {
                let _: Interrupt = self.queue.publish();
            }
            8 => self.notifications(bytes),
            9 => self.queue.grant(u16::from(bytes.u8())),
            10 => self.use_a_chain(bytes),
            _ => self.restore(),
        }
    }

    /// Writes any bytes anywhere that a guest can write.
    fn guest_writes(&mut self, bytes: &mut Bytes<'_>) {
        let (at, len) = (usize::from(bytes.u16()), usize::from(bytes.u8() % 64));
        let data = bytes.take(len);
        let (guest, size, _) = REGIONS[if at & 0x1000 == 0 { 0 } else { 1 }];
        let at = at % size;
        let data = &data[..data.len().min(size - at)];
        self.ram.write(guest + at as u64, data);
    }

    /// Writes a descriptor that is almost valid.
    fn guest_describes(&mut self, bytes: &mut Bytes<'_>) {
        let index = u64::from(bytes.u8());
        let (region, offset) = (bytes.u8(), u64::from(bytes.u16()));
        let addr = match region % 8 {
            0..4 => 0x1000 + offset % 0x1800,
            4 => ROM + offset % 0x400,
            5 => u64::MAX - offset % 0x400,
            6 => DESC + 16 * (offset % 64),
            _ => bytes.u64(),
        };
        let len = match region >> 4 {
            0..12 => u32::from(bytes.u8()),
            12..14 => 16 * u32::from(bytes.u8() % 8),
            _ => bytes.u32(),
        };
        let (flags, next) = (bytes.u8(), bytes.u8());
        let mut desc = [0; 16];
        desc[..8].copy_from_slice(&addr.to_le_bytes());
        desc[8..12].copy_from_slice(&len.to_le_bytes());
        desc[12..14].copy_from_slice(&u16::from(flags & 15).to_le_bytes());
        desc[14..].copy_from_slice(&u16::from(next).to_le_bytes());
        self.ram.write(DESC + 16 * (index % 64), &desc);
    }

    /// Makes a head available as the driver would.
    fn guest_offers(&mut self, bytes: &mut Bytes<'_>) {
        let head = u16::from(bytes.u8());
        let at = self.config.avail();
        if !(DESC..0x1f00).contains(&at) {
            return;
        }
        let mut idx = [0; 2];
        self.ram.read(at + 2, &mut idx);
        let idx = u16::from_le_bytes(idx);
        let slot = u64::from(idx & (self.config.size() - 1));
        self.ram.write(at + 4 + 2 * slot, &head.to_le_bytes());
        self.ram.write(at + 2, &idx.wrapping_add(1).to_le_bytes());
    }

    fn pop(&mut self) {
        match self.queue.pop() {
            Ok(None) => {}
            Ok(Some(chain)) => {
                self.check(&chain);
                self.held.push(chain);
            }
            Err(error) => {
                assert!(self.queue.is_broken(), "after {error}");
                assert!(matches!(self.queue.pop(), Err(ChainError::Broken)));
            }
        }
        let out = self.held.len();
        assert!(
            out <= usize::from(self.queue.size()),
            "{out} chains are out"
        );
    }

    /// Pops until the queue is empty or broken, which must happen within its size.
    fn pop_all(&mut self) {
        for _ in 0..=self.queue.size() {
            let before = self.held.len();
            self.pop();
            if self.held.len() == before {
                return;
            }
        }
        panic!("more chains than entries were popped without one being completed");
    }

    fn check(&self, chain: &DescriptorChain<TestRam>) {
        assert!(chain.head() < self.queue.size());
        assert!(self.held.iter().all(|held| held.head() != chain.head()));
        let sum = |part: &[Segment], access| -> u64 {
            part.iter().for_each(|it| self.inside(it, access));
            part.iter().map(|it| it.len() as u64).sum()
        };
        assert_eq!(sum(chain.readable(), Access::Read), chain.readable_len());
        assert_eq!(sum(chain.writable(), Access::Write), chain.writable_len());
        assert!(chain.readable_len() + chain.writable_len() <= 1 << 32);
    }

    fn inside(&self, segment: &Segment, access: Access) {
        let at = segment.as_ptr().addr();
        let holds = |&(guest, len, _): &(u64, usize, bool)| {
            let region = self.ram.region(guest, access);
            let start = region.and_then(|region| region.segment(guest, len));
            start.is_some_and(|all| {
                let start = all.as_ptr().addr();
                at >= start && segment.len() <= len - (at - start).min(len)
            })
        };
        assert!(!segment.is_empty());
        assert!(REGIONS.iter().any(holds), "{segment:?} is not in memory");
    }

    fn complete(&mut self, bytes: &mut Bytes<'_>) {
        let (n, written) = (usize::from(bytes.u8()), bytes.u32());
        if !self.held.is_empty() {
            let chain = self.held.swap_remove(n % self.held.len());
            self.queue.complete(chain, written);
        }
    }

    fn notifications(&mut self, bytes: &mut Bytes<'_>) {
        let what = bytes.u8();
        if what >= 0xc0 {
            self.queue.publish_used();
        } else if what & 1 == 0 {
            self.queue.disable_notification();
        } else if self.queue.enable_notification() {
            assert!(!self.queue.is_broken());
        }
    }

    /// Uses a chain as a device does: header, data by whole segments, status at the end.
    fn use_a_chain(&mut self, bytes: &mut Bytes<'_>) {
        let (n, header) = (usize::from(bytes.u8()), usize::from(bytes.u8() % 32));
        let (start, len) = (u64::from(bytes.u16()), u64::from(bytes.u16()));
        let held = self.held.len();
        let Some(chain) = self.held.get_mut(n % held.max(1)) else {
            return;
        };
        let mut out = vec![0; header];
        let mut reader = chain.reader();
        let whole = chain.readable_len();
        let fits = reader.read_exact(&mut out).is_ok();
        assert_eq!(fits, whole >= header as u64);
        let rest: u64 = reader.segments().map(|it| it.len() as u64).sum();
        assert_eq!(rest, reader.remaining());

        let whole = chain.writable_len();
        // Writing a few pages is enough.
        let data = whole.saturating_sub(1).min(0x2000);
        if let Ok((mut first, mut status)) = chain.writer().split_at(data) {
            assert!(first.write_zeroes(data).is_ok());
            assert_eq!(first.written(), data);
            assert_eq!(status.write_all(&[0xa5]).is_ok(), whole > data);
        }
        let total = |part: &[Segment]| part.iter().map(|it| it.len() as u64).sum::<u64>();
        if let Ok(part) = chain.readable_range(start, len) {
            assert_eq!(total(part), len);
        }
        if let Ok(part) = chain.writable_range(start, len) {
            assert_eq!(total(part), len);
        }
        assert_eq!(total(chain.readable()), chain.readable_len());
        assert_eq!(total(chain.writable()), whole);
    }

    /// Saves the queue, drops the popped chains, and continues from the saved state.
    fn restore(&mut self) {
        let state = self.queue.save();
        let broken = self.queue.is_broken();
        self.held.drain(..).for_each(DescriptorChain::abandon);
        let config = QueueConfig::restore(self.config.max_size(), state);
        let queue = config
            .expect("a saved queue can be restored")
            .activate(self.ram.clone(), self.features);
        self.queue = queue.expect("and activated");
        assert_eq!(self.queue.is_broken(), broken);
    }
}
