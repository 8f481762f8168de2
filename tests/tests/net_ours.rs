//! The network driver of `splitring-virtio` with the network device of `splitring-devices` on a
//! stream like passt's, in one process and in every receive mode. Tier: quick.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use splitring_devices::net::passt::Passt;
use splitring_devices::net::{MacAddress, Net, NetConfig};
use splitring_tests::machine::TestMachine;
use splitring_virtio::driver::net::{FRAME_LEN, ReceiveMode, Receiver, Transmitter};
use splitring_virtio::driver::{DeviceId, Identity, Queue, QueueOptions};
use splitring_virtio::scatterlist::ScatterList;
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use splitring_virtio::spec::net::{HEADER_SIZE, Header, feature};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const SIZE: u16 = 128;
/// Maximum number of pieces of a packet.
const PIECES: usize = 8;
const BUFFERS: usize = 32;
/// Size of a buffer for any packet.
const BIG: usize = 65_550;

/// A driver and a device, whose frames are returned to it.
struct Guest {
    machine: TestMachine,
    receiver: Receiver,
    transmitter: Transmitter,
    far: UnixStream,
}

impl Guest {
    fn new(mode: ReceiveMode, ring: u64) -> Self {
        let (ours, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let passt = Passt::from_fd(OwnedFd::from(ours)).unwrap();
        let config = NetConfig::passt();
        let mut machine =
            TestMachine::new(Net::new("net0", MacAddress(MAC), &config, Arc::new(passt)));
        let merge = if mode == ReceiveMode::Mergeable {
            feature::MRG_RXBUF
        } else {
            0
        };
        let features = ring | merge | VERSION_1;
        let frames = machine.bytes(FRAME_LEN * BUFFERS, 64);
        let mut receiver = Receiver::new(queue(&mut machine, features), frames, mode);
        let sizes: &[usize] = match mode {
            ReceiveMode::Small => &[1530],
            ReceiveMode::Big => &[4096, BIG - 4096],
            ReceiveMode::Mergeable => &[HEADER_SIZE + 500],
        };
        for _ in 0..BUFFERS {
            let pieces = sizes.iter().map(|len| machine.bytes(*len, 1));
            let list = ScatterList::from_buffers(pieces.collect::<Vec<_>>());
            receiver.add(list).map_err(|(_, why)| why).unwrap();
        }
        let frames = machine.bytes(FRAME_LEN * usize::from(SIZE), 64);
        let transmitter = Transmitter::new(queue(&mut machine, features), frames, PIECES);
        machine.start(features, &[receiver.areas(), transmitter.areas()]);
        let mut guest = Self {
            machine,
            receiver,
            transmitter,
            far,
        };
        guest.refill();
        guest
    }

    fn refill(&mut self) {
        self.receiver.refill().unwrap();
        let _ = self.receiver.publish();
    }

    /// Sends `frame` in `pieces`, and returns it to the device.
    fn send(&mut self, frame: &[u8], pieces: usize) {
        let parts = frame.chunks(frame.len().div_ceil(pieces)).map(|part| {
            let mut piece = self.machine.lend(part.len());
            piece.bytes_mut().copy_from_slice(part);
            piece
        });
        let parts: Vec<_> = parts.collect();
        let header = Header::default();
        self.transmitter.send(7, &header, parts, drop).unwrap();
        let _ = self.transmitter.publish();
    }

    /// Runs the device, and returns what it sent to it.
    fn turn(&mut self) {
        self.machine.run();
        let mut stream = vec![0; 1 << 20];
        match self.far.read(&mut stream) {
            Ok(len) => self.far.write_all(&stream[..len]).unwrap(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        self.machine.run();
    }

    fn received(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 16];
        let packet = self.receiver.receive().unwrap();
        let len = packet.map(|mut packet| packet.copy_to(&mut bytes))?;
        bytes.truncate(len);
        self.refill();
        Some(bytes)
    }
}

fn queue<P>(machine: &mut TestMachine, features: u64) -> Queue<P> {
    let options = QueueOptions::new(SIZE, features).tables(SIZE);
    let ring = machine.bytes(options.memory_len(), 64);
    Queue::new(options, ring, Identity, &DeviceId::new()).unwrap()
}

/// Returns a frame to the device's own address.
fn frame(tag: usize, len: usize) -> Vec<u8> {
    let mut frame = [MAC, MAC].concat();
    frame.extend((12..len).map(|n| (n * 7 + tag).to_le_bytes()[0]));
    frame
}

#[test]
fn frames_of_every_size_and_framing_return_in_every_receive_mode() {
    for ring in [0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC] {
        for (mode, longest) in [
            (ReceiveMode::Small, 1514),
            (ReceiveMode::Big, 60_000),
            (ReceiveMode::Mergeable, 14_000),
        ] {
            let mut guest = Guest::new(mode, ring);
            for (round, len) in [
                14, 60, 488, 500, 501, 1012, 1514, 4096, 9000, 14_000, 60_000,
            ]
            .into_iter()
            .filter(|len| *len <= longest)
            .cycle()
            .take(40)
            .enumerate()
            {
                let sent = frame(round, len);
                guest.send(&sent, 1 + round % PIECES);
                guest.turn();
                assert_eq!(guest.transmitter.reap(drop).unwrap(), Some(7));
                guest.machine.collect();
                assert!(guest.received() == Some(sent), "{len} bytes");
            }
            assert!(guest.machine.reset() <= u32::from(SIZE));
        }
    }
}

#[test]
fn a_batch_larger_than_the_free_buffers_arrives_in_order_as_buffers_return() {
    let mut guest = Guest::new(ReceiveMode::Mergeable, EVENT_IDX);
    let sent: Vec<_> = (0..8).map(|tag| frame(tag, 5000 + tag)).collect();
    for frame in &sent {
        guest.send(frame, 2);
    }
    guest.turn();
    for want in &sent {
        let got = guest.received().or_else(|| {
            guest.machine.run();
            guest.received()
        });
        assert!(got.as_ref() == Some(want));
    }
}
