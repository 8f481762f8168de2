//! The network drivers against a minimal device on the crate's own device end.
#![expect(clippy::cast_possible_truncation, reason = "numbers of small packets")]

use super::*;
use crate::device::queue::ActiveQueue;
use crate::driver::{Broken, DmaBytes, Queue, QueueOptions, Window};
use crate::mem::PlainRam;
use crate::mem::testbed::Testbed;
use crate::scatterlist::ScatterList;
use crate::spec::feature::{EVENT_IDX, INDIRECT_DESC};
use crate::spec::net::{Header, ctrl, feature};
use zerocopy::IntoBytes;

const RING: u64 = EVENT_IDX | INDIRECT_DESC;

fn queue<T>(bed: &mut Testbed, size: u16) -> (Queue<T, Window>, ActiveQueue<PlainRam>) {
    let queue = bed.queue(QueueOptions::new(size, RING).tables(size));
    let device = bed.device_end(queue.areas(), RING);
    (queue, device)
}

struct Rx {
    bed: Testbed,
    driver: Receiver<DmaBytes, Window>,
    device: ActiveQueue<PlainRam>,
}

impl Rx {
    fn new(mode: ReceiveMode) -> Self {
        let mut bed = Testbed::new(1 << 20);
        let (queue, device) = queue(&mut bed, 32);
        let frames = bed.take(8 * FRAME_LEN);
        Self {
            driver: Receiver::new(queue, frames, mode),
            bed,
            device,
        }
    }

    fn add(&mut self, pieces: &[usize]) -> Result<(), NetSubmitError> {
        let pieces = pieces
            .iter()
            .map(|len| self.bed.take(*len))
            .collect::<Vec<_>>();
        let added = self.driver.add(ScatterList::from_buffers(pieces));
        added.map_err(|(_, why)| why)
    }

    /// Fills one buffer with these bytes, including the header.
    fn fill(&mut self, bytes: &[u8]) {
        let mut chain = self.device.pop().unwrap().expect("a buffer");
        assert_eq!(chain.readable_len(), 0);
        chain.writer().write_all(bytes).unwrap();
        self.device
            .complete(chain, u32::try_from(bytes.len()).unwrap());
    }

    /// Delivers a packet into as many buffers of `room` bytes as it needs.
    fn deliver(&mut self, payload: &[u8], room: usize) {
        let total = payload.len() + HEADER_SIZE;
        let mut bytes = header(u16::try_from(total.div_ceil(room)).unwrap());
        bytes.extend(payload);
        for part in bytes.chunks(room) {
            self.fill(part);
        }
        let _ = self.device.publish();
    }

    /// Returns the next packet's payload, contiguous and per memory buffer.
    fn receive(&mut self) -> Vec<u8> {
        let mut packet = self.driver.receive().unwrap().expect("a packet");
        let mut pieces = Vec::new();
        packet.for_each(|piece| pieces.extend_from_slice(piece));
        assert_eq!(
            (pieces.len() as u64, packet.is_empty()),
            (packet.len(), pieces.is_empty())
        );
        let mut whole = vec![0; pieces.len() + 3];
        assert_eq!(packet.copy_to(&mut whole), pieces.len());
        assert_eq!(whole[..pieces.len()], pieces);
        pieces
    }

    fn refill(&mut self) {
        self.driver.refill().unwrap();
        let _ = self.driver.publish();
    }
}

const HEADER_SIZE: usize = 12;

