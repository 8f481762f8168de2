//! The drivers of `virtio-drivers` with the device end of `splitring-virtio`, in one process: its
//! queue with every framing up to a bound, its block and its network driver. Tier: quick.

use std::cell::RefCell;
use std::rc::Rc;

use splitring_tests::arena::{
    self, ArenaRam, BouncingHal, PeerTransport, QueueAddresses, SharedDevice, arena, peer_add,
    peer_pop,
};
use splitring_virtio::device::chain::DescriptorChain;
use splitring_virtio::device::queue::{ActiveQueue, QueueConfig, RingFeatures};
use splitring_virtio::spec::blk::{self, RequestHeader};
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use splitring_virtio::spec::net;
use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
use virtio_drivers::device::net::{VirtIONet, VirtIONetRaw};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::DeviceType;

type OurDevice = ActiveQueue<ArenaRam>;

fn activate(areas: &QueueAddresses, features: u64) -> OurDevice {
    let mut config = QueueConfig::new(areas.size);
    config.set_desc(areas.descriptors);
    config.set_avail(areas.driver);
    config.set_used(areas.device);
    config.set_ready(true);
    config
        .activate(ArenaRam, RingFeatures::from_bits(features))
        .unwrap()
}

/// Serves every chain and publishes once.
fn serve(device: &mut OurDevice, mut answer: impl FnMut(&mut DescriptorChain<ArenaRam>) -> u32) {
    while let Some(mut chain) = device.pop().unwrap() {
        let written = answer(&mut chain);
        device.complete(chain, written);
    }
    let _ = device.publish();
    let _ = device.enable_notification();
}

fn read(chain: &DescriptorChain<ArenaRam>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(chain.readable_len()).unwrap()];
    chain.reader().read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn every_framing_its_queue_makes_is_understood() {
    const SIZE: usize = 8;
    for (indirect, event_idx) in [(false, false), (false, true), (true, false), (true, true)] {
        let peer = SharedDevice::new(DeviceType::Block, 0, Vec::new()).shared();
        let mut transport = PeerTransport::new(&peer);
        let mut queue: VirtQueue<BouncingHal, SIZE> =
            VirtQueue::new(&mut transport, 0, indirect, event_idx).unwrap();
        let features = [(indirect, INDIRECT_DESC), (event_idx, EVENT_IDX)];
        let features = features
            .iter()
            .filter(|it| it.0)
            .fold(0, |all, it| all | it.1);
        let mut device = activate(&peer.borrow().queues[0].1, features);
        for round in 0..40 {
            for out in 0..=SIZE {
                for ins in usize::from(out == 0)..=SIZE - out {
                    exchange(&mut queue, &mut device, out, ins, round);
                }
            }
        }
        assert_eq!(queue.available_desc(), SIZE);
    }
}

/// Sends `out` segments, receives `ins`, and checks both.
fn exchange<const SIZE: usize>(
    queue: &mut VirtQueue<BouncingHal, SIZE>,
    device: &mut OurDevice,
    out: usize,
    ins: usize,
    round: u8,
) {
    // The arena is the memory of the whole process, for both ends.
    thread_local! {
        static READABLE: Vec<&'static [u8]> = (0..8u8).map(|n| {
            let slice = arena().slice(usize::from(n) + 1);
            slice.fill(n + 1);
            &*slice
        }).collect();
        static WRITABLE: RefCell<Vec<&'static mut [u8]>> =
            RefCell::new((0..8).map(|n| arena().slice(n + 1)).collect());
    }
    let readable = READABLE.with(|all| all[..out].to_vec());
    WRITABLE.with_borrow_mut(|writable| {
        let writable = &mut writable[..ins];
        let token = peer_add(queue, &readable, writable).unwrap();
        serve(device, |chain| {
            assert_eq!(read(chain), readable.concat());
            let lengths: Vec<_> = chain.writable().iter().map(|it| it.len()).collect();
            assert_eq!(lengths, (1..=ins).collect::<Vec<_>>());
            let answer = vec![round; usize::try_from(chain.writable_len()).unwrap()];
            chain.writer().write_all(&answer).unwrap();
            u32::try_from(answer.len()).unwrap()
        });
        assert_eq!(queue.peek_used(), Some(token));
        let total = writable.iter().map(|it| it.len()).sum::<usize>();
        let written = peer_pop(queue, token, &readable, writable).unwrap();
        assert_eq!(usize::try_from(written).unwrap(), total);
        assert!(
            writable
                .iter()
                .all(|it| it.iter().all(|byte| *byte == round))
        );
    });
}

