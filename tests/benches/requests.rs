//! The cost of a request in the device alone: a driver on the same thread with 32 requests in
//! flight, over a disk that moves no data. virtio-blk and virtio-scsi side by side.
//!
//! `cargo bench --package splitring-tests --bench requests` prints instructions per request between
//! the doorbell and the used ring, counted by valgrind, and finally the ratio. `requests --count
//! DEVICE ROUNDS` runs one case and nothing else.

use std::process::Command;
use std::sync::Arc;

use splitring_devices::blk::Blk as BlkDevice;
use splitring_devices::disk::doubles::MemoryDisk;
use splitring_devices::disk::{Disk, NullDisk};
use splitring_devices::scsi::{Scsi, ScsiConfig, UnitConfig};
use splitring_tests::machine::TestMachine;
use splitring_virtio::driver::blk::{self, Bio, Blk, Info, Transfer};
use splitring_virtio::driver::scsi::{
    self, CONTROL_FRAME_LEN, ControlQueue, EVENT_FRAME_LEN, EventQueue, FRAME_LEN, Lun,
    RequestQueue,
};
use splitring_virtio::driver::{DeviceId, DmaBytes, Identity, Queue, QueueOptions};
use splitring_virtio::scatterlist::ScatterList;
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1};

const DEPTH: usize = 32;
const SIZE: u16 = 128;
const BLOCK: usize = 4096;
const CAPACITY: u64 = 1 << 30;
/// Numbers of rounds with [`DEPTH`] requests each. The difference of the two is measured.
const ROUNDS: [u32; 2] = [20, 120];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, device, rounds] = args.as_slice()
        && flag == "--count"
    {
        return count(device, rounds.parse().expect("a number of rounds"));
    }
    let figures = ["blk-read", "scsi-read", "blk-write", "scsi-write"].map(|name| {
        let figure = instructions(name);
        println!("{name:<12} {figure:>8.0} instructions per request");
        figure
    });
    let [blk_read, scsi_read, blk_write, scsi_write] = figures;
    println!(
        "scsi of blk: read {:.2}, write {:.2}",
        scsi_read / blk_read,
        scsi_write / blk_write
    );
}

fn count(device: &str, rounds: u32) {
    let disk: Arc<dyn Disk> = Arc::new(NullDisk::new(MemoryDisk::new(CAPACITY).geometry()));
    match device {
        "blk-read" => blk_rounds(disk, Transfer::Read, rounds),
        "blk-write" => blk_rounds(disk, Transfer::Write, rounds),
        "scsi-read" => scsi_rounds(disk, 0x28, rounds),
        "scsi-write" => scsi_rounds(disk, 0x2a, rounds),
        other => panic!("no case {other}"),
    }
}

/// Returns a queue in the machine's memory.
fn queue<P>(machine: &mut TestMachine, size: u16, features: u64, id: &DeviceId) -> Queue<P> {
    let options = QueueOptions::new(size, features).tables(size);
    let memory = machine.bytes(options.memory_len(), 64);
    Queue::new(options, memory, Identity, id).expect("a queue")
}

fn blk_rounds(disk: Arc<dyn Disk>, transfer: Transfer, rounds: u32) {
    let mut machine = TestMachine::new(BlkDevice::new("disk0", disk, 1, SIZE, "bench"));
    let features = machine.device.features() | EVENT_IDX | INDIRECT_DESC | VERSION_1;
    let ring = queue(&mut machine, SIZE, features, &DeviceId::new());
    let info = Info::new(&machine.config(), features & blk::FEATURES);
    let frames = machine.bytes(Blk::<DmaBytes>::frame_len(1) * usize::from(SIZE), 64);
    let mut driver = Blk::new(ring, frames, 1, info);
    machine.start(features, &[driver.areas()]);
    for _ in 0..rounds {
        for tag in 0..DEPTH {
            let data = ScatterList::from_buffers(vec![machine.lend(BLOCK)]);
            let sector = (tag * BLOCK / 512) as u64;
            let bio = Bio {
                transfer,
                sector,
                data,
            };
            driver.bio(tag as u64, bio).expect("room");
        }
        let _ = driver.publish();
        machine.run_queue(0);
        for _ in 0..DEPTH {
            driver.poll().expect("a whole queue").expect("done");
        }
        machine.collect();
    }
}

fn scsi_rounds(disk: Arc<dyn Disk>, opcode: u8, rounds: u32) {
    /// The first request queue.
    const REQUESTS: u16 = 2;
    /// Size of the control and the event queue.
    const SMALL: u16 = 16;
    let lun = Lun { target: 0, unit: 0 };
    let device = Scsi::new(
        &ScsiConfig::new("scsi0"),
        vec![(UnitConfig::new("disk0"), disk)],
    );
    let mut machine = TestMachine::new(device.expect("a controller"));
    let features = machine.device.features() | EVENT_IDX | INDIRECT_DESC | VERSION_1;
    let config = machine.config();
    let id = DeviceId::new();
    let ring = queue(&mut machine, SMALL, features, &id);
    let frames = usize::from(SMALL);
    let control = ControlQueue::new(ring, machine.bytes(CONTROL_FRAME_LEN * frames, 64));
    let ring = queue(&mut machine, SMALL, features, &id);
    let events = EventQueue::new(ring, machine.bytes(EVENT_FRAME_LEN * frames, 64));
    let ring = queue(&mut machine, SIZE, features, &id);
    let frames = machine.bytes(FRAME_LEN * usize::from(SIZE), 64);
    let mut driver = RequestQueue::new(ring, frames, &config);
    machine.start(features, &[control.areas(), events.areas(), driver.areas()]);
    // The first command reports the power-on.
    driver
        .submit(0, scsi::Command::new(lun, &[0; 6]))
        .expect("room");
    let _ = driver.publish();
    machine.run();
    driver.poll().expect("a whole queue").expect("done");
    for _ in 0..rounds {
        for tag in 0..DEPTH {
            let block = u32::try_from(tag * BLOCK / 512)
                .expect("small")
                .to_be_bytes();
            let mut cdb = [opcode, 0, 0, 0, 0, 0, 0, 0, 8, 0];
            cdb[2..6].copy_from_slice(&block);
            let data = ScatterList::from_buffers(vec![machine.lend(BLOCK)]);
            let command = scsi::Command::new(lun, &cdb);
            let command = match opcode {
                0x28 => command.data_in(data),
                _ => command.data_out(data),
            };
            driver.submit(tag as u64, command).expect("room");
        }
        let _ = driver.publish();
        machine.run_queue(REQUESTS);
        for _ in 0..DEPTH {
            let done = driver.poll().expect("a whole queue").expect("done");
            assert!(done.response.good(), "{:?}", done.response);
        }
        machine.collect();
    }
}

/// Returns instructions per request, from the difference of two runs of different lengths.
fn instructions(device: &str) -> f64 {
    let [few, many] = ROUNDS.map(|rounds| collected(device, rounds));
    let requests = f64::from(ROUNDS[1] - ROUNDS[0]) * DEPTH as f64;
    (many - few) / requests
}

/// Returns the instructions in the device for this number of rounds.
fn collected(device: &str, rounds: u32) -> f64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*Machine*run_queue*")
        .arg(std::env::current_exe().expect("a path"))
        .args(["--count", device, &rounds.to_string()])
        .output()
        .expect("valgrind runs; install the package valgrind");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("Collected :"));
    let count = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    count.unwrap_or_else(|| panic!("{device}: {text}"))
}
