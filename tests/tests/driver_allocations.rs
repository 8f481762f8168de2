//! The driver end allocates at set-up and never again: counted for buffers of every framing, block
//! requests, commands and packets. Tier: quick.

use splitring_tests::arena::{ArenaRam, arena};
use splitring_tests::counting::{CountingAllocator, allocations};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

use splitring_virtio::device::queue::{ActiveQueue, QueueConfig, RingFeatures};
use splitring_virtio::driver::blk::{Bio, Blk, Info, Transfer, Work};
use splitring_virtio::driver::net::{self, ReceiveMode, Receiver, Transmitter};
use splitring_virtio::driver::scsi::{self, Command, Lun, RequestQueue};
use splitring_virtio::driver::{
    DeviceId, Identity, IndirectPolicy, Queue, QueueAreas, QueueOptions,
};
use splitring_virtio::scatterlist::ScatterList;
use splitring_virtio::spec;
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC};

const RING: u64 = EVENT_IDX | INDIRECT_DESC;

fn queue<T>(policy: IndirectPolicy) -> Queue<T, Identity> {
    let options = QueueOptions::new(64, RING).tables(32).policy(policy);
    let memory = arena().bytes(options.memory_len());
    Queue::new(options, memory, Identity, &DeviceId::new()).unwrap()
}

fn device(areas: QueueAreas) -> ActiveQueue<ArenaRam> {
    let mut config = QueueConfig::new(areas.size);
    config.set_desc(areas.descriptors);
    config.set_avail(areas.driver);
    config.set_used(areas.device);
    config.set_ready(true);
    config
        .activate(ArenaRam, RingFeatures::from_bits(RING))
        .unwrap()
}

/// Uses all available buffers, and fills them with zeroes.
fn serve(device: &mut ActiveQueue<ArenaRam>) {
    while let Some(mut chain) = device.pop().unwrap() {
        let room = chain.writable_len();
        chain.writer().write_zeroes(room).unwrap();
        device.complete(chain, u32::try_from(room).unwrap());
    }
    let _ = device.publish();
}

fn list(pieces: usize, len: usize) -> ScatterList {
    ScatterList::from_buffers((0..pieces).map(|_| arena().bytes(len)))
}

/// Runs `round` until everything has reached its final size, then counts.
fn steady(mut round: impl FnMut()) -> u64 {
    (0..3).for_each(|_| round());
    allocations(|| (0..200).for_each(|_| round()))
}

#[test]
fn the_allocator_counts() {
    assert_eq!(allocations(|| drop(Box::new(1))), 1);
}

#[test]
fn adding_and_reaping_never_allocates() {
    use IndirectPolicy::{Always, Auto, Never, Rfc};
    for policy in [Never, Always, Rfc, Auto] {
        let mut queue = queue::<Box<[ScatterList; 2]>>(policy);
        let mut device = device(queue.areas());
        let shapes = [(1, 0), (0, 1), (1, 2), (4, 4), (1, 15)];
        let token = |(out, ins)| Box::new([list(out, 16), list(ins, 16)]);
        let mut spare: Vec<_> = shapes.into_iter().map(token).collect();
        let count = steady(|| {
            while let Some(token) = spare.pop() {
                let mut buffer = queue.start_buf(token, 16, 2).map_err(|it| it.why).unwrap();
                buffer.add_sg(|token| &token[0], 16).unwrap();
                let mut buffer = buffer.writable();
                buffer.add_sg(|token| &token[1], 16).unwrap();
                buffer.end_buf().map_err(|it| it.why).unwrap();
            }
            let _ = queue.publish();
            serve(&mut device);
            while let Some(done) = queue.pop().unwrap() {
                spare.push(done.token);
            }
            assert_eq!(spare.len(), 5);
        });
        assert_eq!(count, 0, "{policy:?}");
    }
}