/// Returns a disk of 64 sectors, each filled with its number, behind the device end.
fn disk(offered: u64) -> (PeerTransport, Rc<RefCell<Vec<u8>>>) {
    let disk = Rc::new(RefCell::new(
        (0..64u8).flat_map(|n| [n; 512]).collect::<Vec<u8>>(),
    ));
    let config = [64u64.to_le_bytes().to_vec(), vec![0; 56]].concat();
    let peer = SharedDevice::new(DeviceType::Block, offered | VERSION_1, config).shared();
    let mut transport = PeerTransport::new(&peer);
    let bytes = Rc::clone(&disk);
    let mut device = None;
    transport.doorbell = Box::new(move |_| {
        let peer = peer.borrow();
        let device = device.get_or_insert_with(|| activate(&peer.queues[0].1, peer.accepted));
        serve(device, |chain| block(chain, &mut bytes.borrow_mut()));
    });
    (transport, disk)
}

fn block(chain: &mut DescriptorChain<ArenaRam>, disk: &mut [u8]) -> u32 {
    let mut reader = chain.reader();
    let header: RequestHeader = reader.read_obj().unwrap();
    let mut data = vec![0; usize::try_from(reader.remaining()).unwrap()];
    reader.read_exact(&mut data).unwrap();
    let at = usize::try_from(header.sector.get()).unwrap() * 512;
    let room = usize::try_from(chain.writable_len()).unwrap() - 1;
    let mut status = blk::status::OK;
    let mut writer = chain.writer();
    match header.kind.get() {
        blk::request::IN if at + room <= disk.len() => {
            writer.write_all(&disk[at..at + room]).unwrap();
        }
        blk::request::OUT if at + data.len() <= disk.len() => {
            disk[at..at + data.len()].copy_from_slice(&data);
        }
        blk::request::FLUSH => {}
        blk::request::GET_ID => writer
            .write_all(b"interop\0\0\0\0\0\0\0\0\0\0\0\0\0")
            .unwrap(),
        _ => {
            writer.write_zeroes(u64::try_from(room).unwrap()).unwrap();
            status = blk::status::IOERR;
        }
    }
    writer.write_all(&[status]).unwrap();
    u32::try_from(writer.written()).unwrap()
}

#[test]
fn its_block_driver_reads_writes_flushes_and_identifies() {
    for offered in [0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX] {
        let (transport, disk) = disk(offered | blk::feature::FLUSH);
        let mut driver = VirtIOBlk::<BouncingHal, _>::new(transport).unwrap();
        assert_eq!((driver.capacity(), driver.readonly()), (64, false));
        for sector in 0..60 {
            let mut bytes = [0xff; 2048];
            driver.read_blocks(sector, &mut bytes).unwrap();
            let firsts = [bytes[0], bytes[512], bytes[1024], bytes[2047]];
            let number = u8::try_from(sector).unwrap();
            assert_eq!(firsts, [number, number + 1, number + 2, number + 3]);
        }
        driver.write_blocks(62, &[0xaa; 1024]).unwrap();
        assert_eq!(
            disk.borrow()[61 * 512..],
            [[61; 512], [0xaa; 512], [0xaa; 512]].concat()
        );
        assert!(
            driver.read_blocks(63, &mut [0; 1024]).is_err(),
            "past the end"
        );
        driver.flush().unwrap();
        let mut id = [0; 20];
        assert_eq!(driver.device_id(&mut id).unwrap(), 7);
        assert_eq!(&id[..7], b"interop");
    }
}

