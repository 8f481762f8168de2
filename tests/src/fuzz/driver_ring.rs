//! The driver end of a ring against a device that writes any bytes at any time.
//!
//! Input: the queue's configuration, then steps. In a step the driver does one thing, or the device
//! writes somewhere into the queue's memory. Invariants after every step: a token is returned once,
//! and only if it is in flight; its length does not exceed its buffer; slots and buffers in flight
//! add up; a broken queue returns nothing until a reset, which returns everything. A sanitizer also
//! checks that nothing outside the queue's memory, the buffers or the bounce memory is accessed;
//! each of them is a separate allocation.
#![expect(
    unsafe_code,
    reason = "hands test memory to the driver's end and vouches for resets"
)]

use std::collections::BTreeMap;
use std::ptr::NonNull;

use splitring_virtio::driver::{
    Bounce, Broken, DeviceId, DmaBytes, DmaMap, Identity, IndirectPolicy, Queue, QueueOptions,
    ResetProof, Window,
};
use splitring_virtio::mem::testing::TestRam;
use splitring_virtio::mem::{Access, GuestRam};
use splitring_virtio::scatterlist::ScatterList;
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC};

use super::Bytes;

const RING: u64 = 0x1_0000;
const BUFFERS: u64 = 0x10_0000;
const BOUNCE: u64 = 0x20_0000;

/// Number of buffers, and their length in bytes.
const PIECES: u64 = 48;
const PIECE: usize = 24;

/// What the queue keeps for a buffer.
struct Token {
    number: u32,
    list: ScatterList,
}

/// Runs one input.
///
/// # Panics
///
/// An invariant is violated.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let flags = bytes.u8();
    let size = 1u16 << (flags & 7);
    let features = match flags >> 3 & 3 {
        0 => 0,
        1 => EVENT_IDX,
        2 => INDIRECT_DESC,
        _ => EVENT_IDX | INDIRECT_DESC,
    };
    let policy = match bytes.u8() & 3 {
        0 => IndirectPolicy::Never,
        1 => IndirectPolicy::Always,
        2 => IndirectPolicy::Rfc,
        _ => IndirectPolicy::Auto,
    };
    let mut options = QueueOptions::new(size, features).tables(5).policy(policy);
    if flags & 0x40 != 0 {
        options = options.clamp_lengths();
    }
    let ring = options.memory_len();
    let ram = TestRam::with_regions(&[
        (RING, ring, true),
        (BUFFERS, usize::try_from(PIECES).unwrap_or(0) * PIECE, true),
        (BOUNCE, 16 * 512, true),
    ]);
    let memory = bytes_at(&ram, RING, ring);
    if flags & 0x80 == 0 {
        DriverFuzzer::new(ram, options, memory, Identity, size).play(&mut bytes);
    } else {
        let host = region_start(&ram, RING);
        let rings = Window::new(host, ring as u64, RING).expect("in memory");
        let hook = Bounce::new(bytes_at(&ram, BOUNCE, 16 * 512), BOUNCE, rings);
        DriverFuzzer::new(ram, options, memory, hook.expect("in memory"), size).play(&mut bytes);
    }
}

fn region_start(ram: &TestRam, addr: u64) -> NonNull<u8> {
    let segment = ram
        .region(addr, Access::Write)
        .and_then(|region| region.segment(addr, 1));
    NonNull::new(segment.expect("in memory").as_ptr()).expect("a mapping")
}

/// Returns test memory in the form in which a driver owns it.
fn bytes_at(ram: &TestRam, addr: u64, len: usize) -> DmaBytes {
    let segment = ram
        .region(addr, Access::Write)
        .and_then(|region| region.segment(addr, len));
    let start = NonNull::new(segment.expect("in memory").as_ptr()).expect("a mapping");
    // SAFETY: the memory lives as long as the fuzzer, which drops the queue first.
    unsafe { DmaBytes::from_raw(start, len) }
}

struct DriverFuzzer<M: DmaMap> {
    ram: TestRam,
    size: u16,
    ring: usize,
    device: DeviceId,
    queue: Queue<Token, M>,
    pieces: Vec<DmaBytes>,
    /// Length of each buffer in flight, by number.
    in_flight: BTreeMap<u32, u64>,
    next: u32,
    broken: Option<Broken>,
}

impl<M: DmaMap> DriverFuzzer<M> {
    fn new(ram: TestRam, options: QueueOptions, memory: DmaBytes, hook: M, size: u16) -> Self {
        let device = DeviceId::new();
        let ring = memory.len();
        let queue = Queue::new(options, memory, hook, &device);
        let piece = |index| bytes_at(&ram, BUFFERS + index * PIECE as u64, PIECE);
        Self {
            pieces: (0..PIECES).map(piece).collect(),
            queue: queue.unwrap_or_else(|error| panic!("sound memory: {error}")),
            ram,
            size,
            ring,
            device,
            in_flight: BTreeMap::new(),
            next: 0,
            broken: None,
        }
    }

    fn play(mut self, bytes: &mut Bytes<'_>) {
        while !bytes.is_empty() {
            self.step(bytes);
            assert_eq!(usize::from(self.queue.in_flight()), self.in_flight.len());
            assert!(self.queue.free_slots() <= self.size);
            assert_eq!(self.queue.broken(), self.broken);
        }
        let proof = self.reset_proof();
        let mut in_flight = std::mem::take(&mut self.in_flight);
        let back = |token: Token| assert!(in_flight.remove(&token.number).is_some());
        assert!(
            self.queue.dismantle(&proof, back).is_ok(),
            "the proof is valid"
        );
        assert!(in_flight.is_empty(), "a reset returns everything");
    }