fn header(num_buffers: u16) -> Vec<u8> {
    let header = Header {
        gso_size: 77.into(),
        num_buffers: num_buffers.into(),
        ..Header::default()
    };
    header.as_bytes().to_vec()
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn small_buffers_take_a_packet_each_behind_a_header_of_the_driver_s() {
    let mut rx = Rx::new(ReceiveMode::Small);
    assert_eq!(rx.add(&[1517]), Err(NetSubmitError::TooSmall));
    rx.add(&[1518]).unwrap();
    rx.add(&[1000, 518]).unwrap();
    let _ = rx.driver.publish();
    for round in 0..5 {
        for len in [60, 1518] {
            rx.deliver(&payload(len), 1 << 17);
            assert_eq!(rx.receive(), payload(len), "round {round}");
            assert!(rx.driver.receive().unwrap().is_none());
        }
        rx.refill();
    }
    assert_eq!(rx.driver.in_flight(), 2);
}

#[test]
fn big_buffers_take_the_largest_packet_in_a_list() {
    let mut rx = Rx::new(ReceiveMode::Big);
    assert_eq!(rx.add(&[4096; 16]), Err(NetSubmitError::TooSmall));
    let mut pieces = vec![4096; 16];
    pieces.push(14);
    rx.add(&pieces).unwrap();
    for len in [0, 1, 4096, 65550] {
        let _ = rx.driver.publish();
        rx.deliver(&payload(len), 1 << 17);
        assert_eq!(rx.receive(), payload(len));
        rx.refill();
    }
}

#[test]
fn mergeable_buffers_take_a_packet_between_them() {
    let mut rx = Rx::new(ReceiveMode::Mergeable);
    assert_eq!(rx.add(&[11]), Err(NetSubmitError::TooSmall));
    assert_eq!(
        rx.add(&[11, 500]),
        Err(NetSubmitError::TooSmall),
        "the header must not be split"
    );
    for _ in 0..6 {
        rx.add(&[64, 36]).unwrap();
    }
    for len in [1, 52, 88, 89, 188, 588] {
        let _ = rx.driver.publish();
        rx.deliver(&payload(len), 100);
        {
            let packet = rx.driver.receive().unwrap().unwrap();
            assert_eq!(packet.buffers(), (len + HEADER_SIZE).div_ceil(100));
            assert_eq!(packet.header().gso_size.get(), 77);
        }
        assert!(rx.driver.receive().unwrap().is_none());
        rx.refill();
        rx.deliver(&payload(len), 100);
        assert_eq!(rx.receive(), payload(len));
        rx.refill();
    }
    assert_eq!(rx.driver.in_flight(), 6);
}

#[test]
fn a_packet_of_which_only_a_part_has_come_waits_for_the_rest() {
    let mut rx = Rx::new(ReceiveMode::Mergeable);
    for _ in 0..3 {
        rx.add(&[50]).unwrap();
    }
    let _ = rx.driver.publish();
    let mut first = header(2);
    first.extend([1; 38]);
    rx.fill(&first);
    let _ = rx.device.publish();
    assert!(rx.driver.receive().unwrap().is_none());
    assert!(rx.driver.receive().unwrap().is_none());
    rx.fill(&[2; 5]);
    let _ = rx.device.publish();
    let bytes = rx.receive();
    assert_eq!((bytes.len(), bytes[37], bytes[38]), (43, 1, 2));
}

#[test]
fn packets_that_can_not_be_are_reported_and_their_buffers_come_back() {
    let mut rx = Rx::new(ReceiveMode::Mergeable);
    for _ in 0..3 {
        rx.add(&[50]).unwrap();
    }
    let _ = rx.driver.publish();
    let error = |rx: &mut Rx, bytes: &[u8]| {
        rx.fill(bytes);
        let _ = rx.device.publish();
        rx.driver.receive().err().expect("an error")
    };
    assert_eq!(error(&mut rx, &[0; 11]), ReceiveError::Short(11));
    assert_eq!(error(&mut rx, &header(0)), ReceiveError::Buffers(0));
    assert_eq!(
        error(&mut rx, &header(2)),
        ReceiveError::Buffers(2),
        "the device has none left"
    );
    rx.refill();
    assert_eq!(rx.driver.in_flight(), 3);
    rx.deliver(&payload(60), 50);
    assert_eq!(rx.receive(), payload(60));

    rx.bed.forge_used(rx.driver.areas(), 6, 99, 0);
    let broken = ReceiveError::Broken(Broken::NoSuchSlot(99));
    assert_eq!(rx.driver.receive().err(), Some(broken));
}

#[test]
fn a_reset_makes_every_receive_buffer_idle() {
    for mode in [ReceiveMode::Small, ReceiveMode::Mergeable] {
        let mut rx = Rx::new(mode);
        for _ in 0..3 {
            rx.add(&[1600]).unwrap();
        }
        let _ = rx.driver.publish();
        let mut part = header(3);
        part.extend([0; 20]);
        rx.fill(&part);
        let _ = rx.device.publish();
        let came = rx.driver.receive().unwrap().is_some();
        assert_eq!(came, mode == ReceiveMode::Small);
        let proof = rx.bed.proof();
        rx.driver.reclaim(&proof).unwrap();
        rx.device = rx.bed.device_end(rx.driver.areas(), RING);
        rx.refill();
        assert_eq!(rx.driver.in_flight(), 3);
        rx.deliver(&payload(100), 1600);
        assert_eq!(rx.receive(), payload(100));
    }
}

#[test]
fn receive_modes_follow_the_features() {
    assert_eq!(ReceiveMode::new(feature::CSUM), ReceiveMode::Small);
    assert_eq!(ReceiveMode::new(feature::GUEST_TSO6), ReceiveMode::Big);
    let both = feature::GUEST_TSO4 | feature::MRG_RXBUF;
    assert_eq!(ReceiveMode::new(both), ReceiveMode::Mergeable);
}

struct Tx {
    bed: Testbed,
    driver: Transmitter<DmaBytes, Window>,
    device: ActiveQueue<PlainRam>,
}

impl Tx {
    fn new(frames: usize) -> Self {
        let mut bed = Testbed::new(1 << 18);
        let (queue, device) = queue(&mut bed, 16);
        let frames = bed.take(frames * FRAME_LEN);
        Self {
            driver: Transmitter::new(queue, frames, 5),
            bed,
            device,
        }
    }

    fn send(&mut self, tag: u64, pieces: &[&[u8]]) -> Result<(), (NetSubmitError, usize)> {
        let pieces: Vec<_> = pieces.iter().map(|piece| self.bed.piece(piece)).collect();
        let header = Header {
            gso_size: 55.into(),
            ..Header::default()
        };
        let mut back = 0;
        let sent = self.driver.send(tag, &header, pieces, |_| back += 1);
        let _ = self.driver.publish();
        sent.map_err(|why| (why, back))
    }

    /// Returns what the device gets: the descriptors' lengths, and all bytes behind the header.
    fn take(&mut self) -> (Vec<usize>, Vec<u8>) {
        let chain = self.device.pop().unwrap().expect("a packet");
        let lengths = chain.readable().iter().map(|it| it.len()).collect();
        let mut reader = chain.reader();
        let header: Header = reader.read_obj().unwrap();
        assert_eq!((header.gso_size.get(), chain.writable_len()), (55, 0));
        let mut bytes = vec![0; reader.remaining() as usize];
        reader.read_exact(&mut bytes).unwrap();
        self.device.complete(chain, 0);
        let _ = self.device.publish();
        (lengths, bytes)
    }
}

#[test]
fn header_and_data_go_out_as_lists_of_their_own_and_the_data_s_is_recycled() {
    // With one frame every packet uses the same list, longer and shorter than the one before.
    let mut tx = Tx::new(1);
    for (tag, count) in [2usize, 5, 1, 4, 0, 3, 5].into_iter().enumerate() {
        let pieces = vec![&b"abc"[..]; count];
        tx.send(tag as u64, &pieces).unwrap();
        let (lengths, bytes) = tx.take();
        let mut expected = vec![12];
        expected.resize(count + 1, 3);
        assert_eq!(
            (lengths, bytes),
            (expected, b"abc".repeat(count)),
            "not cut short"
        );
        let mut back = 0;
        assert_eq!(tx.driver.reap(|_| back += 1).unwrap(), Some(tag as u64));
        assert_eq!(back, count);
        assert_eq!(tx.driver.reap(|_| ()).unwrap(), None);
    }
}

#[test]
fn packets_that_are_not_taken_give_every_piece_back() {
    let mut tx = Tx::new(3);
    let refused = tx.send(0, &[&b"x"[..]; 7]).unwrap_err();
    assert_eq!(refused, (NetSubmitError::TooManyPieces, 7));
    for tag in 0..3 {
        tx.send(tag, &[&b"x"[..]; 5]).unwrap();
    }
    let full = NetSubmitError::Queue(Refusal::Full);
    assert_eq!(tx.send(3, &[&b"x"[..]; 5]).unwrap_err(), (full, 5));
    tx.take();
    tx.driver.reap(|_| ()).unwrap().unwrap();
    tx.send(3, &[&b"x"[..]; 5]).unwrap();

    let mut back = 0;
    let proof = tx.bed.proof();
    tx.driver.reclaim(&proof, |_| back += 1).unwrap();
    assert_eq!((back, tx.driver.in_flight()), (15, 0));
    tx.device = tx.bed.device_end(tx.driver.areas(), RING);
    tx.send(9, &[b"again"]).unwrap();
    assert_eq!(tx.take().1, b"again");
}

#[test]
fn control_commands_are_acknowledged_one_at_a_time() {
    let mut bed = Testbed::new(1 << 16);
    let (queue, mut device) = queue(&mut bed, 4);
    let frame = bed.take(64);
    let mut control = NetControl::new(queue, frame);
    assert_eq!(control.command(0, 0, &[0; 62]), Err(Refusal::TooLong));
    for (answer, expected) in [
        (ctrl::OK, Ack::Ok),
        (ctrl::ERR, Ack::Refused),
        (7, Ack::Refused),
    ] {
        control
            .command(ctrl::MAC, ctrl::MAC_ADDR_SET, &[1, 2, 3, 4, 5, 6])
            .unwrap();
        assert_eq!(control.command(0, 0, &[]), Err(Refusal::Full));
        let _ = control.publish();
        assert_eq!(control.poll().unwrap(), None);
        let mut chain = device.pop().unwrap().unwrap();
        let mut bytes = [0; 8];
        chain.reader().read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [1, 1, 1, 2, 3, 4, 5, 6]);
        assert_eq!(chain.writable_len(), 1);
        chain.writer().write_all(&[answer]).unwrap();
        device.complete(chain, 1);
        let _ = device.publish();
        assert_eq!(control.poll().unwrap(), Some(expected));
    }
    control.command(0, 0, &[1]).unwrap();
    control.reclaim(&bed.proof()).unwrap();
    control.command(0, 0, &[1]).unwrap();
}
