//! The network driver of `virtio-drivers` with a whole network device on a stream like passt's, in
//! one process. Tier: quick.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use splitring_devices::device::{
    Cause, QueueHandler, QueueSet, ReadyQueue, Registry, Start, TaskQueue, VirtioDevice,
};
use splitring_devices::interrupt::{ConfigGate, ConfigNotifier};
use splitring_devices::net::passt::Passt;
use splitring_devices::net::{MacAddress, Net, NetConfig};
use splitring_tests::arena::{BouncingHal, PeerTransport, SharedDevice, device_ram};
use splitring_virtio::device::queue::{Interrupt, QueueConfig, RingFeatures};
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use virtio_drivers::device::net::{VirtIONet, VirtIONetRaw};
use virtio_drivers::transport::DeviceType;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// The port's event source.
const PORT: Cause = Cause::Source(0);

/// No one is notified of changes.
struct NoGate;

impl ConfigGate for NoGate {
    fn change(&self, apply: &mut dyn FnMut()) {
        apply();
    }
}

/// The device's queues and their handlers, once the driver is ready.
struct Running {
    tasks: Vec<(Vec<TaskQueue>, Box<dyn QueueHandler>)>,
}

impl Running {
    fn start(card: &Net, peer: &SharedDevice) -> Self {
        let ram = device_ram();
        let mut queues = peer.queues.clone();
        queues.sort_by_key(|queue| queue.0);
        let ready = queues.iter().map(|(index, areas)| ReadyQueue {
            index: *index,
            size: areas.size,
        });
        let start = Start {
            features: peer.accepted,
            ram: ram.clone(),
            queues: ready.collect(),
            config: ConfigNotifier::new(Arc::new(NoGate)),
            rings: Default::default(),
        };
        let queue = |index: u16| {
            let areas = queues.iter().find(|queue| queue.0 == index).unwrap().1;
            let mut config = QueueConfig::new(areas.size);
            config.set_desc(areas.descriptors);
            config.set_avail(areas.driver);
            config.set_used(areas.device);
            config.set_ready(true);
            let features = RingFeatures::from_bits(peer.accepted);
            let queue = config.activate(ram.clone(), features).unwrap();
            TaskQueue { index, queue }
        };
        let tasks = card.start(start).unwrap().into_iter().map(|task| {
            let queues = task.queues.iter().map(|index| queue(*index)).collect();
            (queues, task.handler)
        });
        Self {
            tasks: tasks.collect(),
        }
    }

    fn run(&mut self, cause: Cause) {
        for (queues, handler) in &mut self.tasks {
            let mut registry = Registry::default();
            let mut set = QueueSet::new(queues, &mut registry);
            handler.run(&mut set, cause).unwrap();
            for slot in queues {
                let _: Interrupt = slot.queue.publish();
                let _ = slot.queue.enable_notification();
            }
        }
    }
}

/// Returns the network device behind the peer's transport; every frame that it sends is returned to
/// it.
fn echo(offered: u64) -> PeerTransport {
    let (ours, mut far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let passt = Passt::from_fd(OwnedFd::from(ours)).unwrap();
    let config = NetConfig::passt();
    let card = Net::new("net0", MacAddress(MAC), &config, Arc::new(passt));
    let mut space = vec![0; 32];
    card.read_config(0, &mut space);
    let offered = offered | VERSION_1 | card.features();
    let peer = SharedDevice::new(DeviceType::Network, offered, space).shared();
    let mut transport = PeerTransport::new(&peer);
    let mut running = None;
    transport.doorbell = Box::new(move |queue| {
        let running = running.get_or_insert_with(|| Running::start(&card, &peer.borrow()));
        running.run(Cause::Kick(queue));
        let mut stream = vec![0; 1 << 20];
        match far.read(&mut stream) {
            Ok(len) => far.write_all(&stream[..len]).unwrap(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        running.run(PORT);
    });
    transport
}

/// Returns a frame from the device's own address to itself, of `len` bytes with the header.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = [MAC, MAC].concat();
    frame.extend((12..len).map(|n| n.to_le_bytes()[0]));
    frame
}

#[test]
fn its_raw_driver_sends_and_receives_through_our_device() {
    for offered in [0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX] {
        let mut driver = VirtIONetRaw::<BouncingHal, _, 16>::new(echo(offered)).unwrap();
        assert_eq!(driver.mac_address(), MAC);
        for len in [14, 60, 1514, 2000] {
            let sent = frame(len);
            let mut buffer = vec![0; 2048];
            driver.send(&sent).unwrap();
            let (header, got) = driver.receive_wait(&mut buffer).unwrap();
            assert_eq!((header, got), (12, len));
            assert_eq!(buffer[12..12 + len], sent);
        }
    }
}

#[test]
fn its_buffered_driver_wraps_the_rings_of_our_device() {
    for offered in [0, EVENT_IDX] {
        let mut driver = VirtIONet::<BouncingHal, _, 16>::new(echo(offered), 2048).unwrap();
        for round in 0..3000_u32 {
            let mut sent = frame(64);
            sent[20..24].copy_from_slice(&round.to_le_bytes());
            let mut packet = driver.new_tx_buffer(64);
            packet.packet_mut().copy_from_slice(&sent);
            driver.send(packet).unwrap();
            let received = driver.receive().unwrap();
            assert_eq!(received.packet(), sent);
            driver.recycle_rx_buffer(received).unwrap();
        }
    }
}