#[test]
fn block_requests_never_allocate() {
    let queue = queue(IndirectPolicy::Auto);
    let mut device = device(queue.areas());
    let config = spec::blk::Config {
        capacity: 1000.into(),
        seg_max: 8.into(),
        ..Default::default()
    };
    let features = spec::blk::feature::SEG_MAX | spec::blk::feature::FLUSH;
    let info = Info::new(&config, features);
    let frames = arena().bytes(64 * Blk::<splitring_virtio::driver::DmaBytes>::frame_len(2));
    let mut blk = Blk::new(queue, frames, 2, info);
    let mut spare: Vec<_> = (0..8).map(|n| list(n % 4 + 1, 512)).collect();
    let count = steady(|| {
        while let Some(data) = spare.pop() {
            let bio = Bio {
                transfer: Transfer::Read,
                sector: 0,
                data,
            };
            blk.bio(7, bio).map_err(|it| it.why).unwrap();
        }
        blk.flush(1).map_err(|it| it.why).unwrap();
        blk.get_id(2).map_err(|it| it.why).unwrap();
        let _ = blk.publish();
        serve(&mut device);
        while let Some(done) = blk.poll().unwrap() {
            assert!(done.result.is_ok());
            if let Work::Bio(bio) = done.work {
                spare.push(bio.data);
            }
        }
        assert_eq!(spare.len(), 8);
    });
    assert_eq!(count, 0);
}

#[test]
fn commands_never_allocate() {
    let queue = queue(IndirectPolicy::Auto);
    let mut device = device(queue.areas());
    let config = spec::scsi::Config {
        seg_max: 8.into(),
        ..Default::default()
    };
    let frames = arena().bytes(64 * scsi::FRAME_LEN);
    let mut driver = RequestQueue::new(queue, frames, &config);
    let mut spare: Vec<_> = (0..8).map(|_| (list(2, 64), list(3, 64))).collect();
    let lun = Lun { target: 0, unit: 0 };
    let count = steady(|| {
        while let Some((data_out, data_in)) = spare.pop() {
            let command = Command::new(lun, &[0x28])
                .data_out(data_out)
                .data_in(data_in);
            driver.submit(1, command).map_err(|it| it.1).unwrap();
        }
        let _ = driver.publish();
        serve(&mut device);
        while let Some(done) = driver.poll().unwrap() {
            spare.push((done.command.data_out, done.command.data_in));
        }
        assert_eq!(spare.len(), 8);
    });
    assert_eq!(count, 0);
}

#[test]
fn packets_never_allocate() {
    let mut sender = Transmitter::new(
        queue(IndirectPolicy::Auto),
        arena().bytes(64 * net::FRAME_LEN),
        4,
    );
    let mut out = device(sender.areas());
    let frames = arena().bytes(64 * net::FRAME_LEN);
    let mut receiver = Receiver::new(queue(IndirectPolicy::Auto), frames, ReceiveMode::Small);
    let mut incoming = device(receiver.areas());
    for _ in 0..8 {
        receiver.add(list(2, 1024)).map_err(|it| it.1).unwrap();
    }
    let _ = receiver.publish();
    let mut pieces: Vec<_> = (0..12).map(|_| arena().bytes(256)).collect();
    let count = steady(|| {
        for tag in 0..4 {
            let packet = [
                pieces.pop().unwrap(),
                pieces.pop().unwrap(),
                pieces.pop().unwrap(),
            ];
            sender
                .send(tag, &spec::net::Header::default(), packet, |_| ())
                .unwrap();
        }
        let _ = sender.publish();
        serve(&mut out);
        while sender.reap(|piece| pieces.push(piece)).unwrap().is_some() {}
        assert_eq!(pieces.len(), 12);

        serve(&mut incoming);
        let mut came = 0;
        while let Some(mut packet) = receiver.receive().unwrap() {
            packet.for_each(|piece| came += piece.len());
        }
        assert_eq!(came, 8 * 2048);
        receiver.refill().unwrap();
        let _ = receiver.publish();
    });
    assert_eq!(count, 0);
}
