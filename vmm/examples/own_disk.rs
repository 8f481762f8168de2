//! A custom disk: each sector contains its own number, and writes fail. Prints how much the guest
//! read.
//!
//! `cargo run --example own_disk -- KERNEL`; a last argument `any-kvm` also allows a KVM without
//! hardware virtualisation.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use splitring::config::DiskConfig;
use splitring::disk::{
    Disk, DiskError, DiskOp, DiskQueue, Geometry, IoFault, Memory, Perform, Ram, SECTOR, queue_of,
};
use splitring::{Console, Machine, Resources, VmConfig};

/// Size of the disk in bytes.
const CAPACITY: u64 = 1 << 30;

/// A disk in which each sector is filled with its own number.
#[derive(Default)]
struct Numbers {
    served: Arc<AtomicU64>,
}

impl Disk for Numbers {
    fn geometry(&self) -> Geometry {
        Geometry::new(CAPACITY).read_only(true)
    }

    fn open_queue(&self, ram: Ram, _: u16, depth: u16) -> Result<Box<dyn DiskQueue>, DiskError> {
        let stream = Stream {
            memory: Memory::new(ram),
            served: Arc::clone(&self.served),
        };
        // Requests never block here; a disk whose requests block uses `queue_on_thread`.
        Ok(queue_of(stream, depth))
    }
}

/// The requests of one queue.
struct Stream {
    memory: Memory,
    served: Arc<AtomicU64>,
}

impl Perform for Stream {
    fn perform(&mut self, op: DiskOp<'_>) -> Result<u64, IoFault> {
        let DiskOp::Read { offset, data } = op else {
            return match op {
                DiskOp::Flush => Ok(0),
                DiskOp::Write { .. } => Err(IoFault::ReadOnly),
                _ => Err(IoFault::Unsupported),
            };
        };
        let len = self.memory.load(data)?;
        let end = offset.checked_add(len).ok_or(IoFault::OutOfRange)?;
        if end > CAPACITY {
            return Err(IoFault::OutOfRange);
        }
        for number in offset / SECTOR..end.div_ceil(SECTOR) {
            let word = number.to_le_bytes();
            let sector: Vec<u8> = word.into_iter().cycle().take(512).collect();
            self.memory.store(&sector);
        }
        self.served.fetch_add(len, Ordering::Relaxed);
        Ok(len)
    }

    fn release(&mut self) -> Option<Vec<u8>> {
        self.memory.release()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let kernel = args.next().ok_or("usage: own_disk KERNEL [any-kvm]")?;
    let any_kvm = args.next().is_some();

    let disk = Numbers::default();
    let served = Arc::clone(&disk.served);
    // The path is only a name.
    let config =
        VmConfig::new(kernel).disk(DiskConfig::new("numbers").id("numbers").readonly(true));
    let resources = Resources::options()
        .disk("numbers", Arc::new(disk))
        .console(Console::stdout()?)
        .any_kvm(any_kvm)
        .open(&config)?;
    let machine = Machine::new(config, resources)?;
    machine.start()?;
    for device in machine.pci_devices() {
        println!("{} is at {}", device.id, device.address());
    }
    let reason = machine.wait();
    println!(
        "ended: {reason}; {} bytes served",
        served.load(Ordering::Relaxed)
    );
    Ok(())
}
