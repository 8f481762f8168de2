//! The driver end of `splitring-virtio` with the device end of `virtio-queue`, in one process:
//! every framing up to a bound, direct and indirect, with both ways of notifying, over several
//! wraps of the indices. Tier: quick.

use splitring_tests::arena::arena;
use splitring_virtio::driver::{DeviceId, Identity, IndirectPolicy, Kick, Queue, QueueOptions};
use splitring_virtio::scatterlist::ScatterList;
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC};
use virtio_queue::{Queue as Device, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

/// A buffer: the segments that the device reads and writes.
struct Token {
    readable: ScatterList,
    writable: ScatterList,
    number: u32,
}

impl Token {
    /// Returns `out` and `ins` segments of different lengths, the readable ones filled by number.
    fn new(number: u32, out: usize, ins: usize) -> Self {
        let list = |segments: usize| {
            ScatterList::from_buffers((0..segments).map(|n| arena().bytes(n % 7 + 1)))
        };
        let mut readable = list(out);
        let mut next = number;
        readable.for_each_mut(|piece| {
            for byte in piece.bytes_mut() {
                *byte = next.to_le_bytes()[0];
                next = next.wrapping_add(1);
            }
        });
        Self {
            readable,
            writable: list(ins),
            number,
        }
    }
}

struct Rig {
    queue: Queue<Token, Identity>,
    device: Device,
    mapping: std::sync::Arc<GuestMemoryMmap<()>>,
}

impl Rig {
    fn new(size: u16, features: u64, policy: IndirectPolicy) -> Self {
        let options = QueueOptions::new(size, features)
            .tables(size)
            .policy(policy);
        let memory = arena().bytes(options.memory_len());
        let queue = Queue::new(options, memory, Identity, &DeviceId::new()).unwrap();
        let areas = queue.areas();
        let mut device = Device::new(size).unwrap();
        let halves = |addr: u64| {
            let half = |part: u64| Some(u32::try_from(part & 0xffff_ffff).unwrap());
            (half(addr), half(addr >> 32))
        };
        let (low, high) = halves(areas.descriptors);
        device.set_desc_table_address(low, high);
        let (low, high) = halves(areas.driver);
        device.set_avail_ring_address(low, high);
        let (low, high) = halves(areas.device);
        device.set_used_ring_address(low, high);
        device.set_event_idx(features & EVENT_IDX != 0);
        device.set_ready(true);
        let mapping = arena().mapping.clone();
        assert!(device.is_valid(&*mapping));
        Self {
            queue,
            device,
            mapping,
        }
    }

    /// Adds a buffer piece by piece.
    fn add(&mut self, token: Token) {
        let (out, ins) = (token.readable.segments(), token.writable.segments());
        let mut buffer = self
            .queue
            .start_buf(token, out + ins, 2)
            .map_err(|it| it.why)
            .unwrap();
        if out > 0 {
            assert_eq!(buffer.add_sg(|token| &token.readable, out), Ok(out));
        }
        let mut buffer = buffer.writable();
        if ins > 0 {
            assert_eq!(buffer.add_sg(|token| &token.writable, ins), Ok(ins));
        }
        buffer.end_buf().map_err(|it| it.why).unwrap();
    }

    /// The device reads everything, fills every writable byte with the sum of what it read, and
    /// completes in the given order.
    fn serve(&mut self, reversed: bool) -> usize {
        let mapping = &*self.mapping;
        let mut done = Vec::new();
        while let Some(chain) = self.device.pop_descriptor_chain(mapping) {
            let head = chain.head_index();
            let mut sum = 0u8;
            let mut written = 0;
            for desc in chain {
                let mut bytes = vec![0; desc.len() as usize];
                if desc.is_write_only() {
                    bytes.fill(sum);
                    mapping.write_slice(&bytes, desc.addr()).unwrap();
                    written += desc.len();
                } else {
                    assert_eq!(written, 0, "readable segments come first");
                    mapping.read_slice(&mut bytes, desc.addr()).unwrap();
                    sum = bytes.iter().fold(sum, |sum, byte| sum.wrapping_add(*byte));
                }
            }
            done.push((head, written));
        }
        if reversed {
            done.reverse();
        }
        for (head, written) in &done {
            self.device.add_used(mapping, *head, *written).unwrap();
        }
        done.len()
    }

    /// Takes everything back and checks what the device wrote. Returns the numbers.
    fn reap(&mut self) -> Vec<u32> {
        let mut numbers = Vec::new();
        while let Some(done) = self.queue.pop().unwrap() {
            let mut token = done.token;
            let mut sum = 0u8;
            token.readable.for_each_mut(|piece| {
                sum = piece
                    .bytes()
                    .iter()
                    .fold(sum, |sum, byte| sum.wrapping_add(*byte));
            });
            token.writable.for_each_mut(|piece| {
                assert!(
                    piece.bytes().iter().all(|byte| *byte == sum),
                    "buffer {}",
                    token.number
                );
            });
            assert_eq!(u64::from(done.written), token.writable.bytes());
            numbers.push(token.number);
        }
        numbers
    }
}

#[test]
fn every_framing_is_understood_in_the_ring_and_in_tables() {
    for size in [1u16, 2, 4, 8] {
        let most = usize::from(size);
        for features in [0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC] {
            for policy in [IndirectPolicy::Always, IndirectPolicy::Auto] {
                let mut rig = Rig::new(size, features, policy);
                let mut number = 0;
                for out in 0..=most {
                    for ins in usize::from(out == 0)..=most - out {
                        rig.add(Token::new(number, out, ins));
                        let _ = rig.queue.publish();
                        assert_eq!(rig.serve(false), 1);
                        assert_eq!(rig.reap(), [number]);
                        number += 1;
                    }
                }
                assert_eq!(rig.queue.free_slots(), size);
            }
        }
    }
}

#[test]
fn long_chains_fill_the_queue() {
    for policy in [IndirectPolicy::Never, IndirectPolicy::Always] {
        let mut rig = Rig::new(256, INDIRECT_DESC, policy);
        for (out, ins) in [(128, 128), (256, 0), (0, 256), (1, 255)] {
            rig.add(Token::new(9, out, ins));
            let _ = rig.queue.publish();
            assert_eq!(rig.serve(false), 1);
            assert_eq!(rig.reap(), [9]);
        }
    }
}

#[test]
fn batches_completed_out_of_order_return_over_several_wraps_of_the_indices() {
    for features in [EVENT_IDX, EVENT_IDX | INDIRECT_DESC] {
        let mut rig = Rig::new(32, features, IndirectPolicy::Rfc);
        // The tokens are reused, because new ones each time would use the arena up.
        let mut spare: Vec<Token> = (0..10).map(|number| Token::new(number, 1, 2)).collect();
        for round in 0..14_000 {
            for token in spare.drain(..) {
                rig.add(token);
            }
            rig.device.enable_notification(&*rig.mapping).unwrap();
            assert_eq!(rig.queue.publish(), Kick::Needed, "round {round}");
            assert_eq!(rig.serve(round % 3 == 0), 10);
            assert!(rig.queue.enable_interrupts());
            while let Some(done) = rig.queue.pop().unwrap() {
                spare.push(done.token);
            }
            assert!(!rig.queue.enable_interrupts());
        }
        let mut numbers: Vec<_> = spare.iter().map(|token| token.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..10).collect::<Vec<_>>());
    }
}

#[test]
fn each_end_is_notified_only_if_it_asked() {
    for features in [0, EVENT_IDX] {
        let mut rig = Rig::new(8, features, IndirectPolicy::Never);
        let mapping = rig.mapping.clone();
        // The device disables notifications.
        rig.device.enable_notification(&*mapping).unwrap();
        rig.add(Token::new(0, 1, 1));
        assert_eq!(rig.queue.publish(), Kick::Needed);
        rig.device.disable_notification(&*mapping).unwrap();
        rig.add(Token::new(1, 1, 1));
        assert_eq!(rig.queue.publish(), Kick::NotNeeded);
        // The driver enables the next interrupt.
        assert!(!rig.queue.enable_interrupts());
        rig.serve(false);
        assert!(rig.device.needs_notification(&*mapping).unwrap());
        rig.reap();
        if features == EVENT_IDX {
            // It has been interrupted, and does not enable the next one.
            rig.add(Token::new(2, 1, 1));
            let _ = rig.queue.publish();
            rig.serve(false);
            assert!(!rig.device.needs_notification(&*mapping).unwrap());
        }
    }
}
