//! Pauses while frames arrive and leave, in a machine with a worker, over passt's protocol on a real socket.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;
use crate::net::passt::Passt;
use crate::testing::pci::{Guest, PATIENCE};

const SOON: Duration = Duration::from_millis(50);
const MEMORY: usize = 8 << 20;
const BUFFER: u32 = 1526;

/// A machine with a card, and what is behind it.
struct Machine {
    guest: Guest,
    host: UnixStream,
    buffers: u64,
}

impl Machine {
    fn new(config: NetConfig, wants: u64) -> Self {
        let (host, card) = UnixStream::pair().unwrap();
        let backend = Arc::new(Passt::from_fd(OwnedFd::from(card)).unwrap());
        let card = Net::new("net0", MacAddress(MAC), &config, backend);
        let mut guest = Guest::new(Arc::new(card));
        guest.wants = wants;
        guest.decode_memory();
        guest.restart();
        Self {
            guest,
            host,
            buffers: 0,
        }
    }

    fn plain() -> Self {
        Self::new(NetConfig::default(), 0)
    }

    /// Offers a receive buffer; where it is.
    fn offer_buffer(&mut self) -> u64 {
        let at = 0x10_0000 + self.buffers % 128 * 0x1000;
        self.buffers += 1;
        self.guest.offer(usize::from(RX), &[(at, BUFFER, true)]);
        self.guest.kick(RX);
        at
    }

    /// Has the guest send a frame.
    fn send(&mut self, number: u64, frame: &[u8]) {
        let at = 0x1_0000 + number % 64 * 0x2000;
        let bytes = [Header::default().as_bytes(), frame].concat();
        self.guest.poke(at, &bytes);
        let chain = [(at, bytes.len() as u32, false)];
        self.guest.offer(usize::from(TX), &chain);
        self.guest.kick(TX);
    }

    fn pause(&self) {
        self.guest.worker.pause(PATIENCE).unwrap();
    }

    fn resume(&self) {
        self.guest.worker.resume().unwrap();
    }

    /// Asserts that nobody writes guest memory for a while after `act`.
    fn still(&mut self, act: impl FnOnce(&mut Self)) {
        let before = self.guest.peek(0, MEMORY);
        act(self);
        std::thread::sleep(SOON);
        assert!(
            self.guest.peek(0, MEMORY) == before,
            "nobody writes in a pause"
        );
    }
}

/// A frame on the stream.
fn framed(frame: &[u8]) -> Vec<u8> {
    let len = u32::try_from(frame.len()).unwrap();
    [&len.to_be_bytes(), frame].concat()
}

/// The next frame that the guest sent.
fn next(host: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    host.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    host.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn frames_that_arrive_in_a_pause_wait_for_its_end_whole_or_in_parts() {
    let mut machine = Machine::plain();
    let places = [machine.offer_buffer(), machine.offer_buffer()];
    let bytes = framed(&frame(1000));
    machine.host.write_all(&bytes[..500]).unwrap();
    machine.pause();
    machine.still(|machine| {
        machine.host.write_all(&bytes[500..]).unwrap();
        machine.host.write_all(&framed(&frame(60))).unwrap();
    });
    machine.resume();
    assert_eq!(
        machine
            .guest
            .wait_used(usize::from(RX), 2)
            .iter()
            .map(|used| used.1)
            .collect::<Vec<_>>(),
        [1012, 72]
    );
    for (at, len) in places.into_iter().zip([1000, 60]) {
        assert_eq!(machine.guest.peek(at + 12, len), frame(len));
    }
}

/// The first part of the frame is in the guest's buffers already.
#[test]
fn a_frame_that_lacks_buffers_waits_through_a_pause() {
    let mut machine = Machine::new(NetConfig::default(), feature::MRG_RXBUF);
    machine.offer_buffer();
    machine.host.write_all(&framed(&frame(4000))).unwrap();
    machine.host.write_all(&framed(&frame(60))).unwrap();
    std::thread::sleep(SOON);
    machine.pause();
    for _ in 0..3 {
        machine.offer_buffer();
    }
    machine.still(|_| {});
    machine.resume();
    let used = machine.guest.wait_used(usize::from(RX), 4);
    let lengths: Vec<u32> = used.iter().map(|used| used.1).collect();
    assert_eq!(lengths, [BUFFER, BUFFER, 4012 - 2 * BUFFER, 72]);
}

#[test]
fn frames_that_the_host_has_no_room_for_go_out_after_a_pause_and_in_order() {
    const FRAMES: u64 = 120;
    let mut machine = Machine::plain();
    let body = |number: u64| vec![number as u8; 8000];
    for number in 0..FRAMES {
        machine.send(number, &body(number));
        if number % 60 == 59 {
            std::thread::sleep(SOON);
            machine.pause();
            machine.still(|_| {});
            machine.resume();
        }
        if number >= 60 {
            assert_eq!(next(&mut machine.host), body(number - 60));
        }
    }
    for number in 60..FRAMES {
        assert_eq!(next(&mut machine.host), body(number));
    }
    machine.guest.wait_used(usize::from(TX), FRAMES as usize);
}

#[test]
fn a_pause_does_not_wait_for_a_rate_limit_and_its_timer_is_not_heard() {
    let config = NetConfig {
        packets: Some(4),
        ..NetConfig::default()
    };
    let mut machine = Machine::new(config, 0);
    for number in 0..3 {
        machine.offer_buffer();
        machine.host.write_all(&framed(&frame(60))).unwrap();
        machine.send(number, &[1; 60]);
    }
    machine.guest.wait_used(usize::from(TX), 1);
    machine.guest.wait_used(usize::from(RX), 1);
    machine.pause();
    machine.still(|_| std::thread::sleep(Duration::from_millis(300)));
    machine.resume();
    machine.guest.wait_used(usize::from(TX), 2);
    machine.guest.wait_used(usize::from(RX), 2);
}

#[test]
fn a_thousand_pauses_under_load_lose_no_frame_in_either_direction() {
    const MOST: u64 = 32;
    let mut machine = Machine::plain();
    let (mut sent, mut taken, mut received) = (0_u64, 0, 0);
    let mut arrived = 0_u64;
    let numbered = |number: u64| {
        let mut bytes = frame(64);
        bytes[56..].copy_from_slice(&number.to_be_bytes());
        bytes
    };
    for _ in 0..MOST {
        machine.offer_buffer();
    }
    for round in 0..1000 {
        for _ in 0..4 {
            machine.send(sent, &numbered(sent));
            machine.host.write_all(&framed(&numbered(sent))).unwrap();
            sent += 1;
        }
        machine.pause();
        if round % 50 == 0 {
            machine.still(|_| {});
        }
        machine.resume();
        let used = machine.guest.rings[usize::from(RX)].used();
        for _ in used {
            let at = 0x10_0000 + received % 128 * 0x1000;
            let number = machine.guest.peek(at + 12 + 56, 8);
            assert_eq!(number, received.to_be_bytes());
            received += 1;
            machine.offer_buffer();
        }
        taken += machine.guest.rings[usize::from(TX)].used().len();
        while arrived + 16 < sent {
            assert_eq!(next(&mut machine.host), numbered(arrived));
            arrived += 1;
        }
    }
    machine
        .guest
        .wait_used(usize::from(TX), sent as usize - taken);
    while arrived < sent {
        assert_eq!(next(&mut machine.host), numbered(arrived));
        arrived += 1;
    }
    while received < sent {
        for _ in machine.guest.wait_used(usize::from(RX), 1) {
            received += 1;
            machine.offer_buffer();
        }
    }
}
