//! The commands that free and zero blocks, sent by a guest's driver in this process.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use splitring_devices::blk::Blk as Device;
use splitring_devices::disk;
use splitring_devices::disk::config::DiskConfig;
use splitring_devices::scsi::{Scsi, ScsiConfig, UnitConfig};
use splitring_tests::machine::TestMachine;
use splitring_tests::scsi::{Answer, ScsiGuest};
use splitring_virtio::driver::blk::{self, Blk, Info};
use splitring_virtio::driver::{DeviceId, DmaBytes, Identity, Queue, QueueOptions};
use splitring_virtio::spec::blk::{Config, Range};
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1};

/// How long the host may take over a command.
const PATIENCE: Duration = Duration::from_secs(120);
const QUEUE: u16 = 16;
const BLOCK: u64 = 512;

/// A command, without its range.
#[derive(Clone, Copy, Debug)]
pub(super) enum Command {
    Unmap,
    WriteSame { unmap: bool },
    Discard,
    WriteZeroes { unmap: bool },
}

impl Command {
    /// Whether its range reads as zeroes afterwards, wherever it is.
    pub(super) fn zeroes(self) -> bool {
        matches!(self, Self::WriteSame { .. } | Self::WriteZeroes { .. })
    }
}

/// A driver and its device.
pub(super) enum Session {
    Scsi(Box<ScsiGuest>),
    Blk {
        driver: Box<Blk>,
        machine: Box<TestMachine>,
    },
}

impl Session {
    /// A controller with the image at `path` as its disk.
    pub(super) fn scsi(path: &Path) -> Self {
        let disk = disk::open_shared(&DiskConfig::new(path), 1).expect("opened");
        let units = vec![(UnitConfig::new("disk"), disk)];
        let scsi = Scsi::new(&ScsiConfig::new("scsi0"), units).expect("a controller");
        Self::Scsi(Box::new(ScsiGuest::settled(scsi)))
    }

    /// A block device of the image at `path`.
    pub(super) fn blk(path: &Path) -> Self {
        let disk = disk::open(&DiskConfig::new(path)).expect("opened");
        let device = Device::new("disk", disk, 1, QUEUE, "");
        let mut machine = TestMachine::of(Arc::new(device));
        let features = machine.device.features() | EVENT_IDX | INDIRECT_DESC | VERSION_1;
        let options = QueueOptions::new(QUEUE, features).tables(QUEUE);
        let ring = machine.bytes(options.memory_len(), 64);
        let queue = Queue::new(options, ring, Identity, &DeviceId::new()).expect("a queue");
        // Lengths that the device refuses are to reach it.
        let mut config: Config = machine.config();
        (config.max_discard_sectors, config.max_write_zeroes_sectors) =
            (u32::MAX.into(), u32::MAX.into());
        let info = Info::new(&config, features & blk::FEATURES);
        let frame_len = Blk::<DmaBytes>::frame_len(1);
        let frames = machine.bytes(frame_len * usize::from(QUEUE), 64);
        let driver = Blk::new(queue, frames, 1, info);
        machine.start(features & blk::FEATURES, &[driver.areas()]);
        Self::Blk {
            driver: Box::new(driver),
            machine: Box::new(machine),
        }
    }

    /// The command of this device that frees.
    pub(super) fn free(&self) -> Command {
        match self {
            Self::Scsi(_) => Command::Unmap,
            Self::Blk { .. } => Command::Discard,
        }
    }

    /// The command of this device that zeroes.
    pub(super) fn zero(&self, unmap: bool) -> Command {
        match self {
            Self::Scsi(_) => Command::WriteSame { unmap },
            Self::Blk { .. } => Command::WriteZeroes { unmap },
        }
    }

    /// Has it done.
    #[track_caller]
    pub(super) fn good(&mut self, command: Command, start: u64, len: u64) {
        match self {
            Self::Scsi(guest) => drop(scsi(guest, command, start, len).expect_good()),
            Self::Blk { driver, machine } => {
                let done = run(driver, machine, command, start, len);
                assert!(done, "{command:?} failed");
            }
        }
    }

    /// Has it refused, because it is too long.
    #[track_caller]
    pub(super) fn refused(&mut self, command: Command, start: u64, len: u64) {
        match self {
            Self::Scsi(guest) => scsi(guest, command, start, len).expect_sense(0x05, 0x24, 0),
            Self::Blk { driver, machine } => {
                let done = run(driver, machine, command, start, len);
                assert!(!done, "{command:?} was done");
            }
        }
    }

    /// What the device says of itself.
    #[track_caller]
    pub(super) fn assert_reports(&mut self, reads_zero: bool, may_unmap: bool) {
        match self {
            Self::Scsi(guest) => {
                let read_capacity = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
                let capacity = guest.to(&read_capacity, &[], 32).expect_good().data;
                let page = guest.to(&[0x12, 1, 0xb2, 0, 64, 0], &[], 64).expect_good();
                // LBPRZ of both, and that it is provisioned at all.
                let seen = (capacity[14] & 0xc0, page.data[5] & 0x84);
                let expected = if reads_zero {
                    (0xc0, 0x84)
                } else {
                    (0x80, 0x80)
                };
                assert_eq!(seen, expected);
            }
            Self::Blk { machine, .. } => {
                let config: Config = machine.config();
                assert_eq!(config.write_zeroes_may_unmap, u8::from(may_unmap));
            }
        }
    }
}

fn scsi(guest: &mut ScsiGuest, command: Command, start: u64, len: u64) -> Answer {
    let (lba, blocks) = (
        start / BLOCK,
        u32::try_from(len / BLOCK).expect("one command"),
    );
    match command {
        Command::Unmap => {
            let mut list = vec![0; 24];
            (list[1], list[3]) = (22, 16);
            list[8..16].copy_from_slice(&lba.to_be_bytes());
            list[16..20].copy_from_slice(&blocks.to_be_bytes());
            guest.to(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0)
        }
        Command::WriteSame { unmap } => {
            let mut cdb = [0; 16];
            (cdb[0], cdb[1]) = (0x93, u8::from(unmap) << 3);
            cdb[2..10].copy_from_slice(&lba.to_be_bytes());
            cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
            guest.to(&cdb, &[0; 512], 0)
        }
        _ => unreachable!("no command of SCSI"),
    }
}

/// Whether the device did it.
fn run(
    driver: &mut Blk,
    machine: &mut TestMachine,
    command: Command,
    start: u64,
    len: u64,
) -> bool {
    let unmap = matches!(command, Command::WriteZeroes { unmap: true });
    let range = Range {
        sector: (start / BLOCK).into(),
        num_sectors: u32::try_from(len / BLOCK).expect("one command").into(),
        flags: u32::from(unmap).into(),
    };
    let submitted = match command {
        Command::Discard => driver.discard(1, &[range]),
        Command::WriteZeroes { .. } => driver.write_zeroes(1, &[range]),
        _ => unreachable!("no command of a block device"),
    };
    submitted.expect("submitted");
    let _ = driver.publish();
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        machine.run();
        if let Some(done) = driver.poll().expect("a whole queue") {
            return done.result.is_ok();
        }
    }
    panic!("{command:?} does not come back");
}