    fn reset_proof(&self) -> ResetProof {
        // SAFETY: there is no device; `step` makes the writes.
        unsafe { self.device.was_reset() }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.u8() % 10 {
            0 | 1 => self.add(bytes),
            2 => self.queue.expose(),
            3 => drop(self.queue.publish()),
            4 => self.scribble(bytes),
            5 => self.honest_completion(bytes),
            6 | 7 => self.pop(),
            8 if bytes.u8() & 1 == 0 => self.queue.disable_interrupts(),
            8 => drop(self.queue.enable_interrupts()),
            _ => self.reset(),
        }
    }

    /// Builds a buffer piece by piece, and sometimes aborts it.
    fn add(&mut self, bytes: &mut Bytes<'_>) {
        let shape = bytes.u8();
        let (out, ins, abandon) = (
            usize::from(shape & 7),
            usize::from(shape >> 3 & 7),
            shape >> 6,
        );
        let pieces: Vec<_> = (0..out + ins).map_while(|_| self.pieces.pop()).collect();
        // Fewer than announced if most of them are in flight.
        let there = pieces.len();
        let list = ScatterList::from_buffers(pieces);
        let number = self.next;
        let token = Token { number, list };
        let reserved = out + ins + usize::from(bytes.u8() & 1);
        let opened = self.queue.start_buf(token, reserved, 2);
        let ended = opened.and_then(|mut buffer| {
            let _ = buffer.add_sg(|token| &token.list, out);
            let mut buffer = buffer.writable();
            // The same pieces again, as writable ones: fewer than announced.
            let _ = buffer.add_all(|token, parts| {
                for piece in token.list.iter().skip(out) {
                    parts.bytes(piece, 0..PIECE)?;
                }
                Ok(())
            });
            match abandon {
                0 => Err(splitring_virtio::driver::Refused {
                    token: buffer.abort(),
                    why: splitring_virtio::driver::Refusal::Empty,
                }),
                _ => buffer.end_buf(),
            }
        });
        match ended {
            Ok(ticket) => {
                assert!(self.broken.is_none() && there > 0 && self.queue.holds(ticket));
                self.next += 1;
                let room = there.saturating_sub(out) * PIECE;
                self.in_flight.insert(number, room as u64);
            }
            Err(refused) => {
                assert_eq!(refused.token.number, number);
                self.take_back(refused.token);
            }
        }
    }

    fn take_back(&mut self, mut token: Token) {
        token.list.clear(|piece| self.pieces.push(piece));
    }

    /// The device writes anywhere in the queue's memory: rings, descriptors, tables.
    fn scribble(&mut self, bytes: &mut Bytes<'_>) {
        let at = usize::from(bytes.u16()) % self.ring;
        let len = usize::from(bytes.u8() % 16).min(self.ring - at);
        self.ram.write(RING + at as u64, bytes.take(len));
    }

    /// The device uses the buffer whose head it finds at an arbitrary index of the available ring.
    fn honest_completion(&mut self, bytes: &mut Bytes<'_>) {
        let areas = self.queue.areas();
        let at = |area: u64, offset: u64| RING + (area - areas.descriptors) + offset;
        let word = |addr: u64| {
            let mut word = [0; 2];
            self.ram.read(addr, &mut word);
            u16::from_le_bytes(word)
        };
        let slot = u64::from(u16::from(bytes.u8()) % self.size);
        let head = word(at(areas.driver, 4 + slot * 2));
        let idx = word(at(areas.device, 2));
        let mut entry = u32::from(head).to_le_bytes().to_vec();
        entry.extend(u32::from(bytes.u8()).to_le_bytes());
        let place = u64::from(idx % self.size);
        self.ram.write(at(areas.device, 4 + place * 8), &entry);
        self.ram
            .write(at(areas.device, 2), &idx.wrapping_add(1).to_le_bytes());
    }

    fn pop(&mut self) {
        match self.queue.pop() {
            Ok(None) => assert!(self.broken.is_none()),
            Ok(Some(done)) => {
                assert!(self.broken.is_none(), "a broken queue returns nothing");
                assert!(!self.queue.holds(done.ticket));
                let room = self
                    .in_flight
                    .remove(&done.token.number)
                    .expect("it was in flight");
                assert!(
                    u64::from(done.written) <= room,
                    "no more than the buffer's length"
                );
                self.take_back(done.token);
            }
            Err(broken) => {
                assert!(
                    self.broken.is_none_or(|before| before == broken),
                    "for good"
                );
                self.broken = Some(broken);
            }
        }
    }

    fn reset(&mut self) {
        let proof = self.reset_proof();
        let (in_flight, pieces) = (&mut self.in_flight, &mut self.pieces);
        let reclaimed = self.queue.reclaim(&proof, |mut token| {
            assert!(
                in_flight.remove(&token.number).is_some(),
                "it was in flight"
            );
            token.list.clear(|piece| pieces.push(piece));
        });
        assert!(reclaimed.is_ok() && self.in_flight.is_empty());
        assert_eq!(self.queue.free_slots(), self.size);
        assert!(
            self.queue.reclaim(&proof, |_| ()).is_err(),
            "a proof is valid once"
        );
        self.broken = None;
    }
}