#[test]
fn requests_of_its_block_driver_are_in_flight_together() {
    let (transport, _disk) = disk(EVENT_IDX | INDIRECT_DESC);
    let mut driver = VirtIOBlk::<BouncingHal, _>::new(transport).unwrap();
    let mut requests: Vec<_> = (0..8).map(|_| BlkReq::default()).collect();
    let mut responses: Vec<_> = (0..8).map(|_| BlkResp::default()).collect();
    let mut data: Vec<&'static mut [u8]> = (0..8).map(|_| arena().slice(512)).collect();
    let mut tokens = Vec::new();
    let each = requests.iter_mut().zip(&mut responses).zip(&mut data);
    for (sector, ((request, response), data)) in each.enumerate() {
        let token = arena::read_begin(&mut driver, sector, request, data, response);
        tokens.push(token.unwrap());
    }
    let each = requests
        .iter()
        .zip(&mut responses)
        .zip(&mut data)
        .zip(&tokens);
    for (sector, (((request, response), data), token)) in each.enumerate() {
        arena::read_complete(&mut driver, *token, request, data, response).unwrap();
        assert_eq!(data[511], u8::try_from(sector).unwrap());
    }
}

/// Returns a network device that echoes every packet, once there is a buffer for it.
fn echo(offered: u64) -> PeerTransport {
    let config = [[2, 0, 0, 0, 0, 9].to_vec(), vec![1, 0, 1, 0, 0xdc, 5]].concat();
    let offered = offered | VERSION_1 | net::feature::MAC | net::feature::STATUS;
    let peer = SharedDevice::new(DeviceType::Network, offered, config).shared();
    let mut transport = PeerTransport::new(&peer);
    let mut queues: Option<[OurDevice; 2]> = None;
    let mut waiting: Vec<Vec<u8>> = Vec::new();
    transport.doorbell = Box::new(move |_| {
        let peer = peer.borrow();
        let [receive, transmit] = queues.get_or_insert_with(|| {
            [0, 1].map(|index| {
                let found = peer.queues.iter().find(|it| it.0 == index).unwrap();
                activate(&found.1, peer.accepted)
            })
        });
        serve(transmit, |chain| {
            waiting.push(read(chain));
            0
        });
        while !waiting.is_empty()
            && let Some(mut chain) = receive.pop().unwrap()
        {
            let mut packet = waiting.remove(0);
            packet[10..12].copy_from_slice(&1u16.to_le_bytes());
            chain.writer().write_all(&packet).unwrap();
            receive.complete(chain, u32::try_from(packet.len()).unwrap());
        }
        let _ = receive.publish();
        let _ = receive.enable_notification();
    });
    transport
}

#[test]
fn its_raw_network_driver_sends_and_receives() {
    for offered in [0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX] {
        let mut driver = VirtIONetRaw::<BouncingHal, _, 16>::new(echo(offered)).unwrap();
        assert_eq!(driver.mac_address(), [2, 0, 0, 0, 0, 9]);
        for len in [1usize, 60, 1514] {
            let packet: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0]).collect();
            driver.send(&packet).unwrap();
            let mut buffer = vec![0; 2048];
            let (header, got) = driver.receive_wait(&mut buffer).unwrap();
            assert_eq!((header, got), (12, len));
            assert_eq!(buffer[12..12 + len], packet);
        }
    }
}

#[test]
fn its_buffered_network_driver_wraps_its_rings() {
    let mut driver = VirtIONet::<BouncingHal, _, 16>::new(echo(EVENT_IDX), 2048).unwrap();
    for round in 0..5000u32 {
        let mut packet = driver.new_tx_buffer(64);
        packet.packet_mut()[..4].copy_from_slice(&round.to_le_bytes());
        driver.send(packet).unwrap();
        let received = driver.receive().unwrap();
        assert_eq!(received.packet_len(), 64);
        assert_eq!(received.packet()[..4], round.to_le_bytes());
        driver.recycle_rx_buffer(received).unwrap();
    }
}
